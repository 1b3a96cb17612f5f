// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/programs"
)

// reader is a fifo's reading end, opened before there is a writer.
type reader struct{ f *os.File }

func readFifo(t *testing.T, path string) *reader {
	t.Helper()
	// Without O_NONBLOCK open would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &reader{f}
}

// all reads to the end of the stream. The shim must have opened it.
func (r *reader) all() []byte {
	b, _ := io.ReadAll(r.f)
	_ = r.f.Close()
	return b
}

// 23: resize with and without a terminal.
func TestResize(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		t.Run("none", func(t *testing.T) {
			s := e.shim(t)
			s.run(t, stdio{})
			if _, err := s.ResizePty(e.ctx(t), &taskapi.ResizePtyRequest{ID: s.id, Width: 100, Height: 40}); err != nil {
				t.Error(err)
			}
		})
		t.Run("terminal", func(t *testing.T) {
			out := fifo(t)
			s := e.shim(t, oci.WithTTY, sh("while [ \"$(stty size 2>/dev/null)\" != '40 100' ]; do sleep 0.05; done; stty size"))
			r := readFifo(t, out)
			s.run(t, stdio{Out: out, Terminal: true})
			ctx := e.ctx(t)
			if _, err := s.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: s.id, Width: 100, Height: 40}); err != nil {
				t.Fatal(err)
			}
			s.wait(t, "")
			if _, err := s.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: s.id}); e.rt.Berth && err != nil && !errdefs.IsFailedPrecondition(class(err)) {
				t.Errorf("after the end: %v", err)
			}
			s.delete(t, "")
			if got := string(r.all()); got != "40 100\r\n" {
				t.Errorf("got %q", got)
			}
		})
	})
}

// 24: CloseIO after data.
func TestCloseIO(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		in, out := fifo(t), fifo(t)
		s := e.shim(t, oci.WithProcessArgs("cat"))
		r := readFifo(t, out)
		// Opened for both, so as not to wait for the shim.
		w, err := os.OpenFile(in, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		s.run(t, stdio{In: in, Out: out, Err: out})
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		got := make(chan []byte, 1)
		go func() { got <- r.all() }()
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		for range 2 {
			if _, err := s.CloseIO(e.ctx(t), &taskapi.CloseIORequest{ID: s.id, Stdin: true}); err != nil {
				t.Errorf("CloseIO: %v", err)
			}
		}
		if code := s.wait(t, ""); code != 0 {
			t.Errorf("exit %d", code)
		}
		s.delete(t, "")
		if back := <-got; sha256.Sum256(back) != sha256.Sum256(data) {
			t.Errorf("%d bytes of %d came back", len(back), len(data))
		}
	})
}

// CloseIO of an exec that has yet to be started, as `ctr tasks exec` does it.
func TestCloseIOBeforeStart(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t)
		s.run(t, stdio{})
		in := fifo(t)
		if err := s.exec(t, "x", stdio{In: in}, nil, "cat"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CloseIO(e.ctx(t), &taskapi.CloseIORequest{ID: s.id, ExecID: "x", Stdin: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Start(e.ctx(t), &taskapi.StartRequest{ID: s.id, ExecID: "x"}); err != nil {
			t.Fatal(err)
		}
		if code := s.wait(t, "x"); code != 0 {
			t.Errorf("exit %d", code)
		}
	})
}

// 22: Delete does not wait for ever for a reader.
func TestDeleteWithFullFifo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	t.Parallel()
	ownDaemon(t, host.Options{}, func(t *testing.T, e *env) {
		out := fifo(t)
		// A reader that never reads.
		f, err := os.OpenFile(out, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s := e.shim(t, sh("head -c 100000 /dev/zero; exit 0"))
		s.run(t, stdio{Out: out})
		time.Sleep(200 * time.Millisecond) // fill both pipes
		s.wait(t, "")
		begin := time.Now()
		s.delete(t, "")
		if took := time.Since(begin); took > 15*time.Second {
			t.Errorf("Delete took %v", took)
		}
	})
}

// 30: a reader that comes back.
func TestReaderRestarts(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		out := fifo(t)
		s := e.shim(t, sh(`trap 'exit 66' PIPE; i=0; while [ $i -lt 100 ]; do echo $i || exit 67; i=$((i+1)); sleep 0.01; done`))
		r := readFifo(t, out)
		s.run(t, stdio{Out: out, Err: out})
		first := make([]byte, 8)
		if _, err := io.ReadAtLeast(r.f, first, 2); err != nil {
			t.Fatal(err)
		}
		_ = r.f.Close()
		time.Sleep(100 * time.Millisecond)
		rest := make(chan []byte, 1)
		go func() {
			b, _ := os.ReadFile(out)
			rest <- b
		}()
		if code := s.wait(t, ""); code != 0 {
			t.Errorf("exit %d", code)
		}
		s.delete(t, "")
		if got := string(<-rest); !strings.HasSuffix(got, "98\n99\n") {
			t.Errorf("after the restart: %q", got)
		}
	})
}

// 31: file:// for both streams.
func TestFileOutput(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		old := unix.Umask(0o022)
		defer unix.Umask(old)
		dir := filepath.Join(t.TempDir(), "a", "b")
		path := filepath.Join(dir, "log")
		uri := "file://" + path
		s := e.shim(t, sh(`(i=0; while [ $i -lt 500 ]; do echo out $i; i=$((i+1)); done) & i=0; while [ $i -lt 500 ]; do echo err $i >&2; i=$((i+1)); done; wait`))
		s.run(t, stdio{Out: uri, Err: uri})
		s.wait(t, "")
		s.delete(t, "")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]int{}
		for line := range strings.Lines(string(b)) {
			seen[line]++
		}
		for i := range 500 {
			for _, stream := range []string{"out", "err"} {
				if line := fmt.Sprintf("%s %d\n", stream, i); seen[line] != 1 {
					t.Fatalf("%q %d times", line, seen[line])
				}
			}
		}
		for name, want := range map[string]os.FileMode{dir: 0o755, filepath.Dir(dir): 0o755, path: 0o644} {
			if st, err := os.Stat(name); err != nil || st.Mode().Perm() != want {
				t.Errorf("%s: %v %v, want %v", name, st.Mode(), err, want)
			}
		}
	})
}

// logger writes a logging program and returns its URI's path.
func logger(t *testing.T, script string) string {
	t.Helper()
	return programs.Write(t, filepath.Join(t.TempDir(), "logger"), "#!/bin/busybox sh\n"+script)
}

// 32: what a logging program gets.
func TestBinaryLogger(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		dir := t.TempDir()
		// cat ends with the stream; then TERM or the end, whichever is first.
		path := logger(t, `
trap 'echo term >> `+dir+`/end' TERM
echo "$*" > `+dir+`/args
/bin/busybox env > `+dir+`/env
exec 5>&-
/bin/busybox cat <&4 > `+dir+`/err &
/bin/busybox cat <&3 > `+dir+`/out
wait
echo end >> `+dir+`/end
`)
		s := e.shim(t, sh("echo out; echo err >&2"))
		uri := "binary://" + path + "?a=b"
		s.run(t, stdio{Out: uri, Err: uri})
		s.wait(t, "")
		s.delete(t, "")
		read := func(name string) string {
			b, _ := os.ReadFile(filepath.Join(dir, name))
			return string(b)
		}
		eventually(t, patience, func() string {
			if read("end") == "" {
				return "the logger did not end"
			}
			return ""
		})
		if read("args") != "a b\n" || read("out") != "out\n" || read("err") != "err\n" {
			t.Errorf("args %q, out %q, err %q", read("args"), read("out"), read("err"))
		}
		for line := range strings.Lines(read("env")) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch name {
			case "CONTAINER_ID":
				if value != s.id {
					t.Errorf("CONTAINER_ID=%s", value)
				}
			case "CONTAINER_NAMESPACE":
				if value != e.Namespace {
					t.Errorf("CONTAINER_NAMESPACE=%s", value)
				}
			case "PWD", "SHLVL", "OLDPWD", "PATH": // the shell's own
			default:
				t.Errorf("environment: %s", line)
			}
		}
	})
}

// 32: a logger that does not end gets TERM, at the latest when Delete has waited
// its 10 s for output, and KILL 12 s after that.
func TestBinaryLoggerIsKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 22 s")
	}
	t.Parallel()
	ownDaemon(t, host.Options{}, func(t *testing.T, e *env) {
		e.berthOnly(t)
		dir := t.TempDir()
		path := logger(t, `
trap ': > `+dir+`/term' TERM
exec 5>&-
while :; do /bin/busybox sleep 0.1; done
`)
		s := e.shim(t, sh("echo x"))
		s.run(t, stdio{Out: "binary://" + path})
		s.wait(t, "")
		end := time.Now()
		s.delete(t, "")
		eventually(t, 40*time.Second, func() string {
			for _, p := range e.Count(t)["processes"] {
				if strings.Contains(p, path) {
					return p
				}
			}
			return ""
		})
		gone := time.Now()
		st, err := os.Stat(dir + "/term")
		if err != nil {
			t.Fatal(err)
		}
		if wait := st.ModTime().Sub(end); wait > 12*time.Second {
			t.Errorf("TERM after %v", wait)
		}
		if took := gone.Sub(st.ModTime()); took < 10*time.Second || took > 16*time.Second {
			t.Errorf("KILL %v after TERM, want 12s", took)
		}
	})
}

// 33: the ready byte.
func TestLoggerReadiness(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		fails := logger(t, "echo cannot reach the log >&2\nexit 1\n")
		t.Run("binary-v2", func(t *testing.T) {
			s := e.shim(t)
			_, err := s.create(e.ctx(t), stdio{Out: "binary-v2://" + fails})
			if err == nil || !strings.Contains(err.Error(), "cannot reach the log") {
				t.Errorf("got %v, want the logger's words", err)
			}
		})
		t.Run("binary", func(t *testing.T) {
			s := e.shim(t, sh("exit 0"))
			s.run(t, stdio{Out: "binary://" + fails})
			s.wait(t, "")
		})
		t.Run("ready", func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			ready := logger(t, "printf x >&5; exec 5>&-; exec /bin/busybox cat <&3 > "+out+"\n")
			s := e.shim(t, sh("echo hello"))
			s.run(t, stdio{Out: "binary-v2://" + ready})
			s.wait(t, "")
			s.delete(t, "")
			if b, err := os.ReadFile(out); string(b) != "hello\n" {
				t.Errorf("%q, %v", b, err)
			}
		})
		t.Run("missing", func(t *testing.T) {
			s := e.shim(t)
			if _, err := s.create(e.ctx(t), stdio{Out: "binary:///no/such/logger"}); err == nil {
				t.Error("created")
			}
		})
	})
}

// 34, and other streams that cannot be.
func TestUnknownScheme(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		for _, uri := range []string{"gopher:///x", "ttrpc+unix:///x?stream_id=1", "http://x/y"} {
			s := e.shimNamed(t, id(t)+uri[:2], nil)
			_, err := s.create(e.ctx(t), stdio{Out: uri})
			if err == nil || e.rt.Berth && !errdefs.IsInvalidArgument(class(err)) {
				t.Errorf("%s: got %v, want InvalidArgument", uri, err)
			}
		}
	})
}

// asUser is oci.WithUserID without a look at the root file system.
func asUser(uid uint32) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Process.User = specs.User{UID: uid, GID: uid}
		return nil
	}
}

// 46, 56: a user that is not root reopens its streams.
func TestReopenAsUser(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		out, read := fifo(t), func(r *reader) string { return string(r.all()) }
		r := readFifo(t, out)
		s := e.shim(t, asUser(1000), sh("echo a > /dev/stdout; echo b > /proc/self/fd/2; sleep 0.1"))
		s.run(t, stdio{Out: out, Err: out})
		if code := s.wait(t, ""); code != 0 {
			t.Errorf("exit %d", code)
		}
		s.delete(t, "")
		if got := read(r); !strings.Contains(got, "a\n") || !strings.Contains(got, "b\n") {
			t.Errorf("got %q", got)
		}
	})
}

func TestExecReopensStdinAsUser(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		in := fifo(t)
		out, read := file(t)
		s := e.shim(t)
		s.run(t, stdio{})
		w, err := os.OpenFile(in, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		io := stdio{In: in, Out: out}
		if err := s.exec(t, "x", io, func(p *specs.Process) { p.User = specs.User{UID: 1000, GID: 1000} }, "sh", "-c", "cat < /dev/stdin"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Start(e.ctx(t), &taskapi.StartRequest{ID: s.id, ExecID: "x"}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.WriteString("typed\n")
		_ = w.Close()
		if _, err := s.CloseIO(e.ctx(t), &taskapi.CloseIORequest{ID: s.id, ExecID: "x", Stdin: true}); err != nil {
			t.Fatal(err)
		}
		if code := s.wait(t, "x"); code != 0 {
			t.Errorf("exit %d", code)
		}
		s.delete(t, "x")
		if read() != "typed\n" {
			t.Errorf("got %q", read())
		}
	})
}

// A terminal nobody is attached to.
func TestPty(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, oci.WithTTY, sh("test -t 0 && test -t 1 && exit 9"))
		s.run(t, stdio{Out: "pty://", Terminal: true})
		if code := s.wait(t, ""); code != 9 {
			t.Errorf("exit %d, want 9", code)
		}
	})
}
