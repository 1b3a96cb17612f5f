// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/idmap"
	"github.com/berthd/berth/images/manifest"
)

// capabilityRemap is what a snapshotter says of itself that maps the owners of files
// by the labels of idmap.Map (containerd, docs/user-namespaces).
const capabilityRemap = "remap-ids"

// PrepareRequest says what a container is to write to.
type PrepareRequest struct {
	// ID is the container's. The snapshot and its lease are called so.
	ID string
	// Parent is the container's image, nil for an empty root.
	Parent *manifest.Manifest
	// Init makes a layer between the image's and the container's, which is not part
	// of what the container changes. It is called with the root of the image and
	// sees the owners that the container will see. nil: no such layer.
	Init func(root string) error
	// IDs maps the container's users to the host's.
	IDs idmap.Map
	// MountLabel is SELinux' for the container's files, empty without one.
	MountLabel string
}

func (r PrepareRequest) validate() error {
	if err := identifiers.Validate(r.ID); err != nil {
		return fmt.Errorf("prepare layer: %w", err)
	}
	if err := r.IDs.Validate(); err != nil {
		return fmt.Errorf("prepare layer %s: %w", r.ID, err)
	}
	return nil
}

// Prepare makes the snapshot that a container writes to and unpacks its image if need
// be. A lease without end keeps it until Release. If there is a lease or a snapshot of
// that name the class is ErrAlreadyExists; then and on every other error nothing of
// the call is left.
func (l *Layers) Prepare(ctx context.Context, r PrepareRequest) (*Layer, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	ctx = l.context(ctx)
	p := preparation{layers: l, request: r}
	if err := p.lease(ctx); err != nil {
		return nil, fmt.Errorf("prepare layer %s: lease: %w", r.ID, err)
	}
	y, err := p.run(leases.WithLease(ctx, r.ID))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare layer %s: %w", r.ID, err), p.undo(ctx))
	}
	return y, nil
}

// preparation is one call of Prepare.
type preparation struct {
	layers  *Layers
	request PrepareRequest
}

// stepTimeout bounds one request that makes a snapshot: the native snapshotter copies
// all files for it.
const stepTimeout = 5 * time.Minute

// step is the context of a request that makes something under a name. Containerd goes
// on with it when the caller's ctx ends, and would be in the way of the next call: so
// the end is waited for.
func step(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTimeout)
	return ctx, cancel, nil
}

// snapshot makes a snapshot that is written to.
func (p *preparation) snapshot(ctx context.Context, key, base string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	ctx, cancel, err := step(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	mounts, err := p.layers.snapshots().Prepare(ctx, key, base, opts...)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s on %q: %w", key, base, err)
	}
	return mounts, nil
}

// labelCall tells the lease of a call from that of another for the same layer.
const labelCall = "io.berth.layer.call"

// lease makes the lease. A call that ends while containerd makes it does not know
// whether there is one, and must not take another's.
func (p *preparation) lease(ctx context.Context) error {
	id, call := p.request.ID, rand.Text()
	manager := p.layers.client.LeasesService()
	request, done, err := step(ctx)
	if err != nil {
		return err
	}
	defer done()
	_, err = manager.Create(request, leases.WithID(id), leases.WithLabel(labelLayer, id), leases.WithLabel(labelCall, call))
	if err == nil || errdefs.IsAlreadyExists(err) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	found, listErr := manager.List(ctx, fmt.Sprintf("id==%q", id))
	for _, lease := range found {
		if lease.ID == id && lease.Labels[labelCall] == call {
			return errors.Join(err, p.layers.drop(ctx, id))
		}
	}
	return errors.Join(err, listErr)
}

func (p *preparation) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	// All that was made is in the lease, and goes with it in the right order.
	return p.layers.drop(ctx, p.request.ID)
}

func (p *preparation) run(ctx context.Context) (*Layer, error) {
	l, r := p.layers, p.request
	var base string
	var err error
	if r.Parent != nil {
		if base, err = l.Unpack(ctx, r.Parent); err != nil {
			return nil, err
		}
	}
	if r.Init == nil && base == "" && !r.IDs.Empty() {
		// Containerd's overlayfs binds what has nothing below it, and a bound folder
		// with a map belongs to nobody in the container.
		r.Init = func(string) error { return nil }
	}
	if r.Init != nil {
		if base, err = p.initialize(ctx, base, r.Init); err != nil {
			return nil, err
		}
	}
	if !r.IDs.Empty() {
		if base, err = p.remap(ctx, base); err != nil {
			return nil, err
		}
	}
	labels := map[string]string{labelLayer: r.ID}
	if r.MountLabel != "" {
		labels[labelMountLabel] = r.MountLabel
	}
	maps.Copy(labels, r.IDs.Labels())
	if _, err := p.snapshot(ctx, r.ID, base, snapshots.WithLabels(labels)); err != nil {
		return nil, err
	}
	return &Layer{ID: r.ID, Parent: base, IDs: r.IDs, MountLabel: r.MountLabel, layers: l}, nil
}

// initialize makes the layer of Init and returns its snapshot. It comes below the map
// of owners, so that Init need not know of it.
func (p *preparation) initialize(ctx context.Context, base string, change func(root string) error) (string, error) {
	name := p.request.ID + "-init"
	return name, p.derive(ctx, derivation{name: name, key: name + "-key", base: base}, change)
}

// remap returns the snapshot whose files have the container's owners: the given one
// where the snapshotter does it when it mounts, else a copy with other owners, which
// containers of the same image and map share.
func (p *preparation) remap(ctx context.Context, base string) (string, error) {
	l, ids := p.layers, p.request.IDs
	capabilities, err := l.client.GetSnapshotterCapabilities(ctx, l.Snapshotter())
	if err != nil {
		return "", fmt.Errorf("capabilities of snapshotter %s: %w", l.Snapshotter(), err)
	}
	if slices.Contains(capabilities, capabilityRemap) {
		return base, nil
	}
	name := "berth-remap-" + remapped(base, ids)
	if err := l.config.Unpacker.Hold(ctx, name); err != nil {
		return "", err
	}
	_, err = l.snapshots().Stat(ctx, name)
	if err == nil {
		return name, nil
	}
	if !errdefs.IsNotFound(err) {
		return "", fmt.Errorf("snapshot %s: %w", name, err)
	}
	d := derivation{name: name, key: name + "-" + p.request.ID, base: base, shared: true}
	return name, p.derive(ctx, d, func(root string) error { return idmap.Shift(ctx, root, ids) })
}

func remapped(base string, ids idmap.Map) string {
	labels := ids.Labels()
	return digest.FromString(fmt.Sprint(base, " ", labels[snapshots.LabelSnapshotUIDMapping], " ", labels[snapshots.LabelSnapshotGIDMapping])).Encoded()
}

// derivation is a committed snapshot that is to be made of another.
type derivation struct {
	name   string
	key    string // while it is written to
	base   string
	shared bool // others may make it at the same time
}

func (p *preparation) derive(ctx context.Context, d derivation, change func(root string) error) error {
	l := p.layers
	mounts, err := p.snapshot(ctx, d.key, d.base)
	if err != nil {
		return err
	}
	mounts, err = labelled(mounts, p.request.MountLabel)
	if err != nil {
		return err
	}
	if err := l.mounts.Temporary(ctx, d.key, mounts, change); err != nil {
		return fmt.Errorf("snapshot %s: %w", d.name, err)
	}
	ctx, cancel, err := step(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	err = l.snapshots().Commit(ctx, d.name, d.key)
	if errdefs.IsAlreadyExists(err) && d.shared {
		return l.snapshots().Remove(ctx, d.key)
	}
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", d.name, err)
	}
	return nil
}
