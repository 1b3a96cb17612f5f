// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/plugin/labels"
)

func TestLifecycle(t *testing.T) {
	r := newRig(t)
	x, record := r.container(t, options{args: sh("exit 7")})
	if err := x.Create(r.ctx, CreateRequest{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no record: %v", err)
	}
	if err := x.Create(r.ctx, creation(record)); err != nil {
		t.Fatal(err)
	}
	s := x.StateNoLock()
	if s.Status != Created || s.InitPid == 0 || s.InitStartTime == "" || s.Bundle != r.Bundle(x.ID) {
		t.Errorf("created: %+v", s)
	}
	if err := x.Create(r.ctx, creation(record)); !errdefs.IsAlreadyExists(err) {
		t.Errorf("created twice: %v", err)
	}
	if err := x.Living(); err != nil {
		t.Errorf("the failed creation took it away: %v", err)
	}
	if err := x.Start(r.ctx); err != nil {
		t.Fatal(err)
	}
	s, err := x.Wait(r.ctx)
	if err != nil || s.Status != Stopped || code(s) != 7 || s.Started.IsZero() || s.Finished.Before(s.Started.Add(-time.Second)) || s.Reason() != "Error" {
		t.Errorf("ended: %+v, %v", s, err)
	}
	if err := x.Start(r.ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("started again: %v", err)
	}
	for range 2 {
		if err := x.Delete(r.ctx); err != nil {
			t.Error(err)
		}
	}
	again, err := New(r.Client().TaskService()).Load(r.ctx, x.Config)
	if err != nil {
		t.Fatal(err)
	}
	if s := again.StateNoLock(); s.Status != Stopped || code(s) != 7 || !s.Finished.Equal(x.StateNoLock().Finished) {
		t.Errorf("read back: %+v", s)
	}
}

func TestDeleteRefusesLiving(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{})
	if err := x.Delete(r.ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("running: %v", err)
	}
	if err := x.Pause(r.ctx); err != nil {
		t.Fatal(err)
	}
	if err := x.Delete(r.ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("paused: %v", err)
	}
	if err := x.Resume(r.ctx); err != nil {
		t.Fatal(err)
	}
	if err := x.Resume(r.ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resumed twice: %v", err)
	}
	if err := x.Signal(r.ctx, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s, err := x.Wait(r.ctx); err != nil || code(s) != 137 { // S64
		t.Errorf("got %+v, %v", s, err)
	}
	if err := x.Signal(r.ctx, unix.SIGKILL); !errors.Is(err, ErrNotFound) {
		t.Errorf("signal what has ended: %v", err)
	}
}

// One that was never started is stopped at once, and can be deleted.
func TestStopCreated(t *testing.T) {
	r := newRig(t)
	for _, stop := range []bool{true, false} {
		x, record := r.container(t, options{})
		if err := x.Create(r.ctx, creation(record)); err != nil {
			t.Fatal(err)
		}
		if stop {
			took(t, 0, func() {
				if err := x.Stop(r.ctx, time.Minute); err != nil {
					t.Error(err)
				}
			})
		}
		if err := x.Delete(r.ctx); err != nil {
			t.Error(err)
		}
		if s := x.StateNoLock(); s.Status != Stopped || code(s) == 0 {
			t.Errorf("got %+v", s)
		}
	}
}

func TestCreateFails(t *testing.T) {
	r := newRig(t)
	log := filepath.Join(t.TempDir(), "log")
	x, record := r.container(t, options{args: []string{"/no/such/program"}, stdio: Stdio{Stdout: "cri://" + log}, settings: labels.Settings{LogPath: log}})
	err := x.Create(r.ctx, creation(record))
	if err == nil || !strings.Contains(err.Error(), "container create failed") || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log: %v", err)
	}
	if _, err := os.Stat(x.StatePath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state: %v", err)
	}
	if _, err := record.Task(r.ctx, nil); !errdefs.IsNotFound(err) {
		t.Errorf("the task: %v", err)
	}
	for asked, want := range map[time.Duration]time.Duration{0: DefaultCreateTimeout, time.Second: MinCreateTimeout, time.Hour: time.Hour} {
		if got := (&CreateRequest{Timeout: asked}).timeout(); got != want {
			t.Errorf("timeout %v: got %v", asked, got)
		}
	}
}

// What a killed program of ours has left is read back, and what containerd says is
// believed.
func TestLoad(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{})
	other := New(r.Client().TaskService())
	defer other.Close()
	load := func() (*Container, error) { return other.Load(r.ctx, x.Config) }
	again, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := again.StateNoLock(), x.StateNoLock(); got.Status != Running || got.Init() != want.Init() || got.Bundle != want.Bundle {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// Somebody else has paused it.
	if err := x.resume(r.ctx); err == nil {
		t.Error("resumed")
	}
	if err := x.Pause(r.ctx); err != nil {
		t.Fatal(err)
	}
	if again, err = load(); err != nil || again.StateNoLock().Status != Paused {
		t.Errorf("got %v, %v", again, err)
	}
	if err := again.Stop(r.ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := x.Refresh(r.ctx); err != nil || code(x.StateNoLock()) != 137 {
		t.Errorf("got %+v, %v", x.StateNoLock(), err)
	}
	if err := os.Remove(x.StatePath()); err != nil {
		t.Fatal(err)
	}
	if _, err := load(); !errdefs.IsNotFound(err) { // damaged
		t.Errorf("without a state: %v", err)
	}
}

// S66: gone without a trace, and S64: never 0.
func TestShimKilled(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{})
	shim, err := x.ShimPid()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(shim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string { // containerd cleans up
		if x.Living() != nil {
			return ""
		}
		return "it lives"
	})
	begun := time.Now()
	if err := x.Refresh(r.ctx); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begun); d > 7*time.Second {
		t.Errorf("took %v", d)
	}
	if s := x.StateNoLock(); s.Status != Stopped || s.Code() != UnknownExit && s.Code() != 137 || s.Finished.IsZero() {
		t.Errorf("got %+v", s)
	}
}

// An exit file that comes late is waited for.
func TestExitFile(t *testing.T) {
	c := object(t, labels.Metadata{})
	dir := t.TempDir()
	c.change(func(s *State) { s.Bundle = dir })
	time.AfterFunc(200*time.Millisecond, func() {
		if err := os.WriteFile(filepath.Join(dir, ".exit"), []byte("9"), 0o600); err == nil {
			_ = os.Rename(filepath.Join(dir, ".exit"), filepath.Join(dir, "exit"))
		}
	})
	if code, at, ok := c.readExit(t.Context()); !ok || code != 9 || time.Since(at) > time.Minute {
		t.Errorf("got %d, %v, %v", code, at, ok)
	}
	if err := os.WriteFile(filepath.Join(dir, "exit"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	took(t, 4965*time.Millisecond, func() {
		if code, _, ok := c.readExit(t.Context()); ok {
			t.Errorf("got %d", code)
		}
	})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	took(t, 0, func() { c.readExit(t.Context()) })
}

// S67.
func TestOutOfMemory(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{
		args: sh("tail /dev/zero"),
		spec: []oci.SpecOpts{oci.WithMemoryLimit(20 << 20), oci.WithMemorySwap(20 << 20)},
	})
	s, err := x.Wait(r.ctx)
	if err != nil || !s.OOMKilled || s.Reason() != "OOMKilled" || code(s) != 137 {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestUpdateAndStats(t *testing.T) {
	r := newRig(t)
	x := r.run(t, options{args: sh("dd if=/dev/zero of=/dev/shm/x bs=1M count=10 2>/dev/null; sleep 600"), spec: []oci.SpecOpts{oci.WithMemoryLimit(64 << 20), oci.WithCPUShares(500)}})
	var used uint64
	eventually(t, func() string {
		s, err := x.Stats(r.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if used = s.Memory.Usage; used < 10<<20 || s.Memory.Limit != 64<<20 || s.CPU.Usage == 0 || s.Pids.Current == 0 || s.Memory.WorkingSet == 0 {
			return "use is not seen"
		}
		return ""
	})
	limits := func(n int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &n}}
	}
	if err := x.Update(r.ctx, limits(int64(used)-1<<20)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("below usage: %v", err)
	}
	if err := x.Update(r.ctx, limits(-1)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("negative: %v", err)
	}
	if got := *x.Resources().Memory.Limit; got != 64<<20 {
		t.Errorf("the limit is %d after failures", got)
	}
	shares := uint64(700)
	change := limits(32 << 20)
	change.CPU = &specs.LinuxCPU{Shares: &shares}
	if err := x.Update(r.ctx, change); err != nil {
		t.Fatal(err)
	}
	s, err := x.Stats(r.ctx)
	if err != nil || s.Memory.Limit != 32<<20 {
		t.Errorf("got %+v, %v", s, err)
	}
	if now := x.Resources(); *now.Memory.Limit != 32<<20 || *now.CPU.Shares != 700 {
		t.Errorf("got %+v", now)
	}
	if err := x.Update(r.ctx, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}); err != nil {
		t.Error(err)
	}
	all, err := r.s.Stats(r.ctx, x.ID, "nobody")
	if err != nil || len(all) != 1 || all[x.ID] == nil {
		t.Errorf("got %v, %v", all, err)
	}
	if err := x.Stop(r.ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := x.Update(r.ctx, limits(64<<20)); !errors.Is(err, ErrContainerStopped) {
		t.Errorf("stopped: %v", err)
	}
	if err := x.Delete(r.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Stats(r.ctx); !errdefs.IsNotFound(err) {
		t.Errorf("without a cgroup: %v", err)
	}
}

func TestReopenLog(t *testing.T) {
	r := newRig(t)
	log := filepath.Join(t.TempDir(), "log")
	x := r.run(t, options{args: sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"), stdio: Stdio{Stdout: "cri://" + log, Stderr: "cri://" + log}})
	ready(t, log, "F 5\n")
	if err := os.Rename(log, log+".old"); err != nil {
		t.Fatal(err)
	}
	if err := x.ReopenLog(r.ctx); err != nil {
		t.Fatal(err)
	}
	ready(t, log, "F ")
	if err := x.Stop(r.ctx, 0); err != nil {
		t.Fatal(err)
	}
	ready(t, filepath.Join(x.StateNoLock().Bundle, "exit"), "137") // complete
	var whole strings.Builder
	for _, path := range []string{log + ".old", log} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		whole.Write(b)
	}
	for i, line := range strings.Split(strings.TrimSpace(whole.String()), "\n") {
		if !strings.HasSuffix(line, " F "+strconv.Itoa(i+1)) {
			t.Fatalf("line %d: %q", i+1, line)
		}
	}
}

// containerd is killed while a command is executed and comes back; and a container
// is stopped while it is away.
func TestContainerdAway(t *testing.T) {
	d := host.Run(t, host.Options{})
	r := rigOn(t, d)
	x := r.run(t, options{})
	own, err := client.New(d.Socket) // the daemon's ends with it
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	s := New(own.TaskService())
	defer s.Close()
	y, err := s.Load(r.ctx, x.Config)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	var res *ExecSyncResult
	go func() {
		var err error
		res, err = y.ExecSync(r.ctx, ExecSyncRequest{Command: Command{Args: sh("sleep 1; echo x; exit 3")}})
		done <- err
	}()
	eventually(t, func() string {
		y.execs.mu.Lock()
		defer y.execs.mu.Unlock()
		if len(y.execs.pids) == 1 {
			return ""
		}
		return "no exec"
	})
	if err := errors.Join(d.Kill(), d.Start()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || string(res.Stdout) != "x\n" || res.ExitCode != 3 {
		t.Errorf("got %+v, %v", res, err)
	}
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := y.Refresh(r.ctx); err == nil {
		t.Error("the status of a living container is known without containerd")
	}
	ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
	defer cancel()
	if err := y.Stop(ctx, 100*time.Millisecond); err != nil {
		t.Error(err)
	}
	if s := y.StateNoLock(); s.Status != Stopped || code(s) != 137 { // from the exit file
		t.Errorf("got %+v", s)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	r.s.tasks = d.Client().TaskService() // for the cleanup
	if err := x.Refresh(r.ctx); err != nil || code(x.StateNoLock()) != 137 {
		t.Errorf("got %+v, %v", x.StateNoLock(), err)
	}
}
