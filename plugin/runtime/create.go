// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/flight"
	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/network"
	"github.com/berthd/berth/plugin/runtime/process"
	"github.com/berthd/berth/plugin/runtime/record"
	"github.com/berthd/berth/plugin/runtime/record/claim"
)

// CreatePod makes and starts a pod: records, network, sandbox. After an error
// nothing is left. A name in use is AlreadyExists, naming the owner; a request equal
// to one that still runs in this process joins it, and is answered alike.
func (s *Service) CreatePod(ctx context.Context, r PodRequest) (Pod, error) {
	if err := r.validate(); err != nil {
		return Pod{}, err
	}
	ctx = s.in(ctx)
	return flight.Join(ctx, &s.flights, r, func(ctx context.Context) (Pod, error) {
		id, err := s.createPod(ctx, r)
		if err != nil {
			return Pod{}, err
		}
		return s.Pod(ctx, string(id))
	})
}

// newID makes an ID as CRI's are.
func newID() string {
	const idBytes = 32
	b := make([]byte, idBytes)
	_, _ = rand.Read(b) // it does not fail
	return hex.EncodeToString(b)
}

// pod is what the pod is called. Without a UID it is not Kubernetes', and its name
// alone is to be unique.
func (r *PodRequest) pod() labels.Pod {
	p := labels.Pod{ID: string(r.ID), Name: r.Name, Namespace: r.Namespace, UID: r.UID, Attempt: r.Attempt}
	switch {
	case r.UID != "":
		p.FullName = p.KubernetesName()
	case r.Namespace != "":
		p.FullName = r.Namespace + "/" + r.Name
	default:
		p.FullName = r.Name
	}
	return p
}

func (s *Service) createPod(ctx context.Context, r PodRequest) (_ PodID, err error) {
	if err := s.recoverNow(ctx); err != nil {
		return "", err
	}
	if r.ID == "" {
		r.ID = PodID(newID())
	}
	h, err := s.config.Handlers.Choose(r.Handler)
	if err != nil {
		return "", fmt.Errorf("create pod %s: %w", r.Name, err)
	}
	s.placePod(&r, h)
	making, err := s.begin(string(r.ID), taskPod)
	if err != nil {
		return "", fmt.Errorf("create pod %s: %w", r.Name, err)
	}
	defer func() { making.end(ctx, err) }()
	if h.IsVM() {
		return r.ID, s.createMachine(ctx, &r, h, making)
	}
	alone := s.config.Handlers.Config().DropInfra // without a process
	run, err := runtimeOf(h, handler.Use{PodProcess: !alone})
	if err != nil {
		return "", fmt.Errorf("create pod %s: %w", r.Name, err)
	}
	request := r.record(ctx, h)
	request.Runtime, request.Settings.NoProcess = run, alone && !r.SharePID
	calls, cancel := s.uncut(ctx)
	defer cancel()
	c, err := s.records.CreatePod(calls, request)
	if err != nil {
		return "", fmt.Errorf("pod %s: %w", r.Name, err)
	}
	making.add("records", func(ctx context.Context) error { c.Abort(ctx); return nil })
	if err := s.startPod(ctx, calls, &r, c, making); err != nil {
		return "", fmt.Errorf("create pod %s: %w", r.Name, err)
	}
	return r.ID, c.Commit(calls)
}

// uncut is for containerd's calls in a creation: it goes on with one that was begun
// for a while after ctx has ended, and what is undone meanwhile would come back.
// Whether to go on is asked between them.
func (s *Service) uncut(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), s.config.CreateTimeout)
}

// placePod says where the pod's logs and cgroup are, if nobody has.
func (s *Service) placePod(r *PodRequest, h *handler.Handler) {
	if r.LogDirectory == "" {
		r.LogDirectory = filepath.Join(s.workDir(string(r.ID)), "logs")
	}
	if r.CgroupParent != "" {
		return
	}
	r.CgroupParent = filepath.Join("/berth", s.config.Namespace, string(r.ID))
	if h.SystemdCgroup {
		// A dash would be a parent.
		r.CgroupParent = "berth-" + strings.NewReplacer("-", "_").Replace(string(r.ID)) + ".slice"
	}
}

// record is the pod for package record.
func (r *PodRequest) record(ctx context.Context, h *handler.Handler) *record.CreatePod {
	annotations, stripped := h.Annotations(r.Annotations)
	if len(stripped) > 0 {
		log.G(ctx).WithField("sandbox", r.ID).WithField("annotations", stripped).Warn("annotations that the runtime handler does not allow")
	}
	return &record.CreatePod{
		Pod: r.pod(), Labels: r.Labels, Annotations: annotations, SELinux: r.SELinux.options(), IDs: r.UserNS,
		Settings: labels.Settings{LogDirectory: r.LogDirectory, RuntimeHandler: h.Name, MadeFor: string(r.madeFor)},
		Spec: func(_ context.Context, c *record.Creation) (*specs.Spec, error) {
			return r.spec(&c.Container.Metadata), nil
		},
	}
}

// runtimeOf is how containerd is told of a handler.
func runtimeOf(h *handler.Handler, use handler.Use) (record.Runtime, error) {
	how, err := h.Runtime(use)
	if err != nil {
		return record.Runtime{}, err
	}
	r := record.Runtime{Name: how.Name}
	if how.Options != nil {
		if r.Options, err = typeurl.MarshalAny(how.Options); err != nil {
			return r, err
		}
	}
	return r, nil
}

// options are the label's parts as package record takes them.
func (l *SELinux) options() []string {
	if l == nil {
		return nil
	}
	var o []string
	for _, part := range []struct{ name, value string }{{"user", l.User}, {"role", l.Role}, {"type", l.Type}, {"level", l.Level}} {
		if part.value != "" {
			o = append(o, part.name+":"+part.value)
		}
	}
	return o
}

// startPod makes what of the pod is no record.
func (s *Service) startPod(ctx, calls context.Context, r *PodRequest, c *record.Creation, making *making) error {
	id := string(r.ID)
	m := c.Container.Metadata
	net, err := s.addNetwork(ctx, r, &m, making)
	if err != nil {
		return err
	}
	making.add("sandbox", func(ctx context.Context) error { return s.sandboxes.shutdown(ctx, r.ID) })
	if err := s.sandboxes.start(calls, *c.Sandbox, r.config(&m), net.Path); err != nil {
		return err
	}
	if err := s.sandboxes.addHosts(r.ID, r.Hosts); err != nil {
		return err
	}
	if err := os.Mkdir(s.membersDir(id), 0o700); err != nil {
		return fmt.Errorf("directory of members: %w: %w", errdefs.ErrInternal, err)
	}
	infra, err := s.processes.Container(s.processConfig(&labels.Entry{ID: id, Metadata: m}, nil))
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return infra.Create(calls, process.CreateRequest{})
}

func (s *Service) addNetwork(ctx context.Context, r *PodRequest, m *labels.Metadata, making *making) (*network.Attachment, error) {
	id := string(r.ID)
	making.add("network", func(ctx context.Context) error { return s.network.Remove(ctx, id) })
	return s.network.Add(ctx, network.Request{
		PodID: id, PodName: r.Name, PodNamespace: r.Namespace, PodUID: r.UID, Host: r.HostNetwork, None: r.NoNetwork,
		UserNamespace: networkMaps(m.IDMap), Ports: r.PortMappings, Bandwidth: r.Bandwidth, DNS: r.DNS,
		Annotations: m.Annotations, CgroupPath: r.CgroupParent,
	})
}

// networkMaps are the maps for the owner of the network namespace. A namespace
// maps root first: that range decides.
func networkMaps(m labels.IDMap) *network.IDMaps {
	if len(m.UIDs) == 0 || len(m.GIDs) == 0 {
		return nil
	}
	one := func(l specs.LinuxIDMapping) network.IDMap {
		return network.IDMap{Container: l.ContainerID, Host: l.HostID, Size: l.Size}
	}
	return &network.IDMaps{UID: one(m.UIDs[0]), GID: one(m.GIDs[0])}
}

// Namespaces that exist nowhere: berth's shim puts a pod's in their place when a
// member starts, and whoever else tries fails.
const podNamespace = "/proc/0/ns/"

// spec is what the members have to know of the pod, in the record of the infra
// container, which has no process: its namespaces, hostname and cgroup.
func (r *PodRequest) spec(m *labels.Metadata) *specs.Spec {
	spec := &specs.Spec{
		Version: specs.Version, Hostname: r.Hostname, Annotations: m.SpecAnnotations(),
		Linux: &specs.Linux{CgroupsPath: r.CgroupParent, Sysctl: r.Sysctls, UIDMappings: m.IDMap.UIDs, GIDMappings: m.IDMap.GIDs},
	}
	add := func(t specs.LinuxNamespaceType, name string) {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: podNamespace + name})
	}
	if !r.HostNetwork {
		add(specs.NetworkNamespace, "net")
		add(specs.UTSNamespace, "uts")
	}
	if !r.HostIPC {
		add(specs.IPCNamespace, "ipc")
	}
	if len(m.IDMap.UIDs) > 0 {
		add(specs.UserNamespace, "user")
	}
	switch {
	case r.SharePID:
		add(specs.PIDNamespace, "pid")
	case !r.HostPID:
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	return spec
}

// making is a creation of this process. If it dies, the claim tells whoever comes
// next what to clean up that is no record: see recover.
type making struct {
	undo
	claim *claim.Claim
}

// Tasks of claims.
const (
	taskPod       = "create-pod"
	taskContainer = "create-container"
)

func (s *Service) begin(id, task string) (*making, error) {
	c, err := s.claims.Take(id, claim.Note{Owner: id, Task: task})
	if err != nil {
		return nil, err
	}
	return &making{claim: c}, nil
}

// end undoes the creation if it failed. What cannot be undone now is left to
// recover.
func (m *making) end(ctx context.Context, err error) {
	if err == nil || m.run(ctx) {
		m.claim.Release()
	} else {
		m.claim.Leave()
	}
}

// undoTimeout bounds what takes back a creation that failed.
const undoTimeout = time.Minute

// undo takes back, in reverse order, what a creation has done so far.
type undo []step

type step struct {
	what string
	do   func(context.Context) error
}

func (u *undo) add(what string, do func(context.Context) error) { *u = append(*u, step{what, do}) }

// run undoes everything, whatever becomes of ctx and of single steps, and tells
// whether all went well. What did not is logged: the error that callers see is the
// creation's.
func (u *undo) run(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	ok := true
	for _, s := range slices.Backward(*u) {
		if err := s.do(ctx); err != nil {
			ok = false
			log.G(ctx).WithError(fmt.Errorf("%s: %w", s.what, err)).Warn("undo a creation that failed")
		}
	}
	return ok
}
