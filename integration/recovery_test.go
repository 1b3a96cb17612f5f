// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
)

// task creates a container through containerd's client, and its task. The test
// need not clean up.
func (e *env) task(t *testing.T, id string, io cio.Creator, opts ...oci.SpecOpts) client.Task {
	t.Helper()
	ctx := e.ctx(t)
	image, err := e.Client().GetImage(ctx, host.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	all := append([]oci.SpecOpts{oci.WithImageConfig(image), oci.WithProcessArgs("sleep", "1000")}, opts...)
	c, err := e.Client().NewContainer(ctx, id, client.WithNewSnapshot(id, image), client.WithNewSpec(all...), client.WithRuntime(e.rt.Name, nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.remove(t, id) })
	var taskOpts []client.NewTaskOpts
	if e.rt.Path != "" {
		taskOpts = append(taskOpts, client.WithRuntimePath(e.rt.Path))
	}
	task, err := c.NewTask(ctx, io, taskOpts...)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// remove kills and deletes a container through the daemon's current client.
func (e *env) remove(t *testing.T, id string) {
	ctx, cancel := context.WithTimeout(e.Context(context.Background()), patience)
	defer cancel()
	c, err := e.Client().LoadContainer(ctx, id)
	if err != nil {
		return
	}
	if task, err := c.Task(ctx, nil); err == nil {
		_, _ = task.Delete(ctx, client.WithProcessKill)
	}
	if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		t.Errorf("delete container: %v", err)
	}
}

// load returns a task through the daemon's current client.
func (e *env) load(t *testing.T, id string) client.Task {
	t.Helper()
	c, err := e.Client().LoadContainer(e.ctx(t), id)
	if err != nil {
		t.Fatal(err)
	}
	task, err := c.Task(e.ctx(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// 77: containerd is killed and comes back. (Fifty containers, ten with -short.)
func TestContainerdRestart(t *testing.T) {
	count := 50
	if testing.Short() {
		count = 10
	}
	t.Parallel()
	ownDaemon(t, host.Options{}, func(t *testing.T, e *env) {
		dir := t.TempDir()
		pids := make([]uint32, count)
		for i := range count {
			log := cio.LogFile(filepath.Join(dir, strconv.Itoa(i)))
			task := e.task(t, fmt.Sprint("c", i), log, sh("while :; do date; sleep 1; done"))
			if err := task.Start(e.ctx(t)); err != nil {
				t.Fatal(err)
			}
			pids[i] = task.Pid()
		}
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := e.Start(); err != nil {
			t.Fatal(err)
		}
		r := e.record(t)
		for i, pid := range pids {
			task := e.load(t, fmt.Sprint("c", i))
			st, err := task.Status(e.ctx(t))
			if err != nil || st.Status != client.Running || task.Pid() != pid {
				t.Errorf("%d: %v, %v, pid %d, want %d", i, st, err, task.Pid(), pid)
			}
		}
		task := e.load(t, "c0")
		var out bytes.Buffer
		spec, err := task.Spec(e.ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		spec.Process.Args = []string{"echo", "hello"}
		p, err := task.Exec(e.ctx(t), "x", spec.Process, cio.NewCreator(cio.WithStreams(nil, &out, nil), cio.WithFIFODir(e.Dir+"/fifo")))
		if err != nil {
			t.Fatal(err)
		}
		exit, err := p.Wait(e.ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Start(e.ctx(t)); err != nil {
			t.Fatal(err)
		}
		if s := <-exit; s.ExitCode() != 0 {
			t.Errorf("exec: %v", s)
		}
		if _, err := p.Delete(e.ctx(t)); err != nil || out.String() != "hello\n" {
			t.Errorf("exec: %q, %v", out.String(), err)
		}
		before, _ := os.Stat(dir + "/0")
		eventually(t, patience, func() string {
			if now, err := os.Stat(dir + "/0"); err != nil || now.Size() <= before.Size() {
				return "the log does not grow"
			}
			return ""
		})
		for i := range count {
			if got := r.names(fmt.Sprint("c", i)); slices.Contains(got, "exit") {
				t.Errorf("c%d: events %q", i, got)
			}
		}
	})
}

// 29: the shim is killed; containerd cleans up.
func TestTaskOfKilledShim(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		r := e.record(t)
		name := id(t)
		task := e.task(t, name, cio.NullIO, sh("sleep 1000 & sleep 1000"))
		if err := task.Start(e.ctx(t)); err != nil {
			t.Fatal(err)
		}
		exit, err := task.Wait(e.ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		shim := parentOf(t, int(task.Pid()))
		if err := unix.Kill(shim, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-exit
		eventually(t, patience, func() string {
			if unix.Kill(int(task.Pid()), 0) == nil {
				return "init lives"
			}
			return ""
		})
		eventually(t, patience, func() string {
			if got := r.names(name); !slices.Contains(got, "exit") {
				return fmt.Sprint(got)
			}
			return ""
		})
	})
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return ppid
}

// 78: `delete` must not kill a process that merely has the recorded pid.
func TestDeleteSparesForeignProcess(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t)
		pid := s.run(t, stdio{})
		// The shim's own record, with this process's pid and a start time that
		// is not its.
		path := s.bundle + "/shim.pid"
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, fmt.Appendf(nil, "%d 1", os.Getpid()), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, err := e.deleteVerb(t, s.id, s.bundle, s.bundle); err != nil {
			t.Error(err)
		}
		// This process lives, or nobody would say so.
		eventually(t, patience, func() string {
			if unix.Kill(pid, 0) == nil {
				return "init lives"
			}
			return ""
		})
	})
}

// 80, in short: memory and threads do not grow under polls.
func TestPollsAreFlat(t *testing.T) {
	polls := 8000
	if testing.Short() {
		polls = 4000
	}
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t)
		s.run(t, stdio{})
		poll := func(n int) {
			ctx := e.ctx(t)
			for range n {
				if _, err := s.Stats(ctx, &taskapi.StatsRequest{ID: s.id}); err != nil {
					t.Fatal(err)
				}
				if _, err := s.State(ctx, &taskapi.StateRequest{ID: s.id}); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Connect(ctx, &taskapi.ConnectRequest{ID: s.id}); err != nil {
					t.Fatal(err)
				}
			}
		}
		poll(1000)
		memory, threads := footprint(t, s.pid)
		poll(polls)
		memory2, threads2 := footprint(t, s.pid)
		// Slack for a thread or a span that the Go runtime starts once. The least
		// allocation, 16 bytes in each of 24000 calls, would be 375 KiB.
		if memory2 > memory+256 || threads2 > threads+1 {
			t.Errorf("private dirty %d -> %d KiB, threads %d -> %d", memory, memory2, threads, threads2)
		}
		t.Logf("private dirty %d -> %d KiB, threads %d -> %d", memory, memory2, threads, threads2)
	})
}

// footprint returns a process's private dirty memory in KiB and its threads.
func footprint(t *testing.T, pid int) (memory, threads int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for text := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(text, "Private_Dirty:"); ok {
			if _, err := fmt.Sscan(rest, &memory); err != nil {
				t.Fatal(err)
			}
		}
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	return memory, len(tasks)
}
