// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/attach"
	"github.com/berthd/berth/shim/fault"
)

// Attach lets one more client follow the output and type the input of the
// process, through a socket beside that of the shim, at socket. It returns the
// path to connect to. What cannot be had is FailedPrecondition. Output that both
// a client and somebody else get goes through the job.
func (s *Streams) Attach(socket string, want attach.Request) (path string, err error) {
	if s.closed || s.exited && s.allOver() {
		return "", fault.New(fault.FailedPrecondition, "attach: the process has ended")
	}
	if s.cfg.Terminal {
		want.Stderr = false // a terminal has one output
	}
	if !want.Stdin && !want.Stdout && !want.Stderr {
		return "", fault.New(fault.InvalidArgument, "attach: no stream asked for")
	}
	if want.Stdin && (s.in == nil || s.in.over) {
		why := "the process was created without stdin"
		if s.in != nil {
			why = "stdin has been closed"
		}
		return "", fault.New(fault.FailedPrecondition, "attach: "+why)
	}
	for i, asked := range [2]bool{want.Stdout, want.Stderr} {
		if asked && s.out[i] == nil {
			return "", fault.New(fault.FailedPrecondition, "attach: "+s.whereabouts(i))
		}
	}
	if s.clients == nil {
		s.joinClients(attach.New(s.l))
	}
	if path, err = s.clients.Open(socket, want); err != nil {
		return "", err
	}
	for i, asked := range [2]bool{want.Stdout, want.Stderr} {
		if asked && !s.cfg.Terminal {
			growPipe(s.out[i].src, loggedPipe)
		}
	}
	return path, nil
}

// whereabouts tells why the shim does not see an output.
func (s *Streams) whereabouts(i int) string {
	name, address := streamName(i), [2]string{s.cfg.Stdout, s.cfg.Stderr}[i]
	switch {
	case s.keep[i] >= 0:
		return "the process writes " + name + " itself (direct output)"
	case address == "":
		return "the process was created without " + name
	}
	return "the process writes " + name + " itself, to " + address
}

func (s *Streams) joinClients(h *attach.Hub) {
	h.Input, h.InputEnded, h.Warn = s.input, s.endInput, s.say
	s.clients = h
}

func (s *Streams) restoreClients(b []byte) error {
	h, err := attach.Restore(s.l, b, s.in != nil && len(s.in.pending) > 0)
	if err == nil {
		s.joinClients(h)
	}
	return err
}

// input gives what a client has typed to the process. While the process does not
// take it, no client is read. Without a process that reads, it is lost.
func (s *Streams) input(p []byte) {
	f := s.in
	if f == nil || f.over {
		return
	}
	if len(f.pending) > 0 { // from a fifo: clients are not held back for it before
		f.buffer = append(f.pending, p...)
		f.pending = f.buffer
		s.clients.Hold()
		return
	}
	n, err := unix.Write(f.dst, p)
	switch {
	case err == nil || err == unix.EAGAIN || err == unix.EINTR:
		if f.hold(p[max(n, 0):]); len(f.pending) > 0 {
			s.clients.Hold()
			f.waitFor(sink)
		}
	case err == unix.EIO && f.copying: // nobody has the terminal open
	default:
		f.fail(err)
	}
}

// roomForInput lets clients go on when what they typed has been taken.
func (f *flow) roomForInput() {
	if f.stream < 0 && len(f.pending) == 0 {
		f.s.clients.Resume()
	}
}

// endInput ends the process's input once what it has been given is taken.
func (s *Streams) endInput() {
	f := s.in
	if f == nil || f.over {
		return
	}
	f.fed, s.inputPath = false, ""
	f.sourceEnded()
}
