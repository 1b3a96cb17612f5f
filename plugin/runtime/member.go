// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/flight"
	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/process"
	"github.com/berthd/berth/plugin/runtime/record"
)

// CreateContainer makes a container, which waits to be started, and a pod for it if
// none is named. After an error nothing is left. Names and repeated requests are as
// with CreatePod.
func (s *Service) CreateContainer(ctx context.Context, r ContainerRequest) (Container, error) {
	if err := r.validate(); err != nil {
		return Container{}, err
	}
	ctx = s.in(ctx)
	return flight.Join(ctx, &s.flights, r, func(ctx context.Context) (Container, error) {
		if err := s.createMember(ctx, &r, &fresh{s}); err != nil {
			return Container{}, err
		}
		return s.Container(ctx, string(r.ID))
	})
}

// origin is where a container's processes come from: they are new, or a
// checkpoint's.
type origin interface {
	// spec makes the specification.
	spec(ctx context.Context, m *newMember, c *record.Creation) (*specs.Spec, error)
	// create makes the task, for which there are records and directories.
	create(ctx context.Context, m *newMember, c *process.Container) error
}

// newMember is a container that is being made.
type newMember struct {
	*ContainerRequest
	handler *handler.Handler
	pod     *foundPod
	podSpec *specs.Spec // that of the pod's infra container
	name    string      // the unique one
	logPath string
}

// createMember makes a container, whose ID is in the request then.
func (s *Service) createMember(ctx context.Context, r *ContainerRequest, from origin) (err error) {
	if err := s.recoverNow(ctx); err != nil {
		return err
	}
	if r.ID == "" {
		r.ID = ContainerID(newID())
	}
	if r.Name == "" {
		const few = 12
		r.Name = string(r.ID[:min(few, len(r.ID))])
	}
	making, err := s.begin(string(r.ID), taskContainer)
	if err != nil {
		return fmt.Errorf("create container %s: %w", r.Name, err)
	}
	defer func() { making.end(ctx, err) }()
	m := &newMember{ContainerRequest: r}
	if err := s.intoPod(ctx, m, making); err != nil {
		return fmt.Errorf("create container %s: %w", r.Name, err)
	}
	request, err := s.memberRecord(ctx, m, from)
	if err != nil {
		return fmt.Errorf("create container %s: %w", r.Name, err)
	}
	calls, cancel := s.uncut(ctx)
	defer cancel()
	c, err := s.records.CreateContainer(calls, request)
	if err != nil {
		return fmt.Errorf("container %s: %w", r.Name, err)
	}
	making.add("records", func(ctx context.Context) error { c.Abort(ctx); return nil })
	if err = s.noteMember(m.pod.ID, string(m.ID), making); err == nil && ctx.Err() == nil {
		err = s.makeTask(calls, m, c, from, making)
	}
	if err = cmp.Or(err, ctx.Err()); err != nil {
		return fmt.Errorf("create container %s: %w", r.Name, err)
	}
	return c.Commit(calls)
}

// intoPod finds the container's pod, or makes one.
func (s *Service) intoPod(ctx context.Context, m *newMember, making *making) (err error) {
	if m.Pod == "" {
		p := m.NewPod
		p.madeFor = m.ID
		if p.Name == "" {
			p.Name = m.Name
		}
		if err := p.validate(); err != nil {
			return err
		}
		id, err := s.createPod(ctx, p)
		if err != nil {
			return err
		}
		m.Pod = string(id)
		making.add("pod", func(ctx context.Context) error {
			return s.RemovePod(ctx, string(id), RemoveOptions{Force: true})
		})
	}
	if m.pod, err = s.glance(ctx, m.Pod); err != nil {
		return err
	}
	if err := refuse("pod", &m.pod.Entry, false); err != nil {
		return err
	}
	if m.pod.Err != nil {
		return m.pod.Err
	}
	if err := s.mend(ctx, m.pod); err != nil {
		return err
	}
	if state := s.podState(m.pod.view, m.pod.PodEntry); state != PodReady {
		return fmt.Errorf("pod %s is %s: %w", m.pod.ID, state, errdefs.ErrFailedPrecondition)
	}
	infra, found := m.pod.view.containers[m.pod.ID]
	if !found {
		return fmt.Errorf("pod %s has lost its record, and with it its settings: it takes no new containers: %w", m.pod.ID, errdefs.ErrFailedPrecondition)
	}
	if m.podSpec, err = s.podSpec(&infra, m.pod.Infra); err != nil {
		return err
	}
	if m.podSpec.Linux == nil {
		return fmt.Errorf("specification of pod %s: nothing of Linux: %w", m.pod.ID, errdefs.ErrDataLoss)
	}
	settings := &m.pod.Metadata.Settings
	if m.handler, err = s.config.Handlers.Choose(settings.RuntimeHandler); err != nil {
		return err
	}
	if err := s.supports(m); err != nil {
		return err
	}
	m.place(m.pod.Metadata.Pod, settings)
	return m.handler.CheckMemory(m.Resources.Memory)
}

// place gives the container its unique name and its log a place.
func (m *newMember) place(pod labels.Pod, settings *labels.Settings) {
	switch {
	case pod.UID != "":
		m.name = pod.ContainerName(m.Name, m.Attempt)
	default:
		m.name = pod.FullName + "/" + m.Name
	}
	if pod.UID == "" && m.Attempt > 0 {
		m.name += "_" + m.Attempt.String()
	}
	switch {
	case m.NoLog:
	case m.LogPath == "":
		m.logPath = filepath.Join(settings.LogDirectory, m.Name, m.Attempt.String()+".log")
	case filepath.IsAbs(m.LogPath):
		m.logPath = m.LogPath
	default:
		m.logPath = filepath.Join(settings.LogDirectory, m.LogPath)
	}
}

func (s *Service) memberRecord(ctx context.Context, m *newMember, from origin) (*record.CreateContainer, error) {
	run, err := runtimeOf(m.handler, handler.Use{Platform: m.Platform, ExitDir: s.exitDir()})
	if err != nil {
		return nil, err
	}
	path, err := m.handler.PlatformPath(m.Platform)
	if err != nil {
		return nil, err
	}
	image, err := m.image()
	if err != nil {
		return nil, err
	}
	annotations, stripped := m.handler.Annotations(m.Annotations)
	if len(stripped) > 0 {
		log.G(ctx).WithField("container", m.ID).WithField("annotations", stripped).Warn("annotations that the runtime handler does not allow")
	}
	m.Annotations = annotations
	settings := labels.Settings{
		StopSignal: m.StopSignal, LogPath: m.logPath, Stdin: m.Stdin, StdinOnce: m.StdinOnce, Terminal: m.TTY, User: m.User,
		SeccompProfile: m.Security.Seccomp, RuntimeHandler: m.handler.Name, RestoredFrom: m.restoredFrom,
	}
	if path != m.handler.Path {
		settings.RuntimePath = path
	}
	for i := range m.Mounts {
		settings.Volumes = append(settings.Volumes, m.Mounts[i].volume())
	}
	return &record.CreateContainer{
		PodName: m.pod.Metadata.Pod.FullName, PodID: m.pod.ID, ID: string(m.ID), Name: m.name, MetadataName: m.Name, Attempt: m.Attempt,
		Image: image, SELinux: m.Security.SELinux.options(), Privileged: m.Security.Privileged,
		Labels: m.Labels, Annotations: annotations, Settings: settings, Runtime: run,
		Spec: func(ctx context.Context, c *record.Creation) (*specs.Spec, error) { return from.spec(ctx, m, c) },
	}, nil
}

func (m *Mount) volume() labels.Volume {
	return labels.Volume{
		ContainerPath: m.Target, HostPath: m.Source, Image: m.Image, Propagation: m.Propagation,
		Readonly: m.Readonly, RecursiveReadonly: m.RecursiveReadonly, Relabel: m.Relabel,
	}
}

// image is the record of the image in containerd's store.
func (r *ContainerRequest) image() (record.Image, error) {
	i := record.Image{Name: r.Image, Record: r.ImageRecord}
	if i.Record == "" {
		name, err := reference.ParseDockerRef(r.Image)
		if err != nil {
			return i, fmt.Errorf("image %q: %w: %w", r.Image, errdefs.ErrInvalidArgument, err)
		}
		i.Record = name.String()
	}
	return i, nil
}

// makeTask makes what of a container is no record.
func (s *Service) makeTask(ctx context.Context, m *newMember, c *record.Creation, from origin, making *making) error {
	p, err := s.processes.Container(s.processConfig(&labels.Entry{ID: string(m.ID), Metadata: c.Container.Metadata}, &c.Container.Record))
	if err != nil {
		return err
	}
	if err := makeLogDir(m.logPath, making); err != nil {
		return err
	}
	making.add("exit code", func(context.Context) error { return s.forgetExit(string(m.ID)) })
	making.add("task", func(ctx context.Context) error { return s.endTask(ctx, string(m.ID)) })
	return from.create(ctx, m, p)
}

// membersDir has an empty file for each member of a pod, called as its ID: see glance.
func (s *Service) membersDir(pod string) string { return filepath.Join(s.workDir(pod), "members") }

// noteMember notes a member of a pod before it is finished, so that no finished one
// is missed. A note may outlive its container.
func (s *Service) noteMember(pod, id string, making *making) error {
	path := filepath.Join(s.membersDir(pod), id)
	making.add("note", func(context.Context) error { return s.forgetMember(pod, id) })
	if err := os.WriteFile(path, nil, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) { // then nobody looks there
		return fmt.Errorf("note of a member: %w", err)
	}
	return nil
}

func (s *Service) forgetMember(pod, id string) error {
	err := os.Remove(filepath.Join(s.membersDir(pod), id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// makeLogDir makes the directory of a log, which is for the pod's other containers
// too.
func makeLogDir(path string, making *making) error {
	if path == "" {
		return nil
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("directory of the log: %w: %w", errdefs.ErrFailedPrecondition, err)
	}
	making.add("log directory", func(context.Context) error {
		_ = os.Remove(dir) // unless there are logs in it
		return nil
	})
	return nil
}

// stdio are the addresses of the streams. Without a log they are the shim's own,
// for clients of attach.
func (r *ContainerRequest) stdio(logPath string) process.Stdio {
	const own = "pipe://"
	out := own
	if logPath != "" {
		u := url.URL{Scheme: "cri", Path: logPath}
		q := url.Values{}
		if r.LogMaxSize > 0 {
			q.Set("max-size", strconv.FormatInt(r.LogMaxSize, 10))
		}
		if r.LogMaxFiles > 0 {
			q.Set("max-files", strconv.Itoa(r.LogMaxFiles))
		}
		u.RawQuery = q.Encode()
		out = u.String()
	}
	io := process.Stdio{Stdout: out, Stderr: out}
	if r.TTY {
		io.Stderr = ""
	}
	if r.Stdin {
		io.Stdin = own
	}
	return io
}

// cgroup is where a member of the pod has its own.
func (m *newMember) cgroup() string {
	parent := m.podSpec.Linux.CgroupsPath
	if strings.HasSuffix(parent, ".slice") {
		return parent + ":berth:" + string(m.ID)
	}
	return filepath.Join(parent, string(m.ID))
}

// fresh is the origin of containers that begin.
type fresh struct{ s *Service }

func (f *fresh) create(ctx context.Context, m *newMember, c *process.Container) error {
	container, err := f.s.config.Client.LoadContainer(ctx, string(m.ID))
	if err != nil {
		return err
	}
	c.Stdio = m.stdio(m.logPath)
	if m.handler.IsVM() {
		c.Stdio = f.s.machineStdio(c.Stdio)
	}
	return c.Create(ctx, process.CreateRequest{Record: container, Timeout: m.handler.CreateTimeout.Duration})
}
