// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
)

// rig is a loop with a hub.
type rig struct {
	t      *testing.T
	l      *loop.Loop
	h      *Hub
	socket string
	input  []string
	warned []string
	held   bool
}

func newRig(t *testing.T) *rig {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, l: l, socket: t.TempDir() + "/" + strings.Repeat("0", 64)}
	r.join(New(l))
	done := make(chan error, 1)
	go func() { done <- l.Run() }()
	t.Cleanup(func() {
		r.on(r.h.Close)
		l.Post(l.Stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) join(h *Hub) {
	r.h = h
	h.Input = func(p []byte) {
		r.input = append(r.input, string(p))
		if r.held {
			h.Hold()
		}
	}
	h.InputEnded = func() { r.input = append(r.input, "end") }
	h.Warn = func(text string) { r.warned = append(r.warned, text) }
}

func (r *rig) on(f func()) {
	done := make(chan struct{})
	r.l.Post(func() { f(); close(done) })
	<-done
}

func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		ok := false
		r.on(func() { ok = f() })
		if ok {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not so in time: %s", what)
		}
	}
}

func (r *rig) open(want Request) string {
	r.t.Helper()
	var path string
	var err error
	r.on(func() { path, err = r.h.Open(r.socket, want) })
	if err != nil {
		r.t.Fatal(err)
	}
	return path
}

// connect attaches a client that blocks.
func (r *rig) connect(want Request) int {
	r.t.Helper()
	path := r.open(want)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.until("the client is in", func() bool { return len(r.h.doors) == 0 })
	return fd
}

func (r *rig) write(stream int, text string) {
	r.on(func() {
		r.h.Lend()
		r.h.Write(stream, []byte(text), make([]byte, 16<<10))
		r.h.Return()
	})
}

func read(t *testing.T, fd int) (string, error) {
	t.Helper()
	b := make([]byte, 8193)
	n, err := unix.Read(fd, b)
	return string(b[:max(n, 0)]), err
}

func TestSockets(t *testing.T) {
	r := newRig(t)
	path := r.open(Request{Stdout: true})
	if len(path) > len(r.socket) || filepath.Dir(path) != filepath.Dir(r.socket) {
		t.Errorf("got %s", path)
	}
	st, err := os.Lstat(path)
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("got %v, %v", st.Mode(), err)
	}
	if other := r.open(Request{Stdout: true}); other == path {
		t.Error("two clients have one socket")
	}
	r.on(r.h.Close)
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if short := prefix("/s/x"); short != "/s/x-attach-" {
		t.Errorf("got %s", short)
	}
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	mine := dir + "/" + strings.Repeat("a", 64)
	fd, path, err := listen(mine)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	kept := []string{mine, path + "x", strings.Replace(path, "a", "b", 1)}
	for _, path := range kept {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := Remove(mine); err != nil {
			t.Error(err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != len(kept) {
		t.Errorf("got %v, %v", left, err)
	}
	if err := Remove(dir + "/none/x"); err != nil {
		t.Error(err)
	}
}

func TestTooManyClients(t *testing.T) {
	r := newRig(t)
	for range maxClients {
		r.open(Request{Stdout: true})
	}
	var err error
	r.on(func() { _, err = r.h.Open(r.socket, Request{Stdout: true}) })
	if fault.CodeOf(err) != fault.ResourceExhausted {
		t.Errorf("got %v", err)
	}
}

// A directory that is gone, or a path that is too long, is an error of this call.
func TestNoSocket(t *testing.T) {
	r := newRig(t)
	for _, socket := range []string{"/none/" + strings.Repeat("0", 64), "/tmp/" + strings.Repeat("0", 200)} {
		var err error
		r.on(func() { _, err = r.h.Open(socket, Request{Stdout: true}) })
		if err == nil {
			t.Errorf("%s: no error", socket)
		}
	}
	if len(r.h.doors) != 0 {
		t.Error("a door without a socket")
	}
}

// A client gets what was sent before the end, whatever it has said itself.
func TestEndAfterOutput(t *testing.T) {
	r := newRig(t)
	fd := r.connect(Request{Stdout: true})
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("nobody reads this")); err != nil {
		t.Fatal(err)
	}
	r.write(0, strings.Repeat("x", 20_000))
	r.write(1, "not wanted")
	r.on(r.h.Close)
	total := 0
	for {
		p, err := read(t, fd)
		if err != nil {
			t.Fatal(err)
		}
		if p == "" {
			break
		}
		if p[0] != markStdout || len(p) > 8193 {
			t.Errorf("a packet of %d bytes begins with %d", len(p), p[0])
		}
		total += len(p) - 1
	}
	if total != 20_000 {
		t.Errorf("got %d bytes", total)
	}
}

// What a client says and then leaves comes when there is room.
func TestInputIsHeld(t *testing.T) {
	r := newRig(t)
	r.on(func() { r.held = true })
	fd := r.connect(Request{Stdin: true, Stdout: true, Once: true})
	r.write(0, "unread: the end is a reset")
	for _, text := range []string{"a", "b"} {
		if _, err := unix.Write(fd, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	unix.Close(fd)
	r.until("it has left", func() bool { return r.h.clients[0].asleep })
	r.on(func() {
		if got := strings.Join(r.input, " "); got != "a" {
			t.Errorf("got %q", got)
		}
		r.held = false
		r.h.Resume()
	})
	r.until("it is forgotten", func() bool { return len(r.h.clients) == 0 })
	r.on(func() {
		if got := strings.Join(r.input, " "); got != "a b end" {
			t.Errorf("got %q", got)
		}
	})
}

// A client is not closed under the job that writes to it.
func TestClientLeavesTheJob(t *testing.T) {
	r := newRig(t)
	fd := r.connect(Request{Stdout: true})
	r.on(r.h.Lend)
	unix.Close(fd)
	r.until("it has left", func() bool { return !r.h.Wants(0) })
	r.on(func() {
		if len(r.h.clients) != 1 || len(r.h.lent) != 1 {
			t.Error("it is closed")
		}
		r.h.Write(0, []byte("x"), make([]byte, 10))
		r.h.Return()
		if len(r.h.clients) != 0 {
			t.Error("it is not closed")
		}
	})
}

func TestRestoreRefusesNonsense(t *testing.T) {
	r := newRig(t)
	r.on(func() {
		for _, b := range []string{"\x0a", "\x12\x02\x10\x01", "\x12\x01\x08"} {
			if h, err := Restore(r.l, []byte(b), false); err == nil {
				t.Errorf("%q: got %+v", b, h)
			}
		}
	})
}
