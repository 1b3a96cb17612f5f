// SPDX-License-Identifier: Apache-2.0

package ttrpc

import (
	"testing"

	"golang.org/x/sys/unix"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"

	"github.com/berthd/berth/shim/loop"
)

// Whatever bytes arrive, however they are cut, the server neither fails nor
// serves anything else than for the same bytes in one piece.
func FuzzFrames(f *testing.F) {
	l, err := loop.New()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, 0)
	f.Add(frameOf(2, TypeRequest, []byte("even")), 3)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0, 'x'}, 10)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		whole := servedStreams(t, l, data)
		cut = max(0, min(cut, len(data)))
		parts := servedStreams(t, l, data[:cut], data[cut:])
		if len(whole) != len(parts) {
			t.Errorf("%d calls in one piece, %d in two", len(whole), len(parts))
		}
	})
}

func servedStreams(t *testing.T, l *loop.Loop, pieces ...[]byte) (streams []uint32) {
	s := NewServer(l, func(c *Call) {
		streams = append(streams, c.stream)
		c.Reply(append(c.Buffer(), c.Payload...))
	})
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	c, err := s.adopt(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// A call that is surely served, in front.
	first := frameOf(1, TypeRequest, rawRequest(t, "State", &taskapi.StateRequest{ID: "x"}))
	for _, piece := range append([][]byte{first}, pieces...) {
		for len(piece) > 0 && c.fd >= 0 {
			n := min(len(piece), 4096)
			if _, err := unix.Write(pair[0], piece[:n]); err != nil {
				t.Fatal(err)
			}
			piece = piece[n:]
			c.receive()
		}
	}
	return streams
}
