// SPDX-License-Identifier: Apache-2.0

package container

import (
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/stdio"
)

// Stdio is how a caller wants a process connected, as it said it.
type Stdio struct {
	Stdin, Stdout, Stderr string // URIs or paths, empty for none
	Terminal              bool
}

// Process is init or an exec. Its fields belong to the loop.
type Process struct {
	c       *Container
	id      string // empty for init
	stdio   Stdio
	spec    []byte // an exec's process as JSON, until it is started
	state   State  // Created, Running or Stopped
	busy    bool   // an exec whose runtime call is in flight
	leaving bool   // an exec whose Delete waits for its output
	left    bool   // an exec that nobody but the shim is going to delete
	pid     int
	child   *process.Process
	streams *stdio.Streams // nil until opened and after the delete
	noInput bool           // CloseStdin came before the streams
	exit    process.Exit
	waiting []func(process.Exit)
}

// ID returns the exec id, empty for init.
func (p *Process) ID() string { return p.id }

// Pid returns the process's number, 0 before it has one.
func (p *Process) Pid() int { return p.pid }

// Stdio returns how the process is connected, in its creator's words.
func (p *Process) Stdio() Stdio { return p.stdio }

// Exit returns how the process ended; zero before it has.
func (p *Process) Exit() process.Exit { return p.exit }

// State returns the state of the process: that of the container for init.
func (p *Process) State() State {
	if p.id == "" && p.state != Stopped {
		return p.c.state
	}
	return p.state
}

// Unread tells whether the process has left output that nobody has begun to read.
func (p *Process) Unread() bool { return p.streams != nil && p.streams.Unread() }

// adopt takes over what a job has launched.
func (p *Process) adopt(l *launch, s State, ended func(*Process, process.Exit)) {
	p.pid, p.state, p.streams = l.pid, s, l.streams
	p.child = p.c.h.Children.Adopt(l.pid, func(e process.Exit) { ended(p, e) })
	if l.stdio.Terminal {
		p.streams.BeginTerminal(l.master)
	} else {
		p.streams.Begin()
	}
	p.streams.SetConnected(p.c.connected)
	if p.noInput {
		p.streams.CloseStdin()
	}
}

// Wait calls f with the exit of the process, at once if it has ended. f is
// called before the process is forgotten.
func (p *Process) Wait(f func(process.Exit)) {
	if p.state == Stopped {
		f(p.exit)
		return
	}
	p.waiting = append(p.waiting, f)
}

// stop makes the exit known to whoever waits.
func (p *Process) stop(e process.Exit) {
	p.state, p.exit = Stopped, e
	for _, f := range p.waiting {
		f(e)
	}
	p.waiting = nil
}

// CloseStdin ends the process's input once what was written has been delivered.
// A process without input, or whose input has ended, is left alone. A client
// may be done before the process has been started.
func (p *Process) CloseStdin() {
	if p.streams != nil {
		p.streams.CloseStdin()
		return
	}
	p.noInput = p.state != Stopped
}

// Resize sets the size of the terminal, in characters. Without a terminal it
// does nothing.
func (p *Process) Resize(width, height uint32) error {
	if width > 0xffff || height > 0xffff {
		return fault.New(fault.InvalidArgument, "terminal size above 65535")
	}
	if p.state == Stopped {
		return fault.New(fault.FailedPrecondition, "cannot resize a stopped process")
	}
	if !p.stdio.Terminal || p.streams == nil {
		return nil
	}
	return p.streams.Resize(uint16(width), uint16(height))
}

// Kill sends sig to the process, 0 to probe it.
func (p *Process) Kill(sig int) error {
	if p.child == nil {
		if p.state == Stopped || p.pid != 0 { // or its end is not told yet
			return process.ErrFinished
		}
		return fault.New(fault.FailedPrecondition, "cannot kill a process that is not started")
	}
	return p.child.Signal(sig)
}

// drained calls f when the output of the process has been taken, after
// drainLimit at the latest.
func (p *Process) drained(f func()) {
	if p.streams == nil {
		f()
		return
	}
	p.streams.Drained(drainLimit, func(bool) { f() })
}

// end closes the streams and calls f when programs that log them have ended.
func (p *Process) end(f func()) {
	if p.streams == nil {
		f()
		return
	}
	p.streams.End(func() {
		p.streams = nil
		f()
	})
}
