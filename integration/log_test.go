// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	runtimeopts "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// line is one line of a log in Kubernetes' format.
type line struct{ stream, tag, text string }

var lineFormat = regexp.MustCompile(`^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) ([PF]) ((?s).*)\n$`)

// readLog reads files one after the other and checks each line's form.
func readLog(t *testing.T, paths ...string) []line {
	t.Helper()
	var list []line
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for text := range strings.Lines(string(b)) {
			m := lineFormat.FindStringSubmatch(text)
			if m == nil {
				t.Fatalf("%s: malformed line %.200q", path, text)
			}
			if _, err := time.Parse(time.RFC3339Nano, m[1]); err != nil {
				t.Fatal(err)
			}
			list = append(list, line{m[2], m[3], m[4]})
		}
	}
	return list
}

// joined is what a stream's process wrote.
func joined(lines []line, stream string) string {
	var b strings.Builder
	for _, l := range lines {
		if l.stream == stream {
			b.WriteString(l.text)
			if l.tag == "F" {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// logged runs a script with its output in a CRI log, to its end.
func logged(t *testing.T, e *env, path, query, script string, opts ...oci.SpecOpts) {
	t.Helper()
	s := e.shim(t, append([]oci.SpecOpts{sh(script)}, opts...)...)
	uri := "cri://" + path + query
	s.run(t, stdio{Out: uri, Err: uri})
	if code := s.wait(t, ""); code != 0 {
		t.Errorf("exit %d", code)
	}
	s.delete(t, "")
}

// 35, 36, 37: the format.
func TestCRILogFormat(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		t.Run("partial", func(t *testing.T) {
			path := t.TempDir() + "/0.log"
			logged(t, e, path, "", `printf 'a\nb'`)
			if got := fmt.Sprint(readLog(t, path)); got != "[{stdout F a} {stdout P b}]" {
				t.Errorf("got %s", got)
			}
			if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
		})
		t.Run("long", func(t *testing.T) {
			path := t.TempDir() + "/0.log"
			logged(t, e, path, "", `head -c 20000 /dev/zero | tr '\0' x`)
			lines := readLog(t, path)
			for _, l := range lines {
				if l.tag != "P" || len(l.text) > 8192 {
					t.Errorf("piece %s of %d bytes", l.tag, len(l.text))
				}
			}
			if got := joined(lines, "stdout"); got != strings.Repeat("x", 20000) {
				t.Errorf("%d bytes", len(got))
			}
		})
		t.Run("mixed", func(t *testing.T) {
			path := t.TempDir() + "/0.log"
			logged(t, e, path, "", `(i=0; while [ $i -lt 300 ]; do echo out $i; i=$((i+1)); done) & i=0; while [ $i -lt 300 ]; do echo err $i >&2; i=$((i+1)); done; wait`)
			lines := readLog(t, path)
			for stream, word := range map[string]string{"stdout": "out", "stderr": "err"} {
				if got := joined(lines, stream); got != counted(word, 300) {
					t.Errorf("%s: %.100q...", stream, got)
				}
			}
		})
		// 43
		t.Run("terminal", func(t *testing.T) {
			path := t.TempDir() + "/0.log"
			s := e.shim(t, oci.WithTTY, sh("echo out; echo err >&2"))
			s.run(t, stdio{Out: "cri://" + path, Terminal: true})
			s.wait(t, "")
			s.delete(t, "")
			// The kernel may hand over a line before the newline that it adds: in pieces.
			if got := joined(readLog(t, path), "stdout"); got != "out\r\nerr\r\n" {
				t.Errorf("got %q", got)
			}
		})
	})
}

// counted is what a loop from 0 to n prints.
func counted(word string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s %d\n", word, i)
	}
	return b.String()
}

// 38: limits.
func TestCRILogRotation(t *testing.T) {
	const script = `i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done`
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		t.Run("replace", func(t *testing.T) {
			dir := t.TempDir()
			logged(t, e, dir+"/0.log", "?max-size=1024", script)
			lines := readLog(t, dir+"/0.log")
			if st, _ := os.Stat(dir + "/0.log"); st.Size() > 1024 {
				t.Errorf("%d bytes", st.Size())
			}
			if len(lines) == 0 || lines[len(lines)-1].text != "line 399" {
				t.Errorf("%v", lines)
			}
			if files := names(t, dir); fmt.Sprint(files) != "[0.log]" {
				t.Errorf("files %q", files)
			}
		})
		t.Run("chain", func(t *testing.T) {
			dir := t.TempDir()
			logged(t, e, dir+"/0.log", "?max-size=4096&max-files=3", script)
			files := names(t, dir)
			if fmt.Sprint(files) != "[0.log 0.log.1 0.log.2 0.log.3]" {
				t.Fatalf("files %q", files)
			}
			text := joined(readLog(t, dir+"/0.log.3", dir+"/0.log.2", dir+"/0.log.1", dir+"/0.log"), "stdout")
			if all := counted("line", 400); !strings.HasSuffix(all, text) || len(text) < 1024 {
				t.Errorf("not the end of the output: %.80q...", text)
			}
		})
		// 41
		t.Run("link", func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Symlink(dir+"/real.log", dir+"/0.log"); err != nil {
				t.Fatal(err)
			}
			logged(t, e, dir+"/0.log", "?max-size=1024&max-files=3", script)
			if got := joined(readLog(t, dir+"/real.log"), "stdout"); got != counted("line", 400) {
				t.Errorf("%d bytes", len(got))
			}
			if files := names(t, dir); fmt.Sprint(files) != "[0.log real.log]" {
				t.Errorf("files %q", files)
			}
		})
		// 42
		t.Run("total", func(t *testing.T) {
			dir := t.TempDir()
			logged(t, e, dir+"/0.log", "?max-total=2048", script)
			text := joined(readLog(t, dir+"/0.log"), "stdout")
			if st, _ := os.Stat(dir + "/0.log"); st.Size() > 2048 || !strings.HasPrefix(counted("line", 400), text) || text == "" {
				t.Errorf("%d bytes: %.80q", st.Size(), text)
			}
		})
	})
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// reopen calls the shim's own service.
func (s *shim) reopen(ctx context.Context) error {
	return s.conn.Call(ctx, "berth.shim.v1.Control", "ReopenLog", wrapperspb.String(s.id), &emptypb.Empty{})
}

// 39: reopen during output; each line exactly once.
func TestCRILogReopen(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		dir := t.TempDir()
		s := e.shim(t, sh(`i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done`))
		s.run(t, stdio{Out: "cri://" + dir + "/0.log"})
		paths := []string{}
		for i := range 5 {
			eventually(t, patience, func() string {
				if st, err := os.Stat(dir + "/0.log"); err != nil || st.Size() == 0 {
					return "nothing logged"
				}
				return ""
			})
			old := fmt.Sprintf("%s/old.%d", dir, i)
			if err := os.Rename(dir+"/0.log", old); err != nil {
				t.Fatal(err)
			}
			paths = append(paths, old)
			if err := s.reopen(e.ctx(t)); err != nil {
				t.Fatalf("reopen: %v", err)
			}
			if _, err := os.Stat(dir + "/0.log"); err != nil {
				t.Fatal(err)
			}
			if s.status(t).String() == "STOPPED" {
				break
			}
		}
		s.wait(t, "")
		s.delete(t, "")
		if got := joined(readLog(t, append(paths, dir+"/0.log")...), "stdout"); got != counted("line", 20000) {
			t.Errorf("%d bytes, want %d", len(got), len(counted("line", 20000)))
		}
	})
}

// 40: a full disk.
func TestCRILogOnFullDisk(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		dir := filepath.Join(e.Dir, "tmp", id(t))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
			_ = os.Remove(dir)
		})
		logged(t, e, dir+"/0.log", "", `i=0; while [ $i -lt 20000 ]; do echo line $i || exit 1; i=$((i+1)); done`)
	})
}

// 44, 45: drivers that cannot be, refused before the runtime is called.
func TestLogDrivers(t *testing.T) {
	cases := []struct {
		name, toml string
		id         string
		words      []string
	}{
		{"none given", `log_drivers = []`, "", []string{"driver"}},
		{"unknown", `log_drivers = ["pigeon"]`, "", []string{"pigeon"}},
		{"file without path", `log_drivers = ["k8s-file"]`, "", []string{"k8s-file"}},
		{"bad label", "log_drivers = [\"journald\"]\nlog_labels = [\"a=b\"]", "", []string{"a=b"}},
		{"short id", `log_drivers = ["journald"]`, "short", []string{"short"}},
	}
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				name := c.id
				if name == "" {
					name = id(t)
				}
				bundle := e.bundle(t, name)
				options := &runtimeopts.Options{TypeUrl: "berth.v1.Options", ConfigBody: []byte(c.toml)}
				result, err := e.start(t, name, bundle, options)
				if err == nil {
					s := e.attach(t, name, bundle, result.Address, e.rootfs(t, name))
					_, err = s.create(e.ctx(t), stdio{})
					if err != nil && !errdefs.IsInvalidArgument(class(err)) {
						t.Errorf("got %v, want InvalidArgument", err)
					}
				}
				if err == nil {
					t.Fatal("accepted")
				}
				for _, word := range c.words {
					if !strings.Contains(err.Error(), word) {
						t.Errorf("%v does not name %q", err, word)
					}
				}
			})
		}
		t.Run("k8s-file", func(t *testing.T) {
			path := t.TempDir() + "/0.log"
			s := e.shimNamed(t, id(t), &runtimeopts.Options{
				TypeUrl: "berth.v1.Options", ConfigBody: fmt.Appendf(nil, "log_drivers = [%q]\n", "k8s-file:"+path),
			}, sh("echo hello"))
			s.run(t, stdio{})
			s.wait(t, "")
			s.delete(t, "")
			if got := fmt.Sprint(readLog(t, path)); got != "[{stdout F hello}]" {
				t.Errorf("got %s", got)
			}
		})
	})
}

// 65: exit file and log, as a watcher sees them.
func TestExitFile(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		path := t.TempDir() + "/0.log"
		s := e.shim(t, sh(`i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; exit 3`))
		s.run(t, stdio{Out: "cri://" + path})
		var text string
		eventually(t, patience, func() string {
			b, err := os.ReadFile(s.bundle + "/exit")
			text = string(b)
			if err != nil {
				return err.Error()
			}
			return ""
		})
		if !regexp.MustCompile(`^3( \d+ \d+)?\n?$`).MatchString(text) {
			t.Errorf("exit file %q", text)
		}
		if got := joined(readLog(t, path), "stdout"); got != counted("line", 5000) {
			t.Errorf("%d bytes logged when the exit file is there", len(got))
		}
		s.wait(t, "")
	})
}

// Unused messages of the API are still answered: an unknown method is refused
// without harm.
func TestUnknownMethod(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t)
		s.run(t, stdio{})
		err := s.conn.Call(e.ctx(t), "containerd.task.v2.Task", "Nonsense", &emptypb.Empty{}, &emptypb.Empty{})
		if !errdefs.IsNotImplemented(class(err)) {
			t.Errorf("method: got %v, want NotImplemented", err)
		}
		// Malformed and oversized messages.
		junk := wrapperspb.Bytes(make([]byte, 5<<20))
		if err := s.conn.Call(e.ctx(t), "containerd.task.v2.Task", "State", junk, &taskapi.StateResponse{}); err == nil {
			t.Error("an oversized message was accepted")
		}
		if got := s.status(t).String(); got != "RUNNING" {
			t.Errorf("status %s", got)
		}
	})
}
