// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/process"
)

// StopPod ends the members, all at once, each with up to timeout to do so by itself,
// then the pod and its network. If ctx has a deadline, a second of it is kept for
// the pod. One that is not there, or has stopped, is a success.
func (s *Service) StopPod(ctx context.Context, ref string, timeout time.Duration) error {
	ctx = s.in(ctx)
	p, err := s.findPod(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := refuse("pod", &p.Entry, false); err != nil {
		return err
	}
	return s.stopPod(ctx, p, timeout)
}

func (s *Service) stopPod(ctx context.Context, p *foundPod, grace time.Duration) error {
	if err := s.mend(ctx, p); err != nil {
		return err
	}
	r := process.StopPodRequest{Grace: grace}
	var held []*member
	for _, e := range p.Members {
		m, err := s.load(ctx, p.view.containers[e.ID], e)
		if err != nil {
			// Damaged, or somebody else's; the pod's end is its end. What it says
			// is not what the caller wants to know.
			if err := s.endTask(ctx, e.ID); err != nil {
				return fmt.Errorf("stop pod %s: %w", p.ID, err)
			}
			continue
		}
		held, r.Members = append(held, m), append(r.Members, m.Container)
	}
	if p.Infra != nil {
		if m, err := s.load(ctx, p.view.containers[p.ID], *p.Infra); err == nil {
			held, r.Infra = append(held, m), m.Container
		}
	}
	err := s.processes.StopPod(ctx, r)
	for _, m := range held {
		s.letStop(ctx, m)
	}
	if err != nil {
		return fmt.Errorf("stop pod %s: %w", p.ID, err)
	}
	if err := s.sandboxes.stop(ctx, PodID(p.ID)); err != nil {
		return err
	}
	if err := s.network.Remove(ctx, p.ID); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.ID, err)
	}
	return nil
}

// RemovePod stops the pod, and removes it with all members. While some run it needs
// a timeout for them, or Force. One that is not there is a success.
func (s *Service) RemovePod(ctx context.Context, ref string, o RemoveOptions) error {
	ctx = s.in(ctx)
	if err := s.recoverNow(ctx); err != nil {
		return err
	}
	p, err := s.findPod(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := refuse("pod", &p.Entry, o.Force); err != nil {
		return err
	}
	if p.Owner != labels.OwnerBerth {
		return s.removeForeignPod(ctx, p)
	}
	if !o.Force && o.Timeout == 0 {
		for _, e := range p.Members {
			if c := s.describe(p.view, e); c.running() {
				return fmt.Errorf("remove pod %s: container %s is %s: %w", p.ID, c.ID, c.State, errdefs.ErrFailedPrecondition)
			}
		}
	}
	if err := s.stopPod(ctx, p, o.grace()); err != nil {
		return err
	}
	for _, e := range p.Members {
		if err := s.endTask(ctx, e.ID); err != nil {
			return fmt.Errorf("remove pod %s: %w", p.ID, err)
		}
	}
	if err := s.endTask(ctx, p.ID); err != nil { // a virtual machine's
		return fmt.Errorf("remove pod %s: %w", p.ID, err)
	}
	if err := s.sandboxes.shutdown(ctx, PodID(p.ID)); err != nil {
		return err
	}
	err = s.removeRecords(ctx, p)
	if errdefs.IsFailedPrecondition(err) {
		// A member was made meanwhile. It is the last one: there is no sandbox any more.
		if p, err = s.findPod(ctx, p.ID); err == nil {
			err = s.removeRecords(ctx, p)
		}
	}
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// removeRecords removes what there is of a pod without its sandbox.
func (s *Service) removeRecords(ctx context.Context, p *foundPod) error {
	for _, e := range p.Members {
		if err := s.endTask(ctx, e.ID); err != nil {
			return fmt.Errorf("remove pod %s: %w", p.ID, err)
		}
	}
	if p.Infra != nil {
		removeCgroups(p.view.containers[p.ID])
	}
	if err := s.records.RemovePod(ctx, p.ID); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	var errs []error
	for _, e := range p.Members {
		errs = append(errs, s.forgetExit(e.ID))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove pod %s: %w", p.ID, err)
	}
	return nil
}

func (o *RemoveOptions) grace() time.Duration {
	if o.Force {
		return 0
	}
	return o.Timeout
}

func (c *Container) running() bool { return c.State == ContainerRunning || c.State == ContainerPaused }

// removeForeignPod has its maker remove it, who knows what belongs to it.
func (s *Service) removeForeignPod(ctx context.Context, p *foundPod) error {
	conn, ok := s.config.Client.Conn().(grpc.ClientConnInterface)
	if p.Owner != labels.OwnerCRI || !ok {
		return fmt.Errorf("remove pod %s: nobody knows how: %w", p.ID, ErrForeign)
	}
	c := cri.NewRuntimeServiceClient(conn)
	if _, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		return fmt.Errorf("stop pod %s through CRI: %w", p.ID, errgrpc.ToNative(err))
	}
	if _, err := c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		return fmt.Errorf("remove pod %s through CRI: %w", p.ID, errgrpc.ToNative(err))
	}
	return nil
}

// RemoveContainer removes a container, and its pod if that was made for it. While it
// runs it needs a timeout, or Force. Its log stays, unless that is in the pod's
// directory and the pod goes. One that is not there is a success.
func (s *Service) RemoveContainer(ctx context.Context, ref string, o RemoveOptions) error {
	ctx = s.in(ctx)
	if err := s.recoverNow(ctx); err != nil {
		return err
	}
	v, e, err := s.findContainer(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := refuse("container", e, o.Force); err != nil {
		return err
	}
	if e.Owner != labels.OwnerBerth {
		return s.removeForeign(ctx, e)
	}
	if err := s.stopForRemoval(ctx, v, e, o); err != nil {
		return fmt.Errorf("remove container %s: %w", e.ID, err)
	}
	if err := s.endTask(ctx, e.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", e.ID, err)
	}
	made, lost := s.containers.Get(ctx, e.Metadata.Pod.ID)
	if err := s.records.Remove(ctx, e.ID); err != nil {
		return err
	}
	if err := s.forgetExit(e.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", e.ID, err)
	}
	_ = s.forgetMember(e.Metadata.Pod.ID, e.ID) // a note of nothing does no harm
	if lost == nil && labels.Describe(made).Metadata.Settings.MadeFor == e.ID {
		return s.RemovePod(ctx, made.ID, o)
	}
	return nil
}

func (s *Service) stopForRemoval(ctx context.Context, v *view, e *labels.Entry, o RemoveOptions) error {
	c := s.describe(v, *e)
	if !c.running() {
		return nil
	}
	if !o.Force && o.Timeout == 0 {
		return fmt.Errorf("it is %s: %w", c.State, errdefs.ErrFailedPrecondition)
	}
	m, err := s.load(ctx, v.containers[e.ID], *e)
	if err != nil {
		return nil //nolint:nilerr // damaged: its task is ended without further ado
	}
	return s.stop(ctx, m, o.grace())
}

// removeForeign removes what ctr or nerdctl made as they would; CRI's is CRI's.
func (s *Service) removeForeign(ctx context.Context, e *labels.Entry) error {
	conn, ok := s.config.Client.Conn().(grpc.ClientConnInterface)
	if e.Owner == labels.OwnerCRI && ok {
		_, err := cri.NewRuntimeServiceClient(conn).RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: e.ID})
		if err != nil {
			return fmt.Errorf("remove container %s through CRI: %w", e.ID, errgrpc.ToNative(err))
		}
		return nil
	}
	if err := s.endTask(ctx, e.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", e.ID, err)
	}
	c, err := s.config.Client.LoadContainer(ctx, e.ID)
	if err == nil {
		err = c.Delete(ctx, client.WithSnapshotCleanup)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove container %s: %w", e.ID, err)
	}
	return nil
}

// endTask kills and deletes a task, if there is one, without regard to its state.
func (s *Service) endTask(ctx context.Context, id string) error {
	answer, err := s.tasks.Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err := errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("task of container %s: %w", id, err)
	}
	if st := answer.Process.Status; st != task.Status_STOPPED {
		_, kill := s.tasks.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL), All: true})
		if st == task.Status_PAUSED || st == task.Status_PAUSING {
			_, resume := s.tasks.Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: id})
			kill = errors.Join(kill, resume)
		}
		if _, err := s.tasks.Wait(ctx, &tasks.WaitRequest{ContainerID: id}); err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			return fmt.Errorf("end container %s: %w", id, errors.Join(errgrpc.ToNative(err), kill))
		}
	}
	if _, err := s.tasks.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id}); err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		return fmt.Errorf("delete task of container %s: %w", id, errgrpc.ToNative(err))
	}
	return nil
}
