// SPDX-License-Identifier: Apache-2.0

package ttrpc

import (
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// conn is a connection. It lives until its peer closes it, an error, or Close.
type conn struct {
	server  *Server
	fd      int    // -1: closed
	last    uint32 // the highest stream of a request
	skip    uint32 // bytes of a refused message that are still to come
	part    []byte // the beginning of a frame that has not fully arrived
	queue   []byte // output that the peer has not taken
	pending []*Call
}

var (
	errEven   = fault.New(fault.InvalidArgument, "StreamID must be odd for client initiated streams")
	errReused = fault.New(fault.InvalidArgument, "StreamID cannot be re-used and must increment")
	errData   = fault.New(fault.InvalidArgument, "StreamID is no longer active")
)

// ready is called by the loop. While output waits, the connection is watched for
// room only: a peer that does not read its answers cannot ask for more of them.
func (c *conn) ready(uint32) {
	if len(c.queue) > 0 {
		c.flush()
		return
	}
	c.receive()
}

func (c *conn) receive() {
	s := c.server
	n, err := unix.Read(c.fd, s.in)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil || n == 0 {
		c.close()
		return
	}
	data := s.in[:n]
	if c.part != nil {
		c.part = append(c.part, data...)
		data = c.part
	}
	data = c.consume(data)
	switch {
	case c.fd < 0:
	case len(data) == 0:
		c.dropPart()
	case c.part == nil:
		c.part = append(s.spare[:0], data...)
		s.spare = nil
	default:
		c.part = append(c.part[:0], data...) // moves the rest to the front
	}
}

// dropPart keeps the memory of a finished part for the next, of any connection.
func (c *conn) dropPart() {
	if c.part != nil && cap(c.part) <= keepBytes {
		c.server.spare = c.part
	}
	c.part = nil
}

// consume handles the complete frames at the start of b and returns the rest.
func (c *conn) consume(b []byte) []byte {
	for c.fd >= 0 {
		if c.skip > 0 {
			n := min(c.skip, uint32(len(b)))
			b, c.skip = b[n:], c.skip-n
		}
		if len(b) < HeaderBytes {
			break
		}
		h := ParseHeader(b)
		if h.Length > MaxMessageBytes {
			b, c.skip = b[HeaderBytes:], h.Length
			c.refuse(h.Stream, oversized(int(h.Length)))
			continue
		}
		end := HeaderBytes + int(h.Length)
		if len(b) < end {
			break
		}
		c.frame(h, b[HeaderBytes:end])
		b = b[end:]
	}
	return b
}

func oversized(n int) error {
	return fault.New(fault.ResourceExhausted, "message length "+strconv.Itoa(n)+
		" exceed maximum message size of "+strconv.Itoa(MaxMessageBytes))
}

func (c *conn) frame(h Header, data []byte) {
	switch {
	case h.Stream%2 == 0:
		c.refuse(h.Stream, errEven)
	case h.Type == TypeData:
		c.refuse(h.Stream, errData)
	case h.Type != TypeRequest:
		// The protocol may grow types: ignored.
	case h.Stream <= c.last:
		c.refuse(h.Stream, errReused)
	default:
		c.last = h.Stream
		c.server.dispatch(c, h.Stream, data)
	}
}

// refuse answers a frame that is no call.
func (c *conn) refuse(stream uint32, err error) {
	call := Call{conn: c, stream: stream}
	call.Fail(err)
}

// send writes a frame, or queues what the peer does not take now.
func (c *conn) send(frame []byte) {
	if c.fd < 0 {
		return
	}
	if len(c.queue) == 0 {
		n, ok := c.write(frame)
		if !ok || n == len(frame) {
			return
		}
		frame = frame[n:]
		// From here on only room matters, see ready.
		if c.server.loop.Rearm(c.fd, unix.EPOLLOUT) != nil {
			c.close()
			return
		}
	}
	if len(c.queue)+len(frame) > maxQueueBytes {
		c.close()
		return
	}
	c.queue = append(c.queue, frame...)
}

// flush writes queued output.
func (c *conn) flush() {
	n, ok := c.write(c.queue)
	if !ok {
		return
	}
	if n < len(c.queue) {
		c.queue = append(c.queue[:0], c.queue[n:]...)
		return
	}
	c.queue = nil
	if c.server.loop.Rearm(c.fd, unix.EPOLLIN) != nil {
		c.close()
	}
}

// write returns how much of b the socket took. After an error it has closed the
// connection and returns false.
func (c *conn) write(b []byte) (int, bool) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(c.fd, b[done:])
		switch err {
		case nil:
			done += n
		case unix.EINTR:
		case unix.EAGAIN:
			return done, true
		default:
			c.close()
			return done, false
		}
	}
	return done, true
}

func (c *conn) close() {
	if c.fd < 0 {
		return
	}
	s := c.server
	s.loop.Unwatch(c.fd)
	_ = unix.Close(c.fd) // a socket: what was not sent is lost either way
	c.fd = -1
	s.pending -= len(c.pending)
	c.part, c.queue, c.pending = nil, nil, nil
	s.conns = slices.DeleteFunc(s.conns, func(other *conn) bool { return other == c })
	s.changed()
}
