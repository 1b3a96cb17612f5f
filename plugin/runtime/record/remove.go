// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/record/claim"
)

// Remove removes a container: record, snapshot, mount and directories. One that is
// not there is success, an empty ID ErrInvalidContainerID. While it has a task, or
// is being created, or is a pod, it is FailedPrecondition and nothing changes. After
// another error it can be called again.
func (s *Store) Remove(ctx context.Context, ref string) error {
	ctx = s.in(ctx)
	c, err := s.known(ctx, ref)
	if errdefs.IsNotFound(err) {
		return s.finish(ctx, ref)
	}
	if err != nil {
		return err
	}
	if err := s.removeMember(ctx, c.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", c.ID, err)
	}
	return nil
}

// finish completes the removal of something that has no record any more.
func (s *Store) finish(ctx context.Context, id string) error {
	left, err := s.claims.Abandoned(claimID + id)
	if err != nil {
		return err
	}
	if slices.Contains(left, claimID+id) {
		return s.recover(ctx, id, claim.Note{})
	}
	return nil
}

func (s *Store) removeMember(ctx context.Context, id string) error {
	return s.removing(ctx, id, func(ctx context.Context) error {
		c, err := s.client.ContainerService().Get(ctx, id)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		m, err := labels.Decode(c)
		switch {
		case errors.Is(err, labels.ErrForeign):
			return err
		case m.Schema > labels.Version:
			return labels.ErrNewerSchema
		case m.Kind == labels.KindInfra:
			return fmt.Errorf("it is a pod: %w", errdefs.ErrFailedPrecondition)
		}
		unlock, err := s.lock(ctx, id, claim.Exclusive)
		if err != nil {
			return err
		}
		defer unlock()
		if err := s.idle(ctx, id); err != nil {
			return err
		}
		return s.remove(ctx, c)
	})
}

// removing claims an ID for a removal, which is left to whoever comes next if it
// fails.
func (s *Store) removing(ctx context.Context, id string, do func(context.Context) error) error {
	held, err := s.claims.Wait(ctx, claimID+id, claim.Note{Owner: id, Task: taskRemove}, creating)
	var by *claim.HeldError
	if errors.As(err, &by) && creating(by.By) {
		return fmt.Errorf("it is being created: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	if held.Left != nil {
		err = s.sweep(ctx, id, *held.Left)
	}
	if err == nil {
		err = do(ctx)
	}
	if err == nil || errdefs.IsFailedPrecondition(err) {
		held.Release()
	} else {
		held.Leave()
	}
	return err
}

// idle returns FailedPrecondition for a container that has a task.
func (s *Store) idle(ctx context.Context, id string) error {
	task, err := s.hasTask(ctx, id)
	if err == nil && task {
		err = fmt.Errorf("container %s has a task: %w", id, errdefs.ErrFailedPrecondition)
	}
	return err
}

// remove removes all there is of a container. The record goes after the snapshot,
// so that what could not be removed is still told by it, and before the directories,
// which only berth needs.
func (s *Store) remove(ctx context.Context, c containers.Container) error {
	if err := unmount(ctx, s.runDir(c.ID)); err != nil {
		return err
	}
	if c.SnapshotKey != "" {
		pod := c.SandboxID
		if pod == "" {
			pod = c.ID
		}
		if err := s.removeSnapshot(ctx, snapshotKey{c.Snapshotter, c.SnapshotKey, pod}); err != nil {
			return err
		}
	}
	if err := ignoreNotFound(s.client.ContainerService().Delete(ctx, c.ID)); err != nil {
		return fmt.Errorf("container record %s: %w", c.ID, err)
	}
	return s.removeDirs(c.ID)
}

func (s *Store) removeDirs(id string) error {
	return errors.Join(removeDir(s.workDir(id)), removeDir(s.runDir(id)))
}

// RemovePod removes a pod and its members: records, lease, snapshots, mounts and
// directories. An unknown one is ErrInvalidSandboxID. While a member has a task, or
// the sandbox lives, or the pod is being created, it is FailedPrecondition and
// nothing changes; creations of members are waited for. After another error it can
// be called again.
func (s *Store) RemovePod(ctx context.Context, ref string) error {
	ctx = s.in(ctx)
	if ref == "" {
		return fmt.Errorf("%w: %w", ErrInvalidSandboxID, errdefs.ErrInvalidArgument)
	}
	id, err := s.podID(ctx, ref)
	if err != nil {
		return err
	}
	if _, err := s.pod(ctx, id); err != nil {
		if errdefs.IsNotFound(err) {
			err = errors.Join(err, s.finish(ctx, id))
		}
		return err
	}
	err = s.removing(ctx, id, func(ctx context.Context) error { return s.removePod(ctx, id) })
	if err != nil {
		return fmt.Errorf("remove pod %s: %w", id, err)
	}
	return nil
}

func (s *Store) removePod(ctx context.Context, id string) error {
	unlock, err := s.lock(ctx, id, claim.Exclusive)
	switch {
	case err == nil:
		defer unlock()
	case !errors.Is(err, ErrInvalidContainerID): // which is: the infra container is lost
		return err
	}
	pod, err := s.pod(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.removable(ctx, pod); err != nil {
		return err
	}
	for _, m := range pod.Members {
		if err := s.removeMember(ctx, m.ID); err != nil {
			return fmt.Errorf("container %s: %w", m.ID, err)
		}
	}
	if pod.Infra != nil {
		infra, err := s.client.ContainerService().Get(ctx, id)
		if err != nil {
			return err
		}
		if err := s.remove(ctx, infra); err != nil {
			return err
		}
	}
	return s.removeSandbox(ctx, id)
}

// removeSandbox removes what a pod has besides its containers.
func (s *Store) removeSandbox(ctx context.Context, id string) error {
	if err := ignoreNotFound(s.client.SandboxStore().Delete(ctx, id)); err != nil {
		return fmt.Errorf("sandbox record %s: %w", id, err)
	}
	if err := ignoreNotFound(s.client.LeasesService().Delete(ctx, leases.Lease{ID: id})); err != nil {
		return fmt.Errorf("lease %s: %w", id, err)
	}
	return s.removeDirs(id)
}

// removable looks at all that keeps a pod from being removed.
func (s *Store) removable(ctx context.Context, pod labels.PodEntry) error {
	entries := append([]labels.Entry{pod.Entry}, pod.Members...)
	if pod.Infra != nil {
		entries = append(entries, *pod.Infra)
	}
	mine := map[string]bool{}
	for _, e := range entries {
		if e.Owner != labels.OwnerBerth {
			return fmt.Errorf("%s: %w", e.ID, labels.ErrForeign)
		}
		if e.Metadata.Schema > labels.Version {
			return fmt.Errorf("%s: %w", e.ID, labels.ErrNewerSchema)
		}
		mine[e.ID] = true
	}
	r, err := s.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return fmt.Errorf("list tasks: %w", errgrpc.ToNative(err))
	}
	for _, t := range r.Tasks {
		if mine[t.ID] {
			return fmt.Errorf("container %s has a task: %w", t.ID, errdefs.ErrFailedPrecondition)
		}
	}
	if !pod.Sandbox {
		return nil
	}
	return s.shutDown(ctx, pod.ID)
}

// shutDown returns FailedPrecondition for a sandbox that has a shim: without its
// record nobody would end it.
func (s *Store) shutDown(ctx context.Context, id string) error {
	b, err := s.client.SandboxStore().Get(ctx, id)
	if err != nil {
		return ignoreNotFound(err)
	}
	if b.Sandboxer == "" {
		return nil
	}
	status, err := s.client.SandboxController(b.Sandboxer).Status(ctx, id, false)
	if err != nil {
		return ignoreNotFound(err)
	}
	if status.Address != "" || status.State == sandboxReady {
		return fmt.Errorf("sandbox %s is not shut down: %w", id, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// sandboxReady is what a shim says of a sandbox that runs, in CRI's words.
const sandboxReady = "SANDBOX_READY"
