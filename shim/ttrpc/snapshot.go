// SPDX-License-Identifier: Apache-2.0

package ttrpc

import (
	"slices"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/wire"
)

// A snapshot is a protobuf message, so that a newer program reads an older one's:
//
//	Server { 1: listener + 1; 2: repeated Conn }
//	Conn   { 1: descriptor + 1; 2: last stream; 3: bytes to skip; 4: part; 5: queue;
//	         6: repeated Pending }
//	Pending { 1: stream; 2: request }

// Snapshot appends the server's state to b, for a program that takes the place of
// this one and inherits its descriptors: keep is called with each. Between
// requests only, that is, not within serve.
func (s *Server) Snapshot(b []byte, keep func(fd int)) []byte {
	if s.listener >= 0 {
		keep(s.listener)
		b = wire.AppendVarint(b, 1, uint64(s.listener)+1)
	}
	for _, c := range s.conns {
		keep(c.fd)
		b = wire.AppendTag(b, 2, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.End(c.snapshot(b), mark)
	}
	return b
}

func (c *conn) snapshot(b []byte) []byte {
	b = wire.AppendVarint(b, 1, uint64(c.fd)+1)
	b = wire.AppendVarint(b, 2, uint64(c.last))
	b = wire.AppendVarint(b, 3, uint64(c.skip))
	b = wire.AppendBytes(b, 4, c.part)
	b = wire.AppendBytes(b, 5, c.queue)
	for _, call := range c.pending {
		b = wire.AppendTag(b, 6, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.AppendVarint(b, 1, uint64(call.stream))
		b = wire.AppendBytes(b, 2, call.raw)
		b = wire.End(b, mark)
	}
	return b
}

// Restore takes over what Snapshot wrote: a fresh server continues to listen, its
// connections go on where they were, and requests that were pending are served
// again, before Restore returns. ConnsChanged is not called.
func (s *Server) Restore(b []byte) error {
	var owed []owedCall
	sc := wire.Scan(b)
	for f := (wire.Field{}); sc.Next(&f); {
		var err error
		switch {
		case f.Num == 1 && f.Type == wire.Varint:
			err = s.Listen(int(f.Value) - 1)
		case f.Num == 2 && f.Type == wire.Bytes:
			owed, err = s.restoreConn(f.Bytes, owed)
		}
		if err != nil {
			return fault.In("restore ttrpc server", err)
		}
	}
	if err := sc.Err(); err != nil {
		return fault.In("restore ttrpc server", err)
	}
	for _, o := range owed {
		s.dispatch(o.conn, o.stream, o.raw)
	}
	return nil
}

// owedCall is a request that was pending in the program before.
type owedCall struct {
	conn   *conn
	stream uint32
	raw    []byte
}

func (s *Server) restoreConn(b []byte, owed []owedCall) ([]owedCall, error) {
	was := conn{fd: -1}
	first := len(owed)
	sc := wire.Scan(b)
	for f := (wire.Field{}); sc.Next(&f); {
		switch f.Num {
		case 1:
			was.fd = int(f.Value) - 1
		case 2:
			f.Uint32(&was.last)
		case 3:
			f.Uint32(&was.skip)
		case 4:
			f.View(&was.part)
		case 5:
			f.View(&was.queue)
		case 6:
			o := owedCall{}
			if err := o.decode(f.Bytes); err != nil {
				return owed, err
			}
			owed = append(owed, o)
		}
	}
	if err := sc.Err(); err != nil {
		return owed, err
	}
	c, err := s.adopt(was.fd)
	if err != nil {
		return owed, err
	}
	c.last, c.skip = was.last, was.skip
	if len(was.part) > 0 {
		c.part = slices.Clone(was.part)
	}
	c.send(was.queue)
	for i := first; i < len(owed); i++ {
		owed[i].conn = c
	}
	return owed, nil
}

func (o *owedCall) decode(b []byte) error {
	sc := wire.Scan(b)
	for f := (wire.Field{}); sc.Next(&f); {
		switch f.Num {
		case 1:
			f.Uint32(&o.stream)
		case 2:
			f.View(&o.raw)
		}
	}
	return sc.Err()
}
