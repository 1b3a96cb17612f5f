// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/runtime/process/identity"
)

const (
	// SIGKILL is sent again after a pause that doubles: a process that waits for a
	// device dies when that answers, which may take its time.
	killPause    = 20 * time.Millisecond
	killPauseMax = 2 * time.Minute
	// stuckReport is how often a process that SIGKILL does not end is reported.
	stuckReport = time.Minute
	// offers is how many callers' deadlines can wait for the loop; more than that
	// is dropped, and the loop looks at them at once.
	offers = 16
	// signalTimeout is how long containerd may take for a signal before the process
	// is signalled without it.
	signalTimeout = 3 * time.Second
	// infraShare is the part of a pod's time that is kept for its infra container.
	infraShare = time.Second
)

// stopping lets one caller stop the container and the others wait for it.
type stopping struct {
	mu    sync.Mutex // guards the rest
	round *round     // nil: no stop is in progress
}

// round is one stop, from SetAsStopping to SetAsDoneStopping.
type round struct {
	offers chan time.Time // deadlines that others would rather have
	done   chan struct{}  // closed at the end
	err    error          // set before that
}

// SetAsStopping begins a stop. It returns true to the first caller, who has to end
// it by SetAsDoneStopping, and false while it lasts.
func (c *Container) SetAsStopping() bool {
	_, first := c.joinStop()
	return first
}

func (c *Container) joinStop() (r *round, first bool) {
	c.stopping.mu.Lock()
	defer c.stopping.mu.Unlock()
	if c.stopping.round == nil {
		c.stopping.round = &round{offers: make(chan time.Time, offers), done: make(chan struct{})}
		c.execs.reopen()
		first = true
	}
	return c.stopping.round, first
}

// SetAsDoneStopping ends a stop and wakes all who wait for it.
func (c *Container) SetAsDoneStopping() { c.doneStopping(nil) }

func (c *Container) doneStopping(err error) {
	c.stopping.mu.Lock()
	defer c.stopping.mu.Unlock()
	if r := c.stopping.round; r != nil {
		r.err = err
		close(r.done)
		c.stopping.round = nil
	}
}

// WaitOnStopTimeout waits for the end of a stop, if one is in progress, or of ctx,
// which does not end the stop. The stop is asked to be done with its patience
// after timeout, if it would be later, unless killing has begun.
func (c *Container) WaitOnStopTimeout(ctx context.Context, timeout time.Duration) error {
	c.stopping.mu.Lock()
	r := c.stopping.round
	c.stopping.mu.Unlock()
	if r == nil {
		return nil
	}
	return c.waitForStop(ctx, r, timeout)
}

func (c *Container) waitForStop(ctx context.Context, r *round, timeout time.Duration) error {
	select {
	case r.offers <- time.Now().Add(timeout):
	default: // killing, or about to look at many
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("container %s: wait for its stop, which goes on: %w", c.ID, context.Cause(ctx))
	}
}

// Stop ends the container: it sends the stop signal, and SIGKILL after grace, or at
// once for a grace of zero or less. A paused container is resumed. The first
// caller's request is carried out in the background, whatever becomes of ctx; later
// callers can only make it impatient. It returns when the process is gone and the
// state is kept. A container that has ended is a success.
func (c *Container) Stop(ctx context.Context, grace time.Duration) error {
	if c.Spoofed() {
		return c.note(ctx, func(s *State) {
			s.Status = Stopped
			if s.Finished.IsZero() {
				s.Finished = time.Now()
			}
		})
	}
	r, first := c.joinStop()
	if first {
		c.s.spawn(ctx, func(ctx context.Context) { c.doneStopping(c.stop(ctx, r, grace)) })
	}
	return c.waitForStop(ctx, r, grace)
}

// stop is what the first caller sets off.
func (c *Container) stop(ctx context.Context, r *round, grace time.Duration) error {
	s := c.StateNoLock()
	h, err := s.Init().Open()
	switch {
	case errors.Is(err, ErrNotFound) || errors.Is(err, ErrReused) || errors.Is(err, ErrNotInitialized):
		return c.finish(ctx) // nobody to signal
	case err != nil:
		return fmt.Errorf("stop container %s: %w", c.ID, err)
	}
	defer h.Close()
	exited := make(chan struct{})
	var watcher sync.WaitGroup
	defer watcher.Wait()
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	watcher.Go(func() {
		if h.Wait(watching) == nil {
			close(exited)
		}
	})
	c.thaw(ctx)
	if grace > 0 && s.Status != Created { // one that waits to be started does not listen
		c.kill(ctx, h, c.StopSignal())
		c.hold(ctx, r, exited, time.Now().Add(grace))
	}
	// Even if it went by itself: what execs it had are to go, too.
	c.endExecs(ctx)
	if err := c.insist(ctx, h, exited); err != nil {
		return err
	}
	c.KillExecPIDs()
	return c.finish(ctx)
}

// finish refreshes and keeps the state. A container without a process has ended
// now if it has not before.
func (c *Container) finish(ctx context.Context) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	if err := c.refresh(ctx); err != nil {
		c.logger(ctx).WithError(err).Warn("status of a container that has ended")
	}
	c.change(func(s *State) {
		if s.InitPid > 0 {
			s.Status = Stopped
		}
		if s.Finished.IsZero() {
			s.Finished = time.Now()
		}
	})
	if err := c.save(); !errdefs.IsNotFound(err) {
		return err
	}
	return nil // it has been removed meanwhile
}

// hold waits for the exit until the deadline, or an earlier one that is offered.
func (c *Container) hold(ctx context.Context, r *round, exited <-chan struct{}, deadline time.Time) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		select {
		case <-exited:
			return
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case d := <-r.offers:
			if d.Before(deadline) {
				deadline = d
				timer.Reset(time.Until(d))
			}
		}
	}
}

// insist kills until the process is gone.
func (c *Container) insist(ctx context.Context, h *identity.Handle, exited <-chan struct{}) error {
	begun, reported := time.Now(), time.Now()
	for pause := killPause; ; pause = min(2*pause, killPauseMax) {
		select {
		case <-exited:
			return nil
		default:
		}
		c.thaw(ctx)
		c.kill(ctx, h, unix.SIGKILL)
		// Not all who were killed at the same time shall be so again.
		again := time.NewTimer(pause + rand.N(pause/4))
		select {
		case <-exited:
			again.Stop()
			return nil
		case <-ctx.Done():
			again.Stop()
			return fmt.Errorf("stop container %s: interrupted: %w", c.ID, errdefs.ErrAborted)
		case <-again.C:
		}
		if time.Since(reported) >= stuckReport {
			reported = time.Now()
			letter, _ := h.State()
			c.logger(ctx).WithField("pid", h.Pid).WithField("state", letter).WithField("duration", time.Since(begun)).
				Warn("process does not end on SIGKILL")
		}
	}
}

// thaw resumes the container if it is paused: no signal reaches it otherwise.
func (c *Container) thaw(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, signalTimeout)
	defer cancel()
	answer, err := c.s.tasks.Get(ctx, &tasks.GetRequest{ContainerID: c.ID})
	if err != nil {
		return // whoever asks for the status will hear of it
	}
	if s := answer.Process.Status; s != task.Status_PAUSED && s != task.Status_PAUSING {
		return
	}
	if err := c.resume(ctx); err != nil {
		c.logger(ctx).WithError(err).Warn("resume a container that is to be stopped")
	}
}

// kill signals the process, through the shim if that answers; SIGKILL goes to all
// of the container. The handle makes sure that no other process is met.
func (c *Container) kill(ctx context.Context, h *identity.Handle, sig unix.Signal) {
	ctx, cancel := context.WithTimeout(ctx, signalTimeout)
	defer cancel()
	_, err := c.s.tasks.Kill(ctx, &tasks.KillRequest{ContainerID: c.ID, Signal: uint32(sig), All: sig == unix.SIGKILL})
	if err = native(err); err == nil {
		return
	}
	if direct := h.Signal(sig); direct != nil && !errors.Is(direct, ErrNotFound) {
		c.logger(ctx).WithError(errors.Join(err, direct)).WithField("signal", int(sig)).Warn("signal a container that is to be stopped")
	}
}

// endExecs lets no exec begin from now on and ends those that are there: berth's,
// and through the shim those of others.
func (c *Container) endExecs(ctx context.Context) {
	c.execs.close()
	c.KillExecPIDs()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := c.shim().StopExecs(ctx)
	if err != nil && !errdefs.IsNotImplemented(err) && !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err) {
		c.logger(ctx).WithError(err).Warn("end a container's execs")
	}
}

// StopPodRequest names what StopPod ends.
type StopPodRequest struct {
	Members []*Container
	Infra   *Container    // nil: none
	Grace   time.Duration // of each member
}

// StopPod stops the members, all at the same time, and then the infra container,
// for which a second of the time is kept that ctx leaves. The stops go on when ctx
// ends. Errors are joined.
func (s *Service) StopPod(ctx context.Context, r StopPodRequest) error {
	members, grace := ctx, r.Grace
	if deadline, ok := ctx.Deadline(); ok && r.Infra != nil {
		var cancel context.CancelFunc
		members, cancel = context.WithDeadline(ctx, deadline.Add(-infraShare))
		defer cancel()
		grace = min(grace, max(0, time.Until(deadline)-2*infraShare))
	}
	errs := make([]error, len(r.Members)+1)
	var wg sync.WaitGroup
	for i, m := range r.Members {
		wg.Go(func() { errs[i] = m.Stop(members, grace) })
	}
	wg.Wait()
	if r.Infra != nil {
		errs[len(r.Members)] = r.Infra.Stop(ctx, infraShare/2)
	}
	return errors.Join(errs...)
}
