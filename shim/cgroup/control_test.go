// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// All processes of the cgroup and of one below it are listed, frozen and killed.
func TestPidsFreezeKill(t *testing.T) {
	c := start(t, "fork", nil)
	g, err := Of(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	c.begin(t)
	c.line(t)
	pids, err := g.Pids(nil)
	if err != nil || len(pids) != 4 || !slices.Contains(pids, c.Process.Pid) {
		t.Fatalf("pids %v of %d and three children, %v", pids, c.Process.Pid, err)
	}
	// A container that makes cgroups of its own.
	for _, dir := range c.dirs {
		nested := filepath.Join(dir, "nested")
		if err := os.Mkdir(nested, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { removeWithin(t, nested) })
	}
	nested := filepath.Join(g.own(), "nested")
	put(t, nested, "cgroup.procs", strconv.Itoa(pids[3]))
	if again, err := g.Pids(nil); err != nil || len(again) != 4 {
		t.Errorf("pids with a nested cgroup: %v, %v", again, err)
	}
	if err := g.Remove(); !errors.Is(err, unix.EBUSY) || fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("Remove of a living cgroup: %v", err)
	}

	if err := g.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := g.Freeze(); err != nil {
		t.Error("second Freeze:", err)
	}
	c.begin(t)
	if err := c.out.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.out.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a frozen process answers: %d bytes, %v", n, err)
	}
	if err := c.out.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := g.Thaw(); err != nil {
		t.Fatal(err)
	}
	if got := c.line(t); got != "awake" {
		t.Errorf("thawed process says %q", got)
	}

	if err := g.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	if state, err := c.Process.Wait(); err != nil || state.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("ended with %v, %v", state, err)
	}
	within(t, "all gone", func() bool { return g.Remove() == nil })
}

func TestRemoveIsRecursive(t *testing.T) {
	c := start(t, "idle", nil)
	g, err := Of(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	c.end()
	for _, dir := range c.dirs {
		if err := os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	within(t, "removal", func() bool { return g.Remove() == nil })
	for _, dir := range c.dirs {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is still there", dir)
		}
	}
}
