// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/cio"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/programs"
)

// copyOf returns a copy of the shim's program, which is another file to the
// kernel, as a new version would be.
func (e *env) copyOf(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(e.rt.Binary())
	if err != nil {
		t.Fatal(err)
	}
	return programs.Write(t, filepath.Join(t.TempDir(), "containerd-shim-berth-v1"), b)
}

func program(t *testing.T, pid int) string {
	t.Helper()
	path, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A shim changes its program 200 times under a container that prints, an exec
// that prints, a terminal, waiting clients and polls. Nobody notices.
func TestUpgrade200Times(t *testing.T) {
	const times = 200
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh(`i=0; while [ ! -e /end ]; do echo $i; i=$((i+1)); usleep 500; done; echo end; exit 7`))
		stdout, stderr := fifo(t), fifo(t)
		lines := collect(t, stdout)
		drain(t, stderr)
		pid := s.run(t, stdio{Out: stdout, Err: stderr})
		execOut := fifo(t)
		execLines := collect(t, execOut)
		s.runExec(t, "printer", stdio{Out: execOut}, "sh", "-c", `i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); usleep 700; done; exit 3`)
		ttyOut := fifo(t)
		ttyLines := collect(t, ttyOut)
		s.runExec(t, "tty", stdio{Out: ttyOut, Terminal: true}, "sh", "-c", `i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); usleep 900; done; exit 4`)
		waits := make(chan error, 2)
		for exec, want := range map[string]uint32{"printer": 3, "tty": 4} {
			go func() { waits <- expect(e.ctx(t), s, exec, want) }()
		}
		ended := make(chan error, 1)
		go func() { ended <- expect(e.ctx(t), s, "", 7) }()
		ctx, stop := context.WithCancel(e.ctx(t))
		polls := make(chan error, 1)
		go func() { polls <- poll(ctx, s) }()

		binaries := [2]string{e.rt.Binary(), e.copyOf(t)}
		for i := range times {
			if err := requestUpgrade(e.ctx(t), s, binaries[(i+1)%2]); err != nil {
				t.Fatalf("upgrade %d: %v", i, err)
			}
			if got := program(t, s.pid); got != binaries[(i+1)%2] {
				t.Fatalf("upgrade %d: the shim runs %s", i, got)
			}
			if i%20 == 0 { // an exec begun by one program ends under it or the next
				s.runExec(t, "short-"+strconv.Itoa(i), stdio{}, "true")
			}
		}
		stop()
		if err := <-polls; err != nil {
			t.Errorf("polls: %v", err)
		}
		for i := 0; i < times; i += 20 {
			if got := s.wait(t, "short-"+strconv.Itoa(i)); got != 0 {
				t.Errorf("short exec %d ended with %d", i, got)
			}
			s.delete(t, "short-"+strconv.Itoa(i))
		}
		touch(t, pid, "stop")
		for range 2 {
			if err := <-waits; err != nil {
				t.Error(err)
			}
		}
		touch(t, pid, "end")
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.delete(t, "printer")
		s.delete(t, "tty")
		s.delete(t, "")
		inOrder(t, "init", lines(), "\n", "end")
		inOrder(t, "exec", execLines(), "\n", "")
		inOrder(t, "terminal", ttyLines(), "\r\n", "")
	})
}

// expect waits for a process, which must end with want.
func expect(ctx context.Context, s *shim, exec string, want uint32) error {
	r, err := s.Wait(ctx, &taskapi.WaitRequest{ID: s.id, ExecID: exec})
	if err == nil && r.ExitStatus != want {
		err = fmt.Errorf("exec %q ended with %d, want %d", exec, r.ExitStatus, want)
	}
	return err
}

// touch makes a file at the root of the container whose init is pid.
func touch(t *testing.T, pid int, name string) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/%s", pid, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// poll asks what containerd asks, until ctx ends.
func poll(ctx context.Context, s *shim) error {
	for ctx.Err() == nil {
		if _, err := s.Stats(ctx, &taskapi.StatsRequest{ID: s.id}); err != nil && ctx.Err() == nil {
			return fmt.Errorf("stats: %w", err)
		}
		r, err := s.State(ctx, &taskapi.StateRequest{ID: s.id})
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("state: %w", err)
		}
		if err == nil && r.Status != tasktypes.Status_RUNNING {
			return fmt.Errorf("state: %v", r.Status)
		}
		if _, err := s.Pids(ctx, &taskapi.PidsRequest{ID: s.id}); err != nil && ctx.Err() == nil {
			return fmt.Errorf("pids: %w", err)
		}
	}
	return nil
}

// collect reads a fifo to its end, which the returned function waits for.
func collect(t *testing.T, path string) func() string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	done := make(chan struct{})
	began := make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		buffer := make([]byte, 64<<10)
		for {
			n, err := f.Read(buffer)
			text.Write(buffer[:n])
			select {
			case <-began: // the writer has come: now the end is an end
				if err != nil {
					return
				}
			default:
				if n > 0 {
					close(began)
				} else if err != nil {
					time.Sleep(time.Millisecond)
				}
			}
		}
	}()
	return func() string {
		t.Helper()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatalf("%s did not end", path)
		}
		return text.String()
	}
}

// inOrder fails unless text is the numbers from 0 on, a line each, and then last.
func inOrder(t *testing.T, what, text, newline, last string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, newline), newline)
	if last != "" {
		if got := lines[len(lines)-1]; got != last {
			t.Errorf("%s: the last line is %q", what, got)
		}
		lines = lines[:len(lines)-1]
	}
	for i, line := range lines {
		if line != strconv.Itoa(i) {
			t.Errorf("%s: line %d of %d is %q", what, i, len(lines), line)
			return
		}
	}
	if len(lines) < 10 {
		t.Errorf("%s: only %d lines", what, len(lines))
	}
}

// The upgrade command reaches one shim, or all, and says what it did.
func TestUpgradeCommand(t *testing.T) {
	ownDaemon(t, host.Options{}, func(t *testing.T, e *env) {
		e.berthOnly(t)
		var pids []int
		for _, name := range []string{"one", "two"} {
			task := e.task(t, name, cio.NullIO)
			if err := task.Start(e.ctx(t)); err != nil {
				t.Fatal(err)
			}
			pids = append(pids, shimOf(t, int(task.Pid())))
		}
		binary := e.copyOf(t)
		upgrade := func(args ...string) (string, error) {
			out, err := exec.Command(binary, append(args, "upgrade", e.State())...).CombinedOutput()
			return string(out), err
		}
		if out, err := upgrade("-namespace", e.Namespace, "-id", "none"); err == nil || !strings.Contains(out, "no shim") {
			t.Errorf("an unknown id: got %q, %v", out, err)
		}
		if out, err := upgrade("-namespace", "..", "-id", "one"); err == nil {
			t.Errorf("a namespace that is a path: got %q", out)
		}
		if out, err := upgrade("-namespace", e.Namespace, "-id", "two"); err != nil || !strings.Contains(out, "/two: runs "+binary) {
			t.Errorf("got %q, %v", out, err)
		}
		if a, b := program(t, pids[0]), program(t, pids[1]); a != e.rt.Binary() || b != binary {
			t.Errorf("the shims run %s and %s", a, b)
		}
		if out, err := upgrade(); err != nil {
			t.Errorf("all: got %q, %v", out, err)
		}
		if a := program(t, pids[0]); a != binary {
			t.Errorf("the first shim runs %s", a)
		}
		recorded, err := os.ReadFile(e.Bundle("one") + "/shim-binary-path")
		if err != nil || string(recorded) != binary {
			t.Errorf("shim-binary-path: got %q, %v", recorded, err)
		}
	})
}

// shimOf returns the parent of process pid.
func shimOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	parent, err := strconv.Atoi(strings.Fields(string(b[strings.LastIndex(string(b), ")")+1:]))[1])
	if err != nil {
		t.Fatal(err)
	}
	return parent
}

// A program that cannot take over is refused, and nothing happens.
func TestUpgradeToABrokenProgramIsRefused(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh("sleep 1000"))
		s.run(t, stdio{})
		control := func(binary string) error { return requestUpgrade(e.ctx(t), s, binary) }
		broken := filepath.Join(t.TempDir(), "broken")
		for name, text := range map[string]string{
			"fails":         "#!/bin/sh\nexit 1\n",
			"killed":        "#!/bin/sh\nkill -9 $$\n",
			"no program":    "\x7fELF nonsense",
			"older version": "#!/bin/sh\necho 'unknown command' >&2; exit 3\n",
		} {
			programs.Write(t, broken, text)
			if err := control(broken); err == nil || !strings.Contains(err.Error(), broken) {
				t.Errorf("%s: got %v, want an error that names the program", name, err)
			}
		}
		if err := control("/no/such/program"); err == nil {
			t.Error("a missing program was accepted")
		}
		if got := program(t, s.pid); got != e.rt.Binary() {
			t.Errorf("the shim runs %s", got)
		}
		if got := s.status(t); got != tasktypes.Status_RUNNING {
			t.Errorf("state %v", got)
		}
		s.kill(t, unix.SIGKILL)
		if got := s.wait(t, ""); got != 137 {
			t.Errorf("exit status %d", got)
		}
	})
}

// requestUpgrade makes the call that the upgrade command makes.
func requestUpgrade(ctx context.Context, s *shim, binary string) error {
	return s.conn.Call(ctx, "berth.shim.v1.Control", "Upgrade", &taskapi.ConnectRequest{ID: binary}, &taskapi.ConnectRequest{})
}

// An upgrade that waits for the runtime is not mistaken for a fresh start, which is due
// meanwhile.
func TestUpgradeWhenAFreshStartIsDue(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		if e.rt.Name != host.Native.Name {
			return
		}
		sab := sabotage(t)
		s := e.shimNamed(t, id(t), &runtimeoptions.Options{
			ConfigBody: fmt.Appendf(nil, "runtime = %q\nheap_bound = 1\n", sab.program()),
		})
		s.run(t, stdio{})
		sab.inject(t, "hang", "exec")
		started := make(chan error, 1)
		if err := s.exec(t, "x", stdio{}, nil, "true"); err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := s.Start(e.ctx(t), &taskapi.StartRequest{ID: s.id, ExecID: "x"})
			started <- err
		}()
		eventually(t, patience, func() string {
			if !sab.called("exec") {
				return "the runtime is not asked to exec"
			}
			return ""
		})
		binary := e.copyOf(t)
		upgraded := make(chan error, 1)
		go func() { upgraded <- requestUpgrade(e.ctx(t), s, binary) }()
		time.Sleep(4 * time.Second) // a fresh start is due 3 s after work
		sab.relent(t)
		if err := <-started; err != nil {
			t.Errorf("exec: %v", err)
		}
		if err := <-upgraded; err != nil {
			t.Errorf("upgrade: %v", err)
		}
		if got := program(t, s.pid); got != binary {
			t.Errorf("the shim runs %s after the upgrade", got)
		}
		if got := s.wait(t, "x"); got != 0 {
			t.Errorf("exec ended with %d", got)
		}
	})
}

// SIGUSR2 has the shim run what has its program's path now.
func TestUpgradeBySignal(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		path := e.copyOf(t)
		own := *e
		own.rt = host.Runtime{Label: "copy", Name: "io.containerd.runc.v2", Path: path, Berth: true}
		s := own.shim(t, sh("sleep 1000"))
		s.run(t, stdio{})
		if err := os.Rename(e.copyOf(t), path); err != nil {
			t.Fatal(err)
		}
		if got := program(t, s.pid); !strings.HasSuffix(got, " (deleted)") {
			t.Fatalf("the shim runs %s", got)
		}
		if err := unix.Kill(s.pid, unix.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() string {
			if got := program(t, s.pid); got != path {
				return "the shim runs " + got
			}
			return ""
		})
		if got := s.status(t); got != tasktypes.Status_RUNNING {
			t.Errorf("state %v", got)
		}
	})
}

// After work the shim starts itself afresh, and what it answers stays the same.
func TestFreshStartAfterWork(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh("sleep 1000"))
		pid := s.run(t, stdio{})
		for i := range 20 {
			exec := "e" + strconv.Itoa(i)
			s.runExec(t, exec, stdio{}, "sh", "-c", "exit 5")
			if got := s.wait(t, exec); got != 5 {
				t.Fatalf("exec %d ended with %d", i, got)
			}
			if i != 3 { // one stays, ended
				s.delete(t, exec)
			}
		}
		used, _ := footprint(t, s.pid)
		eventually(t, patience, func() string {
			if now, _ := footprint(t, s.pid); now > used-60 {
				return fmt.Sprintf("%d KiB of its own, %d after the work", now, used)
			}
			return ""
		})
		if got := s.wait(t, "e3"); got != 5 {
			t.Errorf("exec 3 ended with %d", got)
		}
		r, err := s.State(e.ctx(t), &taskapi.StateRequest{ID: s.id})
		if err != nil || int(r.Pid) != pid || r.Status != tasktypes.Status_RUNNING {
			t.Errorf("got %v, %v", r, err)
		}
	})
}
