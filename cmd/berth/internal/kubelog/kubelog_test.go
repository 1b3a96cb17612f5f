// SPDX-License-Identifier: Apache-2.0

package kubelog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/shim/crilog"
)

var begin = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

// logged is a log of lines; one that ends in a backslash is a piece. Each is a second
// after the one before.
func logged(first int, lines ...string) string {
	var b strings.Builder
	for i, line := range lines {
		text, piece := strings.CutSuffix(line, `\`)
		tag, stream := "F", "stdout"
		if piece {
			tag = "P"
		}
		if strings.HasPrefix(text, "!") {
			stream = "stderr"
		}
		fmt.Fprintf(&b, "%s %s %s %s\n", begin.Add(time.Duration(first+i)*time.Second).Format(layout), stream, tag, text)
	}
	return b.String()
}

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string // by what follows the log's name
		o     Options
		want  string
	}{
		{"all", map[string]string{"": logged(0, "a", "b")}, Options{Tail: -1}, "a\nb\n"},
		{"nothing", map[string]string{"": ""}, Options{Tail: -1}, ""},
		{"last line", map[string]string{"": logged(0, "a", "b", "c")}, Options{Tail: 1}, "c\n"},
		{"no line", map[string]string{"": logged(0, "a")}, Options{Tail: 0}, ""},
		{"more than there are", map[string]string{"": logged(0, "a")}, Options{Tail: 5}, "a\n"},
		{"last line in pieces", map[string]string{"": logged(0, "a", `b\`, `c\`, "d")}, Options{Tail: 1}, "bcd\n"},
		{"no end of a line", map[string]string{"": logged(0, "a", `b\`)}, Options{Tail: 1}, "b"},
		{"since", map[string]string{"": logged(0, "a", "b", "c")}, Options{Tail: -1, Since: begin.Add(time.Second)}, "b\nc\n"},
		{"rotated", map[string]string{".2": logged(0, "a"), ".1": logged(1, "b"), "": logged(2, "c")}, Options{Tail: -1}, "a\nb\nc\n"},
		{"tail over rotation", map[string]string{".2": logged(0, "a", "b"), ".1": logged(2, "c"), "": logged(3, "d")}, Options{Tail: 3}, "b\nc\nd\n"},
		{"tail of the newest", map[string]string{".1": logged(2, "c"), "": logged(3, "d")}, Options{Tail: 1}, "d\n"},
		{"not in the format", map[string]string{"": "hello\n" + logged(0, "a")}, Options{Tail: -1}, "hello\na\n"},
		{"cut off", map[string]string{"": logged(0, "a") + "2026-01-31T12:00:05Z stdout F b"}, Options{Tail: -1}, "a\nb\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			for end, text := range c.files {
				write(t, path+end, text)
			}
			var out bytes.Buffer
			p := Printer{Out: &out, Err: &out}
			if err := Read(t.Context(), path, c.o, p.Log("")); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, out.String()); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := Read(t.Context(), path, Options{Tail: -1}, nil); !errdefs.IsNotFound(err) {
		t.Errorf("no log: %v, want not found", err)
	}
	write(t, path, logged(0, "a"))
	fault := errors.New("pipe")
	if err := Read(t.Context(), path, Options{Tail: -1}, func(crilog.Entry) error { return fault }); !errors.Is(err, fault) {
		t.Errorf("writer's error: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Read(ctx, path, Options{Tail: -1, Ended: make(chan struct{})}, func(crilog.Entry) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// What is written while the log is followed comes once and in order, over rotations,
// from before there is a log until its container has ended.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	var mu sync.Mutex
	var got []string
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(got) }
	ended := make(chan struct{})
	done := make(chan error)
	go func() {
		done <- Read(t.Context(), path, Options{Tail: -1, Ended: ended}, func(e crilog.Entry) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, string(e.Text))
			return nil
		})
	}()
	var want []string
	const lines, every = 300, 20
	for i := range lines {
		text := fmt.Sprintf("line %d", i)
		want = append(want, text)
		whole := logged(i, text)
		write(t, path, whole[:10]) // in two parts
		write(t, path, whole[10:])
		if i%every == every-1 && i%(2*every) != every-1 { // as the shim does it, the oldest first
			_ = os.Rename(path+".1", path+".2")
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
		}
		if i%every == 0 { // a reader may be slow, not that slow
			for deadline := time.Now().Add(10 * time.Second); count() < i && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
		}
	}
	close(ended)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// A file that was truncated, as logrotate's copytruncate does, is read on.
func TestFollowTruncated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, logged(0, "a long line before"))
	ended := make(chan struct{})
	texts := make(chan string, 2)
	done := make(chan error)
	go func() {
		done <- Read(t.Context(), path, Options{Tail: -1, Ended: ended}, func(e crilog.Entry) error {
			texts <- string(e.Text)
			return nil
		})
	}()
	if got := <-texts; got != "a long line before" {
		t.Errorf("first: %q", got)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	// The reader has to look in between: what has grown again looks the same.
	time.Sleep(2 * lookAgain)
	write(t, path, logged(1, "b"))
	if got := <-texts; got != "b" {
		t.Errorf("second: %q", got)
	}
	close(ended)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestPrinter(t *testing.T) {
	entries := []crilog.Entry{
		{Time: begin, Stream: crilog.Stdout, Partial: true, Text: []byte("a")},
		{Time: begin, Stream: crilog.Stderr, Text: []byte("e")},
		{Time: begin.Add(time.Second), Stream: crilog.Stdout, Text: []byte("b")},
	}
	for _, c := range []struct {
		name, prefix string
		timestamps   bool
		out, err     string
	}{
		{"plain", "", false, "ab\n", "e\n"},
		{"prefix", "[app] ", false, "[app] ab\n", "[app] e\n"},
		{"timestamps", "", true, "2026-01-31T12:00:00.000000000Z ab\n", "2026-01-31T12:00:00.000000000Z e\n"},
		{"both", "[app] ", true, "[app] 2026-01-31T12:00:00.000000000Z ab\n", "[app] 2026-01-31T12:00:00.000000000Z e\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, err bytes.Buffer
			p := Printer{Out: &out, Err: &err, Timestamps: c.timestamps}
			print := p.Log(c.prefix)
			for _, e := range entries {
				if err := print(e); err != nil {
					t.Fatal(err)
				}
			}
			if out.String() != c.out || err.String() != c.err {
				t.Errorf("%q and %q, want %q and %q", out.String(), err.String(), c.out, c.err)
			}
		})
	}
}
