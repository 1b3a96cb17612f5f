// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/record/claim"
	"github.com/berthd/berth/plugin/runtime/record/idmap"
)

// undoTimeout bounds what takes back a creation that failed.
const undoTimeout = time.Minute

// Creation is a pod or container whose records are made, and which is not finished:
// the caller has its process to make. Commit finishes it, Abort takes it back; one
// of them must be called. Not safe for concurrent use.
type Creation struct {
	Container Container
	// Sandbox is the pod's record; nil for a container.
	Sandbox *sandbox.Sandbox
	// Config of the image; nil without an image.
	Config *ocispec.Image
	// ProcessLabel and MountLabel are those of SELinux. They are not stored:
	// SetMetadata does that.
	ProcessLabel, MountLabel string

	store  *Store
	plan   *plan
	image  *image
	copied string // the id-mapped copy that the snapshot is on
	undo   undo
	claims []*claim.Claim
	ids    *claim.Claim // while maps are chosen and not stored
	unlock func()       // of the pod
}

// plan is what is to be created.
type plan struct {
	id          string
	metadata    labels.Metadata
	names       []string
	find        func(context.Context) (*image, error) // nil: no image
	snapshotter string
	ids         *IDMappings
	selinux     []string
	runtime     Runtime
	spec        SpecFunc
}

// undo takes back, in reverse order, what was done so far.
type undo []step

type step struct {
	what string
	do   func(context.Context) error
}

func (u *undo) add(what string, do func(context.Context) error) { *u = append(*u, step{what, do}) }

// run undoes all of it, whatever becomes of ctx and of single steps, and tells
// whether everything was undone. What went wrong is logged: callers are to see what
// made the creation fail.
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
	*u = nil
	return ok
}

// CreatePod makes the records of a pod: lease, sandbox, infra container. After an
// error there is nothing, but perhaps a pulled image. A name or ID in use is
// AlreadyExists, naming the owner.
func (s *Store) CreatePod(ctx context.Context, r *CreatePod) (*Creation, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	p := &plan{
		id: r.Pod.ID, metadata: r.metadata(), names: []string{r.Pod.FullName, r.name()},
		ids: r.IDs, selinux: r.SELinux, runtime: r.Runtime, spec: r.Spec,
	}
	if r.Pause != nil {
		p.find = func(ctx context.Context) (*image, error) { return s.pause(ctx, *r.Pause) }
	}
	c, err := s.create(s.in(ctx), p)
	if err != nil {
		return nil, fmt.Errorf("create pod %s: %w", r.Pod.ID, err)
	}
	return c, nil
}

// CreateContainer makes the record, the snapshot and the directories of a container
// in a pod. Errors are as with CreatePod; an unknown pod is ErrInvalidSandboxID, one
// that is not berth's labels.ErrForeign.
func (s *Store) CreateContainer(ctx context.Context, r *CreateContainer) (*Creation, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	p := &plan{
		id: r.ID, names: []string{r.Name}, snapshotter: r.Snapshotter,
		find: func(ctx context.Context) (*image, error) { return s.resolve(ctx, r.Image) },
		ids:  r.IDs, selinux: r.SELinux, runtime: r.Runtime, spec: r.Spec,
	}
	// The pod's own part is read when it cannot change any more.
	p.metadata = r.metadata(labels.Pod{ID: r.PodID, FullName: r.PodName})
	c, err := s.create(s.in(ctx), p)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", r.ID, err)
	}
	return c, nil
}

// create makes everything in an order in which each step finds what it needs and a
// crash leaves what the claims or the records tell.
func (s *Store) create(ctx context.Context, p *plan) (_ *Creation, err error) {
	c := &Creation{store: s, plan: p, unlock: func() {}}
	defer func() {
		if err != nil {
			c.abort(ctx)
		}
	}()
	for _, step := range []func(context.Context) error{
		c.claim, c.joinPod, c.findImage, c.takeLease, c.mapIDs, c.label,
		c.prepare, c.storeSandbox, c.storeContainer, c.makeDirs, c.dropLease,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	if p.ids != nil {
		p.ids.Map = c.Container.Metadata.IDMap
	}
	return c, nil
}

// OnAbort adds what Abort has to undo first. It may be called several times.
func (c *Creation) OnAbort(what string, do func(context.Context) error) { c.undo.add(what, do) }

// Commit marks the pod or container as created and ends the claims. After an error
// the creation is as before: it can be committed or aborted.
func (c *Creation) Commit(ctx context.Context) error {
	ctx = c.store.in(ctx)
	id := c.Container.ID
	// As the record is now: SetMetadata may have been called.
	r, err := c.store.client.ContainerService().Get(ctx, id)
	if err != nil {
		return fmt.Errorf("finish %s: %w", id, err)
	}
	m, err := labels.Decode(r)
	if err != nil {
		return fmt.Errorf("finish %s: %w", id, err)
	}
	m.Created = true
	if c.Sandbox != nil { // before the container, whose mark is the one that counts
		if err := c.store.writeSandbox(ctx, id, m, updated); err != nil {
			return fmt.Errorf("finish %s: %w", id, err)
		}
	}
	ch, err := m.Update(r)
	if err == nil {
		r, err = ch.Container(ctx, c.store.client.ContainerService())
	}
	if err != nil {
		return fmt.Errorf("finish %s: %w", id, err)
	}
	c.Container.Record, c.Container.Metadata = r, m
	c.undo = nil
	c.release(true)
	return nil
}

// Abort takes the creation back. What cannot be undone now is logged, and removed
// by whoever creates something of the same name, or by Recover.
func (c *Creation) Abort(ctx context.Context) { c.abort(c.store.in(ctx)) }

func (c *Creation) abort(ctx context.Context) { c.release(c.undo.run(ctx)) }

// release ends the claims, in the reverse order of their making: the ID's comes
// last. Unless all is done they are left to tell of it.
func (c *Creation) release(done bool) {
	c.unlock()
	c.unlock = func() {}
	c.releaseIDs()
	for _, held := range slices.Backward(c.claims) {
		if done {
			held.Release()
		} else {
			held.Leave()
		}
	}
	c.claims = nil
}

func (c *Creation) releaseIDs() {
	if c.ids != nil {
		c.ids.Release()
		c.ids = nil
	}
}

// Claims, what they are for, and what their notes tell besides.
const (
	claimID   = "id."
	claimName = "name."
	claimMaps = "maps"

	taskCreate  = "create"
	taskRemove  = "remove"
	taskRecover = "recover"

	detailPod         = "pod"
	detailSnapshotter = "snapshotter"
)

// claim takes the ID and the names.
func (c *Creation) claim(ctx context.Context) error {
	p := c.plan
	note := claim.Note{Owner: p.id, Task: taskCreate, Details: map[string]string{
		detailPod: p.metadata.Pod.ID, detailSnapshotter: c.snapshotter(),
	}}
	held, err := c.store.claims.Wait(ctx, claimID+p.id, note, creating)
	if err != nil {
		return inUse("ID "+p.id, err)
	}
	c.claims = append(c.claims, held)
	if held.Left != nil {
		if err := c.store.sweep(ctx, p.id, *held.Left); err != nil {
			return err
		}
	}
	for _, name := range p.names {
		held, err := c.store.claims.Wait(ctx, claimName+name, note, creating)
		if err != nil {
			return inUse("name "+name, err)
		}
		c.claims = append(c.claims, held)
	}
	return c.store.checkNames(ctx, p)
}

// creating tells of a creation, which is not waited for.
func creating(n claim.Note) bool { return n.Task == taskCreate }

func inUse(what string, err error) error {
	var held *claim.HeldError
	if errors.As(err, &held) {
		return fmt.Errorf("%s: in use by %s, which is being created: %w", what, held.By.Owner, errdefs.ErrAlreadyExists)
	}
	return err
}

// checkNames looks for records that have the ID or one of the names; a record that
// nobody is going to finish is removed.
func (s *Store) checkNames(ctx context.Context, p *plan) error {
	if c, err := s.client.ContainerService().Get(ctx, p.id); err == nil {
		return fmt.Errorf("ID %s: in use by %s: %w", p.id, labels.Describe(c).Metadata.Name, errdefs.ErrAlreadyExists)
	} else if !errdefs.IsNotFound(err) {
		return fmt.Errorf("look for ID %s: %w", p.id, err)
	}
	var filters []string
	for _, name := range p.names {
		filters = append(filters, labels.Named(name), labels.PodNamed(name))
	}
	owners, err := s.client.ContainerService().List(ctx, filters...)
	if err != nil {
		return fmt.Errorf("look for names %q: %w", p.names, err)
	}
	for _, o := range owners {
		m, err := labels.Decode(o)
		if errors.Is(err, labels.ErrForeign) {
			continue
		}
		if !m.Created && m.Schema <= labels.Version {
			if err := s.recover(ctx, o.ID, claim.Note{}); err == nil {
				continue
			}
		}
		return fmt.Errorf("names %q: in use by %s, %s %s: %w", p.names, o.ID, m.Kind, m.Name, errdefs.ErrAlreadyExists)
	}
	return nil
}

// joinPod reads a member's pod, under a lock that keeps the pod from being removed.
func (c *Creation) joinPod(ctx context.Context) error {
	m := &c.plan.metadata
	if m.Kind == labels.KindInfra {
		return nil
	}
	id := m.Pod.ID
	unlock, err := c.store.lock(ctx, id, claim.Shared)
	if errors.Is(err, ErrInvalidContainerID) {
		return c.podUnknown(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("pod %s: %w", id, err)
	}
	c.unlock = unlock
	pod, err := c.store.Container(ctx, id)
	if err != nil {
		return fmt.Errorf("pod %s: %w", id, err)
	}
	switch p := pod.Metadata; {
	case p.Kind != labels.KindInfra:
		return fmt.Errorf("%s is no pod: %w: %w", id, ErrInvalidSandboxID, errdefs.ErrInvalidArgument)
	case p.Schema > labels.Version:
		return fmt.Errorf("pod %s: %w", id, labels.ErrNewerSchema)
	case !p.Created:
		return fmt.Errorf("pod %s is not finished: %w", id, errdefs.ErrFailedPrecondition)
	case p.Pod.FullName != m.Pod.FullName:
		return fmt.Errorf("pod %s is called %s, not %s: %w", id, p.Pod.FullName, m.Pod.FullName, ErrInvalidPodName)
	}
	m.Pod = pod.Metadata.Pod
	m.IDMap = pod.Metadata.IDMap
	return nil
}

// podUnknown is the error for a pod that has no infra container.
func (c *Creation) podUnknown(ctx context.Context, id string) error {
	if b, err := c.store.client.SandboxStore().Get(ctx, id); err == nil {
		if _, err := labels.DecodeSandbox(b); err != nil {
			return fmt.Errorf("pod %s: %w", id, err)
		}
		return fmt.Errorf("pod %s has lost its infra container: %w", id, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("pod %s: %w: %w", id, ErrInvalidSandboxID, errdefs.ErrNotFound)
}

func (c *Creation) findImage(ctx context.Context) error {
	if c.plan.find == nil {
		return nil
	}
	var err error
	if c.image, err = c.plan.find(ctx); err != nil {
		return err
	}
	m := &c.plan.metadata
	c.Config = &c.image.config
	m.ImageID = c.image.id
	if m.Settings.StopSignal == "" {
		m.Settings.StopSignal = c.Config.Config.StopSignal
	}
	return nil
}

// mapIDs decides on the user namespace.
func (c *Creation) mapIDs(ctx context.Context) error {
	m, want := &c.plan.metadata, c.plan.ids
	switch {
	case want == nil: // a member has the pod's
		return nil
	case m.Kind == labels.KindContainer:
		if len(m.IDMap.UIDs) == 0 || !want.Auto && !idmap.Equal(want.Map, m.IDMap) {
			return fmt.Errorf("user namespace: the pod has another one, or none: %w", errdefs.ErrInvalidArgument)
		}
		return nil
	case !want.Auto:
		m.IDMap = want.Map
		return nil
	}
	var err error
	c.ids, err = c.store.claims.Wait(ctx, claimMaps, claim.Note{Owner: c.plan.id, Task: "choose"}, nil)
	if err != nil {
		return err
	}
	all, err := c.store.client.ContainerService().List(ctx, labels.Managed())
	if err != nil {
		return fmt.Errorf("look for user namespaces: %w", err)
	}
	var used []labels.IDMap
	for _, o := range all {
		if om, err := labels.Decode(o); err == nil {
			used = append(used, om.IDMap)
		}
	}
	m.IDMap, err = c.store.o.IDs.Choose(want.Size, used)
	return err
}

func (c *Creation) label(context.Context) error {
	var err error
	c.ProcessLabel, c.MountLabel, err = c.store.o.SELinux.Label(c.plan.selinux)
	if err != nil {
		return err
	}
	c.undo.add("release SELinux categories", func(context.Context) error {
		c.store.o.SELinux.Release(c.ProcessLabel)
		return nil
	})
	return nil
}

// storeSandbox comes before the infra container: a member that containerd sees
// without a sandbox gets a shim of another kind.
func (c *Creation) storeSandbox(ctx context.Context) error {
	p := c.plan
	if p.metadata.Kind != labels.KindInfra {
		return nil
	}
	b := sandbox.Sandbox{
		ID: p.id, Sandboxer: c.store.o.Sandboxer,
		Runtime:   sandbox.RuntimeOpts{Name: c.runtime(), Options: p.runtime.Options},
		CreatedAt: p.metadata.CreatedAt, UpdatedAt: p.metadata.CreatedAt,
	}
	if err := p.metadata.EncodeSandbox(&b); err != nil {
		return err
	}
	b, err := c.store.client.SandboxStore().Create(ctx, b)
	if err != nil {
		return fmt.Errorf("sandbox record: %w", err)
	}
	c.undo.add("delete sandbox record", func(ctx context.Context) error {
		return ignoreNotFound(c.store.client.SandboxStore().Delete(ctx, p.id))
	})
	c.Sandbox = &b
	return nil
}

func (c *Creation) runtime() string {
	if name := c.plan.runtime.Name; name != "" {
		return name
	}
	return c.store.o.Runtime
}

func (c *Creation) storeContainer(ctx context.Context) error {
	p, s := c.plan, c.store
	r := containers.Container{ID: p.id, Runtime: containers.RuntimeInfo{Name: c.runtime(), Options: p.runtime.Options}}
	if c.image != nil {
		r.Image, r.Snapshotter, r.SnapshotKey = c.image.record, c.snapshotter(), p.id
		r.Labels = labels.FromImage(c.Config.Config.Labels)
	}
	if err := p.metadata.Encode(&r); err != nil {
		return err
	}
	c.Container = Container{p.id, p.metadata, s.workDir(p.id), s.runDir(p.id), r}
	spec, err := c.spec(ctx)
	if err != nil {
		return fmt.Errorf("specification: %w", err)
	}
	if r.Spec, err = typeurl.MarshalAny(spec); err != nil {
		return fmt.Errorf("specification: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if r, err = s.client.ContainerService().Create(ctx, r); err != nil {
		return fmt.Errorf("container record: %w", err)
	}
	c.undo.add("delete container record", func(ctx context.Context) error {
		return ignoreNotFound(s.client.ContainerService().Delete(ctx, p.id))
	})
	c.releaseIDs()
	c.Container, err = s.view(r)
	return err
}

func (c *Creation) spec(ctx context.Context) (*specs.Spec, error) {
	if c.plan.spec != nil {
		return c.plan.spec(ctx, c)
	}
	return &specs.Spec{Version: specs.Version, Annotations: c.plan.metadata.SpecAnnotations()}, nil
}

func (c *Creation) makeDirs(context.Context) error {
	for _, dir := range []string{c.Container.WorkDir, c.Container.RunDir} {
		if err := makeDir(dir); err != nil {
			return err
		}
		c.undo.add("remove directory", func(context.Context) error { return removeDir(dir) })
	}
	return nil
}

// takeLease makes the lease of a pod, or finds it: a member's may have been lost.
func (c *Creation) takeLease(ctx context.Context) error {
	id := c.plan.metadata.Pod.ID
	_, err := c.store.client.LeasesService().Create(ctx, leases.WithID(id), leases.WithLabels(labels.LeaseLabels()))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lease %s: %w", id, err)
	}
	c.undo.add("delete lease", func(ctx context.Context) error {
		return ignoreNotFound(c.store.client.LeasesService().Delete(ctx, leases.Lease{ID: id}))
	})
	return nil
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
