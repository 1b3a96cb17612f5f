// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/wire"
)

// The fields of a snapshot. Numbers are never used again for something else.
const (
	fieldPath     = 1
	fieldErrno    = 2
	fieldListener = 3 // plus one
	fieldCounted  = 4 // plus one; a filter; repeated
	fieldFilter   = 5 // the same, not counted yet
	fieldCall     = 6 // repeated

	callNumber = 1
	callArch   = 2
	callCount  = 3
)

// Snapshot appends the state for Restore, in the program that takes this one's place.
// keep is called with each descriptor that must stay open.
func (n *Notifier) Snapshot(b []byte, keep func(fd int)) []byte {
	b = wire.AppendString(b, fieldPath, n.path)
	b = wire.AppendVarint(b, fieldErrno, uint64(n.errno))
	keep(n.listener)
	b = wire.AppendVarint(b, fieldListener, uint64(n.listener+1))
	for _, f := range n.filters {
		keep(f.fd)
		field := fieldFilter
		if f.counted {
			field = fieldCounted
		}
		b = wire.AppendVarint(b, field, uint64(f.fd+1))
	}
	for _, c := range n.calls {
		b = wire.AppendTag(b, fieldCall, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.AppendVarint(b, callNumber, uint64(c.nr))
		b = wire.AppendVarint(b, callArch, uint64(c.arch))
		b = wire.End(wire.AppendVarint(b, callCount, c.n), mark)
	}
	return b
}

// Restore returns the notifier whose Snapshot is b.
func Restore(l *loop.Loop, b []byte) (*Notifier, error) {
	n := &Notifier{l: l, listener: -1}
	s := wire.Scan(b)
	for f := (wire.Field{}); s.Next(&f); {
		switch f.Num {
		case fieldPath:
			n.path = string(f.Bytes)
		case fieldErrno:
			n.errno = int32(f.Value)
		case fieldListener:
			n.listener = int(f.Value) - 1
			unix.CloseOnExec(n.listener)
		case fieldFilter, fieldCounted:
			fd := int(f.Value) - 1
			unix.CloseOnExec(fd)
			n.add(filter{fd, f.Num == fieldCounted})
		case fieldCall:
			var c call
			v := wire.Scan(f.Bytes)
			for f := (wire.Field{}); v.Next(&f); {
				switch f.Num {
				case callNumber:
					c.nr = int32(f.Value)
				case callArch:
					c.arch = uint32(f.Value)
				case callCount:
					c.n = f.Value
				}
			}
			if err := v.Err(); err != nil {
				return nil, err
			}
			n.count(c.nr, c.arch, c.n)
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if n.listener < 0 {
		return nil, wire.ErrMalformed
	}
	return n, n.watch()
}
