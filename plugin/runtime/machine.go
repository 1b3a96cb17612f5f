// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/oci"
	"github.com/berthd/berth/plugin/runtime/process"
	"github.com/berthd/berth/plugin/runtime/record"
)

// Pods in virtual machines are what containerd's CRI plugin makes of them: the pod's
// container record has a task, that of the pause image, whose shim is the machine, and
// members are tasks in the same shim, which knows them by their annotations.

// createMachine makes a pod whose runtime is a shim of virtual machines.
func (s *Service) createMachine(ctx context.Context, r *PodRequest, h *handler.Handler, making *making) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create pod %s: %w", r.Name, err)
		}
	}()
	if r.HostNetwork || r.HostPID || r.HostIPC || r.SharePID || r.UserNS != nil || len(r.Hosts) > 0 {
		return fmt.Errorf("runtime handler %q has virtual machines, which share no namespaces and have their own hosts file: %w", h.Name, errdefs.ErrInvalidArgument)
	}
	request := r.record(ctx, h)
	if request.Runtime, err = runtimeOf(h, handler.Use{}); err != nil {
		return err
	}
	net, err := s.addNetwork(ctx, r, &labels.Metadata{Annotations: request.Annotations}, making)
	if err != nil {
		return err
	}
	config := s.config.Handlers.Config()
	request.Pause = &record.PauseImage{Reference: config.PauseImage, AuthFile: config.PauseImageAuthFile}
	request.Spec = func(ctx context.Context, c *record.Creation) (*specs.Spec, error) {
		return s.machineSpec(ctx, r, c, net.Path)
	}
	calls, cancel := s.uncut(ctx)
	defer cancel()
	c, err := s.records.CreatePod(calls, request)
	if err != nil {
		return err
	}
	making.add("records", func(ctx context.Context) error { c.Abort(ctx); return nil })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := s.startMachine(calls, r, h, c, making); err != nil {
		return err
	}
	return c.Commit(calls)
}

// machineSpec is that of the pod's task. The shim makes of it what a machine needs.
func (s *Service) machineSpec(ctx context.Context, r *PodRequest, c *record.Creation, netns string) (*specs.Spec, error) {
	m := &c.Container.Metadata
	annotations := m.SpecAnnotations()
	for key, value := range m.Annotations {
		if handler.Directs(key) {
			annotations[key] = value
		}
	}
	pod := &specs.Spec{Linux: &specs.Linux{CgroupsPath: r.CgroupParent, Namespaces: []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: netns}, {Type: specs.UTSNamespace}, {Type: specs.IPCNamespace}, {Type: specs.PIDNamespace},
	}}}
	spec, err := oci.Build(ctx, s.config.Client, &c.Container.Record, &oci.Request{
		Image: c.Config, Pod: pod, Annotations: annotations,
		Security: oci.Security{ReadOnlyRootfs: true, NoNewPrivileges: true, ProcessLabel: c.ProcessLabel, MountLabel: c.MountLabel},
	})
	if err != nil {
		return nil, err
	}
	spec.Hostname, spec.Linux.Sysctl = r.Hostname, r.Sysctls
	return spec, nil
}

func (s *Service) startMachine(ctx context.Context, r *PodRequest, h *handler.Handler, c *record.Creation, making *making) error {
	id := string(r.ID)
	if err := os.Mkdir(s.membersDir(id), 0o700); err != nil {
		return fmt.Errorf("directory of members: %w: %w", errdefs.ErrInternal, err)
	}
	infra, err := s.processes.Container(s.processConfig(&labels.Entry{ID: id, Metadata: c.Container.Metadata}, &c.Container.Record))
	if err != nil {
		return err
	}
	made, err := s.config.Client.LoadContainer(ctx, id)
	if err != nil {
		return err
	}
	making.add("cgroups", func(context.Context) error { removeCgroups(c.Container.Record); return nil })
	making.add("task", func(ctx context.Context) error { return s.endTask(ctx, id) })
	if err := infra.Create(ctx, process.CreateRequest{Record: made, Timeout: h.CreateTimeout.Duration}); err != nil {
		return err
	}
	return infra.Start(ctx)
}

// podSpec is what members have to know of their pod. In a machine it is made of what
// the pod's task has: where that is only pretended, the namespaces are those of the
// shim's process.
func (s *Service) podSpec(infra *containers.Container, e *labels.Entry) (*specs.Spec, error) {
	spec, err := specOf(infra)
	if err != nil || e.Metadata.ImageID == "" {
		return spec, err
	}
	c, err := s.processes.Container(s.processConfig(e, infra))
	if err == nil {
		err = c.FromDisk()
	}
	var pid int
	if err == nil {
		pid, err = c.Pid()
	}
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w: %w", e.ID, errdefs.ErrFailedPrecondition, err)
	}
	pod := &specs.Spec{Hostname: spec.Hostname, Linux: &specs.Linux{CgroupsPath: parentOf(spec.Linux.CgroupsPath)}}
	for _, kind := range []struct {
		of   specs.LinuxNamespaceType
		name string
	}{{specs.NetworkNamespace, "net"}, {specs.UTSNamespace, "uts"}, {specs.IPCNamespace, "ipc"}, {specs.PIDNamespace, ""}} {
		ns := specs.LinuxNamespace{Type: kind.of}
		if kind.name != "" {
			ns.Path = "/proc/" + strconv.Itoa(pid) + "/ns/" + kind.name
		}
		pod.Linux.Namespaces = append(pod.Linux.Namespaces, ns)
	}
	return pod, nil
}

// parentOf is the cgroup above one, as oci.Build takes it.
func parentOf(cgroup string) string {
	if slice, _, systemd := strings.Cut(cgroup, ":"); systemd {
		return slice
	}
	return filepath.Dir(cgroup)
}

// removeCgroups removes the cgroup of a pod above those of its containers, in all
// hierarchies, if it is empty and berth's. No shim owns that of a machine, and others'
// shims leave it if there was still a container in it.
func removeCgroups(infra containers.Container) {
	var spec struct{ Linux struct{ CgroupsPath string } }
	if infra.Spec == nil || json.Unmarshal(infra.Spec.GetValue(), &spec) != nil {
		return
	}
	pod := spec.Linux.CgroupsPath
	if infra.SnapshotKey != "" { // a machine's own is below
		pod = parentOf(pod)
	}
	if !strings.HasPrefix(pod, "/berth/") {
		return
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + pod)
	for _, dir := range append(dirs, "/sys/fs/cgroup"+pod) {
		_ = os.Remove(dir)
	}
}

// supports refuses what a member's runtime cannot.
func (s *Service) supports(m *newMember) error {
	var faults []error
	if m.handler.PullImage {
		faults = append(faults, errors.New("images that the runtime pulls itself"))
	}
	if m.handler.IsVM() && m.Stdin {
		faults = append(faults, errors.New("input, which only berth's shim keeps open"))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("runtime handler %q: %w: %w", m.handler.Name, errdefs.ErrNotImplemented, err)
	}
	return nil
}

// machineStdio has the log written by a program that the shim starts.
func (s *Service) machineStdio(own process.Stdio) process.Stdio {
	if s.config.LogDriver == "" || !strings.HasPrefix(own.Stdout, "cri://") {
		return process.Stdio{}
	}
	uri := url.URL{Scheme: "binary", Path: s.config.LogDriver, RawQuery: url.Values{LogDriverCommand: {own.Stdout}}.Encode()}
	io := process.Stdio{Stdout: uri.String(), Stderr: uri.String()}
	if own.Stderr == "" {
		io.Stderr = ""
	}
	return io
}

// LogDriverCommand is the first argument of Config.LogDriver when a shim starts it as a
// logging program; the second one is a URI cri:///path?max-size=N&max-files=N.
const LogDriverCommand = "log-driver"

// onlyBerth refuses what takes berth's shim.
func (s *Service) onlyBerth(m *member, what string) error {
	if m.record.Runtime.Name == handler.Shim {
		return nil
	}
	return fmt.Errorf("%s container %s: its runtime is %s: %w", what, m.ID, m.record.Runtime.Name, errdefs.ErrNotImplemented)
}
