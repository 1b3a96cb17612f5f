// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/plugin/labels"
)

// locked is a buffer for two.
type locked struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// attached attaches in the background, and returns when it is.
func attached(t *testing.T, r *rig, x *Container, q AttachRequest) chan error {
	t.Helper()
	done, started := make(chan error, 1), make(chan struct{})
	q.Started = started
	go func() { done <- x.Attach(r.ctx, q) }()
	select {
	case <-started:
	case <-r.ctx.Done():
		t.Fatal("not attached")
	}
	return done
}

// S47, S48, S51: clients see what comes, by stream, until the end.
func TestAttach(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{
		args:     sh("echo early; read go; echo out; echo err >&2; exit 3"),
		settings: labels.Settings{Stdin: true}, stdio: Stdio{Stdin: "pipe://", Stdout: "pipe://", Stderr: "pipe://"},
	})
	time.Sleep(300 * time.Millisecond) // the history
	var outs, errs [3]locked
	var clients []chan error
	for i := range outs {
		clients = append(clients, attached(t, r, x, AttachRequest{Stdout: &outs[i], Stderr: &errs[i]}))
	}
	in, typing := io.Pipe()
	clients = append(clients, attached(t, r, x, AttachRequest{Stdin: in}))
	if _, err := typing.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	for i, done := range clients {
		if err := <-done; err != nil {
			t.Errorf("client %d: %v", i, err)
		}
	}
	_ = typing.Close()
	for i := range outs {
		if outs[i].String() != "out\n" || errs[i].String() != "err\n" {
			t.Errorf("client %d: %q, %q", i, outs[i].String(), errs[i].String())
		}
	}
	if s, err := x.Wait(r.ctx); err != nil || code(s) != 3 {
		t.Errorf("got %+v, %v", s, err)
	}
	if err := x.Attach(r.ctx, AttachRequest{Stdout: io.Discard}); !errors.Is(err, ErrNotFound) {
		t.Errorf("to what has ended: %v", err)
	}
}

// S49, S50.
func TestAttachInput(t *testing.T) {
	r := newRig(t)
	stdio := Stdio{Stdin: "pipe://", Stdout: "pipe://", Stderr: "pipe://"}
	t.Run("once", func(t *testing.T) {
		x := r.run(t, options{args: sh("cat; exit 3"), settings: labels.Settings{Stdin: true, StdinOnce: true}, stdio: stdio})
		var out locked
		if err := x.Attach(r.ctx, AttachRequest{Stdin: strings.NewReader("hello"), Stdout: &out}); err != nil || out.String() != "hello" {
			t.Errorf("got %q, %v", out.String(), err)
		}
		if s, err := x.Wait(r.ctx); err != nil || code(s) != 3 {
			t.Errorf("got %+v, %v", s, err)
		}
	})
	t.Run("left open", func(t *testing.T) {
		x := r.run(t, options{args: sh("read a; read b; echo $a $b"), settings: labels.Settings{Stdin: true}, stdio: stdio})
		if err := x.Attach(r.ctx, AttachRequest{Stdin: strings.NewReader("one\n")}); err != nil {
			t.Error(err)
		}
		if err := x.Living(); err != nil {
			t.Fatal(err)
		}
		var out locked
		done := attached(t, r, x, AttachRequest{Stdout: &out})
		if err := x.Attach(r.ctx, AttachRequest{Stdin: strings.NewReader("two\n")}); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil || out.String() != "one two\n" {
			t.Errorf("got %q, %v", out.String(), err)
		}
	})
	t.Run("none", func(t *testing.T) {
		x := r.run(t, options{})
		if err := x.Attach(r.ctx, AttachRequest{Stdin: strings.NewReader("")}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAttachTerminal(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{
		args: []string{"sh"}, settings: labels.Settings{Stdin: true, Terminal: true},
		stdio: Stdio{Stdin: "pty://", Stdout: "pty://"},
	})
	in, typing := io.Pipe()
	defer typing.Close()
	var out locked
	sizes := make(chan Size, 1)
	keys, _ := ParseDetachKeys(DetachKeys)
	done := attached(t, r, x, AttachRequest{Stdin: in, Stdout: &out, Stderr: io.Discard, Resize: sizes, DetachKeys: keys})
	sizes <- Size{100, 40}
	eventually(t, func() string {
		_, _ = typing.Write([]byte("stty size\n"))
		time.Sleep(20 * time.Millisecond)
		if strings.Contains(out.String(), "40 100") {
			return ""
		}
		return out.String()
	})
	_, _ = typing.Write([]byte("\x10\x11"))
	if err := <-done; !errors.Is(err, ErrDetached) {
		t.Errorf("got %v", err)
	}
	if err := x.Living(); err != nil {
		t.Error(err)
	}
}

// A client that does not read is told so, and nobody waits for it.
func TestAttachTooSlow(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{
		args:     sh("read go; for i in $(seq 60); do dd if=/dev/zero bs=1M count=1 2>/dev/null; sleep 0.03; done; echo end; sleep 600"),
		settings: labels.Settings{Stdin: true}, stdio: Stdio{Stdin: "pipe://", Stdout: "pipe://"},
	})
	release := make(chan struct{})
	slow := attached(t, r, x, AttachRequest{Stdout: stalled{release}})
	var n counter
	_ = attached(t, r, x, AttachRequest{Stdout: &n})
	if err := x.Attach(r.ctx, AttachRequest{Stdin: strings.NewReader("go\n")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if n.get() == 60<<20+4 {
			return ""
		}
		return "not all has come"
	})
	close(release)
	if err := <-slow; !errors.Is(err, ErrTooSlow) {
		t.Errorf("got %v", err)
	}
}

type stalled struct{ until chan struct{} }

func (s stalled) Write(p []byte) (int, error) {
	<-s.until
	return len(p), nil
}

type counter struct {
	mu sync.Mutex // guards n
	n  int
}

func (c *counter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += len(p)
	return len(p), nil
}

func (c *counter) get() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}
