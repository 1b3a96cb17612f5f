// SPDX-License-Identifier: Apache-2.0

package loop_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/loop"
)

// run runs body on a loop and waits until it has called stop.
func run(t *testing.T, body func(l *loop.Loop)) {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run() }()
	l.Post(func() { body(l) })
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the loop did not stop")
	}
}

func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return p[0], p[1]
}

func TestWatchAndUnwatch(t *testing.T) {
	r, w := pipe(t)
	calls := 0
	run(t, func(l *loop.Loop) {
		if err := l.Watch(r, unix.EPOLLIN, func(ev uint32) {
			calls++
			if ev&unix.EPOLLIN == 0 {
				t.Errorf("got events %#x", ev)
			}
			if calls == 3 { // level triggered: the byte stays
				l.Unwatch(r)
				l.After(20*time.Millisecond, l.Stop)
			}
		}); err != nil {
			t.Error(err)
		}
		unix.Write(w, []byte{1})
	})
	if calls != 3 {
		t.Errorf("got %d calls, want 3", calls)
	}
}

// A descriptor that is closed in the round in which its event was fetched, and
// whose number is used again at once, must not get the old event.
func TestNumberUsedAgainInOneRound(t *testing.T) {
	r1, w1 := pipe(t)
	r2, w2 := pipe(t)
	run(t, func(l *loop.Loop) {
		other := map[int]int{r1: r2, r2: r1}
		first := func(fd int) func(uint32) {
			return func(uint32) {
				o := other[fd]
				l.Unwatch(o)
				l.Unwatch(fd)
				var b [1]byte
				unix.Read(o, b[:])
				l.Watch(o, unix.EPOLLIN, func(uint32) { t.Error("old event delivered to the new watch") })
				l.After(20*time.Millisecond, l.Stop)
			}
		}
		l.Watch(r1, unix.EPOLLIN, first(r1))
		l.Watch(r2, unix.EPOLLIN, first(r2))
		unix.Write(w1, []byte{1})
		unix.Write(w2, []byte{1})
	})
}

func TestJobsAwaitAndQuiesce(t *testing.T) {
	r, w := pipe(t)
	var got, timedOut error
	order := ""
	run(t, func(l *loop.Loop) {
		l.Go(func() {
			timedOut = l.Await(r, unix.EPOLLIN, 10*time.Millisecond)
			l.Post(func() { unix.Write(w, []byte{1}) })
			got = l.Await(r, unix.EPOLLIN, time.Minute)
		}, func() { order += "job " })
		l.Quiesce(func() {
			order += "quiet"
			if l.Busy() || l.Quiescing() {
				t.Error("called while a job is in flight, or still quiescing")
			}
			l.Stop()
		})
		if l.Quiescing() {
			t.Error("copying is to end while a job is in flight that may take long")
		}
	})
	if got != nil || !loop.IsTimeout(timedOut) {
		t.Errorf("got %v and %v, want success and a timeout", got, timedOut)
	}
	if order != "job quiet" {
		t.Errorf("got order %q", order)
	}
}

// Work without an end goes on as long as something is waited for that has one.
func TestQuiesceEndsEndlessJobsLast(t *testing.T) {
	order := ""
	run(t, func(l *loop.Loop) {
		release := make(chan struct{})
		l.GoOn(func() {
			for !l.Quiescing() {
				time.Sleep(time.Millisecond)
			}
		}, func() { order += "endless " })
		l.Go(func() { <-release }, func() { order += "job " })
		l.Quiesce(func() {
			order += "quiet"
			l.Stop()
		})
		l.After(20*time.Millisecond, func() { close(release) })
	})
	if order != "job endless quiet" {
		t.Errorf("got order %q", order)
	}
}

func TestQuiesceComesAfterWhatIsPosted(t *testing.T) {
	order := ""
	run(t, func(l *loop.Loop) {
		l.Quiesce(func() {
			order += "quiet"
			l.Stop()
		})
		l.Go(func() {}, func() {
			l.Post(func() { order += "posted " })
		})
	})
	if order != "posted quiet" {
		t.Errorf("got order %q", order)
	}
}

func TestStoppedTimerDoesNotRun(t *testing.T) {
	run(t, func(l *loop.Loop) {
		timer := l.After(time.Millisecond, func() { t.Error("a stopped timer ran") })
		timer.Stop()
		l.After(30*time.Millisecond, l.Stop)
	})
}
