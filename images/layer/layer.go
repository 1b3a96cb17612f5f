// SPDX-License-Identifier: Apache-2.0

// Package layer owns the snapshots that images are unpacked into and that containers
// write to: how they are prepared and released, mounted, measured and compared. It
// refuses to know image records and registries, and makes no images.
package layer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	cmount "github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/images/idmap"
	"github.com/berthd/berth/images/lease"
	"github.com/berthd/berth/images/mount"
	"github.com/berthd/berth/images/unpack"
)

// Labels of the snapshot that a container writes to, and of its lease.
const (
	labelLayer      = "io.berth.layer"             // the layer's id: it is berth's
	labelMountLabel = "io.berth.layer.mount-label" // SELinux'
)

// undoTimeout bounds the removal of what a failed call has made.
const undoTimeout = 30 * time.Second

// leaseTime is how long what a killed call has made outlives it. A call that takes
// longer loses what it has made: the largest layers take minutes.
const leaseTime = 24 * time.Hour

// Config says what Layers work on. Everything is required.
type Config struct {
	Client    *client.Client // stays the caller's
	Namespace string         // containerd's
	Unpacker  *unpack.Unpacker
	Mounts    *mount.Mounts // of this namespace alone
}

// Layers are the snapshots of one snapshotter in one namespace. Each method puts the
// namespace into its context by itself. Safe for concurrent use, by several processes
// too.
type Layers struct {
	config Config
	client *client.Client
	mounts *mount.Mounts
}

// New returns the layers. It makes no request.
func New(c Config) *Layers { return &Layers{config: c, client: c.Client, mounts: c.Mounts} }

// Snapshotter is the name of the snapshotter that holds the layers.
func (l *Layers) Snapshotter() string { return l.config.Unpacker.Snapshotter }

func (l *Layers) context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, l.config.Namespace)
}

func (l *Layers) snapshots() snapshots.Snapshotter {
	return l.client.SnapshotService(l.Snapshotter())
}

// Layer is what one container writes to. It outlives the process; see Layers.Layer.
type Layer struct {
	ID         string // of the container, and of its lease
	Parent     string // the snapshot below, empty if there is none
	IDs        idmap.Map
	MountLabel string // SELinux' for the files, empty without one

	layers *Layers
}

// Layer finds what Prepare made. Its class is ErrNotFound if there is none.
func (l *Layers) Layer(ctx context.Context, id string) (*Layer, error) {
	info, err := l.snapshots().Stat(l.context(ctx), id)
	if err == nil && info.Labels[labelLayer] != id {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", id, err)
	}
	return l.layer(info)
}

func (l *Layers) layer(info snapshots.Info) (*Layer, error) {
	ids, err := idmap.Parse(info.Labels)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", info.Name, err)
	}
	return &Layer{ID: info.Name, Parent: info.Parent, IDs: ids, MountLabel: info.Labels[labelMountLabel], layers: l}, nil
}

// Mount adds a user to the layer's mount and returns its root.
func (y *Layer) Mount(ctx context.Context) (string, error) { return y.layers.Mount(ctx, y.ID) }

// Unmount takes a user from the layer's mount. Without one it is mount.ErrNotMounted.
func (y *Layer) Unmount(ctx context.Context) error { return y.layers.Unmount(ctx, y.ID) }

// Metadata describes the layer by the snapshotter's names.
func (y *Layer) Metadata() map[string]string {
	return map[string]string{"ID": y.ID, "Snapshotter": y.layers.Snapshotter(), "Parent": y.Parent}
}

// Release unmounts a layer, removes it and ends its lease, so that what nobody else
// needs of it is gone on return. That it is gone already is no error. A snapshot or a
// lease that Prepare did not make is refused (ErrFailedPrecondition).
func (l *Layers) Release(ctx context.Context, id string) error {
	ctx = l.context(ctx)
	info, err := l.snapshots().Stat(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		return fmt.Errorf("release layer %s: %w", id, err)
	case info.Labels[labelLayer] != id:
		return fmt.Errorf("release layer %s: the snapshot is somebody else's: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err := l.ownLease(ctx, id); err != nil {
		return fmt.Errorf("release layer %s: %w", id, err)
	}
	if err := l.mounts.Remove(ctx, mountKey(id), nil); err != nil {
		return fmt.Errorf("release layer %s: %w", id, err)
	}
	if err := l.drop(ctx, id, id); err != nil {
		return fmt.Errorf("release layer %s: %w", id, err)
	}
	return nil
}

// ownLease refuses a lease that Prepare did not make; that there is none is no error.
func (l *Layers) ownLease(ctx context.Context, id string) error {
	found, err := l.client.LeasesService().List(ctx, fmt.Sprintf("id==%q", id))
	if err != nil {
		return fmt.Errorf("lease %s: %w", id, err)
	}
	for _, lease := range found {
		if lease.ID == id && lease.Labels[labelLayer] != id {
			return fmt.Errorf("the lease is somebody else's: %w", errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// drop removes snapshots and then the lease that kept them, with all that only it
// kept.
func (l *Layers) drop(ctx context.Context, lease string, keys ...string) error {
	var errs []error
	for _, key := range keys {
		if err := l.snapshots().Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("snapshot %s: %w", key, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // the lease finds the rest again
	}
	if err := l.client.LeasesService().Delete(ctx, leases.Lease{ID: lease}, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("lease %s: %w", lease, err)
	}
	return nil
}

// Lease returns ctx with a lease for the length of a call, and what ends it; if that
// fails it adds to the call's error. What a failed call has made is gone then. A lease
// that is in ctx already is used as it is.
func (l *Layers) Lease(ctx context.Context) (context.Context, func(*error), error) {
	ctx = l.context(ctx)
	if _, ok := leases.FromContext(ctx); ok {
		return ctx, func(*error) {}, nil
	}
	manager := l.client.LeasesService()
	lease, err := lease.Create(ctx, manager, leases.WithRandomID(), leases.WithExpiration(leaseTime))
	if err != nil {
		return nil, nil, fmt.Errorf("lease: %w", err)
	}
	return leases.WithLease(ctx, lease.ID), func(failed *error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		var opts []leases.DeleteOpt
		if *failed != nil {
			opts = append(opts, leases.SynchronousDelete)
		}
		if err := manager.Delete(ctx, lease, opts...); err != nil && !errdefs.IsNotFound(err) {
			*failed = errors.Join(*failed, fmt.Errorf("lease: %w", err))
		}
	}, nil
}

// View returns what mounts a snapshot read-only, or an empty folder for none, and what
// removes the view again. ctx must have a lease.
func (l *Layers) View(ctx context.Context, snapshotter, snapshot string) ([]cmount.Mount, func(*error), error) {
	lease, ok := leases.FromContext(ctx)
	if !ok {
		return nil, nil, fmt.Errorf("view of snapshot %q without a lease: %w", snapshot, errdefs.ErrFailedPrecondition)
	}
	sn := l.client.SnapshotService(snapshotter)
	key := "berth-view-" + lease + "-" + snapshot
	mounts, err := sn.View(ctx, key, snapshot)
	if err != nil {
		return nil, nil, fmt.Errorf("view of snapshot %q: %w", snapshot, err)
	}
	return mounts, func(failed *error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if err := sn.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			*failed = errors.Join(*failed, fmt.Errorf("view of snapshot %q: %w", snapshot, err))
		}
	}, nil
}

// Rootfs is the snapshot that a container of anybody's writes to.
type Rootfs struct {
	Snapshotter string
	Key         string
	IDs         idmap.Map
	Ancestors   []string              // the snapshots below, the nearest first
	Container   *containers.Container // its record, nil for a layer without one
	MountLabel  string
}

// Parent is the snapshot that the container stands on, empty for none.
func (r Rootfs) Parent() string {
	if len(r.Ancestors) == 0 {
		return ""
	}
	return r.Ancestors[0]
}

// Rootfs finds what a container writes to: by its record, else among the layers that
// Prepare made. Its class is ErrNotFound if there is neither.
func (l *Layers) Rootfs(ctx context.Context, id string) (Rootfs, error) {
	ctx = l.context(ctx)
	r, err := l.locate(ctx, id)
	if err != nil {
		return Rootfs{}, err
	}
	sn := l.client.SnapshotService(r.Snapshotter)
	info, err := sn.Stat(ctx, r.Key)
	if err != nil {
		return Rootfs{}, fmt.Errorf("container %s: snapshot %s: %w", id, r.Key, err)
	}
	r.MountLabel = info.Labels[labelMountLabel]
	if r.IDs, err = r.ids(info); err != nil {
		return Rootfs{}, fmt.Errorf("container %s: %w", id, err)
	}
	for info.Parent != "" {
		r.Ancestors = append(r.Ancestors, info.Parent)
		if info, err = sn.Stat(ctx, info.Parent); err != nil {
			return Rootfs{}, fmt.Errorf("container %s: snapshot %s: %w", id, r.Ancestors[len(r.Ancestors)-1], err)
		}
	}
	return r, nil
}

func (l *Layers) locate(ctx context.Context, id string) (Rootfs, error) {
	record, err := l.client.ContainerService().Get(ctx, id)
	switch {
	case errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err):
		if _, err := l.Layer(ctx, id); err != nil {
			return Rootfs{}, err
		}
		return Rootfs{Snapshotter: l.Snapshotter(), Key: id}, nil
	case err != nil:
		return Rootfs{}, fmt.Errorf("container %s: %w", id, err)
	case record.SnapshotKey == "":
		return Rootfs{}, fmt.Errorf("container %s has no snapshot: %w", id, errdefs.ErrFailedPrecondition)
	}
	return Rootfs{Snapshotter: record.Snapshotter, Key: record.SnapshotKey, Container: &record}, nil
}

// ids is the snapshot's map. ctr and nerdctl make a copy for the owners and do not
// label it: there it is the container's.
func (r Rootfs) ids(info snapshots.Info) (idmap.Map, error) {
	m, err := idmap.Parse(info.Labels)
	if err != nil || !m.Empty() || r.Container == nil || r.Container.Spec == nil {
		return m, err
	}
	spec := specs.Spec{}
	if err := typeurl.UnmarshalTo(r.Container.Spec, &spec); err != nil {
		return m, fmt.Errorf("specification: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	if spec.Linux != nil {
		m = idmap.Map{UIDs: spec.Linux.UIDMappings, GIDs: spec.Linux.GIDMappings}
	}
	return m, nil
}
