// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/runtime/process/control"
)

const (
	// DefaultCreateTimeout is how long making a container may take: images, hooks
	// and slow disks are part of it.
	DefaultCreateTimeout = 240 * time.Second
	// MinCreateTimeout is the least that can be set; less is raised to it.
	MinCreateTimeout = 30 * time.Second
)

// Record is a container's record, as containerd's client has it.
type Record interface {
	NewTask(context.Context, cio.Creator, ...client.NewTaskOpts) (client.Task, error)
}

// CreateRequest says how a task is made.
type CreateRequest struct {
	Record  Record
	Options []client.NewTaskOpts
	Timeout time.Duration // 0: DefaultCreateTimeout
}

func (r *CreateRequest) validate() error {
	if r.Record == nil {
		return fmt.Errorf("no record: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func (r *CreateRequest) timeout() time.Duration {
	if r.Timeout == 0 {
		return DefaultCreateTimeout
	}
	return max(r.Timeout, MinCreateTimeout)
}

// Create makes the container's task, whose process waits for Start, and records
// who that is. After an error nothing is left. An error of the runtime has its
// own words, and leaves it to the caller to say which container it was;
// DeadlineExceeded is the request's timeout.
func (c *Container) Create(ctx context.Context, r CreateRequest) (err error) {
	if c.Spoofed() {
		return c.ToDisk(ctx)
	}
	if err := r.validate(); err != nil {
		return fmt.Errorf("create container %s: %w", c.ID, err)
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	if err := c.Living(); err == nil {
		return fmt.Errorf("create container %s: its process lives: %w", c.ID, errdefs.ErrAlreadyExists)
	}
	if c.ExitDir != "" {
		_ = os.Remove(filepath.Join(c.ExitDir, c.ID)) // an earlier one's of that ID
	}
	_, missing := os.Stat(c.Metadata.Settings.LogPath)
	limited, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	task, err := r.Record.NewTask(limited, c.connect, r.Options...)
	if err != nil {
		err = native(err)
		if limited.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("not done in %v: %w: %w", r.timeout(), context.DeadlineExceeded, err)
		}
		if !errdefs.IsAlreadyExists(err) { // that task is somebody else's
			c.uncreate(ctx, missing)
		}
		return fmt.Errorf("container create failed: %w", err)
	}
	c.change((*State).renew)
	if err = c.adopt(int(task.Pid())); err == nil {
		err = c.save()
	}
	if err != nil {
		c.uncreate(ctx, missing)
	}
	return err
}

// uncreate takes away what a creation that failed may have left: a task, which
// containerd removes unless it failed itself, and a log that was not there before.
func (c *Container) uncreate(ctx context.Context, log error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	_, err := c.s.tasks.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID})
	if err := native(err); err != nil && !errdefs.IsNotFound(err) {
		c.logger(ctx).WithError(err).Warn("rest of a container that could not be created")
	}
	if errors.Is(log, os.ErrNotExist) && c.Metadata.Settings.LogPath != "" {
		_ = os.Remove(c.Metadata.Settings.LogPath) // it may not have come so far
	}
}

// adopt records the process of a task. One that is yet to be restored has none.
func (c *Container) adopt(pid int) error {
	if pid <= 0 {
		return nil
	}
	bundle, bundleErr := control.Bundle(pid, c.ID)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.state.SetInitPid(pid); err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	if bundleErr == nil {
		c.state.Bundle = bundle
	}
	return nil
}

// connect is the IO of a task that nobody here copies: the shim does it all.
func (c *Container) connect(string) (cio.IO, error) {
	return addresses{cio.Config{
		Stdin: c.Stdio.Stdin, Stdout: c.Stdio.Stdout, Stderr: c.Stdio.Stderr, Terminal: c.Metadata.Settings.Terminal,
	}}, nil
}

type addresses struct{ config cio.Config }

func (a addresses) Config() cio.Config { return a.config }
func (addresses) Cancel()              {}
func (addresses) Wait()                {}
func (addresses) Close() error         { return nil }

// Start runs the container. If it cannot, the state tells why, and the container
// can be deleted.
func (c *Container) Start(ctx context.Context) error {
	if c.Spoofed() {
		return nil
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	answer, err := c.s.tasks.Start(ctx, &tasks.StartRequest{ContainerID: c.ID})
	if err = native(err); err == nil && c.StateNoLock().InitPid == 0 { // restored
		err = c.adopt(int(answer.Pid))
	}
	if err != nil {
		err = fmt.Errorf("start container %s: %w", c.ID, err)
		if c.StateNoLock().Status != Created {
			return err // it was not this start that failed
		}
		c.change(startFailed(err))
		return errors.Join(err, c.save())
	}
	c.change(func(s *State) { s.Status, s.Started = Running, time.Now() })
	return c.save()
}

// Pause freezes the container. It returns FailedPrecondition in a wrong state.
func (c *Container) Pause(ctx context.Context) error {
	return c.freeze(ctx, "pause", Paused, func(ctx context.Context) error {
		_, err := c.s.tasks.Pause(ctx, &tasks.PauseTaskRequest{ContainerID: c.ID})
		return native(err)
	})
}

// Resume ends a Pause. It returns FailedPrecondition in a wrong state.
func (c *Container) Resume(ctx context.Context) error {
	return c.freeze(ctx, "resume", Running, c.resume)
}

func (c *Container) resume(ctx context.Context) error {
	_, err := c.s.tasks.Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: c.ID})
	return native(err)
}

func (c *Container) freeze(ctx context.Context, name string, to stateName, call func(context.Context) error) error {
	if c.Spoofed() {
		return nil
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	if err := call(ctx); err != nil {
		return fmt.Errorf("%s container %s: %w", name, c.ID, err)
	}
	c.change(func(s *State) { s.Status = to })
	return errors.Join(c.refresh(ctx), c.save())
}

// Signal sends sig to the container's first process, after making sure that it is
// the one recorded. Otherwise it returns Living's error.
func (c *Container) Signal(ctx context.Context, sig unix.Signal) error {
	if c.Spoofed() {
		return nil
	}
	if err := c.Living(); err != nil {
		return fmt.Errorf("signal %d: %w", sig, err)
	}
	// The shim signals its child, which no other process can become meanwhile.
	_, err := c.s.tasks.Kill(ctx, &tasks.KillRequest{ContainerID: c.ID, Signal: uint32(sig)})
	if err = native(err); err != nil {
		return fmt.Errorf("signal %d to container %s: %w", sig, c.ID, err)
	}
	return nil
}

// Wait returns the container's state when it has ended. It may have been removed by
// then.
func (c *Container) Wait(ctx context.Context) (State, error) {
	var err error
	if !c.Spoofed() && c.StateNoLock().Status != Stopped {
		var end *tasks.WaitResponse
		end, err = c.s.tasks.Wait(ctx, &tasks.WaitRequest{ContainerID: c.ID})
		if err = native(err); err == nil {
			c.noteCause()
			err = c.note(ctx, func(s *State) { s.ended(end.ExitStatus, end.ExitedAt.AsTime()) })
		} else if errdefs.IsNotFound(err) {
			err = c.Refresh(ctx)
		}
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return State{}, fmt.Errorf("wait for container %s: %w", c.ID, err)
	}
	return c.StateNoLock(), nil
}

// Delete removes the container's task, if there is one; the state stays on disk. A
// container that runs is FailedPrecondition; one that was never started is ended.
func (c *Container) Delete(ctx context.Context) error {
	if c.Spoofed() {
		return nil
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	if err := c.refresh(ctx); err != nil {
		return err
	}
	if s := c.StateNoLock().Status; s == Running || s == Paused {
		return fmt.Errorf("delete container %s: it is %s: %w", c.ID, s, errdefs.ErrFailedPrecondition)
	}
	end, err := c.s.tasks.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID})
	if err := native(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container %s: %w", c.ID, err)
	}
	c.change(func(s *State) {
		if err == nil {
			s.ended(end.ExitStatus, end.ExitedAt.AsTime())
		}
		s.Bundle = ""
	})
	return c.save()
}

// ReopenLog makes the shim open the container's log file anew, between two lines.
func (c *Container) ReopenLog(ctx context.Context) error {
	if c.Spoofed() {
		return nil
	}
	return c.shim().ReopenLog(ctx)
}
