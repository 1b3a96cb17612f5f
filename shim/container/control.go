// SPDX-License-Identifier: Apache-2.0

package container

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/cgroup"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/runc"
	"github.com/berthd/berth/shim/wire"
)

// Pause stops all processes of the container where they are.
func (c *Container) Pause(reply func(error)) {
	c.freeze(Pause, Pausing, Paused, func() error {
		if c.h.Plan.Native && c.group != nil {
			return c.group.Freeze()
		}
		return c.h.Runtime.Pause(c.h.Plan.ID)
	}, reply)
}

// Resume lets them go on.
func (c *Container) Resume(reply func(error)) {
	c.freeze(Resume, Paused, Running, func() error {
		if c.h.Plan.Native && c.group != nil {
			return c.group.Thaw()
		}
		return c.h.Runtime.Resume(c.h.Plan.ID)
	}, reply)
}

// freeze makes the transition a from the present state over meanwhile to after.
func (c *Container) freeze(a Action, meanwhile, after State, work func() error, reply func(error)) {
	c.steps.Do(func() {
		err := c.state.permit(a)
		if err == nil && c.initEnded {
			err = process.ErrFinished
		}
		if err != nil {
			reply(err)
			c.steps.Next()
			return
		}
		before := c.state
		c.state = meanwhile
		c.h.Loop.Go(func() { err = work() }, func() {
			c.frozen(before, after, err)
			reply(err)
			c.steps.Next()
		})
	})
}

func (c *Container) frozen(before, after State, err error) {
	if c.state == Stopped { // init ended meanwhile
		return
	}
	if err != nil {
		c.state = before
		return
	}
	c.state = after
	if after == Paused {
		e := wire.TaskPaused{ContainerID: c.h.Plan.ID}
		c.publish(e.Topic(), e.TypeURL(), e.Append(nil))
		switch {
		case c.initEnded:
			c.endRest()
		case c.killed:
			c.thaw()
		}
		return
	}
	e := wire.TaskResumed{ContainerID: c.h.Plan.ID}
	c.publish(e.Topic(), e.TypeURL(), e.Append(nil))
}

// Update changes the container's limits to resources, the JSON of the runtime
// specification's LinuxResources. What it does not name stays.
func (c *Container) Update(resources []byte, reply func(error)) {
	c.change(Update, func() error { return runc.Update(c.h.Runtime, c.h.Plan, resources) }, reply)
}

// Checkpoint dumps the container to dir, with criu's log in the working
// directory, as o says.
func (c *Container) Checkpoint(dir string, o *wire.CheckpointOptions, limit time.Duration, reply func(error)) {
	p := c.h.Plan
	r := runc.Checkpoint{
		Criu: runc.Criu{
			ID: p.ID, ImagePath: dir, WorkPath: o.WorkPath, OpenTCP: o.OpenTCP, ExternalUnixSockets: o.ExternalUnixSockets,
			Terminal: o.Terminal, FileLocks: o.FileLocks, EmptyNamespaces: o.EmptyNamespaces, CgroupsMode: o.CgroupsMode,
			Timeout: c.limit(limit),
		},
		ParentPath: o.ParentPath, Exit: o.Exit,
	}
	if o.ImagePath != "" {
		r.ImagePath = o.ImagePath
	}
	if r.ImagePath == "" {
		r.ImagePath = p.CriuImagePath
	}
	if r.ImagePath == "" {
		reply(fault.New(fault.InvalidArgument, "no directory for the images"))
		return
	}
	if r.WorkPath == "" {
		r.WorkPath = c.criuWork("checkpoint")
	}
	c.steps.Do(func() {
		before := c.state
		if err := before.permit(Checkpoint); err != nil {
			reply(err)
			c.steps.Next()
			return
		}
		// Whether init was ended by the checkpoint is known when that has succeeded.
		c.checkpointing = true
		var err error
		c.h.Loop.Go(func() { err = c.h.Runtime.Checkpoint(&r) }, func() {
			c.checkpointing = false
			c.checkpointed(&r, before, err, func() {
				reply(err)
				c.steps.Next()
			})
		})
	})
}

// checkpointed tells of a checkpoint, and calls done when init has ended if it was
// to. That is no failure: its exit code is 0.
func (c *Container) checkpointed(r *runc.Checkpoint, before State, err error, done func()) {
	if err == nil {
		e := wire.TaskCheckpointed{ContainerID: c.h.Plan.ID, Checkpoint: r.ImagePath}
		c.publish(e.Topic(), e.TypeURL(), e.Append(nil))
		c.left = r.Exit
	} else if before == Running && c.group != nil && !c.initEnded {
		// criu may have left it frozen.
		c.h.Loop.Go(func() { _ = c.group.Thaw() }, nil)
	}
	c.settle()
	if !c.left {
		done()
		return
	}
	c.init.Wait(func(process.Exit) { done() })
}

// criuWork returns a persistent directory for criu's log.
func (c *Container) criuWork(what string) string {
	if c.h.Plan.CriuWorkPath != "" {
		return c.h.Plan.CriuWorkPath
	}
	base := c.h.Plan.Work
	if base == "" {
		base = c.h.Plan.Bundle
	}
	dir := filepath.Join(base, "criu-"+what)
	_ = os.Mkdir(dir, 0o700) // criu says what is wrong with it
	return dir
}

// Kill sends sig to init, or to every process of the container.
func (c *Container) Kill(sig int, all bool, reply func(error)) {
	switch {
	case c.state == Restorable && c.starting: // its init is on the way
		c.steps.Do(func() {
			c.Kill(sig, all, reply)
			c.steps.Next()
		})
	case c.state == Restorable:
		if sig == int(unix.SIGKILL) || sig == int(unix.SIGTERM) {
			c.state = Stopped
			c.init.exit = process.Exit{Code: 128 + sig, Signaled: true, At: time.Now().UnixNano()}
			c.tell(c.init)
		}
		reply(nil)
	case !all || c.group == nil || !c.group.Own():
		err := c.init.Kill(sig)
		c.signalled(sig, err)
		reply(err)
	default:
		if c.initEnded {
			reply(process.ErrFinished)
			return
		}
		group := c.group
		var err error
		c.h.Loop.Go(func() { err = killAll(group, sig) }, func() {
			c.signalled(sig, err)
			reply(err)
		})
	}
}

// signalled is called when init has got sig. In cgroup v1 the frozen do not die: what
// has been killed does not stay frozen, nor becomes it.
func (c *Container) signalled(sig int, err error) {
	if err != nil || sig != int(unix.SIGKILL) {
		return
	}
	c.killed = true
	if c.state == Paused {
		c.thaw()
	}
}

func (c *Container) thaw() {
	group := c.group
	if group == nil {
		return
	}
	c.h.Loop.Go(func() {
		if err := group.Thaw(); err != nil {
			c.h.Logf("resume to kill: " + err.Error())
		}
	}, nil)
}

// killAll is the job of Kill for all processes.
func killAll(group *cgroup.Group, sig int) error {
	if sig == int(unix.SIGKILL) {
		return group.Kill()
	}
	pids, err := group.Pids(nil)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.Signal(sig)); err != nil && err != unix.ESRCH {
			return fault.Wrap(fault.InvalidArgument, "kill", err)
		}
	}
	return nil
}

// Pids calls f with the number of each process of the container, and the exec id
// for those that an exec began with. Of a container that has no cgroup of its own
// only these and init are known.
//
// A container without any process - stopped, or to be restored - lists the number
// that init had, or 0: containerd, when it starts, takes a shim that lists nothing
// for one whose container was never made and removes it, and with it the exit code
// and the output that nobody has asked for yet.
func (c *Container) Pids(f func(pid int, exec string)) {
	var list [64]int // larger containers cost an allocation
	pids := list[:0]
	var err error
	if c.group != nil && c.state != Stopped {
		pids, err = c.group.Pids(pids)
	}
	for _, pid := range pids {
		f(pid, c.execOf(pid))
	}
	listed := len(pids) > 0
	if c.group == nil || err != nil {
		c.each(func(p *Process) {
			if p.child != nil {
				f(p.pid, p.id)
				listed = true
			}
		})
	}
	if !listed {
		f(c.init.pid, "")
	}
}

func (c *Container) execOf(pid int) string {
	for _, p := range c.execs {
		if p.pid == pid && p.state == Running {
			return p.id
		}
	}
	return ""
}

// ErrNoGroup is returned for statistics of a container whose cgroup is gone or
// was never found.
var ErrNoGroup = fault.New(fault.NotFound, "no cgroup")

// AppendStats appends the cgroup's metrics to b, in the encoding of the type that
// StatsURL names. It does not allocate.
func (c *Container) AppendStats(b []byte) ([]byte, error) {
	if c.group == nil {
		return b, ErrNoGroup
	}
	return c.group.AppendStats(b)
}

// StatsURL names the type of what AppendStats appends.
func (c *Container) StatsURL() string {
	if c.group == nil {
		return ""
	}
	return c.group.MetricsURL()
}
