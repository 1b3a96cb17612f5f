// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/handover"
	"github.com/berthd/berth/shim/loop"
)

// refresh decides when the program starts itself afresh: its collector is off,
// and what executions leave behind adds up. Polls leave nothing.
type refresh struct {
	jobs  uint64 // finished when it was last looked
	timer *loop.Timer
	base  uint64 // bytes of its own when the program had set itself up
}

const (
	// refreshAfter is how long after some work memory is looked at; work that
	// belongs together is mostly over by then.
	refreshAfter = 3 * time.Second
	// defaultHeapBound is how much the process may have grown. A fresh start costs
	// 2 ms of processor time.
	defaultHeapBound = 96 << 10
)

// rest is called between events, when no job is in flight.
func (s *server) rest() {
	r := &s.refresh
	if jobs := s.loop.Finished(); jobs != r.jobs && r.timer == nil {
		r.jobs = jobs
		r.timer = s.loop.After(refreshAfter, s.startAfresh)
	}
}

func (s *server) startAfresh() {
	s.refresh.timer = nil
	bound := uint64(defaultHeapBound)
	if s.plan.HeapBoundBytes > 0 {
		bound = uint64(s.plan.HeapBoundBytes)
	}
	if s.ending || s.served || s.upgrading || s.tasks.Busy() || s.pod != nil && s.pod.Busy() || s.memory() < s.refresh.base+bound {
		return
	}
	s.log.note("starting afresh")
	s.replace(handover.Self(), func(err error) { s.log.warn("fresh start: " + err.Error()) })
}

// memory returns the bytes that only this process has, as the kernel counts them
// (proc_pid_smaps_rollup(5)). Asking Go's runtime would make it set up 200 KiB of
// bookkeeping first.
func (s *server) memory() uint64 {
	fd, err := unix.Open("/proc/self/smaps_rollup", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var b [2048]byte
	n, _ := unix.Read(fd, b[:])
	return parsePrivateDirty(b[:max(n, 0)])
}

func parsePrivateDirty(b []byte) uint64 {
	const key = "Private_Dirty:"
	i := bytes.Index(b, []byte(key))
	if i < 0 {
		return 0
	}
	b = bytes.TrimLeft(b[i+len(key):], " ")
	if i = bytes.IndexByte(b, ' '); i < 0 {
		return 0
	}
	n, _ := strconv.ParseUint(string(b[:i]), 10, 64)
	return n << 10
}
