// SPDX-License-Identifier: Apache-2.0

// Package process owns the children of the shim and its signals: it is the only
// caller of wait4(2). A child is spawned (the runtime, a logger) or adopted: the
// shim is a subreaper, so the container's processes become its children when
// the runtime that made them ends.
//
// A child's pid cannot be used again before the shim has reaped it, and both
// reaping and signalling happen here, on the loop. So a pid from this table is
// exact, and no pidfd is needed.
package process

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
)

// Unknown is the exit code of a process whose end nobody saw.
const Unknown = 255

// The exits of children that nobody has claimed yet are kept for a while: an
// exec's process may end before the runtime that started it has returned. Other
// unclaimed children are orphans of the container. maxEarly bounds their number,
// earlyLimit their age, well below the time in which the kernel, which hands out
// pids in turn, comes to the same one again.
const (
	maxEarly   = 128
	earlyLimit = 10 * time.Second
)

// Exit tells how a process ended.
type Exit struct {
	Code     int  // its status, 128 + signal, or Unknown
	Signaled bool // ended by a signal
	At       int64
}

// Table holds the children. Its methods are for the loop unless they say
// otherwise.
type Table struct {
	l        *loop.Loop
	signals  chan os.Signal
	handlers map[os.Signal]func()

	mu    sync.Mutex
	live  map[int]func(Exit) // by pid; guarded by mu
	early []earlyExit        // guarded by mu
}

type earlyExit struct {
	pid  int
	exit Exit
}

// New returns a table that reaps the children of this process from now on.
func New(l *loop.Loop) *Table {
	// Room for one of each kind: os/signal drops what does not fit, and a second
	// SIGCHLD before the first is handled says nothing new.
	t := &Table{l: l, signals: make(chan os.Signal, 8), live: map[int]func(Exit){}}
	signal.Notify(t.signals, unix.SIGCHLD)
	go t.forward()
	l.Post(t.reap) // what ended before Notify
	return t
}

// Subreaper makes this process the new parent of its orphaned descendants
// (prctl(2), PR_SET_CHILD_SUBREAPER).
func Subreaper() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// Handle calls f on the loop when the process gets sig.
func (t *Table) Handle(sig os.Signal, f func()) {
	if t.handlers == nil {
		t.handlers = map[os.Signal]func(){}
	}
	t.handlers[sig] = f
	signal.Notify(t.signals, sig)
}

// Rehandle catches the signals of Handle again, after something else changed
// their disposition.
func (t *Table) Rehandle() {
	for sig := range t.handlers {
		signal.Notify(t.signals, sig)
	}
}

func (t *Table) forward() {
	for sig := range t.signals {
		if sig == unix.SIGCHLD {
			t.l.Post(t.reap)
			continue
		}
		t.l.Post(func() { t.handlers[sig]() })
	}
}

// reap collects every child that has ended.
func (t *Table) reap() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		exit := Exit{Code: ws.ExitStatus(), At: time.Now().UnixNano()}
		if ws.Signaled() {
			exit.Code, exit.Signaled = 128+int(ws.Signal()), true
		}
		t.mu.Lock()
		f, known := t.live[pid]
		delete(t.live, pid)
		if !known {
			if len(t.early) == maxEarly {
				t.early = append(t.early[:0], t.early[1:]...)
			}
			t.early = append(t.early, earlyExit{pid, exit})
		}
		t.mu.Unlock()
		if f != nil {
			f(exit)
		}
	}
}

// claim makes exited the receiver of pid's exit. If pid was reaped after since,
// its exit is returned instead; an older one was another process's.
func (t *Table) claim(pid int, since int64, exited func(Exit)) (Exit, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := len(t.early) - 1; i >= 0; i-- {
		if e := t.early[i]; e.pid == pid {
			t.early = append(t.early[:i], t.early[i+1:]...)
			if e.exit.At >= since {
				return e.exit, true
			}
		}
	}
	t.live[pid] = exited
	return Exit{}, false
}

// Command is a program to spawn.
type Command struct {
	Path  string // absolute
	Args  []string
	Env   []string
	Dir   string
	Files []int // descriptors 0, 1, ... of the child; -1 is /dev/null. They stay the caller's
	// Pdeathsig, when not 0, is sent to the child when the shim ends.
	Pdeathsig syscall.Signal
	// Group makes the child the leader of a process group of its own, which Run's
	// time limit ends as a whole.
	Group bool
}

// Spawn starts c. exited is called on the loop when it has ended. Safe from any
// goroutine.
func (t *Table) Spawn(c *Command, exited func(Exit)) (int, error) {
	null := -1
	files := make([]uintptr, len(c.Files))
	for i, fd := range c.Files {
		if fd < 0 {
			if null < 0 {
				var err error
				if null, err = unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
					return 0, &os.PathError{Op: "open", Path: os.DevNull, Err: err}
				}
				defer unix.Close(null)
			}
			fd = null
		}
		files[i] = uintptr(fd)
	}
	since := time.Now().UnixNano()
	pid, err := syscall.ForkExec(c.Path, c.Args, &syscall.ProcAttr{
		Dir: c.Dir, Env: c.Env, Files: files,
		Sys: &syscall.SysProcAttr{Pdeathsig: c.Pdeathsig, Setpgid: c.Group},
	})
	if err != nil {
		return 0, &os.PathError{Op: "exec", Path: c.Path, Err: err}
	}
	if exit, ended := t.claim(pid, since, exited); ended {
		t.l.Post(func() { exited(exit) })
	}
	return pid, nil
}

// Run runs c to its end, blocking the calling goroutine, a job's. When limit
// has passed (0: none) it kills c, and its group if it has one, and returns
// DeadlineExceeded.
func (t *Table) Run(c *Command, limit time.Duration) (Exit, error) {
	ended := make(chan Exit, 1) // one exit
	pid, err := t.Spawn(c, func(e Exit) { ended <- e })
	if err != nil {
		return Exit{}, err
	}
	var expired <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case e := <-ended:
		return e, nil
	case <-expired:
	}
	t.mu.Lock()
	if t.live[pid] != nil { // not reaped: the number is still its own
		target := pid
		if c.Group {
			target = -pid
		}
		_ = unix.Kill(target, unix.SIGKILL)
	}
	t.mu.Unlock()
	e := <-ended
	return e, fault.New(fault.DeadlineExceeded, c.Path+": no end after "+limit.String()+", killed")
}

// Process is an adopted child.
type Process struct {
	t     *Table
	pid   int
	ended bool
}

// Adopt takes a process that became a child of this one. exited is called on
// the loop, once, after Adopt has returned. For a pid that is neither a child
// nor one that was reaped unclaimed, it is called with Unknown.
func (t *Table) Adopt(pid int, exited func(Exit)) *Process {
	p := &Process{t: t, pid: pid}
	end := func(e Exit) {
		p.ended = true
		exited(e)
	}
	now := time.Now().UnixNano()
	since := now - int64(earlyLimit)
	child := isChild(pid)
	if child {
		since = now // whatever was reaped had the number before
	}
	exit, ended := t.claim(pid, since, end)
	if !ended && !child {
		t.mu.Lock()
		delete(t.live, pid)
		t.mu.Unlock()
		exit, ended = Exit{Code: Unknown, At: now}, true
	}
	if ended {
		t.l.Post(func() { end(exit) })
	}
	return p
}

// Readopt is Adopt for a process that a previous program of this pid had as its
// child. started is its StartTime then: a process that began at another time is
// a stranger with the same number, and is left alone.
func (t *Table) Readopt(pid int, started uint64, exited func(Exit)) *Process {
	if now := StartTime(pid); now != 0 && now != started {
		p := &Process{t: t, pid: pid, ended: true}
		t.l.Post(func() { exited(Exit{Code: Unknown, At: time.Now().UnixNano()}) })
		return p
	}
	return t.Adopt(pid, exited)
}

// isChild tells whether pid is a child that has not been reaped. waitid(2) with
// WNOWAIT only looks.
func isChild(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// Pid returns the process's number.
func (p *Process) Pid() int { return p.pid }

// StartTime returns when the process began; see the function StartTime.
func (p *Process) StartTime() uint64 { return StartTime(p.pid) }

// ErrFinished is returned for a signal to a process that is gone. The words are
// those that containerd's clients know.
var ErrFinished = fault.New(fault.NotFound, "process already finished")

// Signal sends sig, 0 to probe. It returns ErrFinished when the process has
// ended, InvalidArgument for a number that is no signal.
func (p *Process) Signal(sig int) error {
	if p.ended || p.zombie() {
		return ErrFinished
	}
	switch err := unix.Kill(p.pid, syscall.Signal(sig)); err {
	case nil:
		return nil
	case unix.ESRCH:
		return ErrFinished
	case unix.EINVAL:
		return fault.New(fault.InvalidArgument, "no such signal")
	default:
		return fault.Wrap(fault.Unknown, "kill", err)
	}
}

// zombie tells whether the process has ended and waits to be reaped: until then
// it accepts every signal.
func (p *Process) zombie() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, p.pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
}
