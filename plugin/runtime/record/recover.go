// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/record/claim"
	"github.com/berthd/berth/plugin/runtime/record/idmap"
)

// Recover removes what processes left that died while they created or removed
// something. It costs nothing if there was none: it is for the start of a program.
//
// What has a task, or a sandbox that lives, is FailedPrecondition: the caller ends
// that and calls again. Such errors are joined and keep nothing else from being
// removed.
func (s *Store) Recover(ctx context.Context) error {
	ctx = s.in(ctx)
	names, err := s.claims.Abandoned("")
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if id, ok := strings.CutPrefix(name, claimID); ok {
			errs = append(errs, s.recover(ctx, id, claim.Note{}))
			continue
		}
		// A name, or a lock of its own: nothing was done but by its owner.
		held, err := s.claims.Take(name, claim.Note{Task: taskRecover})
		if err == nil {
			held.Release()
		}
	}
	return errors.Join(errs...)
}

// RecoverAll is Recover that looks at everything: records that were not finished,
// directories without a record, leases without a pod. It is for the start of the
// machine. If the records cannot be read, nothing is removed on their account.
func (s *Store) RecoverAll(ctx context.Context) error {
	errs := []error{s.Recover(ctx)}
	ctx = s.in(ctx)
	// Before the records: whose directory is made later has a claim.
	dirs, err := s.listDirs()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	found, err := s.listRecords(ctx)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("nothing more is recovered: %w", err))...)
	}
	for _, id := range found.unfinished {
		errs = append(errs, s.recover(ctx, id, claim.Note{}))
	}
	for _, id := range dirs {
		if !found.known[id] {
			errs = append(errs, s.recover(ctx, id, claim.Note{}))
		}
	}
	all, err := s.client.LeasesService().List(ctx, labels.PodLeases())
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list leases: %w", err))...)
	}
	for _, l := range all {
		errs = append(errs, s.recoverLease(ctx, l, found))
	}
	return errors.Join(errs...)
}

// found are the records of the namespace: what is known by ID, whosever it is, and
// what berth has not finished.
type found struct {
	known      map[string]bool
	unfinished []string
}

func (s *Store) listRecords(ctx context.Context) (found, error) {
	f := found{known: map[string]bool{}}
	cs, err := s.client.ContainerService().List(ctx)
	if err != nil {
		return f, fmt.Errorf("list containers: %w", err)
	}
	bs, err := s.client.SandboxStore().List(ctx)
	if err != nil {
		return f, fmt.Errorf("list sandboxes: %w", err)
	}
	for _, c := range cs {
		f.known[c.ID] = true
		if m, err := labels.Decode(c); err == nil && !m.Created {
			f.unfinished = append(f.unfinished, c.ID)
		}
	}
	for _, b := range bs {
		if m, err := labels.DecodeSandbox(b); err == nil && !m.Created && !f.known[b.ID] {
			f.unfinished = append(f.unfinished, b.ID)
		}
		f.known[b.ID] = true
	}
	return f, nil
}

// listDirs returns the IDs that have a directory.
func (s *Store) listDirs() ([]string, error) {
	var ids []string
	for _, dir := range []string{s.workDirs(), s.runDirs()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, system(err)
		}
		for _, e := range entries {
			if e.IsDir() && identifiers.Validate(e.Name()) == nil {
				ids = append(ids, e.Name())
			}
		}
	}
	return ids, nil
}

// recoverLease removes a lease whose pod is gone, and from others what a creation
// left there.
func (s *Store) recoverLease(ctx context.Context, l leases.Lease, f found) error {
	if !f.known[l.ID] {
		return s.recover(ctx, l.ID, claim.Note{Details: map[string]string{detailPod: l.ID}})
	}
	resources, err := s.client.LeasesService().ListResources(ctx, l)
	if err != nil {
		return ignoreNotFound(fmt.Errorf("lease %s: %w", l.ID, err))
	}
	var errs []error
	for _, r := range resources {
		snapshotter, ok := strings.CutPrefix(r.Type, "snapshots/")
		if !ok || f.known[r.ID] {
			continue
		}
		errs = append(errs, s.recoverSnapshot(ctx, snapshotKey{snapshotter, r.ID, l.ID}))
	}
	return errors.Join(errs...)
}

// recoverSnapshot removes a snapshot that a creation left: that of a container, or
// the beginning of a copy. A copy that is done loses the lease: whoever is about to
// use it would make it again.
func (s *Store) recoverSnapshot(ctx context.Context, k snapshotKey) error {
	if idmap.IsCopy(k.key) {
		return s.unlease(ctx, k)
	}
	id := k.key
	if at := strings.LastIndex(id, "-"); at > 0 && idmap.IsCopy(id[:at]) {
		id = id[at+1:]
	}
	return s.recover(ctx, id, claim.Note{
		Details: map[string]string{detailPod: k.pod, detailSnapshotter: k.snapshotter, detailDraft: k.key},
	})
}

// detailDraft is the key of a snapshot that is left, where it is not the ID.
const detailDraft = "draft"

// recover sweeps what there is of an ID, unless somebody is at work there. The note
// helps if the dead have left none.
func (s *Store) recover(ctx context.Context, id string, note claim.Note) error {
	note.Owner, note.Task = id, taskRecover
	held, err := s.claims.Take(claimID+id, note)
	var by *claim.HeldError
	if errors.As(err, &by) {
		return nil
	}
	if err != nil {
		return err
	}
	left := note
	if held.Left != nil {
		left = *held.Left
	}
	if err := s.sweep(ctx, id, left); err != nil {
		held.Leave()
		return fmt.Errorf("recover %s: %w", id, err)
	}
	held.Release()
	return nil
}

// sweep removes what is left of an ID whose claim the caller holds: everything of a
// container or pod that is not finished, or whose record is gone. What is finished,
// foreign or cannot be decoded is left alone.
func (s *Store) sweep(ctx context.Context, id string, left claim.Note) error {
	c, err := s.client.ContainerService().Get(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err == nil {
		m, err := labels.Decode(c)
		if err != nil || m.Schema > labels.Version {
			return nil //nolint:nilerr // not ours to judge
		}
		if m.Created {
			return nil
		}
		if err := s.idle(ctx, id); err != nil {
			return err
		}
		if err := s.shutDown(ctx, id); err != nil {
			return err
		}
		// Without the infra container, its own mark counts.
		if err := s.writeSandbox(ctx, id, m, updated); err != nil {
			return err
		}
		if err := s.remove(ctx, c); err != nil {
			return err
		}
	}
	if done, err := s.sweepSandbox(ctx, id, left); err != nil || !done {
		return err
	}
	if err := s.sweepSnapshot(ctx, id, left); err != nil {
		return err
	}
	if err := unmount(ctx, s.runDir(id)); err != nil {
		return err
	}
	return s.removeDirs(id)
}

// sweepSandbox removes the sandbox record and the lease of a pod without an infra
// container, unless that was finished and nobody began to remove it. It tells
// whether the rest may go.
func (s *Store) sweepSandbox(ctx context.Context, id string, left claim.Note) (bool, error) {
	b, err := s.client.SandboxStore().Get(ctx, id)
	switch {
	case err == nil:
		m, err := labels.DecodeSandbox(b)
		if err != nil || m.Schema > labels.Version || m.Created && left.Task != taskRemove {
			return false, nil //nolint:nilerr // not ours to judge
		}
	case !errdefs.IsNotFound(err):
		return false, err
	case left.Details[detailPod] != id && left.Task != taskRemove: // a member
		return true, nil
	}
	if err := s.shutDown(ctx, id); err != nil {
		return false, err
	}
	return true, s.removeSandbox(ctx, id)
}

// sweepSnapshot removes the snapshot of a container without a record, if it was
// made by berth.
func (s *Store) sweepSnapshot(ctx context.Context, id string, left claim.Note) error {
	snapshotter := left.Details[detailSnapshotter]
	if snapshotter == "" {
		snapshotter = s.o.Snapshotter
	}
	key := id
	if draft := left.Details[detailDraft]; draft != "" {
		key = draft
	}
	info, err := s.client.SnapshotService(snapshotter).Stat(ctx, key)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", key, err)
	}
	for mark := range labels.SnapshotLabels(id) {
		if _, ok := info.Labels[mark]; !ok && key == id {
			return nil
		}
	}
	return s.removeSnapshot(ctx, snapshotKey{snapshotter, key, left.Details[detailPod]})
}
