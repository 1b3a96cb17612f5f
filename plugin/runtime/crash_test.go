// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
	berth "github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/network"
	"github.com/berthd/berth/plugin/runtime/record/claim"
)

// envAct has the test's program do one thing, as a command line does.
const envAct = "BERTH_RUNTIME_ACT"

// action is what such a process is to do.
type action struct {
	Socket, Namespace, Root, CNI string
	Pod                          *berth.PodRequest
	Container                    *berth.ContainerRequest
	RemovePod, RemoveContainer   string
}

func act(text string) int {
	var a action
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		panic(err)
	}
	err := a.run(context.Background())
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func (a *action) run(ctx context.Context) error {
	c, err := client.New(a.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	handlers, err := handler.New(handler.Default())
	if err != nil {
		return err
	}
	s, err := berth.Open(ctx, berth.Config{
		Client: c, Namespace: a.Namespace, Root: a.Root, Handlers: handlers,
		Network: network.Config{ConfDir: a.CNI, BinDirs: []string{host.Deps("cni")}},
	})
	if err != nil {
		return err
	}
	defer s.Close()
	fmt.Println("open")
	switch force := (berth.RemoveOptions{Force: true}); {
	case a.Pod != nil:
		p, err := s.CreatePod(ctx, *a.Pod)
		if err != nil {
			return err
		}
		fmt.Println(p.ID)
	case a.Container != nil:
		c, err := s.CreateContainer(ctx, *a.Container)
		if err != nil {
			return err
		}
		fmt.Println(c.ID)
	case a.RemovePod != "":
		return s.RemovePod(ctx, a.RemovePod, force)
	case a.RemoveContainer != "":
		return s.RemoveContainer(ctx, a.RemoveContainer, force)
	}
	return nil
}

// process starts another program on the rig's pods. Its first line of output tells
// that it is about to begin.
func (r *rig) process(t *testing.T, a action) (cmd *exec.Cmd, out func() string) {
	t.Helper()
	a.Socket, a.Namespace, a.Root, a.CNI = r.Socket, r.Namespace, r.config.Root, r.config.Network.ConfDir
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envAct+"="+string(text))
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = pw, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = pw.Close()
	first := make([]byte, len("open\n"))
	if _, err := pr.Read(first); err != nil {
		t.Fatal(err)
	}
	return cmd, func() string {
		defer pr.Close()
		rest := make([]byte, 1<<16)
		n, _ := pr.Read(rest)
		return strings.TrimSpace(string(rest[:n]))
	}
}

// killed runs an action to its end, and then again and again, and kills its process
// each time a step later, at moments spread over the time that it takes. After each
// there must be nothing wrong, says check. BERTH_TEST_FULL=1 has ten times as many.
func (r *rig) killed(t *testing.T, a func() action, check func()) {
	t.Helper()
	kills := 6
	if os.Getenv("BERTH_TEST_FULL") != "" {
		kills *= 10
	}
	cmd, out := r.process(t, a())
	start := time.Now()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("not killed: %v: %s", err, out())
	}
	whole := time.Since(start)
	out()
	check()
	for n := range kills {
		cmd, out := r.process(t, a())
		killer := time.AfterFunc(whole*time.Duration(n)/time.Duration(kills), func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		if text := out(); killer.Stop() && err != nil { // it was quicker this time, and failed
			t.Fatalf("not killed: %v: %s", err, text)
		}
		check()
	}
}

// recovered opens the service until nothing unfinished is left: what has just died is
// given some time.
func (r *rig) recovered(t *testing.T) {
	t.Helper()
	eventually(t, patience, func() string {
		r.reopen(t)
		if left, _ := filepath.Glob(filepath.Join(r.config.State, r.Namespace, "c[lr]*/*")); len(left) > 0 {
			return fmt.Sprintf("left: %v", left)
		}
		return ""
	})
}

// Whoever dies while making a pod leaves what the next one removes; or the pod.
func TestRuntimeKilledCreatingPod(t *testing.T) {
	r := withService(t)
	before := r.Count(t)
	q := hostPod(t)
	q.HostNetwork = false
	r.killed(t, func() action { return action{Pod: &q} }, func() {
		r.recovered(t)
		pods, err := r.Pods(ctx(t), berth.PodFilter{})
		if err != nil || len(pods) > 1 {
			t.Fatalf("%v, %v", pods, err)
		}
		for _, p := range pods {
			if p.State != berth.PodReady || len(p.IPs) != 1 {
				t.Errorf("what is left of a pod: %+v", p)
			}
			if err := r.RemovePod(ctx(t), q.Name, berth.RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if left := r.left(); len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
	})
	r.gone(t, before)
}

// gone waits until nothing is there that was not before. If containerd gives up a
// call between starting a shim and connecting to it, the shim ends itself after a
// minute.
func (r *rig) gone(t *testing.T, before host.Census) {
	t.Helper()
	eventually(t, 90*time.Second, func() string {
		r.ForgetSockets()
		now := r.Count(t)
		for _, kind := range []string{"processes", "mounts", "cgroups", "netns", "bundles", "sockets", "snapshots", "leases", "containers", "files"} {
			for _, line := range now[kind] {
				if !slices.Contains(before[kind], line) {
					return kind + ": " + line
				}
			}
		}
		return ""
	})
}

// The same of a container.
func TestRuntimeKilledCreatingContainer(t *testing.T) {
	r := withService(t)
	before := r.Count(t)
	p := r.pod(t, hostPod(t))
	had := len(r.left())
	q := shell(p, "main", idle)
	r.killed(t, func() action { return action{Container: &q} }, func() {
		r.recovered(t)
		cs, err := r.Containers(ctx(t), berth.ContainerFilter{})
		if err != nil || len(cs) > 1 {
			t.Fatalf("%v, %v", cs, err)
		}
		for _, c := range cs {
			if err := r.StartContainer(ctx(t), string(c.ID)); err != nil {
				t.Errorf("what is left of a container: %+v: %v", c, err)
			}
			if err := r.RemoveContainer(ctx(t), "main", berth.RemoveOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
		}
		if left := r.left(); len(left) != had {
			t.Fatalf("left: %v", left)
		}
	})
	if err := r.RemovePod(ctx(t), p.Name, berth.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	r.gone(t, before)
}

// Whoever dies while removing leaves what can be removed.
func TestRuntimeKilledRemoving(t *testing.T) {
	r := withService(t)
	before := r.Count(t)
	q := hostPod(t)
	q.HostNetwork = false
	remove := func() action {
		p := r.pod(t, q)
		r.start(t, shell(p, "one", idle))
		r.start(t, shell(p, "two", stubborn))
		return action{RemovePod: string(p.ID)}
	}
	r.killed(t, remove, func() {
		r.reopen(t)
		if err := r.RemovePod(ctx(t), q.Name, berth.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		if pods, err := r.Pods(ctx(t), berth.PodFilter{}); err != nil || len(pods) > 0 {
			t.Fatalf("%v, %v", pods, err)
		}
		if left := r.left(); len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
	})
	r.gone(t, before)
}

// Of several processes that want a name one gets it, and the others are told who.
func TestRuntimeNameTaken(t *testing.T) {
	r := withService(t)
	var wg sync.WaitGroup
	texts := make([]string, 4)
	failed := make([]error, len(texts))
	for i := range texts {
		q := hostPod(t)
		q.Annotations = map[string]string{"caller": fmt.Sprint(i)}
		cmd, out := r.process(t, action{Pod: &q})
		wg.Go(func() {
			failed[i] = cmd.Wait()
			texts[i] = out()
		})
	}
	wg.Wait()
	p, err := r.Pod(ctx(t), podName(t))
	if err != nil {
		t.Fatalf("%v; %q", err, texts)
	}
	won := 0
	for i, text := range texts {
		if failed[i] == nil {
			won++
		}
		if !strings.Contains(text, string(p.ID)) {
			t.Errorf("caller %d was told %q, not %s", i, text, p.ID)
		}
	}
	if won != 1 {
		t.Errorf("%d have made the pod", won)
	}
}

// (P22) A creation that died between its record and its end: the record and the
// snapshot go when the service is opened next.
func TestRuntimeUnfinished(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	kept := r.create(t, shell(p, "kept", idle))
	c := r.create(t, shell(p, "main", idle))
	in := r.Context(ctx(t))
	store := r.Client().ContainerService()
	record, err := store.Get(in, string(c.ID))
	if err != nil {
		t.Fatal(err)
	}
	delete(record.Labels, "io.berth.created")
	if _, err := store.Update(in, record, "labels"); err != nil {
		t.Fatal(err)
	}
	creations := claim.Dir(filepath.Join(r.config.State, r.Namespace, "creations"))
	held, err := creations.Take(string(c.ID), claim.Note{Owner: string(c.ID), Task: "create-container"})
	if err != nil {
		t.Fatal(err)
	}
	held.Leave()
	claims := claim.Dir(filepath.Join(r.config.State, r.Namespace, "claims"))
	held, err = claims.Take("id."+string(c.ID), claim.Note{Owner: string(c.ID), Task: "create", Details: map[string]string{"pod": string(p.ID), "snapshotter": "overlayfs"}})
	if err != nil {
		t.Fatal(err)
	}
	held.Leave()
	if got, err := r.Pod(ctx(t), p.Name); err != nil || len(got.Containers) != 1 {
		t.Errorf("what is not finished is listed: %+v, %v", got.Containers, err)
	}
	r.recovered(t)
	if _, err := store.Get(in, string(c.ID)); !errdefs.IsNotFound(err) {
		t.Errorf("record: %v", err)
	}
	if _, err := r.Client().SnapshotService("overlayfs").Stat(in, record.SnapshotKey); !errdefs.IsNotFound(err) {
		t.Errorf("snapshot: %v", err)
	}
	if _, err := os.Stat(c.WorkDirectory); err == nil {
		t.Error("its directory is there")
	}
	if got := r.state(t, string(kept.ID)); got != berth.ContainerCreated {
		t.Errorf("the other one is %s", got)
	}
}

// A pod survives the end of containerd, whoever looks at it.
func TestRuntimeContainerdKilled(t *testing.T) {
	r := serviceOn(t, host.Run(t, host.Options{}))
	q := hostPod(t)
	q.HostNetwork = false
	p := r.pod(t, q)
	for _, name := range []string{"one", "two", "three"} {
		r.start(t, shell(p, name, idle))
	}
	if err := r.Daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	r.reopen(t)
	got, err := r.Pod(ctx(t), p.Name)
	if err != nil || got.State != berth.PodReady || len(got.Containers) != 3 || got.IPs[0] != p.IPs[0] {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, c := range got.Containers {
		if c.State != berth.ContainerRunning {
			t.Errorf("%s is %s", c.Name, c.State)
		}
		if got, err := r.ExecSync(ctx(t), string(c.ID), []string{"echo", "x"}, 0); err != nil || string(got.Stdout) != "x\n" {
			t.Errorf("%+v, %v", got, err)
		}
	}
	r.start(t, shell(p, "four", idle))
	if err := r.StopPod(ctx(t), p.Name, time.Second); err != nil {
		t.Fatal(err)
	}
}

// (P27) After a reboot: what was in memory is gone.
func TestRuntimeReboot(t *testing.T) {
	// Without a census: much of what a real reboot clears stays.
	r := openService(t, host.Run(t, host.Options{}))
	q := hostPod(t)
	q.HostNetwork = false
	p := r.pod(t, q)
	c := r.start(t, shell(p, "main", idle))
	note := filepath.Join(c.WorkDirectory, "note")
	if err := os.WriteFile(note, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	address := filepath.Join(r.config.Network.ConfDir, "ipam", "*", p.IPs[0].String()) // CNI's plugin keeps that it is taken
	if taken, _ := filepath.Glob(address); len(taken) != 1 {
		t.Fatalf("address %s: %v", address, taken)
	}
	r.reboot(t)
	r.reopen(t)
	if taken, _ := filepath.Glob(address); len(taken) > 0 {
		t.Errorf("the pod's address is still taken: %v", taken)
	}
	got, err := r.Pod(ctx(t), p.Name)
	if err != nil || got.State != berth.PodNotReady || len(got.Containers) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if c := got.Containers[0]; c.State != berth.ContainerExited || c.ExitCode != nil || c.Reason != "Unknown" {
		t.Errorf("%+v", c)
	}
	if _, err := os.Stat(note); err != nil {
		t.Error(err)
	}
	if _, err := r.CreateContainer(ctx(t), shell(p, "other", idle)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a container in a pod that has gone: %v", err)
	}
	if err := r.RemovePod(ctx(t), p.Name, berth.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
}

// A pod whose records are lost is rebuilt from what is left.
func TestRuntimeRebuilt(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	r.start(t, shell(p, "main", idle))
	store := r.Client().SandboxStore()
	if err := store.Delete(r.Context(ctx(t)), string(p.ID)); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{string(p.ID), p.FullName, p.Name} {
		if got, err := r.Pod(ctx(t), ref); err != nil || got.State != berth.PodReady || len(got.Containers) != 1 {
			t.Errorf("by %q: %+v, %v", ref, got, err)
		}
	}
	r.start(t, shell(p, "second", idle))
	if _, err := store.Get(r.Context(ctx(t)), string(p.ID)); err != nil {
		t.Errorf("the sandbox record was not made again: %v", err)
	}
	// With its container record it has lost its settings.
	if err := r.Client().ContainerService().Delete(r.Context(ctx(t)), string(p.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.CreateContainer(ctx(t), shell(p, "third", idle)); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "lost its record") {
		t.Errorf("a member of a pod without settings: %v", err)
	}
	// And with both lost.
	if err := store.Delete(r.Context(ctx(t)), string(p.ID)); err != nil {
		t.Fatal(err)
	}
	got, err := r.Pod(ctx(t), p.Name)
	if err != nil || !got.Orphaned || got.State != berth.PodNotReady || len(got.Containers) != 2 || got.FullName != p.FullName {
		t.Errorf("%+v, %v", got, err)
	}
	if err := r.RemovePod(ctx(t), p.Name, berth.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if left := r.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// reboot ends all processes and empties what is on a tmpfs.
func (r *rig) reboot(t *testing.T) {
	t.Helper()
	if err := r.Daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() string {
		found, _ := filepath.Glob("/proc/[0-9]*")
		var left strings.Builder
		for _, dir := range found {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			cmdline, _ := os.ReadFile(dir + "/cmdline")
			cgroup, _ := os.ReadFile(dir + "/cgroup")
			if pid != os.Getpid() && strings.Contains(string(cmdline)+string(cgroup), r.Namespace) {
				_ = unix.Kill(pid, unix.SIGKILL)
				left.WriteString(" " + filepath.Base(dir))
			}
		}
		return left.String()
	})
	pods := filepath.Join("/run/berth/sandboxes", r.Namespace)
	state := filepath.Join("/run/berth", r.Namespace)
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(mounts)
	for _, m := range mounts {
		for _, dir := range []string{pods, state, r.State(), r.config.Root} {
			if strings.HasPrefix(m.Mountpoint, dir+"/") {
				_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
			}
		}
	}
	for _, dir := range []string{pods, state, r.State()} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
}
