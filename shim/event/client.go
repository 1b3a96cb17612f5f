// SPDX-License-Identifier: Apache-2.0

package event

import (
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/ttrpc"
	"github.com/berthd/berth/shim/wire"
)

// client is a ttrpc client on the loop with one request at a time. It connects
// when there is something to send and hangs up when there was nothing for a
// while.
type client struct {
	// answered is called with the answer to the request, whose parts are valid
	// during the call. lost is called instead when there will be none, maybe from
	// within send. After either the client takes the next request.
	answered func(m *wire.Response)
	lost     func(err error)

	loop   *loop.Loop
	fd     int    // -1: not connected
	stream uint32 // of the last request
	busy   bool   // a request is in flight
	out    []byte // what is left to write of it
	full   bool   // the socket takes no more of it now
	in     []byte // received, less than a frame

	idle  *loop.Timer // runs while connected and not busy
	limit *loop.Timer // runs while busy
}

var (
	errNoAnswer = fault.New(fault.DeadlineExceeded, "no answer")
	errProtocol = fault.New(fault.Internal, "oversized answer")
)

// send sends a request, whose header it fills in, to the unix socket at address.
// The client must not be busy. frame must stay as it is until the answer.
func (c *client) send(address string, frame []byte) {
	c.idle.Stop()
	c.busy = true
	if c.fd < 0 {
		if err := c.connect(address); err != nil {
			c.end(err)
			return
		}
	}
	if c.stream == 0 {
		c.stream = 1 // a client's streams are odd
	} else {
		c.stream += 2
	}
	h := ttrpc.Header{
		Length: uint32(len(frame) - ttrpc.HeaderBytes),
		Stream: c.stream,
		Type:   ttrpc.TypeRequest,
	}
	h.Put(frame)
	c.out = frame
	c.limit = c.loop.After(answerTime, func() { c.end(errNoAnswer) })
	c.write()
}

// connect does not block: a unix socket accepts at once, or has no listener, or
// its backlog is full.
func (c *client) connect(address string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: address}); err != nil {
		_ = unix.Close(fd) // unused
		return os.NewSyscallError("connect", err)
	}
	return c.adopt(fd)
}

func (c *client) adopt(fd int) error {
	if err := c.loop.Watch(fd, unix.EPOLLIN, c.ready); err != nil {
		_ = unix.Close(fd)
		return err
	}
	c.fd, c.stream, c.full, c.in = fd, 0, false, nil
	return nil
}

func (c *client) ready(ev uint32) {
	if c.full && ev&unix.EPOLLOUT != 0 {
		c.write()
	}
	if c.fd >= 0 && ev&^uint32(unix.EPOLLOUT) != 0 {
		c.read()
	}
}

// write writes what the socket takes. Errors are left to the read that follows
// them: containerd may have answered before it hung up.
func (c *client) write() {
	for len(c.out) > 0 {
		n, err := unix.Write(c.fd, c.out)
		switch err {
		case nil:
			c.out = c.out[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			c.watchRoom(true)
			return
		default:
			c.out = nil
		}
	}
	c.watchRoom(false)
}

func (c *client) watchRoom(full bool) {
	if c.full == full {
		return
	}
	c.full = full
	ev := uint32(unix.EPOLLIN)
	if full {
		ev |= unix.EPOLLOUT
	}
	if err := c.loop.Rearm(c.fd, ev); err != nil {
		c.end(err)
	}
}

func (c *client) read() {
	var b [512]byte // an answer has no payload; an error's text is short
	n, err := unix.Read(c.fd, b[:])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
	case err != nil:
		c.end(os.NewSyscallError("read", err))
	case n == 0:
		c.end(io.EOF)
	default:
		c.in = append(c.in, b[:n]...)
		c.frames()
	}
}

// frames handles what has been received.
func (c *client) frames() {
	for len(c.in) >= ttrpc.HeaderBytes {
		h := ttrpc.ParseHeader(c.in)
		if h.Length > ttrpc.MaxMessageBytes {
			c.end(errProtocol)
			return
		}
		end := ttrpc.HeaderBytes + int(h.Length)
		if len(c.in) < end {
			return
		}
		data := c.in[ttrpc.HeaderBytes:end]
		if c.in = c.in[end:]; len(c.in) == 0 {
			c.in = nil
		}
		if c.busy && h.Stream == c.stream && h.Type == ttrpc.TypeResponse {
			c.answer(data)
		}
	}
}

func (c *client) answer(data []byte) {
	var m wire.Response
	if err := m.Decode(data); err != nil {
		c.end(err)
		return
	}
	c.limit.Stop()
	c.busy, c.out = false, nil
	c.answered(&m)
	if !c.busy && c.fd >= 0 {
		c.rest()
	}
}

// rest hangs up after a while without a request.
func (c *client) rest() {
	c.idle.Stop()
	c.idle = c.loop.After(idleTime, func() { c.end(nil) })
}

// end closes the connection, and tells of a request that is lost with it.
func (c *client) end(err error) {
	c.idle.Stop()
	c.limit.Stop()
	if c.fd >= 0 {
		c.loop.Unwatch(c.fd)
		_ = unix.Close(c.fd) // what was sent and not answered counts as lost
		c.fd = -1
	}
	c.in, c.out = nil, nil
	if c.busy {
		c.busy = false
		c.lost(err)
	}
}
