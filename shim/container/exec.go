// SPDX-License-Identifier: Apache-2.0

package container

import (
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/berthd/berth/shim/cgroup"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/runc"
	"github.com/berthd/berth/shim/wire"
)

// maxExecID is longer than every client's ids (nerdctl's have 69 characters) and
// leaves room in a file name, which has 255 at most.
const maxExecID = 200

// checkExecID refuses what cannot be part of a file name.
func checkExecID(id string) error {
	ok := len(id) <= maxExecID && id != "." && id != ".."
	for i := range len(id) {
		c := id[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok || id == "" {
		return fault.New(fault.InvalidArgument, "exec id "+strconv.Quote(id)+": want 1 to "+strconv.Itoa(maxExecID)+" of [A-Za-z0-9_.-]")
	}
	return nil
}

// Exec registers a process; StartExec runs it. spec is its JSON in the runtime
// specification's form, and stays the caller's.
func (c *Container) Exec(id string, s Stdio, spec []byte) error {
	if err := checkExecID(id); err != nil {
		return err
	}
	if err := c.state.permit(Exec); err != nil {
		return err
	}
	if c.closing {
		return errClosing
	}
	if _, err := c.Process(id); err == nil {
		return fault.New(fault.AlreadyExists, "exec "+id+" already exists")
	}
	c.execs = append(c.execs, &Process{c: c, id: id, stdio: s, spec: slices.Clone(spec), state: Created})
	e := wire.TaskExecAdded{ContainerID: c.h.Plan.ID, ExecID: id}
	c.publish(e.Topic(), e.TypeURL(), e.Append(nil))
	return nil
}

// StartExec runs a registered process. Once init has ended it is refused: the
// end of init waits for the ends of all execs, and there shall be no new one.
func (c *Container) StartExec(p *Process, limit time.Duration, reply func(pid int, err error)) {
	err := c.state.permit(Exec)
	switch {
	case err != nil:
	case c.initEnded:
		err = fault.New(fault.FailedPrecondition, "cannot exec in a container whose init has ended")
	case c.closing:
		err = errClosing
	case p.busy || p.state != Created:
		err = fault.New(fault.FailedPrecondition, "cannot start exec "+p.id+" a second time")
	}
	if err != nil {
		reply(0, err)
		return
	}
	p.busy = true
	c.starts++
	var u undo
	var l launch
	c.h.Loop.Go(cgroup.Hasten, nil)
	c.h.Loop.Go(func() {
		err = c.exec(p, c.limit(limit), &u, &l)
		u.end(&err)
	}, func() {
		p.busy = false
		c.starts--
		if err != nil {
			// Deletable, but not startable: its streams are gone.
			p.stop(process.Exit{Code: process.Unknown})
			reply(0, fault.In("exec "+p.id, err))
			c.settle()
			return
		}
		p.spec = nil
		c.countSeccomp()
		p.adopt(&l, Running, c.ended)
		p.streams.OpenInput()
		e := wire.TaskExecStarted{ContainerID: c.h.Plan.ID, ExecID: p.id, Pid: uint32(p.pid)}
		c.publish(e.Topic(), e.TypeURL(), e.Append(nil))
		reply(p.pid, nil)
		p.stopExec()
	})
}

// exec is the job of StartExec. What it reads of p does not change while p is
// busy.
func (c *Container) exec(p *Process, limit time.Duration, u *undo, l *launch) error {
	if err := l.open(c.h, p.id, &p.stdio); err != nil {
		return err
	}
	u.add(l.abort)
	spec := p.spec
	if cpu := c.h.Plan.ExecCPU; cpu != "" {
		spec = runc.PinExec(spec, cpu)
	}
	specFile := c.path("exec-" + p.id + ".json")
	pidFile := "exec-" + p.id + ".pid"
	defer os.Remove(specFile)
	defer os.Remove(c.path(pidFile))
	if err := os.WriteFile(specFile, spec, 0o600); err != nil {
		return fault.Wrap(fault.Unknown, "process specification", err)
	}
	return l.run(c.h.Loop, c.path(pidFile), func(console string) error {
		return c.h.Runtime.Exec(&runc.Execution{
			ID: c.h.Plan.ID, ProcessFile: specFile, PidFile: pidFile,
			ConsoleSocket: console, Files: l.streams.Files(), Timeout: limit,
		})
	})
}

// Abandon has an exec deleted when it has ended, or now, and its output thrown away:
// whoever began it is gone.
func (c *Container) Abandon(p *Process) error {
	if p == c.init || p.state == Created {
		return fault.New(fault.FailedPrecondition, "cannot abandon a process that is no exec, or not started")
	}
	p.left = true
	if p.streams != nil {
		p.streams.Discard()
	}
	c.deleteLeft(p)
	return nil
}

func (c *Container) deleteLeft(p *Process) {
	if p.left && p.state == Stopped && !p.leaving {
		c.DeleteExec(p, func(error) {}) // it has ended
	}
}

// DeleteExec forgets a process that has ended or was never started. reply gets
// it when its output has been taken, or after drainLimit.
func (c *Container) DeleteExec(p *Process, reply func(error)) {
	if p.busy || p.state == Running {
		reply(fault.New(fault.FailedPrecondition, "cannot delete exec "+p.id+" in running state"))
		return
	}
	p.leaving = true
	p.drained(func() {
		p.end(func() {
			p.leaving = false
			if i := slices.Index(c.execs, p); i >= 0 {
				c.execs = slices.Delete(c.execs, i, i+1)
			}
			reply(nil)
		})
	})
}
