// SPDX-License-Identifier: Apache-2.0

// Package loop is the shim's event loop: one goroutine that owns all state of
// the process, so that nothing in it needs a lock.
//
// Whatever may block runs as a job (Go), in a goroutine of its own that touches
// only its own data; its result comes back to the loop. The loop waits in Go's
// own poller: its epoll instance is itself a pollable file. So the scheduler
// knows when the loop sleeps, and with one P (GOMAXPROCS=1) jobs and loop hand
// over without delay.
//
// The package knows nothing of what is watched.
package loop

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// maxEvents is how many events one epoll_wait fetches. More would only make the
// round longer: what is not fetched stays ready.
const maxEvents = 16

// Loop is an event loop. Methods are for the loop's own goroutine, where the
// callbacks run, unless they say otherwise.
type Loop struct {
	// Idle, when not nil, is called after each round that leaves no job in flight
	// and nothing posted.
	Idle func()

	file    *os.File // the epoll instance, known to Go's poller
	epfd    int
	wake    int // eventfd, written by Post
	watches []watch
	events  [maxEvents]unix.EpollEvent
	jobs    int
	ended   uint64 // jobs
	quiesce func()
	pausing atomic.Bool  // quiesce is set: read by jobs
	bounded atomic.Int32 // jobs of Go in flight
	stopped bool

	mu     sync.Mutex
	posted []func() // guarded by mu
}

// watch is indexed by its descriptor. A descriptor's number is soon used again:
// generation tells an event fetched for the old one from the new one's.
type watch struct {
	f          func(ev uint32)
	generation int32
}

// New returns a loop that does not run yet. It lives as long as the process.
func New() (*Loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	// os.NewFile hands only non-blocking files to Go's poller.
	if err := unix.SetNonblock(epfd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	l := &Loop{file: os.NewFile(uintptr(epfd), "epoll"), epfd: epfd, wake: wake}
	return l, l.Watch(wake, unix.EPOLLIN, l.drain)
}

// Run dispatches events until Stop.
func (l *Loop) Run() error {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	ready := func(uintptr) bool {
		n, err = unix.EpollWait(l.epfd, l.events[:], 0)
		return n != 0 // an error comes as -1
	}
	for !l.stopped {
		if perr := raw.Read(ready); perr != nil {
			return perr
		}
		if err != nil && err != syscall.EINTR {
			return os.NewSyscallError("epoll_wait", err)
		}
		for i := range max(n, 0) {
			e := &l.events[i]
			if w := &l.watches[e.Fd]; w.f != nil && w.generation == e.Pad {
				w.f(e.Events)
			}
		}
		l.rest()
		if l.jobs > 0 {
			// With one P a loop that is kept busy would not let them run.
			runtime.Gosched()
		}
	}
	return nil
}

// rest does what waits for a moment without jobs. What has been posted is done
// before, in the next round: it may be half of something, like the end of an
// adopted child that had been reaped already.
func (l *Loop) rest() {
	if l.jobs > 0 || l.pending() {
		return
	}
	if f := l.quiesce; f != nil {
		l.quiesce = nil
		l.pausing.Store(false)
		f()
	}
	if l.Idle != nil {
		l.Idle()
	}
}

// Stop makes Run return after the current round.
func (l *Loop) Stop() { l.stopped = true }

// Close releases the loop's descriptors, after Run. What was watched stays open.
func (l *Loop) Close() error {
	return errors.Join(l.file.Close(), unix.Close(l.wake))
}

// Watch calls f with the ready events whenever one of ev is ready on fd, which
// must not be watched yet. Level triggered, unless ev says EPOLLET or
// EPOLLONESHOT.
func (l *Loop) Watch(fd int, ev uint32, f func(ev uint32)) error {
	for fd >= len(l.watches) {
		l.watches = append(l.watches, watch{})
	}
	w := &l.watches[fd]
	w.generation++
	e := unix.EpollEvent{Events: ev, Fd: int32(fd), Pad: w.generation}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	w.f = f
	return nil
}

// Rearm changes what a watched descriptor waits for.
func (l *Loop) Rearm(fd int, ev uint32) error {
	e := unix.EpollEvent{Events: ev, Fd: int32(fd), Pad: l.watches[fd].generation}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.epfd, unix.EPOLL_CTL_MOD, fd, &e))
}

// Unwatch ends a watch, before the descriptor is closed. Its callback does not
// run again. A descriptor that is not watched is left alone.
func (l *Loop) Unwatch(fd int) {
	if fd < 0 || fd >= len(l.watches) || l.watches[fd].f == nil {
		return
	}
	l.watches[fd].f = nil
	// It can fail only for a descriptor that is closed already.
	_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, fd, nil)
}

// Post runs f on the loop. Safe from any goroutine.
func (l *Loop) Post(f func()) {
	l.mu.Lock()
	l.posted = append(l.posted, f)
	first := len(l.posted) == 1
	l.mu.Unlock()
	if first {
		one := [8]byte{1}
		// Only a full counter could refuse, and then the loop is awake.
		_, _ = unix.Write(l.wake, one[:])
	}
}

func (l *Loop) pending() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.posted) > 0
}

func (l *Loop) drain(uint32) {
	var count [8]byte
	_, _ = unix.Read(l.wake, count[:]) // EAGAIN: already read
	l.mu.Lock()
	fs := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range fs {
		f()
	}
}

// Go runs work in a goroutine of its own, then done, if not nil, on the loop.
func (l *Loop) Go(work, done func()) {
	l.bounded.Add(1)
	l.GoOn(work, func() {
		l.bounded.Add(-1)
		if done != nil {
			done()
		}
	})
}

// GoOn is Go for work that has no end of its own, as copying has not: it asks
// Quiescing, which keeps it going as long as a job of Go is in flight.
func (l *Loop) GoOn(work, done func()) {
	l.jobs++
	go func() {
		work()
		l.Post(func() {
			l.jobs--
			l.ended++
			done()
		})
	}()
}

// Busy tells whether jobs are in flight.
func (l *Loop) Busy() bool { return l.jobs > 0 }

// Finished returns how many jobs have ended so far.
func (l *Loop) Finished() uint64 { return l.ended }

// Quiesce calls f once no job is in flight and nothing is posted. When only jobs of
// GoOn are left, Quiescing is true, and these should come to an end.
func (l *Loop) Quiesce(f func()) {
	l.quiesce = f
	l.pausing.Store(true)
	l.Post(func() {}) // a round, in case nothing else happens
}

// Quiescing tells jobs without an end of their own to pause. Safe from any
// goroutine.
func (l *Loop) Quiescing() bool { return l.pausing.Load() && l.bounded.Load() == 0 }

// Timer is a pending call made by After.
type Timer struct {
	timer   *time.Timer
	stopped bool
}

// After calls f on the loop when d has passed.
func (l *Loop) After(d time.Duration, f func()) *Timer {
	t := &Timer{}
	t.timer = time.AfterFunc(d, func() {
		l.Post(func() {
			if !t.stopped {
				f()
			}
		})
	})
	return t
}

// Stop cancels the call. On a nil or expired timer it does nothing.
func (t *Timer) Stop() {
	if t != nil {
		t.stopped = true
		t.timer.Stop()
	}
}

// errAwait is returned by Await when time is up.
var errAwait = fault.New(fault.DeadlineExceeded, "timed out waiting for a file descriptor")

// Await blocks the calling goroutine, a job's, until fd is ready for one of ev
// or has an error or hang-up, or until timeout has passed (DeadlineExceeded;
// 0: no limit). fd must not be watched.
func (l *Loop) Await(fd int, ev uint32, timeout time.Duration) error {
	result := make(chan error, 1) // one send: by the event, the timer or a failed Watch
	l.Post(func() {
		var timer *Timer
		err := l.Watch(fd, ev, func(uint32) {
			timer.Stop()
			l.Unwatch(fd)
			result <- nil
		})
		if err != nil {
			result <- err
			return
		}
		if timeout > 0 {
			timer = l.After(timeout, func() {
				l.Unwatch(fd)
				result <- errAwait
			})
		}
	})
	return <-result
}

// IsTimeout tells whether err is, or wraps, a passed deadline.
func IsTimeout(err error) bool {
	return errors.Is(err, errAwait) || fault.CodeOf(err) == fault.DeadlineExceeded
}
