// SPDX-License-Identifier: Apache-2.0

package container

import (
	"github.com/berthd/berth/shim/cgroup"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/seccomp"
	"github.com/berthd/berth/shim/stdio"
	"github.com/berthd/berth/shim/wire"
)

// The container in the state that a program hands to its successor. Numbers are
// never used again for something else: a newer program reads what an older one
// wrote.
const (
	fieldState = 1 + iota
	fieldProcess
	fieldGroup
	fieldCheckpoint
	fieldMounted
	fieldInitEnded
	fieldClosing
	fieldRecorded
	fieldSeccomp
	fieldSeccompDue
)

// A process within it.
const (
	fieldExecID = 1 + iota
	fieldStdin
	fieldStdout
	fieldStderr
	fieldTerminal
	fieldSpec
	fieldProcessState
	fieldPid
	fieldAlive
	fieldStreams
	fieldExitCode
	fieldExitTime
	fieldStartTime
	fieldNoInput
	fieldLeft
)

// Movable tells whether a program may hand the container to its successor now. A
// step in progress, such as a Delete that waits for output, would begin anew
// there, its time limit too; streams that no process has taken yet, and loggers
// about to end, stay.
func (c *Container) Movable() bool {
	movable := c.state != Restorable && !c.steps.Busy() && (c.seccomp == nil || c.seccomp.Movable())
	c.each(func(p *Process) { movable = movable && !p.leaving && (p.streams == nil || !p.streams.Ending()) })
	return movable
}

// Snapshot appends the container's state to b and calls keep with each
// descriptor that belongs to it. No job may be in flight.
func (c *Container) Snapshot(b []byte, keep func(fd int)) []byte {
	b = wire.AppendVarint(b, fieldState, uint64(c.state))
	c.each(func(p *Process) {
		b = wire.AppendTag(b, fieldProcess, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.End(p.snapshot(b, keep), mark)
	})
	if c.group != nil {
		b = wire.AppendTag(b, fieldGroup, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.End(c.group.Encode(b), mark)
	}
	b = wire.AppendString(b, fieldCheckpoint, c.checkpoint)
	b = wire.AppendBool(b, fieldMounted, c.mounted)
	b = wire.AppendBool(b, fieldInitEnded, c.initEnded)
	b = wire.AppendBool(b, fieldClosing, c.closing)
	if c.seccomp != nil {
		b = wire.AppendTag(b, fieldSeccomp, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.End(c.seccomp.Snapshot(b, keep), mark)
		b = wire.AppendBool(b, fieldSeccompDue, c.seccompTimer != nil)
	}
	return wire.AppendBool(b, fieldRecorded, c.recorded)
}

func (p *Process) snapshot(b []byte, keep func(fd int)) []byte {
	b = wire.AppendString(b, fieldExecID, p.id)
	b = wire.AppendString(b, fieldStdin, p.stdio.Stdin)
	b = wire.AppendString(b, fieldStdout, p.stdio.Stdout)
	b = wire.AppendString(b, fieldStderr, p.stdio.Stderr)
	b = wire.AppendBool(b, fieldTerminal, p.stdio.Terminal)
	if p.spec != nil {
		b = wire.AppendBytes(b, fieldSpec, p.spec)
	}
	b = wire.AppendVarint(b, fieldProcessState, uint64(p.state))
	b = wire.AppendVarint(b, fieldPid, uint64(p.pid))
	b = wire.AppendBool(b, fieldAlive, p.child != nil)
	if p.child != nil {
		b = wire.AppendVarint(b, fieldStartTime, p.child.StartTime())
	}
	if p.streams != nil {
		b = wire.AppendTag(b, fieldStreams, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.End(p.streams.Snapshot(b, keep), mark)
	}
	b = wire.AppendBool(b, fieldNoInput, p.noInput)
	b = wire.AppendBool(b, fieldLeft, p.left)
	b = wire.AppendVarint(b, fieldExitCode, uint64(p.exit.Code))
	return wire.AppendVarint(b, fieldExitTime, uint64(p.exit.At))
}

// Restore returns the container whose Snapshot is in b. Its processes must be
// children of this process, as they are after an exec.
func Restore(h Host, connected bool, b []byte) (*Container, error) {
	c := New(h, connected)
	s := wire.Scan(b)
	for f := (wire.Field{}); s.Next(&f); {
		var err error
		switch f.Num {
		case fieldState:
			c.state = State(f.Value)
		case fieldProcess:
			err = c.restoreProcess(f.Bytes)
		case fieldGroup:
			c.group, err = cgroup.Decode(f.Bytes)
		case fieldCheckpoint:
			c.checkpoint = string(f.Bytes)
		case fieldMounted:
			f.Bool(&c.mounted)
		case fieldInitEnded:
			f.Bool(&c.initEnded)
		case fieldClosing:
			f.Bool(&c.closing)
		case fieldRecorded:
			f.Bool(&c.recorded)
		case fieldSeccomp:
			if c.seccomp, err = seccomp.Restore(c.h.Loop, f.Bytes); err == nil {
				c.seccomp.Counted = c.forbidden
			}
		case fieldSeccompDue:
			due := false
			if f.Bool(&due); due && c.seccomp != nil {
				c.forbidden()
			}
		}
		if err != nil {
			return nil, err
		}
	}
	if c.group != nil && !c.initEnded {
		c.watchOOM()
	}
	if c.state == Stopped && !c.recorded {
		c.record() // what it waits for is not part of the streams' state
	}
	c.settle() // what the old program waited for may be told by now
	return c, s.Err()
}

func (c *Container) restoreProcess(b []byte) error {
	p := &Process{c: c}
	alive := false
	var started uint64
	var streams []byte
	s := wire.Scan(b)
	for f := (wire.Field{}); s.Next(&f); {
		switch f.Num {
		case fieldExecID:
			p.id = string(f.Bytes)
		case fieldStdin:
			p.stdio.Stdin = string(f.Bytes)
		case fieldStdout:
			p.stdio.Stdout = string(f.Bytes)
		case fieldStderr:
			p.stdio.Stderr = string(f.Bytes)
		case fieldTerminal:
			f.Bool(&p.stdio.Terminal)
		case fieldSpec:
			p.spec = append([]byte(nil), f.Bytes...)
		case fieldProcessState:
			p.state = State(f.Value)
		case fieldPid:
			p.pid = int(f.Value)
		case fieldAlive:
			f.Bool(&alive)
		case fieldStartTime:
			started = f.Value
		case fieldStreams:
			streams = f.Bytes
		case fieldNoInput:
			f.Bool(&p.noInput)
		case fieldLeft:
			f.Bool(&p.left)
		case fieldExitCode:
			p.exit.Code = int(f.Value)
		case fieldExitTime:
			p.exit.At = int64(f.Value)
		}
	}
	if err := s.Err(); err != nil {
		return err
	}
	if p.id == "" {
		c.init = p
	} else {
		c.execs = append(c.execs, p)
	}
	if streams != nil {
		var err error
		if p.streams, err = stdio.Restore(c.h.Loop, c.h.Children, c.h.streamsConfig(p.id, &p.stdio), streams); err != nil {
			return err
		}
		p.streams.SetConnected(c.connected)
	}
	if alive {
		p.child = c.h.Children.Readopt(p.pid, started, func(e process.Exit) { c.ended(p, e) })
	}
	return nil
}
