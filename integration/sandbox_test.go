// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
)

// TestPauseless checks what is true of pods without a pause container only: what
// TestPods does with every form of pod is not repeated here.
func TestPauseless(t *testing.T) {
	if !slices.Contains(podRuntimes(), pauseless) {
		t.Skip("only berth promises this")
	}
	n := newNode(t, pauseless, host.Options{})
	n.sub(t, "no pause", pauselessProof)
	n.sub(t, "joining", pauselessJoining)
	n.sub(t, "bad input", pauselessBadInput)
	n.sub(t, "many", pauselessMany)
	n.sub(t, "shim killed", pauselessShimKilled)
	n.sub(t, "directory lost", pauselessDirectoryLost)
	n.sub(t, "all lost", pauselessAllLost)
	n.sub(t, "restart", pauselessRestart)
	n.sub(t, "shim killed during a restart", pauselessShimKilledUnseen)
}

// stay is a container that does nothing but end at once on SIGTERM.
func stay(pod *cri.Pod, options ...containerOption) *runtime.ContainerConfig {
	return in(pod, "trap 'exit 0' TERM; sleep 100000 & wait", options...)
}

// directory is where a pod's namespaces and files are.
func directory(pod *cri.Pod) string { return "/run/berth/sandboxes/" + criNamespace + "/" + pod.ID }

// shim returns the process of a container's or a sandbox's shim, 0 if there is
// none.
func (n *node) shim(t *testing.T, id string) int {
	t.Helper()
	for _, process := range n.Count(t)["processes"] {
		if strings.Contains(process, " containerd-shim") && strings.Contains(process, "-id "+id+" ") {
			pid, _, _ := strings.Cut(process, " ")
			number, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			return number
		}
	}
	return 0
}

// awaitPod waits for a pod's state.
func (n *node) awaitPod(t *testing.T, pod *cri.Pod, want runtime.PodSandboxState) {
	t.Helper()
	eventually(t, patience, func() string {
		s, err := pod.Status(n.ctx(t))
		if err != nil {
			return err.Error()
		}
		if s.GetState() != want {
			return fmt.Sprintf("pod is %v, want %v", s.GetState(), want)
		}
		return ""
	})
}

// pauselessProof counts processes and images.
func pauselessProof(t *testing.T, n *node) {
	before := len(n.Count(t)["processes"])
	pod := n.pod(t)
	startIn(t, n, pod, container("one", "sleep", "100001"))
	startIn(t, n, pod, container("two", "sleep", "100002"))
	processes := n.Count(t)["processes"]
	// A shim of the sandbox, a shim and a process of each container.
	if len(processes) != before+5 || strings.Contains(strings.Join(processes, "\n"), "pause") {
		t.Errorf("processes %d before, then\n%s", before, strings.Join(processes, "\n"))
	}
	images, err := n.Images.ListImages(n.ctx(t), &runtime.ListImagesRequest{})
	if err != nil || len(images.GetImages()) != 1 && !n.pauseImage(t) {
		t.Errorf("images %v, %v, want busybox alone", images.GetImages(), err)
	}
	out, err := n.Ctr("-n", criNamespace, "tasks", "ls", "-q").Output()
	if tasks := strings.Fields(string(out)); err != nil || len(tasks) != 2 {
		t.Errorf("tasks %q, %v, want those of two containers", tasks, err)
	}
}

// pauselessJoining looks at the specification that a container runs by: the
// pod's namespaces in place of containerd's, and nothing else that was not asked
// for.
func pauselessJoining(t *testing.T, n *node) {
	pod := n.pod(t)
	id := startIn(t, n, pod, stay(pod))
	text, err := os.ReadFile(filepath.Join(n.State(), "io.containerd.runtime.v2.task", criNamespace, id, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var spec struct {
		Linux  struct{ Namespaces []struct{ Type, Path string } }
		Mounts []struct{ Destination, Source string }
	}
	if err := json.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "/proc/0/") {
		t.Error("a marker is left in config.json")
	}
	for _, ns := range spec.Linux.Namespaces {
		if want := directory(pod) + "/" + ns.Type; (ns.Type == "ipc" || ns.Type == "uts") && ns.Path != want {
			t.Errorf("%s namespace at %s, want %s", ns.Type, ns.Path, want)
		}
		if ns.Type == "network" && !strings.Contains(ns.Path, "/netns/") {
			t.Errorf("network namespace at %s", ns.Path)
		}
	}
	for file, target := range map[string]string{
		"hostname": "/etc/hostname", "hosts": "/etc/hosts", "resolv.conf": "/etc/resolv.conf", "shm": "/dev/shm",
	} {
		count := 0
		for _, m := range spec.Mounts {
			if m.Destination == target {
				count++
				if m.Source != directory(pod)+"/"+file {
					t.Errorf("%s comes from %s", target, m.Source)
				}
			}
		}
		if count != 1 {
			t.Errorf("%d mounts at %s", count, target)
		}
	}
	if s, err := os.Stat(directory(pod)); err != nil || s.Mode().Perm() != 0o711 {
		t.Errorf("directory %v, %v", s, err)
	}
}

// pauselessBadInput checks refusals that containerd leaves to the sandbox.
func pauselessBadInput(t *testing.T, n *node) {
	for _, c := range []struct {
		name, why string
		change    podOption
	}{
		{"long hostname", "hostname", func(c *runtime.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 300) }},
		{"hostname of two lines", "hostname", func(c *runtime.PodSandboxConfig) { c.Hostname = "a\nb" }},
		{"DNS option of two lines", "DNS", func(c *runtime.PodSandboxConfig) {
			c.DnsConfig = &runtime.DNSConfig{Options: []string{"ndots:5\nnameserver 198.18.0.66"}}
		}},
		{"DNS server of two lines", "DNS", func(c *runtime.PodSandboxConfig) {
			c.DnsConfig = &runtime.DNSConfig{Servers: []string{"198.18.0.53\noptions rotate"}}
		}},
		{"path in a sysctl", "sysctl", func(c *runtime.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net/../kernel/panic": "7"}
		}},
		{"unknown sysctl", "sysctl", func(c *runtime.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.no.such": "7"}
		}},
	} {
		t.Run(c.name, func(t *testing.T) { n.podRefused(t, n.handler, c.why, c.change, sharing(ownIPC)) })
	}
}

func ownIPC(*runtime.NamespaceOption) {}

// 500 pods made and removed leave nothing; 50 unless BERTH_TEST_FULL is set.
func pauselessMany(t *testing.T, n *node) {
	const workers = 4
	count := 50
	if os.Getenv("BERTH_TEST_FULL") != "" {
		count = 500
	}
	// Every kind of pod; few with a network, which is not what costs here.
	kinds := []func(*runtime.NamespaceOption){
		hostNetwork,
		func(o *runtime.NamespaceOption) { hostNetwork(o); sharedPIDs(o) },
		func(o *runtime.NamespaceOption) { hostNetwork(o); ownUsers(o) },
		func(o *runtime.NamespaceOption) { hostNetwork(o); ownUsers(o); sharedPIDs(o) },
		ownIPC,
	}
	var running sync.WaitGroup
	numbers := make(chan int)
	for range workers {
		running.Go(func() {
			for i := range numbers {
				config := n.podConfig(t, sharing(kinds[i%len(kinds)]))
				if !host.Systemd() {
					config.Linux.CgroupParent += fmt.Sprintf("/pod%d", i) // made for it
				}
				ctx := n.ctx(t)
				pod, err := n.Client.Run(ctx, n.handler, config)
				if err != nil {
					t.Error(err)
					continue
				}
				_, err = pod.Start(ctx, stay(pod))
				if err := errors.Join(err, pod.Stop(ctx), pod.Remove(ctx)); err != nil {
					t.Errorf("pod %d: %v", i, err)
				}
			}
		})
	}
	began := time.Now()
	for i := range count {
		numbers <- i
	}
	close(numbers)
	running.Wait()
	t.Logf("%d pods in %v", count, time.Since(began))
}

// pauselessShimKilled kills the sandbox's shim: the pod is not ready any more, so
// that the kubelet makes a new one, and its containers run on until then.
func pauselessShimKilled(t *testing.T, n *node) {
	kill := func(t *testing.T, kind func(*runtime.NamespaceOption)) (*cri.Pod, string) {
		pod := n.pod(t, sharing(kind))
		id := startIn(t, n, pod, stay(pod))
		if err := unix.Kill(n.shim(t, pod.ID), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.awaitPod(t, pod, runtime.PodSandboxState_SANDBOX_NOTREADY)
		return pod, id
	}
	t.Run("usual", func(t *testing.T) {
		pod, id := kill(t, ownIPC)
		n.orphaned(t, pod, id)
	})
	t.Run("users", func(t *testing.T) {
		pod, id := kill(t, ownUsers)
		n.orphaned(t, pod, id)
	})
	// With a process namespace of the pod's own ends what is in it, as it does
	// with a pause container: containerd asks to clean up once, and nobody would
	// end the namespace's first process later.
	t.Run("shared processes", func(t *testing.T) {
		pod, id := kill(t, sharedPIDs)
		n.awaitState(t, id, runtime.ContainerState_CONTAINER_EXITED)
		if err := errors.Join(pod.Stop(n.ctx(t)), pod.Remove(n.ctx(t))); err != nil {
			t.Errorf("stop and remove: %v", err)
		}
	})
}

// orphaned checks a running container of a pod whose shim is dead, and ends it.
func (n *node) orphaned(t *testing.T, pod *cri.Pod, id string) {
	t.Helper()
	if got := n.check(t, id, "echo", "alive"); got != "alive" {
		t.Errorf("exec: %q", got)
	}
	if s := n.awaitState(t, id, runtime.ContainerState_CONTAINER_RUNNING); s.GetExitCode() != 0 {
		t.Errorf("container %v", s)
	}
	n.refused(t, pod, in(pod, "true"), "")
	if _, err := n.ListPodSandboxStats(n.ctx(t), &runtime.ListPodSandboxStatsRequest{}); err != nil {
		t.Errorf("list of pods' stats: %v", err)
	}
	if err := n.Client.Stop(n.ctx(t), id, 5*time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	if s := n.awaitState(t, id, runtime.ContainerState_CONTAINER_EXITED); s.GetExitCode() != 0 {
		t.Errorf("exit code %d, want 0", s.GetExitCode())
	}
	for range 2 {
		if err := errors.Join(pod.Stop(n.ctx(t)), n.Remove(n.ctx(t), id)); err != nil {
			t.Errorf("stop and remove: %v", err)
		}
	}
	for range 2 {
		if err := pod.Remove(n.ctx(t)); err != nil {
			t.Errorf("remove pod: %v", err)
		}
	}
	if _, err := os.Lstat(directory(pod)); !os.IsNotExist(err) {
		t.Errorf("the pod's directory: %v, want it gone", err)
	}
}

// pauselessDirectoryLost removes what a pod has in /run: no container joins the
// host's namespaces instead, and the pod can be removed.
func pauselessDirectoryLost(t *testing.T, n *node) {
	for _, c := range []struct {
		name string
		lose func(dir string) error
	}{
		{"all", func(dir string) error {
			for _, mounted := range []string{"ipc", "uts", "shm"} {
				if err := unix.Unmount(dir+"/"+mounted, unix.MNT_DETACH); err != nil {
					return err
				}
			}
			return os.RemoveAll(dir)
		}},
		{"record", func(dir string) error { return os.Remove(dir + "/pod.json") }},
		{"broken record", func(dir string) error { return os.WriteFile(dir+"/pod.json", []byte("{"), 0o600) }},
		{"pin", func(dir string) error {
			return errors.Join(unix.Unmount(dir+"/ipc", unix.MNT_DETACH), os.Remove(dir+"/ipc"))
		}},
		{"mount of a pin", func(dir string) error { return unix.Unmount(dir+"/uts", unix.MNT_DETACH) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := n.pod(t)
			id := startIn(t, n, pod, stay(pod))
			if err := c.lose(directory(pod)); err != nil {
				t.Fatal(err)
			}
			n.refused(t, pod, in(pod, "true"), pod.ID)
			if got := n.check(t, id, "echo", "alive"); got != "alive" {
				t.Errorf("exec: %q", got)
			}
			if _, err := n.ListPodSandboxStats(n.ctx(t), &runtime.ListPodSandboxStatsRequest{}); err != nil {
				t.Errorf("list of pods' stats: %v", err)
			}
		})
	}
}

// pauselessAllLost removes what a pod has in /run and then its shim, which alone
// still knew of it.
func pauselessAllLost(t *testing.T, n *node) {
	pod := n.pod(t, sharing(sharedPIDs))
	id := startIn(t, n, pod, stay(pod))
	for _, name := range []string{"ipc", "uts", "pid", "shm"} {
		if err := unix.Unmount(directory(pod)+"/"+name, unix.MNT_DETACH); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.RemoveAll(directory(pod)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(n.shim(t, pod.ID), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.awaitPod(t, pod, runtime.PodSandboxState_SANDBOX_NOTREADY)
	if err := n.Client.Stop(n.ctx(t), id, time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// pauselessRestart kills containerd under every kind of pod, one of them without
// containers.
func pauselessRestart(t *testing.T, n *node) {
	kinds := []func(*runtime.NamespaceOption){ownIPC, sharedPIDs, ownUsers, hostNetwork}
	var pods []*cri.Pod
	var ids []string
	var created []int64
	var shared []map[string]string
	for _, kind := range kinds {
		pod := n.pod(t, sharing(kind))
		pods = append(pods, pod)
		ids = append(ids, startIn(t, n, pod, stay(pod)))
		shared = append(shared, n.seen(t, ids[len(ids)-1]))
	}
	empty := n.pod(t)
	pods = append(pods, empty)
	for _, pod := range pods {
		s, err := pod.Status(n.ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		created = append(created, s.GetCreatedAt())
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.Daemon.Start(); err != nil {
		t.Fatal(err)
	}
	n.connect(t)
	for i, pod := range pods {
		pods[i] = pod.Use(n.Client)
		s, err := pods[i].Status(n.ctx(t))
		if err != nil || s.GetState() != runtime.PodSandboxState_SANDBOX_READY || s.GetCreatedAt() != created[i] {
			t.Errorf("pod is %v, created at %d, %v; want ready, %d", s.GetState(), s.GetCreatedAt(), err, created[i])
		}
		podInfo(t, n, pods[i])
	}
	for i, pod := range pods[:len(kinds)] {
		if got := n.check(t, ids[i], "echo", "alive"); got != "alive" {
			t.Errorf("exec: %q", got)
		}
		// A new container finds the old one's namespaces.
		again := n.seen(t, startIn(t, n, pod, stay(pod)))
		for _, ns := range []string{"ipc", "net", "user", "uts"} {
			if again[ns] != shared[i][ns] {
				t.Errorf("pod %d: %s namespaces %s and %s differ", i, ns, again[ns], shared[i][ns])
			}
		}
	}
	if got := n.output(t, pods[len(kinds)], "hostname"); got != "pod" {
		t.Errorf("container in the pod that had none: %q", got)
	}
	eventually(t, patience, func() string {
		answer, err := n.PodSandboxStats(n.ctx(t), &runtime.PodSandboxStatsRequest{PodSandboxId: pods[0].ID})
		if err != nil || answer.GetStats().GetLinux().GetMemory().GetWorkingSetBytes().GetValue() == 0 {
			return fmt.Sprintf("stats after the restart: %v, %v", answer, err)
		}
		return ""
	})
}

// podInfo checks that a verbose status holds valid JSON.
func podInfo(t *testing.T, n *node, pod *cri.Pod) {
	t.Helper()
	answer, err := n.PodSandboxStatus(n.ctx(t), &runtime.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
	if err != nil || !json.Valid([]byte(answer.GetInfo()["info"])) {
		t.Errorf("verbose status %q, %v", answer.GetInfo(), err)
	}
}

// pauselessShimKilledUnseen kills the sandbox's shim while containerd is down.
func pauselessShimKilledUnseen(t *testing.T, n *node) {
	pod := n.pod(t)
	id := startIn(t, n, pod, stay(pod))
	shim := n.shim(t, pod.ID)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(shim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := n.Daemon.Start(); err != nil {
		t.Fatal(err)
	}
	n.connect(t)
	pod = pod.Use(n.Client)
	n.awaitPod(t, pod, runtime.PodSandboxState_SANDBOX_NOTREADY)
	n.orphaned(t, pod, id)
}
