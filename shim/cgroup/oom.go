// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"path"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
)

// A v1 notification comes before the kill that it announces, and the kernel may
// need some time to find a victim: the counter is read again after firstRecheck,
// then after ever longer waits up to lastRecheck.
const (
	firstRecheck = 10 * time.Millisecond
	lastRecheck  = time.Second
)

// Watch tells of processes of the cgroup that the kernel killed for lack of
// memory. Its methods are for the loop.
//
// What counts is the counter of kills in the container's own cgroup: in v2
// "oom_kill" of memory.events, which is right also when an equal limit further up
// was the one exceeded ("oom" is then booked there); in v1 "oom_kill" of
// memory.oom_control, where a notification alone may mean a neighbour in the pod,
// or the removal of the cgroup.
type Watch struct {
	g *Group
	l *loop.Loop
	f func()

	fd      int // inotify or eventfd, -1 when there is nothing to watch
	recheck *loop.Timer
	delay   time.Duration

	// In v2 under systemd the cgroup may vanish with its last process, and the
	// counter with it. Then a kill is taken for ours if the cgroup above, whose
	// counter includes ours, has counted one since we last looked, and ours has
	// had any event.
	above   uint64
	touched bool
}

// WatchOOM calls f on the loop for each increase of the cgroup's count of kills
// since the Group was found; also since before the Group was encoded, when it was
// decoded. A cgroup without memory accounting, or one shared with others, is
// watched in vain, without error.
func (g *Group) WatchOOM(l *loop.Loop, f func()) (*Watch, error) {
	w := &Watch{g: g, l: l, f: f, fd: -1}
	dir := g.ownController(memory)
	if dir == "" {
		return w, nil
	}
	var err error
	if g.v2 {
		w.fd, err = watchEvents(dir + "/memory.events")
	} else {
		w.fd, err = watchControl(dir)
	}
	if err != nil {
		w.fd = -1
		if gone(err) {
			return w, nil
		}
		return nil, fault.Wrap(fault.Internal, "watch for lack of memory", err)
	}
	if err := l.Watch(w.fd, unix.EPOLLIN, func(uint32) { w.event() }); err != nil {
		w.Close()
		return nil, fault.Wrap(fault.Internal, "watch for lack of memory", err)
	}
	w.above = w.killsAbove()
	l.Post(w.check)
	return w, nil
}

// watchEvents returns an inotify descriptor for changes of a file.
func watchEvents(file string) (int, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return -1, err
	}
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// watchControl returns an eventfd that the memory controller of v1 signals when
// the cgroup is out of memory (cgroup-v1/memory.rst, section 10).
func watchControl(dir string) (int, error) {
	control, err := unix.Open(dir+"/memory.oom_control", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(control)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, err
	}
	err = write(dir+"/cgroup.event_control", strconv.Itoa(fd)+" "+strconv.Itoa(control))
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// oomKills reads the counter. It is not there in a removed or malformed cgroup,
// and in v1 before Linux 4.13.
func (g *Group) oomKills() (uint64, bool) {
	if g.v2 {
		return valueIn(g.files.read(g.dir(unified), "memory.events"), "oom_kill")
	}
	return valueIn(g.files.read(g.dir(memory), "memory.oom_control"), "oom_kill")
}

// killsAbove reads the counter of the cgroup above: 0 in v1, or if that is the root.
func (w *Watch) killsAbove() uint64 {
	if !w.g.v2 {
		return 0
	}
	return w.g.files.value("oom_kill", path.Dir(w.g.dir(unified)), "memory.events")
}

// drain reads all there is to read from the watched descriptor.
func (w *Watch) drain() {
	var buf [512]byte
	for w.fd >= 0 {
		n, err := unix.Read(w.fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		w.touched = true
		if !w.g.v2 {
			return // an eventfd is empty after one read
		}
	}
}

func (w *Watch) event() {
	w.drain()
	if w.more() {
		w.f()
		return
	}
	if w.g.v2 {
		return
	}
	control := w.g.files.read(w.g.dir(memory), "memory.oom_control")
	_, counted := valueIn(control, "oom_kill")
	stuck, _ := valueIn(control, "under_oom")
	disabled, _ := valueIn(control, "oom_kill_disable")
	switch {
	case control == nil: // removed
	case !counted, stuck == 1 && disabled == 1:
		// An old kernel, or one told not to kill: the notification is all there is.
		w.f()
	default:
		w.delay = firstRecheck
		w.later()
	}
}

// later reads the counter of v1 again after w.delay.
func (w *Watch) later() {
	w.recheck.Stop()
	w.recheck = w.l.After(w.delay, func() {
		if w.fd < 0 {
			return
		}
		if w.more() {
			w.f()
		} else if w.delay *= 10; w.delay <= lastRecheck {
			w.later()
		}
	})
}

// check tells of kills that happened before the watch began.
func (w *Watch) check() {
	if w.fd >= 0 && w.more() {
		w.f()
	}
}

// more tells whether the counter has grown, once for each growth.
func (w *Watch) more() bool {
	n, ok := w.g.oomKills()
	if !ok {
		return false
	}
	w.above = w.killsAbove()
	if n <= w.g.kills {
		return false
	}
	w.g.kills = n
	return true
}

// Final looks once more, when the container's init has ended: the kernel counts
// a kill before it kills, but its notification comes later. It tells whether there
// was a kill that f has not been called for.
func (w *Watch) Final() bool {
	if w.fd < 0 {
		return false
	}
	w.drain()
	if _, ok := w.g.oomKills(); !ok && w.g.v2 {
		killed := w.touched && w.killsAbove() > w.above
		w.touched = false
		return killed
	}
	return w.more()
}

// Close ends the watch. f is not called any more.
func (w *Watch) Close() {
	if w.fd < 0 {
		return
	}
	w.recheck.Stop()
	w.l.Unwatch(w.fd)
	_ = unix.Close(w.fd) // nothing was written
	w.fd = -1
}
