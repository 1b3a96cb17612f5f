// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/plugin/labels"
)

// die leaves a creation as the death of its process does.
func die(c *Creation) {
	c.undo = nil
	c.release(false)
}

// (22): a crash between the record and its mark, before and after a reboot; and a
// request that is repeated without recovering first.
func TestCrash(t *testing.T) {
	w := newWorld(t)
	before := w.census(t)
	pod := w.pod(t, nil)
	within := w.census(t)
	crash := func() *CreateContainer {
		t.Helper()
		r := w.request(pod.Container.Metadata.Pod)
		c, err := w.CreateContainer(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		die(c)
		return r
	}
	crash()
	if err := w.again(t).Recover(t.Context()); err != nil {
		t.Error(err)
	}
	w.wantCensus(t, within)

	crash()
	reboot(t, w)
	if err := w.again(t).RecoverAll(t.Context()); err != nil {
		t.Error(err)
	}
	w.wantCensus(t, within)

	r := crash()
	c := w.made(t)(w.again(t).CreateContainer(t.Context(), r))
	if err := w.Remove(t.Context(), c.Container.ID); err != nil {
		t.Error(err)
	}
	r = crash()
	r.ID += "x" // a client that makes up IDs
	c = w.made(t)(w.again(t).CreateContainer(t.Context(), r))
	if err := w.Remove(t.Context(), c.Container.ID); err != nil {
		t.Error(err)
	}
	w.wantCensus(t, within)

	p, err := w.CreatePod(t.Context(), w.podRequest(t))
	if err != nil {
		t.Fatal(err)
	}
	alive, err := w.CreatePod(t.Context(), w.podRequest(t))
	if err != nil {
		t.Fatal(err)
	}
	die(p)
	for _, recover := range []func(context.Context) error{w.again(t).Recover, w.again(t).RecoverAll} {
		if err := recover(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := alive.Commit(t.Context()); err != nil {
		t.Errorf("a creation that goes on was removed: %v", err)
	}
	for _, id := range []string{alive.Container.ID, pod.Container.ID} {
		if err := w.RemovePod(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	w.wantCensus(t, before)
}

// reboot empties the state root. (Mounts and tasks would go, too.)
func reboot(t testing.TB, w *world) {
	t.Helper()
	if err := os.RemoveAll(w.o.State); err != nil {
		t.Fatal(err)
	}
}

// TestRemoveFails: whatever call of a removal fails, the next removal, or Recover,
// removes the rest.
func TestRemoveFails(t *testing.T) {
	w := newWorld(t)
	for _, count := range []int64{1, forever} {
		for _, again := range []string{"remove", "recover"} {
			t.Run(fmt.Sprintf("%d-%s", count, again), func(t *testing.T) {
				before := w.census(t)
				for n := int64(1); n < 100; n++ {
					pod := w.pod(t, nil)
					c := w.container(t, pod, nil)
					if _, err := w.Mount(t.Context(), c.Container.ID); err != nil {
						t.Fatal(err)
					}
					w.fail.arm(n, count)
					err := w.RemovePod(t.Context(), pod.Container.ID)
					done := w.fail.calls.Load() < n
					w.fail.arm(0, 0)
					if err != nil && !strings.Contains(err.Error(), "injected") {
						t.Errorf("call %d, %s: %v", n, w.fail.method(n), err)
					}
					next := w.again(t)
					if again == "recover" {
						if err := next.RecoverAll(t.Context()); err != nil {
							t.Errorf("call %d, %s: recover: %v", n, w.fail.method(n), err)
						}
					}
					if err := next.RemovePod(t.Context(), pod.Container.ID); err != nil && !errdefs.IsNotFound(err) {
						t.Errorf("call %d, %s: again: %v", n, w.fail.method(n), err)
					}
					w.wantCensus(t, before)
					if t.Failed() {
						t.FailNow()
					}
					if done {
						t.Logf("%d calls", n-1)
						return
					}
				}
			})
		}
	}
}

// (28), and what RecoverAll leaves alone.
func TestOrphans(t *testing.T) {
	w := newWorld(t)
	c := w.container(t, w.pod(t, nil), nil).Container
	ctx := w.in(t.Context())
	foreign := containers.Container{ID: "foreign", Spec: &anypb.Any{}, Runtime: containers.RuntimeInfo{Name: "x"}}
	if _, err := w.client.ContainerService().Create(ctx, foreign); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.client.ContainerService().Delete(ctx, "foreign") }()
	// Not ours either, whatever it says: an image's labels may say as much.
	liar := foreign
	liar.ID, liar.Labels = "liar", map[string]string{"io.berth.managed": "1", "io.berth.kind": "container", "io.berth.pod.id": c.Metadata.Pod.ID}
	if _, err := w.client.ContainerService().Create(ctx, liar); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.client.ContainerService().Delete(ctx, "liar") }()
	for _, dir := range []string{w.workDir("orphan"), w.runDir("orphan"), w.runDir("half"), w.workDir("foreign"), w.workDir("liar")} {
		if err := makeDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(w.o.Root+"/other/containers/orphan", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.runDir("orphan")+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.LeasesService().Create(ctx, leases.WithID("gone"), leases.WithLabels(labels.LeaseLabels())); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.LeasesService().Create(ctx, leases.WithID("theirs")); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.client.LeasesService().Delete(ctx, leases.Lease{ID: "theirs"}) }()
	all := w.census(t)
	for n := int64(1); n <= 2; n++ { // the records cannot be read
		w.fail.arm(n, 1)
		if err := w.RecoverAll(t.Context()); err == nil {
			t.Error("no error")
		}
		w.fail.arm(0, 0)
		if now := w.census(t); now != all {
			t.Errorf("something was removed:\n%s\nwas\n%s", now, all)
		}
	}
	if err := w.RecoverAll(t.Context()); err != nil {
		t.Error(err)
	}
	now := w.census(t)
	for _, gone := range []string{"/orphan", "/half", "lease gone"} {
		if strings.Contains(now, gone) {
			t.Errorf("%s is still there", gone)
		}
	}
	for _, kept := range []string{"container foreign", "container liar", "/foreign", "/liar", "lease theirs", "container " + c.ID, c.WorkDir, "lease " + c.Metadata.Pod.ID} {
		if !strings.Contains(now, kept) {
			t.Errorf("%s is gone", kept)
		}
	}
	if _, err := os.Stat(w.o.Root + "/other/containers/orphan"); err != nil {
		t.Error(err)
	}
	// (38), and no member of a foreign pod.
	if _, err := w.Metadata(t.Context(), "foreign"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("foreign: %v", err)
	}
	r := w.request(labels.Pod{ID: "foreign", FullName: "foreign"})
	if _, err := w.CreateContainer(t.Context(), r); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("member of a foreign container: %v", err)
	}
	if err := w.Remove(t.Context(), "foreign"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove a foreign container: %v", err)
	}
	// (7)
	if err := w.RemovePod(t.Context(), "nobody"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), ErrInvalidSandboxID.Error()) {
		t.Errorf("unknown pod: %v", err)
	}
}

// TestLostSandbox: a pod without its sandbox record, without its infra container,
// and with neither, can be removed.
func TestLostParts(t *testing.T) {
	w := newWorld(t)
	before := w.census(t)
	ctx := w.in(t.Context())
	for _, lost := range []string{"sandbox", "infra", "sandbox and infra"} {
		pod := w.pod(t, nil)
		w.container(t, pod, nil)
		if strings.Contains(lost, "sandbox") {
			if err := w.client.SandboxStore().Delete(ctx, pod.Container.ID); err != nil {
				t.Fatal(err)
			}
		}
		if strings.Contains(lost, "infra") {
			if err := w.client.ContainerService().Delete(ctx, pod.Container.ID); err != nil {
				t.Fatal(err)
			}
		}
		entry, err := w.Pod(t.Context(), pod.Container.ID)
		if err != nil || len(entry.Members) != 1 {
			t.Errorf("without %s: %+v, %v", lost, entry, err)
		}
		if err := w.RemovePod(t.Context(), pod.Container.ID); err != nil {
			t.Errorf("without %s: %v", lost, err)
		}
		w.wantCensus(t, before)
	}
}

// (35): containerd's CRI plugin does not take berth's records for its own. What it
// does at its start, as containerd 2.4 is: it deletes from the sandbox store what
// it has not made, with one line in the log. The pod is found by the rest.
func TestBesideCRI(t *testing.T) {
	d := host.Run(t, host.Options{CRI: true})
	d.Namespace = "k8s.io"
	if out, err := d.Ctr("-n", "k8s.io", "images", "import", host.Deps("images/busybox.tar")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w := newWorldOn(t, d, Options{})
	pod := w.pod(t, nil)
	w.container(t, pod, nil)
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(d.Log(1000), "\n") {
		if strings.Contains(line, "-besidecri") && !strings.Contains(line, "failed to get metadata for stored sandbox") {
			t.Errorf("containerd: %s", line)
		}
	}
	conn, ok := d.Client().Conn().(grpc.ClientConnInterface)
	if !ok {
		t.Fatal("no connection")
	}
	cri := runtime.NewRuntimeServiceClient(conn)
	pods, err := cri.ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{})
	if err != nil || len(pods.GetItems()) > 0 {
		t.Errorf("CRI lists %v, %v", pods, err)
	}
	containers, err := cri.ListContainers(t.Context(), &runtime.ListContainersRequest{})
	if err != nil || len(containers.GetContainers()) > 0 {
		t.Errorf("CRI lists %v, %v", containers, err)
	}
	next := w.again(t)
	if err := next.RecoverAll(t.Context()); err != nil {
		t.Error(err)
	}
	entry, err := next.Pod(t.Context(), pod.Container.Metadata.Pod.FullName)
	if err != nil || entry.Infra == nil || len(entry.Members) != 1 {
		t.Errorf("pod: %+v, %v", entry, err)
	}
}
