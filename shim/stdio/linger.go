// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/loop"
)

// How often it is checked whether a finished fifo has found a reader: nothing
// wakes the writing end when one opens the other.
const (
	lingerPause    = 10 * time.Millisecond
	lingerPauseMax = time.Second
)

// linger keeps a finished stream's fifo open for writing until somebody reads it,
// or the process is deleted. A fifo forgets its content when the last descriptor
// closes: containerd, restarted, would find nothing. And a client that opens it
// later, as containerd's does when a process is quick, would wait for a writer that
// never comes.
type linger struct {
	s     *Streams
	fd    int // for writing only: as a reader it would take itself for one
	pause time.Duration
	timer *loop.Timer
}

// linger takes over the fifo of a finished stream. fd, which is the stream's and
// open for reading, too, is closed. A pipe that has no name is nobody's to open: its
// reader is there already, or never will be.
func (s *Streams) linger(fd int) {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.PIPEFS_MAGIC {
		_ = unix.Close(fd)
		return
	}
	w, err := unix.Open(fdPath(fd), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	_ = unix.Close(fd)
	if err != nil {
		s.warn("end of a fifo", err)
		return
	}
	g := &linger{s: s, fd: w, pause: lingerPause}
	s.lingers = append(s.lingers, g)
	g.check()
}

// Unread tells whether output of the process that has ended is in a fifo which
// nobody has opened for reading.
func (s *Streams) Unread() bool {
	for _, g := range append([]*linger(nil), s.lingers...) { // check takes some out
		if !g.alone() {
			g.timer.Stop()
			g.check()
		} else if left, err := unix.IoctlGetInt(g.fd, unix.TIOCINQ); err == nil && left > 0 { // FIONREAD
			return true
		}
	}
	return false
}

// alone tells whether nobody reads: without a reader the writing end of a pipe is
// in error (poll(2)).
func (g *linger) alone() bool {
	fds := [1]unix.PollFd{{Fd: int32(g.fd)}}
	_, err := unix.Poll(fds[:], 0)
	return err == nil && fds[0].Revents&unix.POLLERR != 0
}

// check gives the fifo up when it has a reader, who gets what is in it and then the
// end.
func (g *linger) check() {
	if g.alone() {
		g.timer = g.s.l.After(g.pause, g.check)
		g.pause = min(2*g.pause, lingerPauseMax)
		return
	}
	for i := range g.s.lingers {
		if g.s.lingers[i] == g {
			g.s.lingers = append(g.s.lingers[:i], g.s.lingers[i+1:]...)
			break
		}
	}
	g.close()
}

func (g *linger) close() {
	g.timer.Stop()
	closeFD(&g.fd)
}
