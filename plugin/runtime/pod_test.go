// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/labels"
	berth "github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/process"
)

// (P9, P36, P63, P67, P70)
func TestRuntimePodLife(t *testing.T) {
	r := withService(t)
	q := hostPod(t)
	q.Labels = map[string]string{"app": "web"}
	p := r.pod(t, q)
	if p.State != berth.PodReady || !p.HostNetwork || p.Labels["app"] != "web" || p.Owner != "berth" {
		t.Errorf("created: %+v", p)
	}
	record, err := r.Client().ContainerService().Get(r.Context(ctx(t)), string(p.ID))
	if err != nil {
		t.Fatal(err)
	}
	if record.SandboxID != "" || record.Labels["io.berth.kind"] != "infra" || record.Labels["io.berth.created"] != "true" {
		t.Errorf("infra record: sandbox %q, labels %v", record.SandboxID, record.Labels)
	}
	if _, err := r.Client().SandboxStore().Get(r.Context(ctx(t)), string(p.ID)); err != nil {
		t.Error(err)
	}
	if _, err := r.Client().TaskService().Get(r.Context(ctx(t)), &tasks.GetRequest{ContainerID: string(p.ID)}); err == nil {
		t.Error("the pod has a task")
	}
	for _, ref := range []string{string(p.ID), p.FullName, p.Name, string(p.ID[:12])} {
		if got, err := r.Pod(ctx(t), ref); err != nil || got.ID != p.ID {
			t.Errorf("by %q: %v, %v", ref, got.ID, err)
		}
	}
	for range 2 {
		if err := r.StopPod(ctx(t), p.Name, 0); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := r.Pod(ctx(t), p.Name); err != nil || got.State != berth.PodNotReady {
		t.Errorf("stopped: %v, %v", got.State, err)
	}
	for range 2 {
		if err := r.RemovePod(ctx(t), string(p.ID), berth.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Pod(ctx(t), string(p.ID)); !errdefs.IsNotFound(err) {
		t.Errorf("removed: %v", err)
	}
	if left := r.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(filepath.Join("/run/berth/sandboxes", r.Namespace, string(p.ID))); err == nil {
		t.Error("the pod's directory is left")
	}
}

// A network of the pod's own comes with the pod and goes when it stops.
func TestRuntimePodNetwork(t *testing.T) {
	r := withService(t)
	q := hostPod(t)
	q.HostNetwork = false
	p := r.pod(t, q)
	if len(p.IPs) != 1 || !strings.HasPrefix(p.IPs[0].String(), "198.19.255.") {
		t.Errorf("addresses %v", p.IPs)
	}
	if _, err := os.Stat(p.NetworkNamespace); err != nil {
		t.Error(err)
	}
	if err := r.StopPod(ctx(t), p.Name, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p.NetworkNamespace); err == nil {
		t.Error("stopped, and the network namespace is there")
	}
}

// (P13, P14) What cannot be made leaves nothing, and a name has one owner.
func TestRuntimePodRefused(t *testing.T) {
	r := withService(t)
	first := r.pod(t, hostPod(t))
	before := r.Count(t)
	other := hostPod(t)
	other.Hostname = "other"
	if _, err := r.CreatePod(ctx(t), other); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), string(first.ID)) {
		t.Errorf("the name is in use: %v", err)
	}
	for name, change := range map[string]func(*berth.PodRequest){
		"hostname": func(q *berth.PodRequest) { q.Hostname = strings.Repeat("h", 300); q.HostNetwork = false },
		"sysctl":   func(q *berth.PodRequest) { q.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"} },
		"handler":  func(q *berth.PodRequest) { q.Handler = "unknown" },
		"name":     func(q *berth.PodRequest) { q.Name = "" },
		"label":    func(q *berth.PodRequest) { q.Labels = map[string]string{"io.berth.kind": "x"} },
	} {
		q := hostPod(t)
		q.Name += "-" + name
		change(&q)
		p, err := r.CreatePod(ctx(t), q)
		if err == nil {
			t.Errorf("%s: made as %s", name, p.ID)
		} else if strings.Count(err.Error(), "sandbox") > 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.Settle(t, before)
	if got, err := r.Pods(ctx(t), berth.PodFilter{}); err != nil || len(got) != 1 || got[0].ID != first.ID {
		t.Errorf("%v, %v", got, err)
	}
}

// (S75) A pod has a container record of its own without a process. What is done with
// it succeeds and does nothing.
func TestRuntimeSpoofed(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	record, err := r.Client().ContainerService().Get(r.Context(ctx(t)), string(p.ID))
	if err != nil {
		t.Fatal(err)
	}
	m, err := labels.Decode(record)
	if err != nil {
		t.Fatal(err)
	}
	s := process.New(r.Client().TaskService())
	defer s.Close()
	c, err := s.Load(r.Context(ctx(t)), process.Config{ID: record.ID, Metadata: m, Dir: filepath.Join(r.config.Root, r.Namespace, "containers", record.ID)})
	if err != nil || !c.Spoofed() {
		t.Fatalf("spoofed: %v, %v", c.Spoofed(), err)
	}
	in := r.Context(ctx(t))
	for name, call := range map[string]func() error{
		"create":  func() error { return c.Create(in, process.CreateRequest{}) },
		"start":   func() error { return c.Start(in) },
		"pause":   func() error { return c.Pause(in) },
		"resume":  func() error { return c.Resume(in) },
		"signal":  func() error { return c.Signal(in, 15) },
		"update":  func() error { return c.Update(in, &specs.LinuxResources{}) },
		"stats":   func() error { _, err := c.Stats(in); return err },
		"exec":    func() error { _, err := c.ExecSync(in, process.ExecSyncRequest{}); return err },
		"attach":  func() error { return c.Attach(in, process.AttachRequest{}) },
		"reopen":  func() error { return c.ReopenLog(in) },
		"refresh": func() error { return c.Refresh(in) },
		"wait":    func() error { _, err := c.Wait(in); return err },
		"delete":  func() error { return c.Delete(in) },
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Nobody takes it for a container.
	if err := r.StopContainer(ctx(t), string(p.ID), 0); err != nil {
		t.Error(err)
	}
	if _, err := r.ExecSync(ctx(t), string(p.ID), []string{"true"}, 0); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "pod's own") {
		t.Errorf("exec in a pod: %v", err)
	}
	if got, err := r.Pod(ctx(t), string(p.ID)); err != nil || got.State != berth.PodReady {
		t.Errorf("after all that: %+v, %v", got, err)
	}
	if _, err := r.Client().TaskService().Get(r.Context(ctx(t)), &tasks.GetRequest{ContainerID: string(p.ID)}); err == nil {
		t.Error("the pod has a task")
	}
}

// firstProcess is the pod's own one, 0 for none.
func (r *rig) firstProcess(t *testing.T, p berth.Pod) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/run/berth/sandboxes", r.Namespace, string(p.ID), "pod.json"))
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ Init struct{ Pid int } }
	if err := json.Unmarshal(b, &record); err != nil {
		t.Fatal(err)
	}
	return record.Init.Pid
}

// (P63, P64, P65) Whether a pod has a process is decided when it is made.
func TestRuntimePodProcess(t *testing.T) {
	r := withService(t)
	old := r.pod(t, hostPod(t))
	if pid := r.firstProcess(t, old); pid != 0 {
		t.Errorf("the pod has a process %d", pid)
	}
	q := hostPod(t)
	q.Name, q.SharePID = "shared", true
	if pid := r.firstProcess(t, r.pod(t, q)); pid == 0 {
		t.Error("a shared process namespace is without a process")
	}
	r.configure(t, func(c *handler.Config) { c.DropInfra = false })
	for _, mode := range []string{"host", "own"} {
		q := hostPod(t)
		q.Name, q.HostPID = mode, mode == "host"
		p := r.pod(t, q)
		pid := r.firstProcess(t, p)
		if pid == 0 {
			t.Fatal("the pod has no process")
		}
		c := r.start(t, shell(p, "main", idle))
		if got := r.sh(t, c, "readlink /proc/self/ns/pid"); got == namespace(t, "pid") != (mode == "host") {
			t.Errorf("%s: a member is in %s", mode, got)
		}
		if mode == "host" {
			if err := r.StopPod(ctx(t), p.Name, 0); err != nil {
				t.Fatal(err)
			}
		} else if err := unix.Kill(pid, unix.SIGKILL); err != nil { // its end is the pod's
			t.Fatal(err)
		}
		eventually(t, patience, func() string {
			got, err := r.Pod(ctx(t), p.Name)
			if err != nil || got.State != berth.PodNotReady {
				return fmt.Sprintf("%s, %v", got.State, err)
			}
			return ""
		})
		if _, err := r.CreateContainer(ctx(t), shell(p, "late", idle)); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: a member of a pod that has stopped: %v", mode, err)
		}
		if err := r.RemovePod(ctx(t), p.Name, berth.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		if unix.Kill(pid, 0) == nil {
			t.Errorf("%s: removed, and process %d lives", mode, pid)
		}
	}
	got, err := r.Pod(ctx(t), string(old.ID))
	if err != nil || got.State != berth.PodReady || r.firstProcess(t, old) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	r.start(t, shell(old, "main", idle))
	for range 2 {
		if err := r.StopPod(ctx(t), string(old.ID), 0); err != nil {
			t.Error(err)
		}
	}
	if err := r.RemovePod(ctx(t), string(old.ID), berth.RemoveOptions{}); err != nil {
		t.Error(err)
	}
}
