// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/wire"
)

// The fields of a snapshot. Numbers are never used again for something else.
const (
	fieldDoor   = 1 // repeated
	fieldClient = 2 // repeated
	fieldCut    = 3

	socketFD   = 1 // plus one
	socketWant = 2
	socketPath = 3 // of a door
)

// A Request in one number.
const (
	bitStdin = 1 << iota
	bitStdout
	bitStderr
	bitOnce
)

func (r *Request) bits() (bits uint64) {
	for i, set := range [...]bool{r.Stdin, r.Stdout, r.Stderr, r.Once} {
		if set {
			bits |= 1 << i
		}
	}
	return bits
}

func request(bits uint64) Request {
	return Request{Stdin: bits&bitStdin != 0, Stdout: bits&bitStdout != 0, Stderr: bits&bitStderr != 0, Once: bits&bitOnce != 0}
}

// Snapshot appends the hub's state for Restore, in the program that takes this
// one's place. keep is called with each descriptor that must stay open. No job
// may be in flight.
func (h *Hub) Snapshot(b []byte, keep func(fd int)) []byte {
	socket := func(field, fd int, want *Request, path string) {
		keep(fd)
		b = wire.AppendTag(b, field, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.AppendVarint(b, socketFD, uint64(fd+1))
		b = wire.AppendVarint(b, socketWant, want.bits())
		b = wire.AppendString(b, socketPath, path)
		b = wire.End(b, mark)
	}
	for _, d := range h.doors {
		socket(fieldDoor, d.fd, &d.want, d.path)
	}
	for _, c := range h.clients {
		socket(fieldClient, c.fd, &c.want, "")
	}
	return wire.AppendVarint(b, fieldCut, uint64(h.cut))
}

// Restore returns the hub whose Snapshot is b. Its functions are set, as those of
// a new one, before the loop runs. held tells that there is no room for input.
func Restore(l *loop.Loop, b []byte, held bool) (*Hub, error) {
	h := New(l)
	h.held = held
	sc := wire.Scan(b)
	for f := (wire.Field{}); sc.Next(&f); {
		if f.Num == fieldCut {
			h.cut = int(f.Value)
			continue
		}
		fd, want, path := -1, Request{}, ""
		s := wire.Scan(f.Bytes)
		for v := (wire.Field{}); s.Next(&v); {
			switch v.Num {
			case socketFD:
				fd = int(v.Value) - 1
			case socketWant:
				want = request(v.Value)
			case socketPath:
				path = string(v.Bytes)
			}
		}
		if err := s.Err(); err != nil {
			return nil, err
		}
		if fd < 0 {
			return nil, wire.ErrMalformed
		}
		unix.CloseOnExec(fd)
		var err error
		switch f.Num {
		case fieldDoor:
			err = h.open(&door{fd: fd, path: path, want: want})
		case fieldClient:
			err = h.add(&client{fd: fd, want: want})
		}
		if err != nil {
			return nil, err
		}
	}
	return h, sc.Err()
}
