// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/runtime/process/control"
)

const (
	// Exits that a shim leaves are looked for again after a while that grows by
	// exitGrowth, for about five seconds in all: they appear when the log is safe.
	exitPause  = 500 * time.Millisecond
	exitGrowth = 1.2
	exitTries  = 6
	// exitWait is how long the shim of a process that has ended may take to say so.
	exitWait = 5 * time.Second
	// exitBytes is more than a number has.
	exitBytes = 64

	// What a shim leaves in its bundle, and in the persistent directory "work" there.
	exitFile = "exit"
	oomFile  = "oom"
	// seccompFile lists system calls that the container was ended for.
	seccompFile = "seccomp"
)

type stateName = specs.ContainerState

// Refresh brings the state up to date and keeps it. The recorded identity of the
// process counts, not only what containerd says: a container whose process is gone
// has ended. Nothing leads back from there. An exit code that nobody knows stays
// unknown. It may take about six seconds when a process is gone without a trace.
func (c *Container) Refresh(ctx context.Context) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	before := c.StateNoLock()
	if err := c.refresh(ctx); err != nil {
		return err
	}
	if after := c.StateNoLock(); after.same(&before) {
		return nil
	}
	return c.save()
}

// same compares what refresh changes.
func (s *State) same(o *State) bool {
	return s.Status == o.Status && s.InitPid == o.InitPid && s.Finished.Equal(o.Finished) && s.Bundle == o.Bundle &&
		(s.ExitCode == nil) == (o.ExitCode == nil) && s.OOMKilled == o.OOMKilled && s.Unwatched == o.Unwatched
}

// refresh is Refresh within an operation, in memory.
func (c *Container) refresh(ctx context.Context) error {
	now := c.StateNoLock()
	if c.Spoofed() || now.Status == Stopped && now.ExitCode != nil {
		return nil
	}
	answer, err := c.s.tasks.Get(ctx, &tasks.GetRequest{ContainerID: c.ID})
	err = native(err)
	living := now.Init().Living()
	switch {
	case err == nil && answer.Process.Status == task.Status_STOPPED:
		c.observe(answer.Process)
	case err == nil && now.Status == Stopped: // back it does not go
	case err == nil && now.InitPid == 0: // made by a program that did not live to tell
		if err := c.adopt(int(answer.Process.Pid)); err != nil {
			return err
		}
		c.observe(answer.Process)
	case err == nil && living == nil:
		c.findBundle()
		c.observe(answer.Process)
		c.watched(ctx)
	case errdefs.IsNotFound(err) && living == nil: // containerd has given it up
		c.watched(ctx)
	case err == nil || living != nil && now.InitPid > 0:
		// Its end is on the way, or it is gone with its shim.
		c.lookForEnd(ctx)
	case now.InitPid == 0 && errdefs.IsNotFound(err): // no task yet
	default:
		return fmt.Errorf("status of container %s: %w", c.ID, err)
	}
	return nil
}

// Observe takes what a list of all tasks says about the container, nil for one that is
// not there, without asking for more, in memory.
func (c *Container) Observe(p *task.Process) {
	s := c.StateNoLock()
	switch living := s.Init().Living() == nil; {
	case p == nil:
		if s.Status == Stopped || s.InitPid == 0 || living {
			return
		}
		if code, at, found := c.leftExit(); found {
			c.noteCause()
			c.change(func(s *State) { s.ended(code, at) })
		}
	case p.Status == task.Status_STOPPED || s.Status != Stopped && living:
		c.observe(p)
	}
}

func (c *Container) observe(p *task.Process) {
	if p.Status == task.Status_STOPPED {
		c.noteCause()
	}
	c.change(func(s *State) {
		switch p.Status {
		case task.Status_CREATED:
			s.Status = Created
		case task.Status_RUNNING:
			s.Status = Running
		case task.Status_PAUSED, task.Status_PAUSING:
			s.Status = Paused
		case task.Status_STOPPED:
			s.ended(p.ExitStatus, p.ExitedAt.AsTime())
		}
	})
}

// ended records an end that somebody saw.
func (s *State) ended(code uint32, at time.Time) {
	if at.Unix() <= 0 {
		at = time.Now()
	}
	if s.Finished.IsZero() {
		s.Finished = at
	}
	if s.ExitCode == nil {
		exit := int32(code)
		s.ExitCode = &exit
	}
	s.Status = Stopped
}

// findBundle completes a state that does not know where the bundle is.
func (c *Container) findBundle() {
	s := c.StateNoLock()
	if s.Bundle != "" {
		return
	}
	if dir, err := control.Bundle(s.InitPid, c.ID); err == nil {
		c.change(func(s *State) { s.Bundle = dir })
	}
}

// watched looks whether the shim still is the parent of the process, and notes and
// tells if it has died.
func (c *Container) watched(ctx context.Context) {
	s := c.StateNoLock()
	if s.Unwatched || s.Bundle == "" {
		return
	}
	if _, err := control.Bundle(s.InitPid, c.ID); !errdefs.IsNotFound(err) || c.Living() != nil {
		return
	}
	c.change(func(s *State) { s.Unwatched = true })
	c.logger(ctx).WithField("pid", s.InitPid).Warn(Unwatched)
}

// Unwatched says what the field of State means.
const Unwatched = "its shim has died: it goes on without log, attach and exit code"

// noteCause looks for the marks of a kill by the kernel, and by the shim. They are
// there before the end is told.
func (c *Container) noteCause() {
	const longest = 4 << 10
	for _, dir := range c.traces() {
		if _, err := os.Stat(filepath.Join(dir, oomFile)); err == nil {
			c.change(func(s *State) { s.OOMKilled = true })
		}
		if calls, err := TruncateAndReadFile(filepath.Join(dir, seccompFile), longest); err == nil {
			c.change(func(s *State) { s.SeccompKilled, s.Error = true, "forbidden system calls: "+string(calls) })
		}
	}
}

// traces are the directories where the shim leaves files.
func (c *Container) traces() []string {
	if b := c.StateNoLock().Bundle; b != "" {
		return []string{b, filepath.Join(b, "work")}
	}
	return nil
}

// lookForEnd finds out how a container ended whose process is gone: from the shim,
// or from what it has left. If neither tells, the container has ended now, in an
// unknown way.
func (c *Container) lookForEnd(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, exitWait)
	defer cancel()
	end, err := c.s.tasks.Wait(limited, &tasks.WaitRequest{ContainerID: c.ID})
	c.noteCause()
	if err == nil {
		c.change(func(s *State) { s.ended(end.ExitStatus, end.ExitedAt.AsTime()) })
		return
	}
	code, at, found := c.readExit(limited)
	c.change(func(s *State) {
		if found {
			s.ended(code, at)
			return
		}
		s.Status = Stopped
		if s.Finished.IsZero() {
			s.Finished = time.Now()
		}
	})
}

// readExit reads the exit file that a shim leaves, and waits for it while there is
// a bundle, where it could appear.
func (c *Container) readExit(ctx context.Context) (code uint32, at time.Time, found bool) {
	pause := exitPause
	for range exitTries {
		if code, at, found = c.leftExit(); found {
			return code, at, true
		}
		hope := slices.ContainsFunc(c.traces(), func(dir string) bool {
			_, err := os.Stat(dir)
			return err == nil
		})
		if !hope || !sleep(ctx, pause) {
			break
		}
		pause = time.Duration(float64(pause) * exitGrowth)
	}
	return 0, time.Time{}, false
}

// leftExit reads the exit file, if there is one.
func (c *Container) leftExit() (code uint32, at time.Time, found bool) {
	var paths []string
	if c.ExitDir != "" {
		paths = append(paths, filepath.Join(c.ExitDir, c.ID))
	}
	for _, dir := range c.traces() {
		paths = append(paths, filepath.Join(dir, exitFile))
	}
	for _, path := range paths {
		if code, at, found = parseExit(path); found {
			break
		}
	}
	return code, at, found
}

func parseExit(path string) (code uint32, at time.Time, ok bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, at, false
	}
	b, err := TruncateAndReadFile(path, exitBytes)
	if err != nil {
		return 0, at, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	return uint32(n), info.ModTime(), err == nil
}

// sleep waits for d and tells whether ctx has not ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
