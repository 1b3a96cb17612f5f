// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// life is what becomes of three parts.
var life = []Part{
	{Name: "aaa", Status: "waiting"},
	{Name: "bbb", Status: "exists", Total: 2048, Done: 2048, Ended: true},
	{Name: "aaa", Status: "downloading", Total: 1 << 20},
	{Name: "aaa", Status: "downloading", Total: 1 << 20, Done: 1 << 19},
	{Name: "aaa", Status: "downloading", Total: 1 << 20, Done: 1 << 19},
	{Name: "ccc", Status: "downloading", Total: 10, Done: 1},
	{Name: "aaa", Status: "extracting"},
	{Name: "aaa", Status: "complete", Total: 1 << 20, Done: 1 << 20, Ended: true},
	{Name: "aaa", Status: "downloading", Total: 1 << 20}, // too late
}

// Without a terminal there is a line for each new status, and no escape sequence.
func TestLines(t *testing.T) {
	for mode, want := range map[Mode]string{
		Auto: "aaa: waiting\nbbb: exists 2.00KiB\naaa: downloading\nccc: downloading 1B/10B\naaa: extracting\naaa: complete 1.00MiB\n",
		None: "",
	} {
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		d := New(out, mode)
		for _, p := range life {
			d.Show(p)
		}
		d.Close()
		got, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", mode, diff)
		}
	}
}

// On a terminal each part has a line, in which it ends.
func TestBars(t *testing.T) {
	screen, out := openPTY(t)
	read := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(screen) // ends with EIO
		read <- string(text)
	}()
	d := New(out, Auto)
	for _, p := range life {
		d.Show(p)
	}
	d.Close()
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	text := <-read
	for _, want := range []string{`aaa +complete +1.00MiB`, `bbb +exists +2.00KiB`, `ccc +downloading +\[=+ +\] 1B/10B`} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no %q on the screen: %q", want, text)
		}
	}
	if n := strings.Count(text, "\x1b["); n == 0 {
		t.Errorf("nothing was redrawn: %q", text)
	}
}

// openPTY returns both sides of a terminal.
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err := errors.Join(err, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0),
		unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 120})); err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

func TestMode(t *testing.T) {
	m := Auto
	for text, want := range map[string]bool{"auto": true, "tty": true, "plain": true, "none": true, "": false, "fancy": false} {
		if err := m.Set(text); (err == nil) != want || want && m.String() != text {
			t.Errorf("%q: %v, %s", text, err, m)
		}
	}
}
