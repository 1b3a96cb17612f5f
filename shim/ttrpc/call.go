// SPDX-License-Identifier: Apache-2.0

package ttrpc

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/wire"
)

const (
	// headRoom is what stands before a response's payload at most: the frame's
	// header, the payload's tag, its length.
	headRoom = HeaderBytes + 1 + binary.MaxVarintLen32
	// payloadTag is the key of ttrpc.Response's payload.
	payloadTag = 2<<3 | wire.Bytes
	// maxErrorBytes bounds the text of an error, which may quote a runtime's output.
	maxErrorBytes = 16 << 10
)

// Call is a request to answer: by exactly one of Reply, Fail or Later before
// serve returns, and by Reply or Fail after Later. Further answers, and answers
// to a peer that is gone, are ignored.
type Call struct {
	// Service, Method and Payload are valid until serve returns; in the Call that
	// Later returned, until its answer.
	Service []byte
	Method  []byte
	Payload []byte
	// Limit is how long the caller waits, 0 if it has not said: what takes longer
	// is of no use to it.
	Limit time.Duration

	conn   *conn
	stream uint32
	raw    []byte // the message that the three above are parts of
	done   bool
}

func (c *Call) parse() error {
	var m wire.Request
	if err := m.Decode(c.raw); err != nil {
		return err
	}
	c.Service, c.Method, c.Payload, c.Limit = m.Service, m.Method, m.Payload, time.Duration(max(m.TimeoutNano, 0))
	return nil
}

// Buffer returns an empty slice to append a response to. Its memory is the
// server's: it serves one call at a time, up to its Reply.
func (c *Call) Buffer() []byte { return c.conn.server.out[headRoom:headRoom] }

// Reply answers with the encoded response body. Nothing is copied and nothing
// allocated if body was grown from Buffer and still fits it.
func (c *Call) Reply(body []byte) {
	if !c.finish() {
		return
	}
	out := c.conn.server.frameBuffer(body)
	start := headRoom
	if len(body) > 0 {
		var prefix [1 + binary.MaxVarintLen32]byte
		prefix[0] = payloadTag
		n := 1 + binary.PutUvarint(prefix[1:], uint64(len(body)))
		start -= n
		copy(out[start:], prefix[:n])
	}
	c.sendFrame(out[start-HeaderBytes:])
}

// frameBuffer returns body with headRoom bytes in front of it. It is the scratch
// buffer, which grows so that the next response of this size finds room.
func (s *Server) frameBuffer(body []byte) []byte {
	size := headRoom + len(body)
	if len(body) > 0 && size <= len(s.out) && &body[0] == &s.out[headRoom] {
		return s.out[:size]
	}
	out := s.out
	if size > len(out) {
		out = make([]byte, size)
		if size <= keepBytes {
			s.out = out
		}
	}
	copy(out[headRoom:], body)
	return out[:size]
}

// Fail answers with the class and the text of err, which is not nil.
func (c *Call) Fail(err error) {
	if !c.finish() {
		return
	}
	text := err.Error()
	m := wire.Response{Code: fault.CodeOf(err), Message: text[:min(len(text), maxErrorBytes)]}
	// Not the scratch buffer: the caller may be half-way through a response in it.
	c.sendFrame(m.Append(make([]byte, HeaderBytes, HeaderBytes+32+len(m.Message))))
}

// sendFrame sends frame, whose first HeaderBytes are still to be written.
func (c *Call) sendFrame(frame []byte) {
	size := len(frame) - HeaderBytes
	if size > MaxMessageBytes {
		c.conn.refuse(c.stream, oversized(size))
		return
	}
	Header{Length: uint32(size), Stream: c.stream, Type: TypeResponse}.Put(frame)
	c.conn.send(frame)
}

// Later returns a copy of the call that can be answered after serve has returned.
// It is part of a Snapshot until then.
func (c *Call) Later() *Call {
	later := &Call{conn: c.conn, stream: c.stream, raw: slices.Clone(c.raw)}
	_ = later.parse() // it was parsed before
	c.done = true
	if conn := c.conn; conn.fd >= 0 {
		conn.pending = append(conn.pending, later)
		conn.server.pending++
	}
	return later
}

// Gone tells whether nobody waits for the answer any more.
func (c *Call) Gone() bool { return c.done || c.conn.fd < 0 }

// finish marks the call answered. It returns false when there is nothing to
// answer.
func (c *Call) finish() bool {
	if c.Gone() {
		c.done = true
		return false
	}
	c.done = true
	if i := slices.Index(c.conn.pending, c); i >= 0 {
		c.conn.pending = slices.Delete(c.conn.pending, i, i+1)
		c.conn.server.pending--
	}
	return true
}
