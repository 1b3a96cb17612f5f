// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/record/claim"
	"github.com/berthd/berth/plugin/runtime/record/idmap"
)

func (c *Creation) snapshotter() string {
	if name := c.plan.snapshotter; name != "" {
		return name
	}
	return c.store.o.Snapshotter
}

// prepare makes the writable layer. The pod's lease keeps it until a record does.
func (c *Creation) prepare(ctx context.Context) error {
	if c.image == nil {
		return nil
	}
	name, id := c.snapshotter(), c.plan.id
	if err := c.store.unpack(ctx, c.image, name); err != nil {
		return fmt.Errorf("unpack image %s: %w", c.image.record, err)
	}
	lease := leases.Lease{ID: c.plan.metadata.Pod.ID}
	ctx = leases.WithLease(ctx, lease.ID)
	parent := c.image.chain
	opts := []snapshots.Opt{snapshots.WithLabels(labels.SnapshotLabels(c.plan.metadata.Name))}
	if m := c.plan.metadata.IDMap; len(m.UIDs) > 0 {
		can, err := c.store.capabilities(ctx, name)
		if err != nil {
			return err
		}
		switch {
		case slices.Contains(can, "remap-ids"):
			opts = append(opts, client.WithUserNSRemapperLabels(m.UIDs, m.GIDs))
		case slices.Contains(can, "only-remap-ids"):
			return fmt.Errorf("snapshotter %s cannot map IDs on this kernel, and is told not to copy: %w", name, errdefs.ErrFailedPrecondition)
		default:
			c.copied = idmap.CopyKey(parent, m)
			c.undo.add("remove copy", func(ctx context.Context) error {
				return c.store.removeCopy(ctx, snapshotKey{name, c.copied, lease.ID})
			})
		}
	}
	// Even what fails may enter the lease.
	c.undo.add("take snapshot from lease", func(ctx context.Context) error {
		return c.store.unlease(ctx, snapshotKey{name, id, lease.ID})
	})
	for range copyAttempts {
		if c.copied != "" {
			if err := c.store.copyMapped(ctx, name, parent, c.plan); err != nil {
				return err
			}
		}
		err := c.prepareOn(ctx, name, parent, opts)
		if err == nil {
			return nil
		}
		if c.copied == "" || !errdefs.IsNotFound(err) {
			return fmt.Errorf("snapshot %s: %w", id, err)
		}
	}
	return fmt.Errorf("snapshot %s: its parent is removed again and again: %w", id, errdefs.ErrAborted)
}

// copyAttempts: between its making and its use, a copy may be removed by whoever
// deletes its last user.
const copyAttempts = 5

func (c *Creation) prepareOn(ctx context.Context, snapshotter, parent string, opts []snapshots.Opt) error {
	if c.copied != "" {
		parent = c.copied
	}
	sn, id := c.store.client.SnapshotService(snapshotter), c.plan.id
	if _, err := sn.Prepare(ctx, id, parent, opts...); err != nil {
		return err
	}
	c.undo.add("remove snapshot", func(ctx context.Context) error {
		return c.store.removeSnapshot(ctx, snapshotKey{snapshotter, id, c.plan.metadata.Pod.ID})
	})
	return nil
}

// dropLease ends the lease's hold of the snapshots: the record has them.
func (c *Creation) dropLease(ctx context.Context) error {
	if c.image == nil {
		return nil
	}
	for _, key := range []string{c.plan.id, c.copied} {
		if key == "" {
			continue
		}
		if err := c.store.unlease(ctx, snapshotKey{c.snapshotter(), key, c.plan.metadata.Pod.ID}); err != nil {
			return err
		}
	}
	return nil
}

// capabilities of a snapshotter, as its plugin tells them.
func (s *Store) capabilities(ctx context.Context, snapshotter string) ([]string, error) {
	can, err := s.client.GetSnapshotterCapabilities(ctx, snapshotter)
	if err != nil {
		return nil, fmt.Errorf("capabilities of snapshotter %s: %w", snapshotter, err)
	}
	return can, nil
}

// copyMapped makes the copy of an image's snapshot that belongs to the IDs of a map,
// unless there is one. It is shared by all containers of that image and map.
func (s *Store) copyMapped(ctx context.Context, snapshotter, chain string, p *plan) (err error) {
	m := p.metadata.IDMap
	sn, key := s.client.SnapshotService(snapshotter), idmap.CopyKey(chain, m)
	// One at a time: the second would copy for nothing.
	held, err := s.claims.Wait(ctx, snapshotter+" "+key, claim.Note{Owner: p.id, Task: "copy"}, nil)
	if err != nil {
		return err
	}
	defer held.Release()
	if _, err := sn.Stat(ctx, key); err == nil || !errdefs.IsNotFound(err) {
		return err
	}
	draft := key + "-" + p.id
	mounts, err := sn.Prepare(ctx, draft, chain)
	if err != nil {
		return fmt.Errorf("copy for user namespace: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreNotFound(sn.Remove(context.WithoutCancel(ctx), draft)))
		}
	}()
	if err := mount.WithTempMount(ctx, mounts, func(root string) error { return idmap.Chown(ctx, root, m) }); err != nil {
		return fmt.Errorf("copy for user namespace: %w", err)
	}
	if err := sn.Commit(ctx, key, draft); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("copy for user namespace: %w", err)
	} else if err != nil {
		return ignoreNotFound(sn.Remove(ctx, draft))
	}
	return nil
}

// snapshotKey names a container's snapshot, and the pod whose lease may hold it.
type snapshotKey struct{ snapshotter, key, pod string }

// unlease takes a snapshot from its pod's lease.
func (s *Store) unlease(ctx context.Context, k snapshotKey) error {
	r := leases.Resource{ID: k.key, Type: "snapshots/" + k.snapshotter}
	err := s.client.LeasesService().DeleteResource(ctx, leases.Lease{ID: k.pod}, r)
	if err := ignoreNotFound(err); err != nil {
		return fmt.Errorf("take snapshot %s from lease %s: %w", k.key, k.pod, err)
	}
	return nil
}

// removeSnapshot removes a container's snapshot, and the copy that it is on if it
// was the last that is.
func (s *Store) removeSnapshot(ctx context.Context, k snapshotKey) error {
	sn := s.client.SnapshotService(k.snapshotter)
	info, err := sn.Stat(ctx, k.key)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("snapshot %s: %w", k.key, err)
	}
	if err := s.unlease(ctx, k); err != nil {
		return err
	}
	if err := ignoreNotFound(sn.Remove(ctx, k.key)); err != nil {
		return fmt.Errorf("snapshot %s: %w", k.key, err)
	}
	if !idmap.IsCopy(info.Parent) {
		return nil
	}
	return s.removeCopy(ctx, snapshotKey{k.snapshotter, info.Parent, k.pod})
}

// removeCopy removes a copy unless a container is on it.
func (s *Store) removeCopy(ctx context.Context, k snapshotKey) error {
	if err := s.unlease(ctx, k); err != nil {
		return err
	}
	err := s.client.SnapshotService(k.snapshotter).Remove(ctx, k.key)
	if err != nil && !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotFound(err) {
		return fmt.Errorf("snapshot %s: %w", k.key, err)
	}
	return nil
}
