// SPDX-License-Identifier: Apache-2.0

package event

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/wire"
)

// A snapshot is a protobuf message, so that a newer program reads an older one's:
//
//	Publisher { 1: repeated Item; 2: dropped; 3: descriptor + 1; 4: stream;
//	            5: busy; 6: bytes left to write; 7: received }
//	Item      { 1: topic; 2: frame; 3: refusals }

// Snapshot appends the publisher's state to b, for a program that takes the place
// of this one and inherits its descriptors: keep is called with each. An event in
// flight stays so, and is not sent twice.
func (p *Publisher) Snapshot(b []byte, keep func(fd int)) []byte {
	for i := range p.queue {
		b = wire.AppendTag(b, 1, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.AppendString(b, 1, p.queue[i].topic)
		b = wire.AppendBytes(b, 2, p.queue[i].frame)
		b = wire.AppendVarint(b, 3, uint64(p.queue[i].refusals))
		b = wire.End(b, mark)
	}
	b = wire.AppendVarint(b, 2, uint64(p.dropped))
	c := &p.client
	if c.fd >= 0 && c.busy {
		keep(c.fd)
		b = wire.AppendVarint(b, 3, uint64(c.fd)+1)
		b = wire.AppendVarint(b, 4, uint64(c.stream))
		b = wire.AppendBool(b, 5, true)
		b = wire.AppendVarint(b, 6, uint64(len(c.out)))
		b = wire.AppendBytes(b, 7, c.in)
	}
	return b
}

// Restore takes over what Snapshot wrote: a fresh publisher continues with the
// queue and with the event in flight.
func (p *Publisher) Restore(b []byte) error {
	var fd, left, dropped uint64
	var stream uint32
	var in []byte
	s := wire.Scan(b)
	for f := (wire.Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			if err := p.restoreItem(f.Bytes); err != nil {
				return fault.In("restore events", err)
			}
		case 2:
			dropped = f.Value
		case 3:
			fd = f.Value
		case 4:
			f.Uint32(&stream)
		case 6:
			left = f.Value
		case 7:
			f.View(&in)
		}
	}
	if err := s.Err(); err != nil {
		return fault.In("restore events", err)
	}
	p.dropped = int(dropped)
	if fd > 0 && len(p.queue) > 0 {
		frame := p.queue[0].frame
		out := frame[len(frame)-int(min(left, uint64(len(frame)))):]
		if err := p.client.restore(int(fd)-1, stream, out, in); err != nil {
			return fault.In("restore events", err)
		}
	}
	p.next()
	return nil
}

func (p *Publisher) restoreItem(b []byte) error {
	var it item
	s := wire.Scan(b)
	for f := (wire.Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &it.topic, "")
		case 2:
			it.frame = slices.Clone(f.Bytes)
		case 3:
			it.refusals = int(f.Value)
		}
	}
	p.queue = append(p.queue, it)
	return s.Err()
}

// restore goes on with a request in flight on the connection fd.
func (c *client) restore(fd int, stream uint32, out, in []byte) error {
	unix.CloseOnExec(fd)
	if err := c.adopt(fd); err != nil {
		return err
	}
	c.stream, c.busy, c.out, c.in = stream, true, out, slices.Clone(in)
	c.limit = c.loop.After(answerTime, func() { c.end(errNoAnswer) })
	c.write()
	return nil
}
