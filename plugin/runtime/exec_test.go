// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/integration/host"
	berth "github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/process"
)

// noExecs wants no process in a container but those of its own script, and none that
// the shim still knows as an exec.
func (r *rig) noExecs(t *testing.T, ref string) {
	t.Helper()
	eventually(t, patience, func() string {
		top, err := r.Top(ctx(t), ref)
		if err != nil {
			return err.Error()
		}
		for _, p := range top {
			if p.Exec != "" {
				return p.Exec + " is registered: " + p.Command
			}
		}
		return ""
	})
}

// (S53) A child that keeps the pipes keeps nobody waiting.
func TestRuntimeExecSyncChild(t *testing.T) {
	r := withService(t)
	ref := string(r.start(t, shell(r.pod(t, hostPod(t)), "main", idle)).ID)
	took(t, "a command that leaves a child", 5*time.Second, func() {
		got, err := r.ExecSync(ctx(t), ref, []string{"sh", "-c", "sleep 60 & echo x"}, 0)
		if err != nil || got.ExitCode != 0 || string(got.Stdout) != "x\n" {
			t.Errorf("%+v, %v", got, err)
		}
	})
	r.noExecs(t, ref)
}

// (S54) Of 40 MiB of output what is kept is bounded, and the rest holds up nobody.
func TestRuntimeExecSyncOutput(t *testing.T) {
	r := withService(t)
	c := r.start(t, shell(r.pod(t, hostPod(t)), "main", idle))
	before := shimMemory(t, c)
	script := "dd if=/dev/zero bs=1M count=20 2>/dev/null; dd if=/dev/zero bs=1M count=20 1>&2 2>/dev/null; exit 9"
	got, err := r.ExecSync(ctx(t), string(c.ID), []string{"sh", "-c", script}, 0)
	if err != nil || got.ExitCode != 9 || len(got.Stdout)+len(got.Stderr) != process.MaxSyncOutput {
		t.Errorf("code %d, %d and %d bytes, %v", got.ExitCode, len(got.Stdout), len(got.Stderr), err)
	}
	const most = 4 << 10 // KiB; what it may have read for the first time
	if after := shimMemory(t, c); after > before+most {
		t.Errorf("the shim has grown from %d to %d KiB", before, after)
	}
}

// shimMemory is the resident memory of a container's shim, in KiB.
func shimMemory(t *testing.T, c berth.Container) (kib int) {
	t.Helper()
	parent := status(t, c.Pid, "PPid:")
	return number(t, strings.TrimSuffix(status(t, number(t, parent), "VmRSS:"), " kB"))
}

// (S55) What cannot be executed is an error with a reason, and leaves nothing.
func TestRuntimeExecMissing(t *testing.T) {
	r := withService(t)
	ref := string(r.start(t, shell(r.pod(t, hostPod(t)), "main", idle)).ID)
	_, err := r.ExecSync(ctx(t), ref, []string{"/missing"}, 0)
	if err == nil || !strings.Contains(err.Error(), "/missing") {
		t.Errorf("ExecSync: %v", err)
	}
	_, err = r.Exec(ctx(t), ref, berth.ExecRequest{Command: []string{"/missing"}})
	if err == nil || !strings.Contains(err.Error(), "/missing") || strings.Count(err.Error(), "exec in container") != 1 {
		t.Errorf("Exec: %v", err)
	}
	r.noExecs(t, ref)
	if got, err := r.ExecSync(ctx(t), ref, []string{"echo", "x"}, 0); err != nil || string(got.Stdout) != "x\n" {
		t.Errorf("afterwards: %+v, %v", got, err)
	}
}

// What goes on without its client, whose program ends, is nothing to the shim when it
// has ended.
func TestRuntimeExecLeft(t *testing.T) {
	r := withService(t)
	c := r.start(t, shell(r.pod(t, hostPod(t)), "main", idle))
	files := func() int {
		open, err := os.ReadDir("/proc/" + status(t, c.Pid, "PPid:") + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	before := files()
	const script = "echo begun; until [ -e /go ]; do sleep 0.05; done; head -c 1000000 /dev/zero; echo x >>/ended"
	for range 2 {
		begun := make(chan struct{})
		leaving, leave := context.WithCancel(ctx(t))
		go func() {
			<-begun
			leave()
		}()
		_, err := r.Exec(leaving, string(c.ID), berth.ExecRequest{Command: []string{"sh", "-c", script}, Stdout: closer(begun)})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("left: %v", err)
		}
		for _, tty := range []bool{false, true} {
			if _, err := r.Exec(ctx(t), string(c.ID), berth.ExecRequest{Command: []string{"sh", "-c", script}, Detach: true, TTY: tty}); err != nil {
				t.Errorf("left at once, terminal %v: %v", tty, err)
			}
		}
	}
	r.reopen(t)
	// It is remembered by a shim that gives its place to another program.
	if out, err := exec.Command(host.Native.Binary(), "-namespace", r.Namespace, "-id", string(c.ID), "upgrade", r.State()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.sh(t, c, "touch /go")
	eventually(t, patience, func() string {
		if got := r.sh(t, c, "cat /ended 2>/dev/null || true"); strings.Count(got, "x") != 6 {
			return "ended: " + got
		}
		return ""
	})
	eventually(t, patience, func() string {
		if now := files(); now > before {
			return fmt.Sprintf("the shim has %d open files, and had %d", now, before)
		}
		return ""
	})
}

// (S56) The streams belong to the user of the process.
func TestRuntimeExecUser(t *testing.T) {
	r := withService(t)
	ref := string(r.start(t, shell(r.pod(t, hostPod(t)), "main", idle)).ID)
	var out, errs bytes.Buffer
	code, err := r.Exec(ctx(t), ref, berth.ExecRequest{
		Command: []string{"sh", "-c", "cat </dev/stdin; cat </proc/self/fd/0; echo out >/dev/stdout; echo err >/dev/stderr"},
		User:    "1000", Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &errs,
	})
	if err != nil || code != 0 || out.String() != "in\nout\n" || errs.String() != "err\n" {
		t.Errorf("code %d, %v, %q, %q", code, err, out.String(), errs.String())
	}
}

// (P54, S63) A stop ends the execs before it returns, and no other begins meanwhile.
func TestRuntimeStopExecs(t *testing.T) {
	r := withService(t)
	ref := string(r.start(t, shell(r.pod(t, hostPod(t)), "main", stubborn)).ID)
	in, open := io.Pipe()
	defer open.Close()
	begun := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		code, err := r.Exec(ctx(t), ref, berth.ExecRequest{
			Command: []string{"sh", "-c", "trap '' TERM INT; echo; cat"}, Stdin: in, Stdout: closer(begun),
		})
		if err == nil && code != 137 {
			err = errors.New("it was not killed")
		}
		done <- err
	}()
	<-begun
	if err := r.StopContainer(ctx(t), ref, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("the exec goes on")
	}
	if _, err := r.ExecSync(ctx(t), ref, []string{"true"}, 0); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("afterwards: %v", err)
	}
	if _, err := r.Exec(ctx(t), ref, berth.ExecRequest{Command: []string{"true"}}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("afterwards: %v", err)
	}
}

// closer is a writer that is told of the first output.
type closer chan<- struct{}

func (c closer) Write(p []byte) (int, error) {
	if len(p) > 0 {
		close(c)
	}
	return len(p), nil
}

// (S50) Without a terminal the end of a client's input is the client's end alone.
func TestRuntimeAttachInputEnds(t *testing.T) {
	r := withService(t)
	q := shell(r.pod(t, hostPod(t)), "main", "echo ready; while read line; do echo got $line; done; exit 5")
	q.Stdin = true
	c := r.start(t, q)
	for _, line := range []string{"one", "two"} {
		took(t, "an attach whose input ends", 5*time.Second, func() {
			var out bytes.Buffer
			if err := r.Attach(ctx(t), string(c.ID), berth.AttachRequest{Stdin: strings.NewReader(line + "\n"), Stdout: &out}); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, patience, func() string {
		if b, _ := os.ReadFile(c.LogPath); !strings.Contains(string(b), "got one\n") || !strings.Contains(string(b), "got two\n") {
			return "log: " + string(b)
		}
		return ""
	})
	if got := r.state(t, string(c.ID)); got != berth.ContainerRunning {
		t.Errorf("afterwards it is %s", got)
	}
}

// (S60) A caller who leaves does not end the stop.
func TestRuntimeStopLeft(t *testing.T) {
	r := withService(t)
	ref := string(r.start(t, shell(r.pod(t, hostPod(t)), "main", stubborn)).ID)
	took(t, "stopping, for a caller who leaves", time.Second, func() {
		short, cancel := context.WithTimeout(ctx(t), 100*time.Millisecond)
		defer cancel()
		if err := r.StopContainer(short, ref, 2*time.Second); !errdefs.IsDeadlineExceeded(err) {
			t.Error(err)
		}
	})
	eventually(t, patience, func() string {
		if got := r.state(t, ref); got != berth.ContainerExited {
			return "it is " + string(got)
		}
		return ""
	})
}
