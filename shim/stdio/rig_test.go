// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/crilog"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/process"
)

const patience = 20 * time.Second

// rig runs a loop and its children for a test.
type rig struct {
	t     testing.TB
	l     *loop.Loop
	table *process.Table
	dir   string

	mu       sync.Mutex
	warnings []string // guarded by mu
}

func newRig(t testing.TB) *rig {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, l: l, table: process.New(l), dir: dir}
	done := make(chan error, 1)
	go func() { done <- l.Run() }()
	t.Cleanup(func() {
		l.Post(l.Stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) warn(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warnings = append(r.warnings, text)
}

func (r *rig) warned() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.warnings, "\n")
}

// on runs f on the loop and waits for it.
func (r *rig) on(f func()) {
	r.t.Helper()
	done := make(chan struct{})
	r.l.Post(func() { f(); close(done) })
	select {
	case <-done:
	case <-time.After(patience):
		r.t.Fatal("the loop does not answer")
	}
}

func (r *rig) config() *Config {
	return &Config{Namespace: "ns", ID: "0123456789abcdef", Work: r.dir, Warn: r.warn}
}

func (r *rig) fifo(name string) string {
	r.t.Helper()
	path := r.dir + "/" + name
	if err := unix.Mkfifo(path, 0o700); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// proc is a process with streams.
type proc struct {
	*Streams
	r     *rig
	pid   int
	exits chan process.Exit
}

func (r *rig) open(cfg *Config) *Streams {
	r.t.Helper()
	s, err := Open(r.l, r.table, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// run runs script with the streams of cfg.
func (r *rig) run(cfg *Config, script string) *proc {
	r.t.Helper()
	return r.attach(r.open(cfg), script)
}

func (r *rig) attach(s *Streams, script string) *proc {
	r.t.Helper()
	p := &proc{Streams: s, r: r, exits: make(chan process.Exit, 1)}
	files := s.Files()
	var err error
	p.pid, err = r.table.Spawn(&process.Command{
		Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: os.Environ(), Files: files[:], Group: true,
	}, func(e process.Exit) {
		s.Exited()
		p.exits <- e
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.on(s.Begin)
	r.on(s.OpenInput)
	r.t.Cleanup(p.end)
	return p
}

// runTerminal runs script on a terminal.
func (r *rig) runTerminal(cfg *Config, script string) *proc {
	r.t.Helper()
	cfg.Terminal = true
	s := r.open(cfg)
	master, slave := openPTY(r.t)
	p := &proc{Streams: s, r: r, exits: make(chan process.Exit, 1)}
	var err error
	p.pid, err = r.table.Spawn(&process.Command{
		Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: os.Environ(), Files: []int{slave, slave, slave}, Group: true,
	}, func(e process.Exit) {
		s.Exited()
		p.exits <- e
	})
	if err != nil {
		r.t.Fatal(err)
	}
	unix.Close(slave)
	r.on(func() { s.BeginTerminal(master); s.OpenInput() })
	r.t.Cleanup(p.end)
	return p
}

func openPTY(t testing.TB) (master, slave int) {
	t.Helper()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	return master, int(fd)
}

func (p *proc) end() {
	unix.Kill(-p.pid, unix.SIGKILL)
	p.r.on(p.Close)
	p.r.until("jobs have ended", func() bool { return !p.working })
}

func (p *proc) exit() process.Exit {
	p.r.t.Helper()
	select {
	case e := <-p.exits:
		return e
	case <-time.After(patience):
		p.r.t.Fatal("the process does not end")
		panic("not reached")
	}
}

// drained waits for all output.
func (p *proc) drained() {
	p.r.t.Helper()
	done := make(chan bool, 1)
	p.r.on(func() { p.Drained(patience, func(complete bool) { done <- complete }) })
	if !<-done {
		p.r.t.Fatalf("not drained; warnings: %s", p.r.warned())
	}
}

// until waits until f, called on the loop, is true.
func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		ok := false
		r.on(func() { ok = f() })
		if ok {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not so in time: %s; warnings: %s", what, r.warned())
		}
		time.Sleep(time.Millisecond)
	}
}

// reader opens a fifo for reading, without waiting for a writer.
func (r *rig) reader(path string) *os.File {
	r.t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { f.Close() })
	return f
}

func (r *rig) all(f io.Reader) string {
	r.t.Helper()
	if f, ok := f.(*os.File); ok {
		_ = f.SetReadDeadline(time.Now().Add(patience))
	}
	b, err := io.ReadAll(f)
	if err != nil {
		r.t.Fatalf("after %d bytes: %v", len(b), err)
	}
	return string(b)
}

// take reads exactly n bytes.
func (r *rig) take(f *os.File, n int) string {
	r.t.Helper()
	_ = f.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, n)
	if m, err := io.ReadFull(f, b); err != nil {
		r.t.Fatalf("after %q: %v", b[:m], err)
	}
	return string(b)
}

func (r *rig) contents(path string) string {
	r.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// soFar is what is in a file that may not be there yet.
func (r *rig) soFar(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

func (r *rig) entries(path string) []crilog.Entry {
	r.t.Helper()
	es, err := crilog.Read([]byte(r.contents(path)))
	if err != nil {
		r.t.Fatal(err)
	}
	return es
}

// logged joins what a log holds of a stream.
func (r *rig) logged(path string, stream crilog.Stream) string {
	r.t.Helper()
	var b strings.Builder
	for _, e := range r.entries(path) {
		if e.Stream == stream {
			b.Write(e.Text)
			if !e.Partial {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

func fds(t testing.TB) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}
