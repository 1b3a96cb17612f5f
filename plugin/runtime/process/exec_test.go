// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/process/detach"
)

// descriptors counts this program's.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// noExecs fails if the shim keeps an exec, by its pids, or this program does.
func (r *rig) noExecs(t *testing.T, x *Container) {
	t.Helper()
	eventually(t, func() string {
		p, err := r.Client().TaskService().ListPids(r.ctx, &tasks.ListPidsRequest{ContainerID: x.ID})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range p.Processes {
			if p.Info != nil {
				return "an exec is left: " + p.String()
			}
		}
		return ""
	})
	x.execs.mu.Lock()
	defer x.execs.mu.Unlock()
	if len(x.execs.pids) > 0 {
		t.Errorf("registered: %v", x.execs.pids)
	}
}

// S52 to S56.
func TestExecSync(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{})
	exec := func(timeout time.Duration, user *specs.User, args ...string) (*ExecSyncResult, error) {
		return x.ExecSync(r.ctx, ExecSyncRequest{Command: Command{Args: args, User: user}, Timeout: timeout})
	}
	if _, err := exec(0, nil, "true"); err != nil { // what stays open is open
		t.Fatal(err)
	}
	before := descriptors(t)
	for name, c := range map[string]struct {
		script      string
		user        *specs.User
		out, errors string
		code        int32
	}{
		"code":               {script: "exit 3", code: 3},
		"streams":            {script: "echo out; echo err >&2", out: "out\n", errors: "err\n"},
		"signal":             {script: "kill -9 $$", code: 137},
		"child keeps pipes":  {script: "sleep 60 & echo x", out: "x\n"},
		"child goes on":      {script: "(while :; do echo y; sleep 0.01; done) & echo x; exit 4", code: 4, out: "-"},
		"environment":        {script: `echo "$PWD $A $TERM"`, out: "/ b \n"},
		"other user reopens": {script: "echo out >/dev/stdout; echo err >/proc/self/fd/2", user: &specs.User{UID: 1000, GID: 1000}, out: "out\n", errors: "err\n"},
		"no input":           {script: "cat; echo end", out: "end\n"},
	} {
		t.Run(name, func(t *testing.T) {
			begun := time.Now()
			res, err := x.ExecSync(r.ctx, ExecSyncRequest{Command: Command{Args: sh(c.script), User: c.user, Env: []string{"A=b"}, Cwd: "/"}})
			if err != nil {
				t.Fatal(err)
			}
			if d := time.Since(begun); d > 4*time.Second {
				t.Errorf("took %v", d)
			}
			if c.out == "-" {
				c.out = string(res.Stdout)
			}
			if string(res.Stdout) != c.out || string(res.Stderr) != c.errors || res.ExitCode != c.code || res.Truncated {
				t.Errorf("got %q, %q, %d", res.Stdout, res.Stderr, res.ExitCode)
			}
		})
	}
	t.Run("timeout", func(t *testing.T) {
		var res *ExecSyncResult
		var err error
		took(t, time.Second, func() { res, err = exec(time.Second, nil, "sh", "-c", "echo early; sleep 6543 & sleep 6543") })
		var failure *ExecSyncError
		if !errors.Is(err, ErrTimedOut) || !errdefs.IsDeadlineExceeded(err) || !errors.As(err, &failure) {
			t.Fatalf("got %v", err)
		}
		if res == nil || res.ExitCode != -1 || string(res.Stderr) != "command timed out" || failure.Stdout.String() != "early\n" {
			t.Errorf("got %+v, %v", res, failure)
		}
		eventually(t, func() string { // the group is gone
			left, err := exec(0, nil, "sh", "-c", "ps | grep -c 'sleep[ ]6543'")
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(string(left.Stdout)); got != "0" {
				return got + " left"
			}
			return ""
		})
	})
	t.Run("timeout before it begins", func(t *testing.T) {
		for _, limit := range []time.Duration{time.Microsecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 15 * time.Millisecond} {
			if res, err := exec(limit, nil, "sleep", "600"); !errors.Is(err, ErrTimedOut) || res.ExitCode != -1 {
				t.Errorf("%v: got %v, %v", limit, res, err)
			}
		}
		r.noExecs(t, x)
	})
	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(r.ctx, 200*time.Millisecond)
		defer cancel()
		var failure *ExecSyncError
		if res, err := x.ExecSync(ctx, ExecSyncRequest{Command: Command{Args: []string{"sleep", "600"}}}); res != nil || !errors.As(err, &failure) || errors.Is(err, ErrTimedOut) {
			t.Errorf("got %v, %v", res, err)
		}
	})
	t.Run("missing command", func(t *testing.T) {
		res, err := exec(0, nil, "/no/such/command")
		var failure *ExecSyncError
		if res != nil || !errors.As(err, &failure) || !strings.Contains(err.Error(), "/no/such/command") {
			t.Errorf("got %v, %v", res, err)
		}
		if _, err := exec(0, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("no command: %v", err)
		}
	})
	t.Run("much output", func(t *testing.T) {
		var m0, m1 runtime.MemStats
		runtime.ReadMemStats(&m0)
		begun := time.Now()
		res, err := exec(0, nil, "sh", "-c", "dd if=/dev/zero bs=1M count=20 2>/dev/null; dd if=/dev/zero bs=1M count=20 1>&2 2>/dev/null; exit 9")
		if err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&m1)
		t.Logf("40 MiB in %v", time.Since(begun))
		if len(res.Stdout)+len(res.Stderr) != MaxSyncOutput || !res.Truncated || res.ExitCode != 9 {
			t.Errorf("got %d+%d bytes, %v, code %d", len(res.Stdout), len(res.Stderr), res.Truncated, res.ExitCode)
		}
		if grown := int64(m1.Sys) - int64(m0.Sys); grown > 6*MaxSyncOutput {
			t.Errorf("memory grew by %d bytes", grown)
		}
	})
	r.noExecs(t, x)
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	if err := x.Stop(r.ctx, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := exec(0, nil, "true"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("in a stopped container: %v", err)
	}
}

// A container with a terminal has execs with one: all is on stdout.
func TestExecSyncTerminal(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{settings: labels.Settings{Terminal: true}, stdio: Stdio{Stdout: "pty://"}})
	res, err := x.ExecSync(r.ctx, ExecSyncRequest{Command: Command{Args: sh("echo out; echo err >&2; echo $TERM; exit 3")}})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(res.Stdout); got != "out\r\nerr\r\nxterm\r\n" || len(res.Stderr) > 0 || res.ExitCode != 3 {
		t.Errorf("got %q, %q, %d", got, res.Stderr, res.ExitCode)
	}
	r.noExecs(t, x)
}

// The end of init is that of the exec.
func TestExecSyncInitEnds(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{})
	go func() {
		time.Sleep(300 * time.Millisecond)
		_ = x.Signal(r.ctx, unix.SIGKILL)
	}()
	res, err := x.ExecSync(r.ctx, ExecSyncRequest{Command: Command{Args: []string{"sleep", "600"}}})
	if err != nil || res.ExitCode != 137 {
		t.Errorf("got %+v, %v", res, err)
	}
}

func TestExec(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{})
	t.Run("input", func(t *testing.T) {
		data := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB
		var out, errs bytes.Buffer
		code, err := x.Exec(r.ctx, ExecRequest{
			Command: Command{Args: sh("cat; echo done >&2; exit 4")}, Stdin: strings.NewReader(data), Stdout: &out, Stderr: &errs,
		})
		if err != nil || code != 4 || out.String() != data || errs.String() != "done\n" {
			t.Errorf("got %d, %v, %d bytes, %q", code, err, out.Len(), errs.String())
		}
	})
	t.Run("input that does not end", func(t *testing.T) {
		in, w := io.Pipe()
		defer w.Close()
		code, err := x.Exec(r.ctx, ExecRequest{Command: Command{Args: sh("exit 5")}, Stdin: in})
		if err != nil || code != 5 {
			t.Errorf("got %d, %v", code, err)
		}
	})
	t.Run("user reopens input", func(t *testing.T) { // S56
		var out bytes.Buffer
		code, err := x.Exec(r.ctx, ExecRequest{
			Command: Command{Args: sh("cat /dev/stdin; cat /proc/self/fd/0 >/dev/null"), User: &specs.User{UID: 1000}}, Stdin: strings.NewReader("hello"), Stdout: &out,
		})
		if err != nil || code != 0 || out.String() != "hello" {
			t.Errorf("got %d, %v, %q", code, err, out.String())
		}
	})
	t.Run("writer that fails", func(t *testing.T) {
		code, err := x.Exec(r.ctx, ExecRequest{Command: Command{Args: sh("dd if=/dev/zero bs=1M count=4 2>/dev/null; exit 6")}, Stdout: broken{}})
		if err != nil || code != 6 {
			t.Errorf("got %d, %v", code, err)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		sizes := make(chan Size, 8)
		in, w := io.Pipe()
		defer w.Close()
		var out locked
		go func() {
			for !strings.Contains(out.String(), "24 80") {
				time.Sleep(5 * time.Millisecond)
			}
			for i := range uint16(5) {
				sizes <- Size{Width: 100 + i, Height: 40}
			}
			for !strings.Contains(out.String(), "40 104") {
				time.Sleep(5 * time.Millisecond)
			}
			_, _ = w.Write([]byte("q\n"))
		}()
		code, err := x.Exec(r.ctx, ExecRequest{
			Command: Command{Args: sh(`stty size; for i in $(seq 200); do stty size; sleep 0.02; [ $i = 200 ] && exit 9; if read -t 0 line 2>/dev/null; then exit 7; fi; done`), Terminal: true, Size: Size{80, 24}},
			Stdin:   in, Stdout: &out, Resize: sizes,
		})
		if err != nil || code != 7 && code != 9 || !strings.Contains(out.String(), "40 104") {
			t.Errorf("got %d, %v, %q", code, err, out.String())
		}
	})
	r.noExecs(t, x)
	t.Run("detach", func(t *testing.T) {
		keys, err := detach.Parse(detach.Default)
		if err != nil {
			t.Fatal(err)
		}
		_, err = x.Exec(r.ctx, ExecRequest{
			Command: Command{Args: sh("sleep 0.3; echo on >/tmp/detached"), Terminal: true}, Stdin: strings.NewReader("ab\x10\x11"), DetachKeys: keys,
		})
		if !errors.Is(err, ErrDetached) {
			t.Errorf("got %v", err)
		}
		goesOn(t, r, x, "/tmp/detached")
	})
	t.Run("client leaves", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(r.ctx, 200*time.Millisecond)
		defer cancel()
		_, err := x.Exec(ctx, ExecRequest{Command: Command{Args: sh("sleep 0.5; dd if=/dev/zero bs=1M count=2 && echo on >/tmp/left")}, Stdout: io.Discard})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		goesOn(t, r, x, "/tmp/left")
	})
	r.noExecs(t, x)
	if _, err := x.Exec(r.ctx, ExecRequest{Command: Command{Args: []string{"/no/such"}}}); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("missing command: %v", err)
	}
}

// goesOn waits for a file in the container.
func goesOn(t *testing.T, r *rig, x *Container, file string) {
	t.Helper()
	eventually(t, func() string {
		res, err := x.ExecSync(r.ctx, ExecSyncRequest{Command: Command{Args: []string{"cat", file}}})
		if err != nil {
			t.Fatal(err)
		}
		if string(res.Stdout) != "on\n" {
			return string(res.Stderr)
		}
		return ""
	})
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
