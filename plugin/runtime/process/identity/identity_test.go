// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// 46: field 22 is counted from the last parenthesis.
func TestParse(t *testing.T) {
	rest := " S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 1000 2 3"
	for name, c := range map[string]struct {
		line string
		want Status
		fail bool
	}{
		"plain":       {line: "42 (sleep)" + rest, want: Status{"S", 7, 42, "123456"}},
		"parentheses": {line: "42 (a) b (c)" + rest, want: Status{"S", 7, 42, "123456"}},
		"looks alike": {line: "42 (x) Z 1 2 3)" + rest, want: Status{"S", 7, 42, "123456"}},
		"newline":     {line: "42 (a\nb)" + rest + "\n", want: Status{"S", 7, 42, "123456"}},
		"too few":     {line: "42 (sleep) S 1 42 42 0", fail: true},
		"no name":     {line: "42 sleep S", fail: true},
		"empty":       {fail: true},
		"no number":   {line: "42 (sleep)" + strings.Replace(rest, "7", "x", 1), fail: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse([]byte(c.line))
			if c.fail != (err != nil) || c.fail && !errors.Is(err, ErrMalformed) {
				t.Fatalf("got %+v, %v", got, err)
			}
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 1000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := Parse(b); err == nil && (s.Start == "" || s.State == "") {
			t.Errorf("%q: %+v without an error", b, s)
		}
	})
}

// 48: living, ended, somebody else's.
func TestLiving(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Of(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	h, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := p.Living(); err != nil {
		t.Errorf("living: %v", err)
	}
	trusting := Process{Pid: p.Pid}
	if err := trusting.Living(); err != nil {
		t.Errorf("without a start time: %v", err)
	}
	for name, other := range map[string]Process{
		"start": {Pid: p.Pid, Start: "1", Boot: p.Boot},
		"boot":  {Pid: p.Pid, Start: p.Start, Boot: "another"},
	} {
		if err := other.Living(); !errors.Is(err, ErrReused) || !errdefs.IsNotFound(err) {
			t.Errorf("another %s: got %v", name, err)
		}
		if err := other.Kill(); !errors.Is(err, ErrReused) { // 49
			t.Errorf("kill with another %s: got %v", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := h.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for the living: got %v", err)
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	if err := h.Wait(t.Context()); err != nil { // a zombie by now
		t.Error(err)
	}
	if err := p.Living(); !errors.Is(err, ErrNotFound) {
		t.Errorf("zombie: got %v", err)
	}
	_ = cmd.Wait()
	for _, err := range []error{p.Living(), h.Signal(unix.SIGTERM), p.Kill()} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("ended: got %v", err)
		}
	}
	if err := Kill(p.Pid); err != nil {
		t.Errorf("kill what has ended: %v", err)
	}
	for _, err := range []error{Process{}.Living(), Process{Pid: -1}.Kill(), Kill(0)} {
		if !errors.Is(err, ErrNotInitialized) {
			t.Errorf("no number: got %v", err)
		}
	}
}
