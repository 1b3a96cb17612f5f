// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParsePrivateDirty(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want uint64
	}{
		"kernel's form": {"00400000-7ff ---p 00000000 00:00 0    [rollup]\nRss:   4084 kB\nPrivate_Clean:  100 kB\nPrivate_Dirty:       668 kB\nReferenced: 1 kB\n", 668 << 10},
		"absent":        {"Rss: 4 kB\n", 0},
		"cut":           {"Private_Dirty:  66", 0},
		"empty":         {"", 0},
	} {
		if got := parsePrivateDirty([]byte(tc.text)); got != tc.want {
			t.Errorf("%s: got %d, want %d", name, got, tc.want)
		}
	}
	if got := (&server{}).memory(); got < 100<<10 {
		t.Errorf("this process: got %d bytes", got)
	}
}

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := &log{path: path, id: "c1"}
	l.warn("nobody is there") // neither a fifo nor a reader: nothing happens
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	l.warn("nobody reads")
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l.note("not while debug is off")
	l.warn("say \"this\"\nin one line")
	var b [1024]byte
	n, err := f.Read(b[:])
	if err != nil {
		t.Fatal(err)
	}
	got := string(b[:n])
	stamp, rest, _ := strings.Cut(strings.TrimPrefix(got, `time="`), `"`)
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
		t.Error(err)
	}
	if want := ` level=warning msg="say \"this\"\nin one line" container=c1` + "\n"; rest != want {
		t.Errorf("got %q, want %q", rest, want)
	}
}
