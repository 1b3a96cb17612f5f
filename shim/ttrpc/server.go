// SPDX-License-Identifier: Apache-2.0

// Package ttrpc is the server side of containerd's ttrpc protocol, for unary
// calls, on the shim's event loop.
//
// It stands in for containerd/ttrpc because of three things that the library
// cannot do: answer a poll without allocating, run without a goroutine per
// connection, and hand its accepted connections to the next program (Snapshot
// and Restore), since containerd takes a dropped connection for the shim's death.
// Oddities of the protocol are handled as the library handles them; its client
// is the judge in the tests.
//
// The package knows no service and no message but ttrpc's own. Everything in it
// runs on the loop.
package ttrpc

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
)

const (
	// receiveBytes is what one read takes. Requests other than Create and Exec
	// are below 1 KiB; untouched pages of the buffer cost nothing.
	receiveBytes = 16 << 10
	// scratchBytes is the first size of the buffer for responses. The largest
	// polled one, the metrics of cgroup v1, takes 1 to 3 KiB.
	scratchBytes = 8 << 10
	// keepBytes bounds buffers that are kept for reuse after an unusual message.
	keepBytes = 64 << 10
	// maxQueueBytes bounds what waits for a peer that does not read. New requests
	// of such a peer are not read either, so only answers to calls put off earlier
	// can get here: two of the largest.
	maxQueueBytes = 2 * MaxMessageBytes
	// acceptPause is how long no connection is accepted once descriptors or
	// memory ran out.
	acceptPause = 100 * time.Millisecond
)

// Server serves calls on the connections of one listening socket.
type Server struct {
	// ConnsChanged, when not nil, is called with the new number of connections
	// after one was accepted or has ended.
	ConnsChanged func(n int)

	loop     *loop.Loop
	serve    func(*Call)
	listener int // -1: none
	conns    []*conn
	pending  int // calls put off with Later and not answered

	in    []byte // receive buffer
	out   []byte // responses: room for headers, then what Buffer hands out
	spare []byte // last used for a frame in parts
	call  Call   // the one being served
}

// NewServer returns a server that calls serve, on the loop, for each request. It
// does nothing until Listen or Restore.
func NewServer(l *loop.Loop, serve func(*Call)) *Server {
	return &Server{
		loop:     l,
		serve:    serve,
		listener: -1,
		in:       make([]byte, receiveBytes),
		out:      make([]byte, scratchBytes),
	}
}

// Listen accepts connections from the listening unix socket fd, which the server
// owns from now on.
func (s *Server) Listen(fd int) error {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	if err := s.loop.Watch(fd, unix.EPOLLIN, s.accept); err != nil {
		return err
	}
	s.listener = fd
	return nil
}

// Conns returns the number of connections.
func (s *Server) Conns() int { return len(s.conns) }

// Pending returns the number of calls put off with Later whose peer still waits.
func (s *Server) Pending() int { return s.pending }

// Close ends the listener and all connections. Calls that were put off may still
// be answered, without effect.
func (s *Server) Close() {
	if s.listener >= 0 {
		s.loop.Unwatch(s.listener)
		_ = unix.Close(s.listener) // nothing was written to it
		s.listener = -1
	}
	for len(s.conns) > 0 {
		s.conns[0].close()
	}
}

func (s *Server) accept(uint32) {
	fd, _, err := unix.Accept4(s.listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	switch err {
	case nil:
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		s.pauseAccepting()
		return
	default:
		return // the peer gave up, or nobody is there any more
	}
	if !trusted(fd) {
		_ = unix.Close(fd) // unused
		return
	}
	if _, err := s.adopt(fd); err != nil {
		_ = unix.Close(fd)
		return
	}
	s.changed()
}

// pauseAccepting looks away from the listener for a while. It stays readable, and
// the loop would spin.
func (s *Server) pauseAccepting() {
	fd := s.listener
	s.loop.Unwatch(fd)
	s.loop.After(acceptPause, func() {
		if s.listener == fd {
			// It was watched before; if epoll itself has no memory, look again later.
			if s.loop.Watch(fd, unix.EPOLLIN, s.accept) != nil {
				s.pauseAccepting()
			}
		}
	})
}

// trusted tells whether the peer of a connection is root. The socket's mode says
// so too, but its directory may be chosen by others.
func trusted(fd int) bool {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && cred.Uid == 0
}

// adopt serves the connected socket fd, which is the server's unless it fails.
func (s *Server) adopt(fd int) (*conn, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	c := &conn{server: s, fd: fd}
	if err := s.loop.Watch(fd, unix.EPOLLIN, c.ready); err != nil {
		return nil, err
	}
	s.conns = append(s.conns, c)
	return c, nil
}

func (s *Server) changed() {
	if s.ConnsChanged != nil {
		s.ConnsChanged(len(s.conns))
	}
}

// dispatch serves the request raw of a stream of c.
func (s *Server) dispatch(c *conn, stream uint32, raw []byte) {
	call := &s.call
	*call = Call{conn: c, stream: stream, raw: raw}
	if err := call.parse(); err != nil {
		call.Fail(fault.In("unmarshal request error", err))
		return
	}
	s.serve(call)
	if !call.done {
		call.Fail(fault.New(fault.Internal, "the call was not answered"))
	}
	// Views into the receive buffer must not be found here later.
	*call = Call{done: true}
}
