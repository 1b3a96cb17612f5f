// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/programs"
)

// ctrRun is `ctr run` with the runtime under test. The drop-in form is a path
// here: ctr has no other way to name a shim's program.
func (e *env) ctrRun(t *testing.T, args ...string) *exec.Cmd {
	runtime := e.rt.Name
	if e.rt.Path != "" {
		runtime = e.rt.Path
	}
	return e.Ctr(append([]string{"run", "--runtime", runtime, "--fifo-dir", e.Dir + "/fifo"}, args...)...)
}

// detached runs a container that is removed at the end of the test.
func (e *env) detached(t *testing.T, name string, flags []string, args ...string) {
	t.Helper()
	all := append(append([]string{"-d", "--null-io"}, flags...), host.Busybox, name)
	if out, err := e.ctrRun(t, append(all, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("ctr run: %v: %s", err, out)
	}
	t.Cleanup(func() { e.remove(t, name) })
}

// ctr runs ctr and returns its output; fails if ctr does.
func (e *env) ctr(t *testing.T, args ...string) string {
	t.Helper()
	cmd := e.Ctr(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs // warnings of ctr's go to stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("ctr %q: %v: %s%s", args, err, &out, &errs)
	}
	return out.String()
}

// refused runs ctr, which must fail with some words.
func (e *env) refused(t *testing.T, words string, args ...string) {
	t.Helper()
	out, err := e.Ctr(args...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), words) {
		t.Errorf("ctr %q: %v: %s; want an error with %q", args, err, out, words)
	}
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

func TestCtrExitCodes(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		for script, want := range map[string]int{"exit 42": 42, "true": 0} {
			out, err := e.ctrRun(t, "--rm", host.Busybox, id(t), "sh", "-c", script).CombinedOutput()
			if exitCode(err) != want {
				t.Errorf("%s: %v, want %d: %s", script, err, want, out)
			}
		}
		// In a PID namespace of its own init is immune to itself.
		out, err := e.ctrRun(t, "--rm", "--with-ns", fmt.Sprintf("pid:/proc/%d/ns/pid", os.Getpid()), host.Busybox, id(t), "sh", "-c", "kill -9 $$").CombinedOutput()
		if exitCode(err) != 137 {
			t.Errorf("kill -9: %v, want 137: %s", err, out)
		}
	})
}

// 100 in a row leave nothing (within counts).
func TestCtrLoop(t *testing.T) {
	rounds := 50
	if testing.Short() {
		rounds = 10
	}
	forRuntimes(t, func(t *testing.T, e *env) {
		var wg sync.WaitGroup
		for worker := range 2 {
			wg.Go(func() {
				for i := range rounds {
					out, err := e.ctrRun(t, "--rm", host.Busybox, fmt.Sprintf("loop-%d-%d", worker, i), "true").CombinedOutput()
					if err != nil {
						t.Errorf("%v: %s", err, out)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestCtrStdin(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		data := strings.Repeat("some text\n", 20000)
		cmd := e.ctrRun(t, "--rm", host.Busybox, id(t), "cat")
		cmd.Stdin = strings.NewReader(data)
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Run(); err != nil || out.String() != data {
			t.Errorf("%v, %d bytes of %d", err, out.Len(), len(data))
		}
	})
}

func TestCtrLogURI(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		path := filepath.Join(t.TempDir(), "new", "log")
		out, err := e.ctrRun(t, "--rm", "--log-uri", "file://"+path, host.Busybox, id(t), "sh", "-c", "echo out; echo err >&2").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		b, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(b), "out\n") || !strings.Contains(string(b), "err\n") {
			t.Errorf("%q, %v", b, err)
		}
	})
}

func TestCtrFlags(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		root := t.TempDir()
		if err := os.Mkdir(root+"/bin", 0o755); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile("/bin/busybox")
		if err != nil {
			t.Fatal(err)
		}
		programs.Write(t, root+"/bin/sh", b)
		cases := map[string][]string{
			"null-io": {"--rm", "--null-io", host.Busybox},
			"rootfs":  {"--rm", "--rootfs", root},
			"cgroup":  {"--rm", "--cgroup", "/" + e.Namespace + "/a/b", host.Busybox},
			"host":    {"--rm", "--net-host", host.Busybox},
		}
		if e.rt.Name == "io.containerd.runc.v2" && e.rt.Path == "" || e.rt.Label == "berth" {
			cases["no-pivot"] = []string{"--rm", "--no-pivot", host.Busybox}
		}
		for name, args := range cases {
			t.Run(name, func(t *testing.T) {
				out, err := e.ctrRun(t, append(args, id(t), "/bin/sh", "-c", "exit 3")...).CombinedOutput()
				if exitCode(err) != 3 {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
		for _, root := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
			dirs, _ := filepath.Glob(root + "/" + e.Namespace + "/a")
			for _, dir := range dirs {
				_ = os.Remove(dir) // the parent of --cgroup stays, as the runtime has it
			}
		}
	})
}

func TestCtrRuntimeConfigPath(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		path := filepath.Join(t.TempDir(), "shim.toml")
		if err := os.WriteFile(path, []byte("no_new_keyring = true\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if e.rt.Path != "" {
			return // ctr sends this type to io.containerd.*.v1 names only
		}
		if out, err := e.ctrRun(t, "--rm", "--runtime-config-path", path, host.Busybox, id(t), "true").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if err := os.WriteFile(path, []byte("no_such_key = 1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := e.ctrRun(t, "--rm", "--runtime-config-path", path, host.Busybox, id(t), "true").CombinedOutput(); err == nil || !strings.Contains(string(out), "no_such_key") {
			t.Errorf("unknown key: %v: %s", err, out)
		}
	})
}

func TestCtrExec(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		name := id(t)
		e.detached(t, name, nil, "sleep", "1000")
		cmd := func(exec string, args ...string) *exec.Cmd {
			return e.Ctr(append([]string{"tasks", "exec", "--fifo-dir", e.Dir + "/fifo", "--exec-id", exec, name}, args...)...)
		}
		if out, err := cmd("a", "sh", "-c", "echo hello; exit 7").Output(); exitCode(err) != 7 || string(out) != "hello\n" {
			t.Errorf("%v: %q; want hello, 7", err, out)
		}
		log := filepath.Join(t.TempDir(), "log")
		if out, err := e.Ctr("tasks", "exec", "--exec-id", "l", "--log-uri", "file://"+log, name, "echo", "logged").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if b, _ := os.ReadFile(log); string(b) != "logged\n" {
			t.Errorf("log %q", b)
		}
		in := cmd("c", "cat")
		in.Stdin = strings.NewReader("typed")
		if out, err := in.Output(); err != nil || string(out) != "typed" {
			t.Errorf("%v: %q", err, out)
		}
		first := cmd("b", "sleep", "1000")
		if err := first.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() string {
			if out := e.ctr(t, "tasks", "ps", name); !strings.Contains(out, "b") || strings.Count(out, "\n") < 3 {
				return out
			}
			return ""
		})
		if out, err := cmd("b", "true").CombinedOutput(); err == nil || !strings.Contains(string(out), "already exists") {
			t.Errorf("same id: %v: %s", err, out)
		}
		e.ctr(t, "tasks", "kill", "-s", "KILL", "--exec-id", "b", name)
		if code := exitCode(first.Wait()); code != 137 {
			t.Errorf("killed exec: %d", code)
		}
	})
}

func TestCtrTasks(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		name := id(t)
		e.detached(t, name, nil, "sh", "-c", "trap 'exit 0' USR1; while :; do sleep 0.05; done")
		status := func() string {
			for text := range strings.Lines(e.ctr(t, "tasks", "ls")) {
				if f := strings.Fields(text); len(f) == 3 && f[0] == name {
					return f[2]
				}
			}
			return "none"
		}
		if status() != "RUNNING" {
			t.Errorf("status %s", status())
		}
		e.ctr(t, "tasks", "pause", name)
		if status() != "PAUSED" {
			t.Errorf("status %s", status())
		}
		e.refused(t, "", "tasks", "pause", name)
		e.refused(t, "", "tasks", "exec", "--exec-id", "x", name, "true")
		e.ctr(t, "tasks", "resume", name)
		if status() != "RUNNING" {
			t.Errorf("status %s", status())
		}
		e.refused(t, "", "tasks", "delete", name)
		for _, format := range []string{"json", "table"} {
			out := e.ctr(t, "tasks", "metrics", "--format", format, name)
			if format == "json" && !json.Valid([]byte(out)) || !strings.Contains(strings.ToLower(out), "memory") {
				t.Errorf("metrics: %s", out)
			}
		}
		if out := e.ctr(t, "containers", "info", name); !json.Valid([]byte(out)) {
			t.Errorf("info: %s", out)
		}
		// The stop signal of the container's label.
		e.ctr(t, "containers", "label", name, "io.containerd.image.config.stop-signal=SIGUSR1")
		e.ctr(t, "tasks", "kill", name)
		eventually(t, patience, func() string {
			if status() != "STOPPED" {
				return status()
			}
			return ""
		})
		e.refused(t, "already finished", "tasks", "kill", name)
		e.ctr(t, "tasks", "delete", name)
		e.ctr(t, "tasks", "start", "-d", "--null-io", name)
		e.ctr(t, "tasks", "kill", "-a", "-s", "KILL", name)
		eventually(t, patience, func() string {
			if status() != "STOPPED" {
				return status()
			}
			return ""
		})
		e.ctr(t, "tasks", "delete", "-f", name)
		e.ctr(t, "tasks", "start", "-d", "--null-io", name)
		e.ctr(t, "tasks", "delete", "-f", name)
		e.ctr(t, "containers", "delete", name)
	})
}

func TestCtrAttach(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		name := id(t)
		out, err := e.ctrRun(t, "-d", host.Busybox, name, "sh", "-c", "i=0; while [ $i -lt 40 ]; do echo tick; sleep 0.05; i=$((i+1)); done; exit 4").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Cleanup(func() { e.remove(t, name) })
		out, err = e.Ctr("tasks", "attach", name).CombinedOutput()
		if exitCode(err) != 4 || !strings.Contains(string(out), "tick") {
			t.Errorf("%v: %q; want ticks and 4", err, out)
		}
		e.refused(t, "not found", "tasks", "kill", name)
	})
}

var topicPattern = regexp.MustCompile(` (/\S+) (\{.*\})`)

func TestCtrEvents(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		r := e.record(t)
		cmd := e.Ctr("events")
		var out syncBuffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
		// What ctr sees begins some time after it was started.
		eventually(t, patience, func() string {
			r.sync(t, patience)
			if !strings.Contains(out.String(), "/test/mark") {
				return "ctr is not listening"
			}
			return ""
		})
		name := id(t)
		e.detached(t, name, nil, "sleep", "1000")
		e.ctr(t, "tasks", "exec", "--exec-id", "x", "--fifo-dir", e.Dir+"/fifo", name, "true")
		e.ctr(t, "tasks", "kill", "-s", "KILL", name)
		r.until(t, name, "exit")
		e.ctr(t, "tasks", "delete", name)
		want := strings.Fields("/tasks/create /tasks/start /tasks/exec-added /tasks/exec-started /tasks/exit /tasks/exit /tasks/delete")
		var got []string
		eventually(t, patience, func() string {
			got = nil
			for text := range strings.Lines(out.String()) {
				m := topicPattern.FindStringSubmatch(text)
				if m == nil || !strings.HasPrefix(m[1], "/tasks/") {
					continue
				}
				if !json.Valid([]byte(m[2])) {
					t.Errorf("not decoded: %s", text)
				}
				got = append(got, m[1])
			}
			if len(got) < len(want) {
				return fmt.Sprint(got)
			}
			return ""
		})
		if !cmp.Equal(got, want) {
			t.Errorf("topics %q", got)
		}
	})
}

// syncBuffer is a buffer that a command writes while the test reads.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// `ctr shim` speaks to the shim's socket itself; it looks for it where
// containerd's default is, so the socket folder of the daemon is linked there.
func TestCtrShim(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		name := id(t)
		e.detached(t, name, nil, "sleep", "1000")
		b, err := os.ReadFile(e.Bundle(name) + "/bootstrap.json")
		if err != nil {
			t.Fatal(err)
		}
		var bootstrap struct{ Version int }
		if err := json.Unmarshal(b, &bootstrap); err != nil {
			t.Fatal(err)
		}
		if e.rt.Berth && bootstrap.Version != 2 {
			t.Errorf("bootstrap version %d", bootstrap.Version)
		}
		if err := os.MkdirAll("/run/containerd/s", 0o711); err != nil {
			t.Fatal(err)
		}
		sockets, _ := filepath.Glob(e.Dir + "/s/*")
		for _, path := range sockets {
			link := "/run/containerd/s/" + filepath.Base(path)
			if err := os.Symlink(path, link); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Remove(link) })
		}
		for _, version := range []string{"2", "3"} {
			if version == "2" && !e.rt.Berth {
				continue // stock serves version 3 only
			}
			out, err := e.Ctr("shim", "--id", name, "state", "--api-version", version).CombinedOutput()
			if err != nil || !strings.Contains(string(out), name) {
				t.Errorf("version %s: %v: %s", version, err, out)
			}
		}
	})
}

func TestCtrTerminal(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		master, slave := openPTY(t)
		if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 77}); err != nil {
			t.Fatal(err)
		}
		cmd := e.ctrRun(t, "--rm", "-t", host.Busybox, id(t), "sh", "-c",
			`while [ "$(stty size 2>/dev/null)" != "33 77" ]; do sleep 0.05; done; trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done`)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = slave.Close()
		var out syncBuffer
		done := make(chan struct{})
		go func() {
			defer close(done)
			b := make([]byte, 4096)
			for {
				n, err := master.Read(b)
				_, _ = out.Write(b[:n])
				if err != nil {
					return
				}
			}
		}()
		eventually(t, patience, func() string {
			if !strings.Contains(out.String(), "ready") {
				return "output " + out.String()
			}
			return ""
		})
		if _, err := master.Write([]byte{3}); err != nil { // Ctrl-C
			t.Fatal(err)
		}
		if code := exitCode(cmd.Wait()); code != 5 {
			t.Errorf("exit %d, want 5: %q", code, out.String())
		}
		_ = master.Close()
		<-done
		if !strings.Contains(out.String(), "interrupted") {
			t.Errorf("output %q", out.String())
		}
	})
}

func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// Checkpoint, and go on where it stopped. Needs criu.
func TestCtrCheckpoint(t *testing.T) {
	if os.Getenv("BERTH_TEST_OCI") == "crun" {
		t.Skip("Debian's crun needs libcriu, which .deps does not have")
	}
	forRuntimes(t, func(t *testing.T, e *env) {
		if _, err := os.Stat(host.Deps("bin/criu")); err != nil {
			t.Fatal(err)
		}
		name := id(t)
		e.detached(t, name, nil, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done")
		read := func() int {
			var n int
			out, _ := e.Ctr("tasks", "exec", "--exec-id", "r", "--fifo-dir", e.Dir+"/fifo", name, "cat", "/count").Output()
			_, _ = fmt.Sscan(string(out), &n)
			return n
		}
		eventually(t, patience, func() string {
			if n := read(); n < 3 {
				return fmt.Sprint(n)
			}
			return ""
		})
		ref := "berth.test/checkpoint:" + e.rt.Label
		e.ctr(t, "containers", "checkpoint", "--rw", "--task", "--image", name, ref)
		t.Cleanup(func() { _ = e.Ctr("images", "rm", "--sync", ref).Run() })
		at := read()
		e.ctr(t, "tasks", "kill", "-s", "KILL", name)
		eventually(t, patience, func() string {
			if out := e.ctr(t, "tasks", "ls"); !strings.Contains(out, "STOPPED") {
				return out
			}
			return ""
		})
		e.ctr(t, "tasks", "delete", name)
		e.ctr(t, "containers", "delete", name)
		t.Cleanup(func() { // containerd's own, after every restore
			for _, path := range e.Count(t)["files"] {
				if strings.Contains(path, "ctrd-checkpoint") {
					_ = os.RemoveAll(path)
				}
			}
		})
		e.ctr(t, "containers", "restore", "--rw", "--live", name, ref)
		eventually(t, patience, func() string {
			if n := read(); n <= at {
				return fmt.Sprintf("%d after %d", n, at)
			}
			return ""
		})
	})
}

// Plain words for what ctr cannot pass to berth.
func TestCtrRefusedFlags(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		if e.rt.Label != "berth" {
			return
		}
		for _, flag := range []string{"--runc-systemd-cgroup", "--runc-binary=runc"} {
			out, err := e.ctrRun(t, "--rm", flag, host.Busybox, id(t), "true").CombinedOutput()
			if err == nil {
				t.Errorf("%s: accepted: %s", flag, out)
			}
		}
	})
}
