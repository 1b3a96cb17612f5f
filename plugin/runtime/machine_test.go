// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/integration/host"
	berth "github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/handler"
)

// (P64) A pod in a virtual machine has a process, and its members are in its shim. No
// machine can run here: containerd's own shim stands for one, which keeps pods together
// likewise and knows nothing of berth.
func TestRuntimeMachine(t *testing.T) {
	r := serviceOn(t, host.Run(t, host.Options{Images: []string{"busybox.tar", "pause.tar"}}))
	r.config.LogDriver = host.Build("bin/berth")
	r.configure(t, func(c *handler.Config) {
		c.PauseImage = host.Pause
		c.Handlers["kata"] = &handler.Handler{Type: handler.VM, Path: host.Deps("bin/containerd-shim-runc-v2")}
		c.Handlers["pulls"] = &handler.Handler{Type: handler.VM, Path: host.Deps("bin/containerd-shim-runc-v2"), PullImage: true}
	})
	ask := berth.PodRequest{Name: podName(t), Namespace: "default", Handler: "kata", Hostname: "machine"}
	p := r.pod(t, ask)
	if p.State != berth.PodReady || len(p.IPs) != 1 {
		t.Errorf("created: %+v", p)
	}
	task, err := r.Client().TaskService().Get(r.Context(ctx(t)), &tasks.GetRequest{ContainerID: string(p.ID)})
	if err != nil || task.Process.Pid == 0 {
		t.Fatalf("the pod has no process: %v", err)
	}
	one, two := r.start(t, shell(p, "one", idle)), r.start(t, shell(p, "two", idle))
	for kind, shared := range map[string]bool{"net": true, "ipc": true, "uts": true, "pid": false, "mnt": false} {
		if a, b := r.sh(t, one, "readlink /proc/self/ns/"+kind), r.sh(t, two, "readlink /proc/self/ns/"+kind); (a == b) != shared {
			t.Errorf("%s: %s and %s", kind, a, b)
		}
	}
	if got := r.sh(t, one, "hostname; ip -o -4 addr show eth0 | grep -c "+p.IPs[0].String()); got != "machine\n1" {
		t.Errorf("%q", got)
	}
	if a, b := status(t, one.Pid, "PPid:"), status(t, int(task.Process.Pid), "PPid:"); a != b {
		t.Errorf("a member has the shim %s, the pod %s", a, b)
	}
	var out bytes.Buffer
	code, err := r.Exec(ctx(t), string(one.ID), berth.ExecRequest{Command: []string{"sh", "-c", "cat; exit 3"}, Stdin: strings.NewReader("in\n"), Stdout: &out})
	if err != nil || code != 3 || out.String() != "in\n" {
		t.Errorf("exec: %d, %v, %q", code, err, out.String())
	}
	if st, err := r.Stats(ctx(t), string(one.ID)); err != nil || len(st) != 1 || st[0].Memory.Usage == 0 {
		t.Errorf("stats: %+v, %v", st, err)
	}
	for _, step := range []func(context.Context, string) error{r.Service.Pause, r.Unpause} {
		if err := step(ctx(t), string(one.ID)); err != nil {
			t.Error(err)
		}
	}
	for what, err := range map[string]error{
		"checkpoint": r.Checkpoint(ctx(t), string(one.ID), berth.CheckpointRequest{Archive: "/x"}),
		"attach":     r.Attach(ctx(t), string(one.ID), berth.AttachRequest{}),
	} {
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Another process finds it all again, and containerd too.
	if err := r.Daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	r.reopen(t)
	if got := r.sh(t, two, "echo x"); got != "x" {
		t.Errorf("afterwards: %q", got)
	}
	if err := r.StopContainer(ctx(t), string(two.ID), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Container(ctx(t), string(two.ID)); err != nil || got.ExitCode == nil || *got.ExitCode != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := r.StopPod(ctx(t), p.Name, time.Second); err != nil {
		t.Fatal(err)
	}
	got, err := r.Pod(ctx(t), p.Name)
	if err != nil || got.State != berth.PodNotReady || len(got.Containers) != 2 {
		t.Errorf("stopped: %+v, %v", got, err)
	}
	if _, err := r.CreateContainer(ctx(t), shell(p, "late", idle)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a member of a stopped pod: %v", err)
	}
	for range 2 {
		if err := r.RemovePod(ctx(t), p.Name, berth.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*berth.PodRequest){
		"network": func(q *berth.PodRequest) { q.HostNetwork = true }, "pid": func(q *berth.PodRequest) { q.SharePID = true },
	} {
		q := ask
		change(&q)
		if _, err := r.CreatePod(ctx(t), q); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	q := ask
	q.Handler = "pulls"
	if _, err := r.CreateContainer(ctx(t), shell(r.pod(t, q), "main", idle)); !errdefs.IsNotImplemented(err) {
		t.Errorf("the runtime pulls: %v", err)
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/memory/berth/" + r.Namespace + "/" + string(p.ID)); err == nil {
		t.Error(fmt.Sprint("the pod's cgroup is left", b))
	}
}
