// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/timestamppb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/process/identity"
)

// object is a container that no containerd is needed for.
func object(t *testing.T, m labels.Metadata) *Container {
	t.Helper()
	s := New(nil)
	t.Cleanup(s.Close)
	c, err := s.Container(Config{ID: "c", Dir: t.TempDir(), Metadata: m})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// P47.
func TestSetInitPid(t *testing.T) {
	var s State
	if err := s.SetInitPid(1 << 30); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such process: %v", err)
	}
	if err := s.SetInitPid(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	first := s
	if err := s.SetInitPid(os.Getppid()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("again: %v", err)
	}
	if diff := cmp.Diff(first, s); diff != "" {
		t.Errorf("changed:\n%s", diff)
	}
}

// P48.
func TestLiving(t *testing.T) {
	c := object(t, labels.Metadata{})
	if err := c.Living(); !errors.Is(err, ErrNotInitialized) {
		t.Errorf("no process: %v", err)
	}
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.change(func(s *State) {
		if err := s.SetInitPid(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
	})
	if pid, err := c.Pid(); pid != cmd.Process.Pid || err != nil {
		t.Errorf("got %d, %v", pid, err)
	}
	if letter, err := c.ProcessState(); !strings.Contains("RSD", letter) || err != nil {
		t.Errorf("got %q, %v", letter, err)
	}
	_ = cmd.Process.Kill()
	eventually(t, func() string { // a zombie
		if _, err := c.Pid(); errors.Is(err, ErrNotFound) {
			return ""
		}
		return "it lives"
	})
	_ = cmd.Wait()
	if err := c.Living(); !errors.Is(err, ErrNotFound) {
		t.Errorf("ended: %v", err)
	}
}

// P50.
func TestStopSignal(t *testing.T) {
	for text, want := range map[string]syscall.Signal{
		"": 15, "SIGUSR1": 10, "usr1": 10, "10": 10, "NOPE": 15, "sigKILL": 9, "SIGRTMIN+3": 37, "0": 15, "-1": 15, "65": 15, " TERM": 15,
	} {
		c := object(t, labels.Metadata{Settings: labels.Settings{StopSignal: text}})
		if got := c.StopSignal(); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
}

// P51.
func TestShouldBeStopped(t *testing.T) {
	c := object(t, labels.Metadata{})
	for status, want := range map[specs.ContainerState]error{Created: nil, Running: nil, Paused: ErrContainerPaused, Stopped: ErrContainerStopped} {
		c.change(func(s *State) { s.Status = status })
		if err := c.ShouldBeStopped(); !errors.Is(err, want) {
			t.Errorf("%s: got %v", status, err)
		}
	}
}

// P56.
func TestSetStartFailed(t *testing.T) {
	created := time.Unix(1700000000, 0)
	for name, cause := range map[string]error{"cause": errors.New("no such file"), "no cause": nil} {
		t.Run(name, func(t *testing.T) {
			c := object(t, labels.Metadata{CreatedAt: created})
			if err := c.SetStartFailed(t.Context(), cause); err != nil {
				t.Fatal(err)
			}
			s := c.StateNoLock()
			if !s.Started.Equal(created) || !s.Finished.Equal(created) || !s.Created.Equal(created) || (s.Error == "no such file") != (cause != nil) {
				t.Errorf("got %+v", s)
			}
		})
	}
}

// P57.
func TestDisk(t *testing.T) {
	c := object(t, labels.Metadata{CreatedAt: time.Unix(1700000000, 0).UTC()})
	if err := c.FromDisk(); !errdefs.IsNotFound(err) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	limit := int64(1 << 20)
	c.change(func(s *State) {
		s.ended(137, time.Unix(1700000001, 5).UTC())
		s.OOMKilled, s.Bundle, s.Error = true, "/b", "text"
		s.InitPid, s.InitStartTime, s.InitBoot = 7, "8", "9"
		s.CheckpointedAt = time.Unix(1700000002, 0).UTC()
		s.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	})
	if err := c.ToDisk(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := c.StateNoLock()
	again, err := c.s.Container(c.Config)
	if err == nil {
		err = again.FromDisk()
	}
	if diff := cmp.Diff(want, again.StateNoLock()); err != nil || diff != "" {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
	whole, err := os.ReadFile(c.StatePath())
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"half": string(whole[:len(whole)/2]), "empty": "", "another's": strings.Replace(string(whole), `"id": "c"`, `"id": "d"`, 1),
	} {
		if err := os.WriteFile(c.StatePath(), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := again.FromDisk(); !errdefs.IsDataLoss(err) {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, again.StateNoLock()); diff != "" { // not an empty state
			t.Errorf("%s: %s", name, diff)
		}
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		t.Fatal(err)
	}
	if err := c.ToDisk(t.Context()); err == nil {
		t.Error("kept without a directory")
	}
}

// A document from before there were start times.
func TestBackfill(t *testing.T) {
	c := object(t, labels.Metadata{})
	text := `{"id": "c", "status": "running", "pid": ` + strconv.Itoa(os.Getpid()) + `}`
	if err := os.WriteFile(c.StatePath(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.FromDisk(); err != nil {
		t.Fatal(err)
	}
	want, err := identity.Of(os.Getpid())
	if s := c.StateNoLock(); err != nil || s.Init() != want {
		t.Errorf("got %+v, %v", s, err)
	}
	if list, _ := os.ReadDir(c.Dir); len(list) != 1 {
		t.Errorf("left in the directory: %v", list)
	}
}

// A state is not waited for where it must not be, and can be given up elsewhere.
func TestStateDuringOperation(t *testing.T) {
	c := object(t, labels.Metadata{})
	if err := c.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := c.StateNoLock(); s.Status != Created {
		t.Errorf("got %s", s.Status)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.State(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	c.end()
	if _, err := c.State(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestReason(t *testing.T) {
	code := func(n int32) *int32 { return &n }
	for want, s := range map[string]State{
		"":               {State: specs.State{Status: Running}},
		"OOMKilled":      {State: specs.State{Status: Stopped}, OOMKilled: true, SeccompKilled: true, ExitCode: code(137)},
		"seccomp killed": {State: specs.State{Status: Stopped}, SeccompKilled: true, ExitCode: code(0)},
		"Completed":      {State: specs.State{Status: Stopped}, ExitCode: code(0)},
		"Error":          {State: specs.State{Status: Stopped}, ExitCode: code(1)},
		"Unknown":        {State: specs.State{Status: Stopped}},
	} {
		if got := s.Reason(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// P58, P59.
func TestCRI(t *testing.T) {
	m := labels.Metadata{
		Name: "full", MetadataName: "web", Attempt: 2, ImageName: "typed", ImageID: "id", CreatedAt: time.Unix(5, 0),
		Pod:    labels.Pod{ID: "pod", Namespace: "ns", Name: "p"},
		Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"},
	}
	c := object(t, m)
	if got := c.Description(); got != "ns/p/web" {
		t.Errorf("got %s", got)
	}
	want := &cri.Container{
		Id: "c", PodSandboxId: "pod", Metadata: &cri.ContainerMetadata{Name: "web", Attempt: 2},
		Image: &cri.ImageSpec{UserSpecifiedImage: "typed"}, ImageRef: "id", ImageId: "id",
		State: cri.ContainerState_CONTAINER_CREATED, CreatedAt: 5e9, Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"},
	}
	if got := c.CRI(); got.String() != want.String() {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	c.CRI().Labels["a"] = "changed"
	if c.Metadata.Labels["a"] != "b" {
		t.Error("CRI does not copy")
	}
	c.RepoDigest = "repo@sha256:1"
	if got := c.CRI().ImageRef; got != "repo@sha256:1" {
		t.Errorf("got %s", got)
	}
	for status, want := range map[specs.ContainerState]cri.ContainerState{
		Created: cri.ContainerState_CONTAINER_CREATED, Running: cri.ContainerState_CONTAINER_RUNNING, Paused: cri.ContainerState_CONTAINER_RUNNING,
		Stopped: cri.ContainerState_CONTAINER_EXITED, "creating": cri.ContainerState_CONTAINER_UNKNOWN,
	} {
		if got := (State{State: specs.State{Status: status}}).CRI(); got != want {
			t.Errorf("%s: got %v", status, got)
		}
	}
}

// Nothing leads back from the end.
func TestObserve(t *testing.T) {
	c := object(t, labels.Metadata{})
	c.change(func(s *State) {
		if err := s.SetInitPid(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	})
	for status, want := range map[task.Status]specs.ContainerState{
		task.Status_RUNNING: Running, task.Status_PAUSED: Paused, task.Status_PAUSING: Paused, task.Status_CREATED: Created,
	} {
		if c.Observe(&task.Process{Status: status}); c.StateNoLock().Status != want {
			t.Errorf("%s: got %s", status, c.StateNoLock().Status)
		}
	}
	at := time.Unix(1700000000, 0)
	c.Observe(&task.Process{Status: task.Status_STOPPED, ExitStatus: 7, ExitedAt: timestamppb.New(at)})
	c.Observe(&task.Process{Status: task.Status_RUNNING})
	c.Observe(&task.Process{Status: task.Status_STOPPED, ExitStatus: 8, ExitedAt: timestamppb.Now()})
	if s := c.StateNoLock(); s.Status != Stopped || code(s) != 7 || !s.Finished.Equal(at) {
		t.Errorf("got %+v", s)
	}
}

func TestTruncateAndReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if _, err := TruncateAndReadFile(path, 5); !errdefs.IsNotFound(err) {
		t.Errorf("missing: %v", err)
	}
	for content, want := range map[string]string{"": "", "12345": "12345", "1234567": "12345"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := TruncateAndReadFile(path, 5)
		if err != nil || string(got) != want {
			t.Errorf("%q: got %q, %v", content, got, err)
		}
		if left, _ := os.ReadFile(path); string(left) != want {
			t.Errorf("%q: left %q", content, left)
		}
	}
}

// S75: all succeeds, nothing happens.
func TestSpoofed(t *testing.T) {
	created := time.Unix(1700000000, 0)
	c := object(t, labels.Metadata{Kind: labels.KindInfra, CreatedAt: created, Settings: labels.Settings{NoProcess: true}})
	ctx := t.Context()
	if s := c.StateNoLock(); s.Status != Created || !s.Started.Equal(created) {
		t.Errorf("got %+v", s)
	}
	for name, call := range map[string]func() error{
		"create":  func() error { return c.Create(ctx, CreateRequest{}) },
		"start":   func() error { return c.Start(ctx) },
		"pause":   func() error { return c.Pause(ctx) },
		"resume":  func() error { return c.Resume(ctx) },
		"signal":  func() error { return c.Signal(ctx, 15) },
		"refresh": func() error { return c.Refresh(ctx) },
		"update":  func() error { return c.Update(ctx, &specs.LinuxResources{}) },
		"stats":   func() error { _, err := c.Stats(ctx); return err },
		"exec":    func() error { _, err := c.Exec(ctx, ExecRequest{}); return err },
		"sync":    func() error { _, err := c.ExecSync(ctx, ExecSyncRequest{}); return err },
		"attach":  func() error { return c.Attach(ctx, AttachRequest{}) },
		"reopen":  func() error { return c.ReopenLog(ctx) },
		"wait":    func() error { _, err := c.Wait(ctx); return err },
		"delete":  func() error { return c.Delete(ctx) },
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.Stop(ctx, time.Hour); err != nil || c.StateNoLock().Status != Stopped {
		t.Errorf("stop: %v, %s", err, c.StateNoLock().Status)
	}
	again, err := c.s.Load(ctx, c.Config)
	if err != nil || again.StateNoLock().Status != Stopped {
		t.Errorf("loaded: %v", err)
	}
}

func TestConfig(t *testing.T) {
	s := New(nil)
	defer s.Close()
	for name, c := range map[string]Config{"no id": {Dir: "/d"}, "no directory": {ID: "c"}, "relative": {ID: "c", Dir: "d"}} {
		if _, err := s.Container(c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMerge(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	u := func(v uint64) *uint64 { return &v }
	old := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Shares: u(100), Quota: n(5), Cpus: "0"}, Memory: &specs.LinuxMemory{Limit: n(10)}, Unified: map[string]string{"a": "1", "b": "2"},
	}
	before := cmp.Diff(old, nil)
	got := merge(old, &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Shares: u(200), Quota: n(0), Mems: "1"}, Memory: &specs.LinuxMemory{Swap: n(20)}, Unified: map[string]string{"b": "3"},
	})
	want := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Shares: u(200), Quota: n(5), Cpus: "0", Mems: "1"}, Memory: &specs.LinuxMemory{Limit: n(10), Swap: n(20)},
		Unified: map[string]string{"a": "1", "b": "3"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if cmp.Diff(old, nil) != before {
		t.Error("the old ones have changed")
	}
	if got := merge(nil, &specs.LinuxResources{}); got == nil {
		t.Error("nil")
	}
}
