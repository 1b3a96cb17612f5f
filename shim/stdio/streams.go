// SPDX-License-Identifier: Apache-2.0

// Package stdio connects the standard streams of a container's process: to
// containerd's fifos, to files, to logging programs, to a terminal, and to the
// logs that the shim writes itself.
//
// A stream of output is a flow (flow.go). Between a pipe and a fifo data moves by
// splice on the event loop, in bursts, both ends non-blocking. Where a write may
// block (a log, a file, the spool of a reader that is away) or bytes must be
// looked at, one job serves all flows of the process until they have no more
// (job.go). Nothing is copied where the process can have the descriptor itself: a
// file, the pipe of a logging program.
//
// A stream that nobody asked for costs nothing, an idle one its descriptors.
// The package does not start the process, and does not know what it is.
package stdio

import (
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/attach"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/process"
)

// Streams are the standard streams of one process. Methods are for the loop
// unless they say otherwise.
type Streams struct {
	l   *loop.Loop
	t   *process.Table
	cfg Config

	files [3]int // what the process gets; the shim's until Begin. -1: /dev/null
	keep  [2]int // output fifos that the process writes itself (Config.Direct); -1: none
	// inputPath is the stdin fifo that OpenInput is still to open; "": none.
	inputPath string
	keeper    int      // keeps the stdin fifo from ending while a client may come; -1: none
	in        *flow    // nil: none
	out       [2]*flow // nil: nothing to copy
	logs      []tap
	loggers   []*logger
	gone      func() // called when all loggers have ended after Close; nil: nobody asked
	lingers   []*linger
	waiters   []*waiter
	clients   *attach.Hub // nil: nobody has ever attached

	master    int // the terminal; -1: none. Owned by a flow
	connected bool
	exited    bool
	closed    bool

	// The job that serves flows which must not run on the loop.
	working    bool
	again      bool        // something changed while it ran
	yield      atomic.Bool // it should come to an end
	retry      *loop.Timer // it waits for the loop's quiet moment to pass
	memory     memory
	jobFlows   [2]*flow // what it serves; nil: none
	jobClients *attach.Hub
	copyJob    func() // copyFlows, made once
	copied     func() // afterCopy, made once
	reopens    []func(error)
	reopening  []func(error) // the job does these
	reopenErr  error
}

// waiter is a call of Drained that has not been answered.
type waiter struct {
	f     func(complete bool)
	timer *loop.Timer
}

// Files returns what the runtime is to give the process as descriptors 0, 1 and 2.
// -1 is /dev/null, or whatever, when the process has a terminal. They stay the
// Streams'. Safe from any goroutine until Begin.
func (s *Streams) Files() [3]int { return s.files }

// Begin starts copying. It is called once, when the runtime has started the
// process or failed to no avail; the process's ends are closed.
func (s *Streams) Begin() {
	s.closeFiles()
	for _, f := range s.out {
		if f != nil {
			f.start()
		}
	}
	for _, lg := range s.loggers {
		lg.onEnd = s.settle
	}
}

// BeginTerminal is Begin for a process with a terminal. It takes ownership of
// master.
func (s *Streams) BeginTerminal(master int) {
	s.master = master
	if err := unix.SetNonblock(master, true); err != nil {
		s.warn("terminal", err)
	}
	if err := setONLCR(master); err != nil {
		s.warn("terminal", err)
	}
	// Without an output flow the terminal's buffer would fill and block the process.
	if s.out[0] == nil {
		s.out[0] = s.newFlow(0)
	}
	s.out[0].src = master
	if s.in != nil {
		// A number of its own: the loop watches a descriptor for one purpose only.
		dup, err := unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			s.warn("stdin", err)
			s.in.finish()
			s.in = nil
		} else {
			s.in.dst = dup
		}
	}
	s.Begin()
}

// setONLCR makes the terminal's output end lines with \r\n. What runs in the
// container sees the setting and can change it.
func setONLCR(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Oflag |= unix.OPOST | unix.ONLCR
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// Abort undoes Open when there will be no process. Safe from any goroutine, until
// Begin.
func (s *Streams) Abort() {
	s.closeFiles()
	closeFD(&s.keeper)
	for i := range s.keep {
		closeFD(&s.keep[i])
	}
	for _, f := range [3]*flow{s.in, s.out[0], s.out[1]} {
		if f != nil {
			closeFD(&f.src)
			closeFD(&f.dst)
		}
	}
	for _, g := range s.logs {
		g.log.Close()
	}
	loggers := s.loggers
	if len(loggers) > 0 {
		s.l.Post(func() {
			for _, lg := range loggers {
				lg.end()
			}
		})
	}
}

func (s *Streams) closeFiles() {
	if s.files[2] == s.files[1] { // one file for both
		s.files[2] = -1
	}
	for i := range s.files {
		closeFD(&s.files[i])
	}
}

// closeFD closes *fd, unless it is -1 already. Errors of close(2) on pipes and
// terminals say nothing; files are synced where that matters.
func closeFD(fd *int) {
	if *fd >= 0 {
		_ = unix.Close(*fd)
		*fd = -1
	}
}

// CloseStdin ends the process's input once all clients have closed the fifo and
// what they wrote is delivered.
func (s *Streams) CloseStdin() {
	s.OpenInput()
	closeFD(&s.keeper)
	if s.in != nil && s.in.fed {
		s.endInput()
	}
}

// Resize sets the size of the terminal. Without a terminal it does nothing.
func (s *Streams) Resize(width, height uint16) error {
	if s.master < 0 {
		return nil
	}
	return unix.IoctlSetWinsize(s.master, unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
}

// SetConnected tells whether containerd is there: while it is not, output that
// its fifos do not take is spooled.
func (s *Streams) SetConnected(connected bool) {
	s.connected = connected
	for _, f := range s.out {
		switch {
		case f == nil:
		case connected:
			f.noSpool = false
		case f.waiting != sink:
		case f.spool != nil: // left from when it was away before: goes on being filled
			s.work()
		default: // stalled
			f.spoolOn()
		}
	}
}

// Exited tells that the process has ended. Its streams go on: children of it may
// hold them.
func (s *Streams) Exited() {
	s.exited = true
	for i := range s.keep {
		if s.keep[i] >= 0 {
			s.linger(s.keep[i])
			s.keep[i] = -1
		}
	}
	if f := s.out[0]; f != nil && f.hung != nil {
		f.hung.Stop()
		f.hung = nil
		f.sourceEnded()
	}
	s.settle()
}

// Discard throws output away from now on: nobody is going to read the fifos. What the
// job is about, while containerd is away, goes on.
func (s *Streams) Discard() {
	for _, f := range s.out {
		if f != nil && f.fifo && !f.over && !s.working {
			f.discard()
		}
	}
}

// Drained calls f, once, when all output has been handed over and logging
// programs have ended: with true, at once if that is so already. With false when
// limit has passed before (0: no limit), or at Close.
func (s *Streams) Drained(limit time.Duration, f func(complete bool)) {
	if s.closed || s.drained() {
		f(!s.closed)
		return
	}
	w := &waiter{f: f}
	if limit > 0 {
		w.timer = s.l.After(limit, func() {
			for i := range s.waiters {
				if s.waiters[i] == w {
					s.waiters = append(s.waiters[:i], s.waiters[i+1:]...)
					f(false)
					return
				}
			}
		})
	}
	s.waiters = append(s.waiters, w)
}

func (s *Streams) drained() bool {
	if !s.allOver() {
		return false
	}
	for i := range s.keep {
		if s.keep[i] >= 0 {
			return false
		}
	}
	for _, lg := range s.loggers {
		if lg.pid > 0 {
			return false
		}
	}
	return !s.working && len(s.logs) == 0
}

// settle is called whenever a part has come to its end.
func (s *Streams) settle() {
	if s.exited && !s.working && s.allOver() {
		s.clients.Close()
	}
	if !s.working && len(s.logs) > 0 && s.allOver() {
		s.closeLogs()
		return
	}
	if s.drained() {
		s.answer(true)
	}
}

// allOver tells whether all flows of output are over.
func (s *Streams) allOver() bool {
	for _, f := range s.out {
		if f != nil && !f.over {
			return false
		}
	}
	return true
}

func (s *Streams) answer(complete bool) {
	ws := s.waiters
	s.waiters = nil
	for _, w := range ws {
		w.timer.Stop()
		w.f(complete)
	}
}

// Reopen closes and opens again the logs that the shim writes, between two lines.
// done is called when all are written to their new files, or with the first
// error. Other streams are not touched.
func (s *Streams) Reopen(done func(error)) {
	if len(s.logs) == 0 || s.closed {
		done(nil)
		return
	}
	s.reopens = append(s.reopens, done)
	s.yield.Store(true)
	s.work()
}

// Close ends all streams, and logging programs that are still there: SIGTERM,
// then SIGKILL. It does not wait for them.
func (s *Streams) Close() {
	if s.closed {
		return
	}
	s.closed = true
	closeFD(&s.keeper)
	for i := range s.keep {
		closeFD(&s.keep[i])
	}
	for _, g := range s.lingers {
		g.close()
	}
	s.lingers = nil
	s.retry.Stop()
	for _, lg := range s.loggers {
		lg.end()
	}
	if s.in != nil {
		s.in.close()
	}
	if s.working { // the descriptors are in use: its end does the rest
		s.yield.Store(true)
	} else {
		s.closeFlows()
	}
	s.answer(false)
}

func (s *Streams) closeFlows() {
	for _, f := range s.out {
		if f != nil {
			f.close()
		}
	}
	s.clients.Close()
	s.memory.close()
	s.answerReopens()
	if len(s.logs) > 0 {
		s.closeLogs()
	}
}

func (s *Streams) answerReopens() {
	reopens := s.reopens
	s.reopens = nil
	for _, done := range reopens {
		done(nil)
	}
}

// End closes all streams and calls f when the programs that log this process's
// output have ended: at once where there are none, after loggerPatience at most.
func (s *Streams) End(f func()) {
	s.Close()
	s.gone = f
	s.loggerEnded()
}

// Ending tells that End waits for a program. Such streams cannot be handed over.
func (s *Streams) Ending() bool { return s.gone != nil }

func (s *Streams) loggerEnded() {
	for _, lg := range s.loggers {
		if lg.pid > 0 {
			return
		}
	}
	if f := s.gone; f != nil {
		s.gone = nil
		f()
	}
}

// closeLogs ends the logs, in a job: they may be synced.
func (s *Streams) closeLogs() {
	s.memory.close()
	logs := s.logs
	s.logs = nil
	s.working = true
	s.l.Go(func() {
		for _, g := range logs {
			g.log.Close()
		}
	}, func() {
		s.working = false
		s.answerReopens() // they came too late: the files are closed
		s.settle()
	})
}

func (s *Streams) warn(what string, err error) { s.say(what + ": " + err.Error()) }

func (s *Streams) say(text string) {
	if s.cfg.Warn != nil {
		if s.cfg.Exec != "" {
			text = "exec " + s.cfg.Exec + ": " + text
		}
		s.cfg.Warn("container " + s.cfg.ID + ": " + text)
	}
}

// spoolPath names the spool of a stream, in the persistent directory.
func (s *Streams) spoolPath(stream int) string {
	name := "/spool-"
	if s.cfg.Exec != "" {
		name += s.cfg.Exec + "-"
	}
	return s.cfg.Work + name + streamName(stream)
}

// growPipe makes a pipe hold up to size bytes. A refusal leaves it as it is.
func growPipe(fd, size int) {
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size)
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
