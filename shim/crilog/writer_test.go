// SPDX-License-Identifier: Apache-2.0

package crilog_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/crilog"
)

var (
	at      = time.Date(2026, 2, 3, 4, 5, 6, 700, time.FixedZone("", 90*60))
	stamp   = "2026-02-03T04:05:06.000000700+01:30 "
	scratch = make([]byte, 64<<10)
)

// dir is a directory that rotation accepts: only its owner can write to it.
func dir(t testing.TB) string {
	t.Helper()
	d, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func open(t testing.TB, o crilog.Options) *crilog.Writer {
	t.Helper()
	w, err := crilog.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

func contents(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func entries(t testing.TB, log string) []crilog.Entry {
	t.Helper()
	es, err := crilog.Read([]byte(log))
	if err != nil {
		t.Fatal(err)
	}
	return es
}

// output joins what entries hold of a stream, with the newlines that F stands for.
func output(es []crilog.Entry, s crilog.Stream) string {
	var b strings.Builder
	for _, e := range es {
		if e.Stream == s {
			b.Write(e.Text)
			if !e.Partial {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

func TestFormat(t *testing.T) {
	long := strings.Repeat("x", 20000)
	for name, tc := range map[string]struct{ data, want string }{
		"line and rest":   {"a\nb", stamp + "stdout F a\n" + stamp + "stdout P b\n"},
		"empty line":      {"\n\n", stamp + "stdout F \n" + stamp + "stdout F \n"},
		"carriage return": {"a\r\n", stamp + "stdout F a\r\n"},
		"nothing":         {"", ""},
		"exactly a piece": {long[:8192] + "\n", stamp + "stdout F " + long[:8192] + "\n"},
		"long": {
			long,
			stamp + "stdout P " + long[:8192] + "\n" + stamp + "stdout P " + long[:8192] + "\n" + stamp + "stdout P " + long[:20000-2*8192] + "\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := dir(t) + "/log"
			w := open(t, crilog.Options{Path: path})
			w.Write(crilog.Stdout, []byte(tc.data), at, scratch)
			if d := cmp.Diff(tc.want, contents(t, path)); d != "" {
				t.Error(d)
			}
			// With the least scratch allowed the file is the same.
			w2 := open(t, crilog.Options{Path: path + "2"})
			w2.Write(crilog.Stdout, []byte(tc.data), at, make([]byte, crilog.MaxLine))
			if d := cmp.Diff(tc.want, contents(t, path+"2")); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestStreamsAreToldApart(t *testing.T) {
	path := dir(t) + "/log"
	w := open(t, crilog.Options{Path: path})
	want := [2]string{}
	for i := range 1000 {
		s := crilog.Stream(i % 3 % 2)
		text := strings.Repeat(strconv.Itoa(i), i%17)
		if i%5 > 0 {
			text += "\n"
		}
		w.Write(s, []byte(text), time.Now(), scratch)
		want[s] += text
	}
	es := entries(t, contents(t, path))
	for s := range crilog.Stream(2) {
		// A partial line at the very end has no newline; all others are joined.
		if got := output(es, s); got != want[s] {
			t.Errorf("%s differs: got %d bytes, want %d", s, len(got), len(want[s]))
		}
	}
}

func TestUTCHasANumericOffset(t *testing.T) {
	path := dir(t) + "/log"
	w := open(t, crilog.Options{Path: path})
	w.Write(crilog.Stderr, []byte("x\n"), at.UTC(), scratch)
	if got, want := contents(t, path), "2026-02-03T02:35:06.000000700+00:00 stderr F x\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAppendsAndModes(t *testing.T) {
	path := dir(t) + "/log"
	w := open(t, crilog.Options{Path: path})
	w.Write(crilog.Stdout, []byte("a\n"), at, scratch)
	w.Close()
	w = open(t, crilog.Options{Path: path})
	w.Write(crilog.Stdout, []byte("b\n"), at, scratch)
	if got, want := contents(t, path), stamp+"stdout F a\n"+stamp+"stdout F b\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o640 {
		t.Errorf("got mode %o, want 640", st.Mode().Perm())
	}
}

func lines(from, to int) []byte {
	var b []byte
	for i := from; i < to; i++ {
		b = fmt.Appendf(b, "line %06d\n", i)
	}
	return b
}

func TestSizeLimitStartsAfresh(t *testing.T) {
	path := dir(t) + "/log"
	w := open(t, crilog.Options{Path: path, MaxSize: 1024})
	for i := range 1000 {
		w.Write(crilog.Stdout, lines(i, i+1), at, scratch)
		got := contents(t, path)
		if len(got) > 1024 {
			t.Fatalf("the file has %d bytes", len(got))
		}
		if len(got) == 0 || !strings.HasPrefix(got, stamp) || !strings.HasSuffix(got, fmt.Sprintf("%06d\n", i)) {
			t.Fatalf("after line %d: %q", i, got)
		}
	}
	if names, _ := filepath.Glob(path + "*"); len(names) != 1 {
		t.Errorf("got files %v", names)
	}
	// One line beyond the limit is written whole, alone.
	w.Write(crilog.Stdout, []byte(strings.Repeat("y", 3000)+"\n"), at, scratch)
	w.Write(crilog.Stdout, []byte(strings.Repeat("z", 3000)+"\n"), at, scratch)
	if es := entries(t, contents(t, path)); len(es) != 1 || string(es[0].Text) != strings.Repeat("z", 3000) {
		t.Errorf("got %d entries", len(es))
	}
}

func TestRotationChainHasNoGap(t *testing.T) {
	path := dir(t) + "/log"
	w := open(t, crilog.Options{Path: path, MaxSize: 1024, MaxFiles: 3})
	for i := 0; i < 1000; i += 7 { // several rotations within one write, too
		w.Write(crilog.Stdout, lines(i, min(i+7, 1000)), at, scratch)
	}
	var all strings.Builder
	for _, name := range []string{path + ".3", path + ".2", path + ".1", path} {
		got := contents(t, name)
		if len(got) > 1024 || !strings.HasPrefix(got, stamp) {
			t.Errorf("%s has %d bytes: %.60q", name, len(got), got)
		}
		all.WriteString(got)
	}
	got := output(entries(t, all.String()), crilog.Stdout)
	if !bytes.HasSuffix(lines(0, 1000), []byte(got)) || len(got) < 200 {
		t.Errorf("the files do not hold the end of the output: %d bytes", len(got))
	}
	if names, _ := filepath.Glob(path + "*"); len(names) != 4 {
		t.Errorf("got files %v", names)
	}
}

func TestGlobalLimit(t *testing.T) {
	path := dir(t) + "/log"
	w := open(t, crilog.Options{Path: path, GlobalMax: 1000})
	w.Write(crilog.Stdout, lines(0, 1000), at, scratch)
	got := contents(t, path)
	if len(got) > 1000 || !strings.HasSuffix(got, "\n") {
		t.Errorf("got %d bytes", len(got))
	}
	w.Write(crilog.Stdout, []byte("x\n"), at, scratch)
	if contents(t, path) != got {
		t.Error("written to after the limit")
	}
}

func TestReopenBetweenLines(t *testing.T) {
	path := dir(t) + "/log"
	w := open(t, crilog.Options{Path: path})
	w.Write(crilog.Stdout, lines(0, 10), at, scratch)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	w.Write(crilog.Stdout, lines(10, 20), at, scratch)
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	w.Write(crilog.Stdout, lines(20, 30), at, scratch)
	if got := output(entries(t, contents(t, path+".old")), crilog.Stdout); got != string(lines(0, 20)) {
		t.Errorf("old file: %q", got)
	}
	if got := output(entries(t, contents(t, path)), crilog.Stdout); got != string(lines(20, 30)) {
		t.Errorf("new file: %q", got)
	}
	// When the path cannot be opened, the old file stays in use.
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	if err := w.Reopen(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
	w.Write(crilog.Stdout, lines(30, 40), at, scratch)
}

func TestUnsafePathsAreNotRotated(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, d string) (path string)
		allow   func(d string) []string
		want    string
	}{
		"log is a symbolic link": {prepare: func(t *testing.T, d string) string {
			os.WriteFile(d+"/target", nil, 0o600)
			os.Symlink(d+"/target", d+"/log")
			return d + "/log"
		}, want: "not a regular file"},
		"directory is a symbolic link": {prepare: func(t *testing.T, d string) string {
			os.Mkdir(d+"/real", 0o755)
			os.Symlink(d+"/real", d+"/link")
			return d + "/link/log"
		}, want: "symbolic link"},
		"dot dot": {prepare: func(t *testing.T, d string) string {
			os.Mkdir(d+"/a", 0o755)
			return d + "/a/../log"
		}, want: ".."},
		"writable by all": {prepare: func(t *testing.T, d string) string {
			os.Mkdir(d+"/a", 0o755)
			os.Chmod(d+"/a", 0o777)
			return d + "/a/log"
		}, want: "everybody"},
		"not allowed": {
			prepare: func(t *testing.T, d string) string { return d + "/log" },
			allow:   func(d string) []string { return []string{d + "/other", d[:len(d)-1]} },
			want:    "allowed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := dir(t)
			path := tc.prepare(t, d)
			var warnings []string
			o := crilog.Options{Path: path, MaxSize: 256, MaxFiles: 2, Warn: func(s string) { warnings = append(warnings, s) }}
			if tc.allow != nil {
				o.AllowedDirs = tc.allow(d)
			}
			w := open(t, o)
			for i := range 100 {
				w.Write(crilog.Stdout, lines(i, i+1), at, scratch)
			}
			if got := output(entries(t, contents(t, path)), crilog.Stdout); got != string(lines(0, 100)) {
				t.Errorf("got %d bytes of output", len(got))
			}
			if names, _ := filepath.Glob(filepath.Dir(path) + "/log*"); len(names) != 1 {
				t.Errorf("got files %v", names)
			}
			if len(warnings) != 1 || !strings.Contains(warnings[0], tc.want) {
				t.Errorf("got warnings %q", warnings)
			}
		})
	}
}

func TestAllowedDirectoryRotates(t *testing.T) {
	d := dir(t)
	w := open(t, crilog.Options{Path: d + "/log", MaxSize: 256, MaxFiles: 2, AllowedDirs: []string{d + "/"}})
	w.Write(crilog.Stdout, lines(0, 100), at, scratch)
	contents(t, d+"/log.2")
}

// A full disk, as a file size limit: lines are lost, one warning is given, and
// what is in the file are whole lines.
func TestFullDisk(t *testing.T) {
	d := dir(t)
	if err := unix.Mount("tmpfs", d, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("needs root: %v", err)
	}
	defer unix.Unmount(d, unix.MNT_DETACH)
	if err := os.WriteFile(d+"/fill", make([]byte, 40<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	var warnings []string
	w, err := crilog.Open(crilog.Options{Path: d + "/log", Warn: func(s string) { warnings = append(warnings, s) }})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := 0; i < 3000; i += 30 {
		w.Write(crilog.Stdout, lines(i, i+30), at, scratch)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], syscall.ENOSPC.Error()) {
		t.Errorf("got warnings %q", warnings)
	}
	got := contents(t, d+"/log")
	if !strings.HasSuffix(got, "\n") {
		t.Errorf("the log ends with %q", got[len(got)-20:])
	}
	n := len(entries(t, got))
	if err := os.Remove(d + "/fill"); err != nil {
		t.Fatal(err)
	}
	w.Write(crilog.Stdout, []byte("recovered\n"), at, scratch)
	es := entries(t, contents(t, d+"/log"))
	if len(es) != n+1 || string(es[n].Text) != "recovered" {
		t.Errorf("got %d entries after %d", len(es), n)
	}
}

func TestResume(t *testing.T) {
	path := dir(t) + "/log"
	w, err := crilog.Open(crilog.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	w.Write(crilog.Stdout, lines(0, 10), at, scratch)
	os.Rename(path, path+".old") // the open file goes on, not the path
	w2, err := crilog.Resume(crilog.Options{Path: path, GlobalMax: 10 * int64(len(stamp)+21)}, w.Handle())
	if err != nil {
		t.Fatal(err)
	}
	defer w2.Close()
	w2.Write(crilog.Stdout, lines(10, 20), at, scratch)
	if got := entries(t, contents(t, path+".old")); len(got) != 10 {
		t.Errorf("got %d entries, want the 10 that the total allows", len(got))
	}
}

func TestWriteDoesNotAllocate(t *testing.T) {
	w := open(t, crilog.Options{Path: dir(t) + "/log"})
	data := lines(0, 100)
	if n := testing.AllocsPerRun(100, func() { w.Write(crilog.Stdout, data, at, scratch) }); n != 0 {
		t.Errorf("got %v allocations", n)
	}
}

func TestParseLineRefuses(t *testing.T) {
	for _, line := range []string{
		"", "x", stamp, stamp + "stdout", stamp + "stdout F", stamp + "stdin F x", stamp + "stdout Q x",
		"yesterday stdout F x",
	} {
		if e, err := crilog.ParseLine([]byte(line)); err == nil {
			t.Errorf("%q: got %+v", line, e)
		}
	}
	if e, err := crilog.ParseLine([]byte(stamp + "stderr P:later  two ")); err != nil || string(e.Text) != " two " || !e.Partial || !e.Time.Equal(at) {
		t.Errorf("got %+v, %v", e, err)
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("a\nb"), uint16(1), false)
	f.Add(bytes.Repeat([]byte("x"), 20000), uint16(9000), true)
	f.Fuzz(func(t *testing.T, data []byte, cut uint16, small bool) {
		path := dir(t) + "/log"
		w := open(t, crilog.Options{Path: path})
		s := scratch
		if small {
			s = s[:0:crilog.MaxLine]
		}
		n := min(int(cut), len(data))
		w.Write(crilog.Stdout, data[:n], at, s)
		w.Write(crilog.Stdout, data[n:], at, s)
		es := entries(t, contents(t, path))
		for _, e := range es {
			if len(e.Text) > crilog.MaxPiece || bytes.IndexByte(e.Text, '\n') >= 0 {
				t.Fatalf("piece of %d bytes", len(e.Text))
			}
		}
		if got := output(es, crilog.Stdout); got != string(data) {
			t.Fatalf("got %d bytes back of %d", len(got), len(data))
		}
	})
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(stamp + "stdout F x\n" + stamp + "stderr P y\npartial"))
	f.Fuzz(func(t *testing.T, log []byte) {
		es, err := crilog.Read(log)
		if err == nil && len(es) != bytes.Count(log, []byte{'\n'}) {
			t.Fatalf("got %d entries", len(es))
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	for _, length := range []int{80, 1000, 20000} {
		b.Run(strconv.Itoa(length), func(b *testing.B) {
			w := open(b, crilog.Options{Path: dir(b) + "/log", MaxSize: 64 << 20, NoSync: true})
			line := append(bytes.Repeat([]byte("x"), length-1), '\n')
			data := bytes.Repeat(line, (64<<10)/length)
			s := make([]byte, 128<<10)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				w.Write(crilog.Stdout, data, at, s)
			}
		})
	}
}
