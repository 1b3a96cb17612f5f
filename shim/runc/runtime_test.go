// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/programs"
	"github.com/berthd/berth/shim/cgroup"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/process"
)

// TestCrun must come first: the tests below make this process the reaper of all
// its children, with which os/exec cannot live.
func TestCrun(t *testing.T) { again(t, "TestWithCrun") }

func TestWithCrun(t *testing.T) {
	if os.Getenv(noUnified) == "" {
		return // run by TestCrun
	}
	t.Run("life", func(t *testing.T) { lifeCycle(t, "crun") })
	t.Run("killed", func(t *testing.T) { killedBeforeStart(t, "crun") })
	t.Run("errors", func(t *testing.T) { refusals(t, "crun") })
	t.Run("terminal", func(t *testing.T) { terminal(t, "crun") })
}

func TestRunc(t *testing.T) {
	t.Run("life", func(t *testing.T) { lifeCycle(t, "runc") })
	t.Run("killed", func(t *testing.T) { killedBeforeStart(t, "runc") })
	t.Run("errors", func(t *testing.T) { refusals(t, "runc") })
	t.Run("terminal", func(t *testing.T) { terminal(t, "runc") })
	t.Run("features", func(t *testing.T) {
		b, err := newRuntime(t, "runc", "/").Features()
		if err != nil || !json.Valid(b) || !bytes.Contains(b, []byte("mountOptions")) {
			t.Errorf("%v: %.200s", err, b)
		}
	})
}

func newRuntime(t *testing.T, name, bundle string) *Runtime {
	t.Helper()
	l := runningLoop(t)
	return &Runtime{
		Loop: l, Children: children, Path: deps(t, name), Root: filepath.Join(t.TempDir(), "root"), Bundle: bundle,
		Env: []string{"PATH=" + os.Getenv("PATH")},
	}
}

// container is one that a test has created.
type container struct {
	*Runtime
	id    string
	pid   int
	group *cgroup.Group
	exit  chan process.Exit
}

func create(t *testing.T, runtime, script string) *container {
	t.Helper()
	c := &container{Runtime: newRuntime(t, runtime, busyboxBundle(t, script, false)), id: "c", exit: make(chan process.Exit, 1)}
	err := c.Create(&Creation{ID: c.id, PidFile: "init.pid", Files: null, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	c.adopt(t)
	t.Cleanup(func() { _ = c.Delete(c.id, true) })
	return c
}

// null is what a process without streams gets.
var null = [3]int{-1, -1, -1}

// hasNull checks that a process has no other streams: nothing that it writes may stay
// anywhere.
func hasNull(t *testing.T, pid int) {
	t.Helper()
	for fd := range null {
		path := "/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(fd)
		if at, err := os.Readlink(path); err != nil || !strings.HasSuffix(at, "/null") {
			t.Errorf("descriptor %d of process %d is %q, %v, want the null device", fd, pid, at, err)
		}
	}
}

func readPid(t *testing.T, file string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func (c *container) adopt(t *testing.T) {
	t.Helper()
	var err error
	c.pid = readPid(t, filepath.Join(c.Bundle, "init.pid"))
	onLoop(c.Loop, func() { children.Adopt(c.pid, func(e process.Exit) { c.exit <- e }) })
	if c.group, err = cgroup.Of(c.pid); err != nil {
		t.Fatal(err)
	}
}

func (c *container) wait(t *testing.T) process.Exit {
	t.Helper()
	select {
	case e := <-c.exit:
		return e
	case <-time.After(time.Minute):
		t.Fatal("init does not end")
		return process.Exit{}
	}
}

// lifeCycle takes the two ways around the runtime.
func lifeCycle(t *testing.T, runtime string) {
	c := create(t, runtime, "exit 7")
	if !c.Exists(c.id) {
		t.Error("no state after create")
	}
	hasNull(t, c.pid)
	if err := c.StartFifo(c.id, c.pid, time.Minute); err != nil {
		t.Fatal(err)
	}
	if got := c.wait(t).Code; got != 7 {
		t.Errorf("exit code %d, want 7", got)
	}
	if err := c.StartFifo(c.id, c.pid, time.Minute); err != ErrUnknownState {
		t.Errorf("second start: %v, want ErrUnknownState", err)
	}
	if err := c.group.Remove(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing to do
		if err := c.DeleteState(c.id); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Delete(c.id, false); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("runtime's delete after ours: %v, want NotFound", err)
	}
}

func killedBeforeStart(t *testing.T, runtime string) {
	c := create(t, runtime, "exit 7")
	if err := unix.Kill(c.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.wait(t)
	if err := c.StartFifo(c.id, c.pid, time.Minute); fault.CodeOf(err) != fault.FailedPrecondition || err == ErrUnknownState {
		t.Errorf("start of a killed init: %v, want FailedPrecondition", err)
	}
	if err := c.Delete(c.id, false); err != nil {
		t.Error(err)
	}
}

// refusals are calls that the runtime itself must refuse, with the class that
// callers rely on.
func refusals(t *testing.T, runtime string) {
	c := create(t, runtime, "exec sleep 1000")
	check := func(what string, err error, want fault.Code) {
		t.Helper()
		if fault.CodeOf(err) != want {
			t.Errorf("%s: %v, want class %d", what, err, want)
		}
	}
	check("delete of what is not there", c.Delete("nosuch", false), fault.NotFound)
	check("start of what is not there", c.Start("nosuch"), fault.NotFound)
	check("second create", c.Create(&Creation{ID: c.id, PidFile: "other.pid", Files: null, Timeout: time.Minute}), fault.AlreadyExists)
	check("start", c.Start(c.id), fault.OK)
	check("second start", c.Start(c.id), fault.FailedPrecondition)
	check("delete while running", c.Delete(c.id, false), fault.FailedPrecondition)

	process := filepath.Join(c.Bundle, "p.json")
	if err := os.WriteFile(process, []byte(`{"args":["nosuch"],"cwd":"/","env":["PATH=/bin"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	err := c.Exec(&Execution{ID: c.id, ProcessFile: process, PidFile: "e.pid", Files: null, Timeout: time.Minute})
	check("exec of what is not there", err, fault.Unknown)
	if err == nil || !strings.Contains(err.Error(), "nosuch") || !strings.Contains(err.Error(), "not found") {
		t.Errorf("error does not say what was not found: %v", err)
	}

	if err := os.WriteFile(process, []byte(`{"args":["busybox", "sleep", "1000"],"cwd":"/","env":["PATH=/bin"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	check("exec", c.Exec(&Execution{ID: c.id, ProcessFile: process, PidFile: "e.pid", Files: null, Timeout: time.Minute}), fault.OK)
	hasNull(t, readPid(t, filepath.Join(c.Bundle, "e.pid")))

	check("pause", c.Pause(c.id), fault.OK)
	check("resume", c.Resume(c.id), fault.OK)
	check("kill", c.Kill(c.id, "KILL", false), fault.OK)
	c.wait(t)
	check("second kill", c.Kill(c.id, "KILL", false), fault.NotFound)
	check("delete", c.Delete(c.id, false), fault.OK)
}

func terminal(t *testing.T, runtime string) {
	r := newRuntime(t, runtime, busyboxBundle(t, "echo hello", true))
	c := &container{Runtime: r, id: "c", exit: make(chan process.Exit, 1)}
	console, err := ListenConsole(filepath.Join(r.Bundle, "pty.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	err = r.Create(&Creation{ID: c.id, PidFile: "init.pid", ConsoleSocket: "pty.sock", Files: null, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Delete(c.id, true) })
	c.adopt(t)
	master, err := console.Receive(r.Loop, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(master)
	if err := r.StartFifo(c.id, c.pid, time.Minute); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for !bytes.Contains(got, []byte("hello\r\n")) {
		if err := r.Loop.Await(master, unix.EPOLLIN, time.Minute); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := unix.Read(master, b)
		if err != nil {
			t.Fatalf("%v after %q", err, got)
		}
		got = append(got, b[:n]...)
	}
	c.wait(t)
}

// script is a runtime that fails in a way that no real one can be made to.
func script(t *testing.T, text string) *Runtime {
	t.Helper()
	r := newRuntime(t, "runc", t.TempDir())
	r.Path = programs.Write(t, filepath.Join(t.TempDir(), "runtime"), "#!/bin/sh\n"+text)
	return r
}

func TestHangingRuntime(t *testing.T) {
	r := script(t, "sleep 1000 & echo $! >child; wait\n")
	start := time.Now()
	err := r.Create(&Creation{ID: "c", Files: null, Timeout: 300 * time.Millisecond})
	if fault.CodeOf(err) != fault.DeadlineExceeded || err.Error() != "OCI runtime create timed out after 300ms" {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("took %s", d)
	}
	b, err := os.ReadFile(filepath.Join(r.Bundle, "child"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); unix.Kill(pid, 0) == nil; {
		if time.Now().After(deadline) {
			t.Fatalf("child %d of the runtime lives", pid)
		}
	}
}

func TestFailingRuntime(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want string
	}{
		"silent":    {"exit 3", "OCI runtime start failed: exit status 3"},
		"stderr":    {"echo oh no >&2; exit 1", "OCI runtime start failed: oh no"},
		"log":       {`echo '{"level":"error","msg":"in the log"}' >"$4"; exit 1`, "OCI runtime start failed: in the log"},
		"by signal": {"kill -9 $$", "OCI runtime start failed: exit status 137"},
	} {
		if got := script(t, tc.text).Start("c"); got == nil || got.Error() != tc.want {
			t.Errorf("%s: got %v, want %s", name, got, tc.want)
		}
	}
}

func TestMissingRuntime(t *testing.T) {
	r := newRuntime(t, "runc", t.TempDir())
	r.Path = "/nonexistent/runc"
	err := r.Start("c")
	if fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "/nonexistent/runc") {
		t.Errorf("got %v", err)
	}
}

func TestUnknownState(t *testing.T) {
	for name, files := range map[string][]string{
		"empty":          {},
		"nothing known":  {"exec.fifo"},
		"more than that": {"state.json", "exec.fifo", "somebody-elses"},
	} {
		r := newRuntime(t, "runc", t.TempDir())
		dir := filepath.Join(r.Root, "c")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.DeleteState("c"); err != ErrUnknownState {
			t.Errorf("%s: got %v, want ErrUnknownState", name, err)
		}
		if left, _ := os.ReadDir(dir); len(left) != len(files) {
			t.Errorf("%s: %d files are left of %d", name, len(left), len(files))
		}
	}
}

func TestRestoreWithoutImage(t *testing.T) {
	r := script(t, "touch called")
	err := r.Restore(&Restoration{Criu: Criu{ID: "c", ImagePath: t.TempDir(), Timeout: time.Minute}, Files: null})
	if fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), "inventory.img") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(r.Bundle, "called")); err == nil {
		t.Error("the runtime was called")
	}
}

func TestCheckpointError(t *testing.T) {
	r := script(t, "echo criu failed >&2; exit 1")
	images := t.TempDir()
	log := "1\n2\n3\n4\n5\nError (criu/x.c:1): why\nDumping FAILED.\n"
	if err := os.WriteFile(filepath.Join(images, "dump.log"), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	err := r.Checkpoint(&Checkpoint{Criu: Criu{ID: "c", ImagePath: images, Timeout: time.Minute}})
	want := "OCI runtime checkpoint failed: criu failed (dump.log: 3; 4; 5; Error (criu/x.c:1): why; Dumping FAILED.)"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
