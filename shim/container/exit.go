// SPDX-License-Identifier: Apache-2.0

package container

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/rootfs"
	"github.com/berthd/berth/shim/runc"
	"github.com/berthd/berth/shim/wire"
)

// ended is called once for each process that has ended.
func (c *Container) ended(p *Process, e process.Exit) {
	p.exit = e
	p.child = nil
	if p.streams != nil {
		p.streams.Exited()
	}
	if p == c.init {
		c.initEnded = true
		c.endRest()
	} else {
		c.tell(p)
		c.deleteLeft(p)
	}
	c.settle()
}

// endRest makes the remaining processes of the container end with init. In a PID
// namespace of its own the kernel does that; elsewhere they would hold back the
// end of init for ever. A frozen one cannot die.
func (c *Container) endRest() {
	if c.group == nil {
		return
	}
	paused := c.state == Paused || c.state == Pausing
	if !paused && !c.h.Plan.SharedPidNS {
		return
	}
	group, shared := c.group, c.h.Plan.SharedPidNS
	c.h.Loop.Go(func() {
		if paused {
			if err := group.Thaw(); err != nil {
				c.h.Logf("resume after the end of init: " + err.Error())
			}
		}
		if shared {
			if err := group.Kill(); err != nil {
				c.h.Logf("end the processes that init left: " + err.Error())
			}
		}
	}, nil)
}

// settle tells the end of init when everything that comes before it is told: its
// own start, the ends of all execs, and what ended it.
func (c *Container) settle() {
	if !c.initEnded || c.state == Stopped || c.starting || c.starts > 0 || c.checkpointing {
		return
	}
	for _, p := range c.execs {
		if p.state == Running {
			return
		}
	}
	if c.oom != nil {
		if c.oom.Final() {
			c.outOfMemory()
		}
		c.oom.Close()
		c.oom = nil
	}
	if c.left {
		c.init.exit.Code, c.init.exit.Signaled = 0, false
	}
	c.state = Stopped
	c.leave(plan.EndFile, c.init.endLine(), c.h.Plan.Bundle)
	c.tell(c.init)
	c.record()
}

// endLine is what `delete` needs to know if this process does not live to tell.
func (p *Process) endLine() string {
	return strconv.Itoa(p.exit.Code) + " " + strconv.FormatInt(p.exit.At, 10) + " " + strconv.Itoa(p.pid)
}

// tell makes the end of p known.
func (c *Container) tell(p *Process) {
	id := p.id
	if id == "" {
		id = c.h.Plan.ID
	}
	e := wire.TaskExit{ContainerID: c.h.Plan.ID, ID: id, Pid: uint32(p.pid), ExitStatus: uint32(p.exit.Code), ExitedAt: p.exit.At}
	c.publish(e.Topic(), e.TypeURL(), e.Append(nil))
	p.stop(p.exit)
}

// outOfMemory tells that the kernel killed a process of the container for its
// memory.
func (c *Container) outOfMemory() {
	e := wire.TaskOOM{ContainerID: c.h.Plan.ID}
	c.publish(e.Topic(), e.TypeURL(), e.Append(nil))
	c.leave(plan.OOMFile, "", c.h.Plan.Bundle, c.h.Plan.Work)
}

// record writes the exit files when all output is safe: whoever sees one can rely on
// a complete log. After that the exit command is executed.
func (c *Container) record() {
	if c.init.streams == nil {
		c.recordNow(true)
		return
	}
	// Without a limit: a reader that comes late still gets everything first.
	c.init.streams.Drained(0, c.recordNow)
}

func (c *Container) recordNow(complete bool) {
	p := c.h.Plan
	if complete {
		code := strconv.Itoa(c.init.exit.Code)
		c.leave(plan.ExitFile, code, p.Bundle, p.Work)
		c.leave(p.ID, code, p.ExitDir)
	}
	c.recorded = true
	if len(p.ExitCommand) == 0 {
		return
	}
	_, err := c.h.Children.Spawn(&process.Command{
		Path: p.Binary, Args: []string{p.Binary, "-namespace", p.Namespace, "-id", p.ID, "-bundle", p.Bundle, plan.VerbExit},
		Env: c.h.Runtime.Env, Dir: p.Bundle, Files: []int{-1, -1, -1}, Group: true,
	}, func(process.Exit) {}) // it may live longer than this process
	if err != nil {
		c.h.Logf("exit command: " + err.Error())
	}
}

// leave writes a small file, whole or not at all, into each of dirs, for those
// who come after this process.
func (c *Container) leave(name, text string, dirs ...string) {
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		path := dir + "/" + name
		temp := dir + "/." + name + ".tmp"
		err := os.WriteFile(temp, []byte(text), 0o600)
		if err == nil {
			err = os.Rename(temp, path)
		}
		if err != nil {
			_ = os.Remove(temp)
			c.h.Logf("leave " + name + ": " + err.Error())
		}
	}
}

// errDeleted is the answer to a Delete that had to wait for another one.
var errDeleted = fault.New(fault.NotFound, "has been deleted")

// Delete takes away a container that has ended or was never started, and
// everything of it on the host. reply gets the pid and exit of init. After an
// error it can be called again.
func (c *Container) Delete(reply func(pid int, e process.Exit, err error)) {
	c.steps.Do(func() {
		err := c.state.permit(Delete)
		if c.deleted {
			err = errDeleted
		}
		if err == nil && c.state == Created {
			err = c.init.Kill(int(unix.SIGKILL))
			if err == process.ErrFinished { // its end is on the way
				err = nil
			}
		}
		if err != nil {
			reply(0, process.Exit{}, err)
			c.steps.Next()
			return
		}
		if c.state == Restorable {
			c.state, c.init.state = Stopped, Stopped
		}
		c.init.Wait(func(process.Exit) {
			if c.init.pid == 0 { // never restored: nothing has been written
				c.remove(reply)
				return
			}
			c.init.drained(func() { c.remove(reply) })
		})
	})
}

// remove is what Delete does when the output is taken.
func (c *Container) remove(reply func(pid int, e process.Exit, err error)) {
	var err error
	c.h.Loop.Go(func() { err = c.clean() }, func() {
		if err != nil {
			reply(0, process.Exit{}, fault.In("delete", err))
			c.steps.Next()
			return
		}
		c.closeSeccomp()
		c.endStreams(func() {
			e := wire.TaskDelete{ContainerID: c.h.Plan.ID, Pid: uint32(c.init.pid), ExitStatus: uint32(c.init.exit.Code), ExitedAt: c.init.exit.At}
			c.publish(e.Topic(), e.TypeURL(), e.Append(nil))
			c.deleted = true
			reply(c.init.pid, c.init.exit, nil)
			c.steps.Next()
		})
	})
}

// endStreams closes all streams and calls f when programs that log them have
// ended.
func (c *Container) endStreams(f func()) {
	left := 1 // this function
	one := func() {
		if left--; left == 0 {
			f()
		}
	}
	c.each(func(p *Process) {
		left++
		p.end(one)
	})
	one()
}

// clean is the job of Delete. Each step finds nothing to do when an earlier call
// has done it.
func (c *Container) clean() error {
	p := c.h.Plan
	if c.init.pid == 0 { // not restored, or not to its end
		if c.h.Runtime.Exists(p.ID) {
			if err := c.discard(); err != nil {
				return err
			}
		}
		return c.unmount()
	}
	if err := c.deleteNative(); err != nil {
		if err != runc.ErrUnknownState {
			c.h.Logf("delete by the runtime instead: " + err.Error())
		}
		if err := c.h.Runtime.Delete(p.ID, false); err != nil && fault.CodeOf(err) != fault.NotFound {
			return err
		}
	}
	return c.unmount()
}

// deleteNative does what the runtime's delete would do, which would take longer
// to begin than to do it.
func (c *Container) deleteNative() error {
	p := c.h.Plan
	if !p.NativeDelete || c.group == nil {
		return runc.ErrUnknownState
	}
	if p.SharedPidNS {
		if err := c.group.Kill(); err != nil {
			return err
		}
	}
	if err := c.group.Remove(); err != nil {
		return err
	}
	return c.h.Runtime.DeleteState(p.ID)
}

func (c *Container) unmount() error {
	if !c.mounted {
		return nil
	}
	return rootfs.Unmount(c.rootfs())
}
