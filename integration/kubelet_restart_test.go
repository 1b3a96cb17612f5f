// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/kubelet"
)

// witness notes what a restart must not change of a pod.
type witness struct {
	sandbox string
	ids     map[string]string // of containers
	pids    map[string]int
	began   map[string]string
}

// steady are the containers of the pod that runs all the time.
var steady = []string{"counter", "idle"}

func (n *kubeNode) witness(t *testing.T) *witness {
	t.Helper()
	pod := n.awaitReady(t, "steady")
	w := &witness{sandbox: n.sandbox(t, pod), ids: map[string]string{}, pids: map[string]int{}, began: map[string]string{}}
	for _, name := range steady {
		c := pod.Container(name)
		w.ids[name], w.pids[name] = c.ContainerID, n.pid(t, c)
		w.began[name] = born(t, w.pids[name])
	}
	return w
}

// confirm checks that all is as it was, and goes on.
func (w *witness) confirm(t *testing.T, n *kubeNode) {
	t.Helper()
	pod := n.awaitReady(t, "steady")
	if got := n.sandbox(t, pod); got != w.sandbox {
		t.Errorf("another sandbox: %s, before %s", got, w.sandbox)
	}
	for _, name := range steady {
		if c := pod.Container(name); c.RestartCount != 0 || c.ContainerID != w.ids[name] || born(t, w.pids[name]) != w.began[name] {
			t.Errorf("%s is another one: %v", name, pod)
		}
	}
	if got := n.check(t, "steady", "idle", "echo", "here"); got != "here" {
		t.Errorf("exec: %q", got)
	}
	lines := func() int {
		pieces, err := n.k.Output(pod, "counter", 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := 1; i < len(pieces); i++ { // the kubelet may have removed the oldest ones
			var a, b int
			if _, err := fmt.Sscan(pieces[i-1].Text+" "+pieces[i].Text, &a, &b); err != nil || b != a+1 {
				t.Fatalf("the log has %q after %q", pieces[i].Text, pieces[i-1].Text)
			}
		}
		var last int
		_, _ = fmt.Sscan(pieces[len(pieces)-1].Text, &last)
		return last
	}
	before := lines()
	eventually(t, patience, func() string {
		if now := lines(); now < before+20 {
			return fmt.Sprintf("the log's last number goes from %d to %d", before, now)
		}
		return ""
	})
}

// ended waits for the end of a container of the pod that ends in between.
func (n *kubeNode) ended(t *testing.T, name string, code int) {
	t.Helper()
	pod := n.await(t, "leaving", name+" ended", func(p *kubelet.Pod) bool { return p.Container(name).State.Terminated != nil })
	if got := pod.Container(name).State.Terminated.ExitCode; got != code {
		t.Errorf("%s, which ended meanwhile, has exit code %d, want %d", name, got, code)
	}
}

func kubeRestart(t *testing.T, n *kubeNode) {
	w := n.witness(t)
	pid := n.pid(t, n.awaitReady(t, "leaving").Container("kubelet"))
	if err := n.k.Kill(); err != nil {
		t.Fatal(err)
	}
	n.tell(t, "no-kubelet")
	awaitEnd(t, pid)
	if err := n.k.Start(); err != nil {
		t.Fatal(err)
	}
	w.confirm(t, n)
	n.ended(t, "kubelet", 5)
}

func kubeContainerdRestart(t *testing.T, n *kubeNode) {
	w := n.witness(t)
	pod := n.await(t, "leaving", "running", func(p *kubelet.Pod) bool { return p.Container("containerd").State.Running != nil })
	pid := n.pid(t, pod.Container("containerd"))
	if err := n.d.Kill(); err != nil {
		t.Fatal(err)
	}
	n.tell(t, "no-containerd")
	awaitEnd(t, pid)
	if err := n.d.Start(); err != nil {
		t.Fatal(err)
	}
	_ = n.cri.Close()
	var err error
	if n.cri, err = cri.Dial(n.d.Socket); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() string {
		if err := n.cri.Ready(n.ctx(t)); err != nil {
			return err.Error()
		}
		return ""
	})
	w.confirm(t, n)
	n.confirmOthers(t)
	if n.berth { // containerd reaps a stock shim whose container has ended, before it asks
		n.ended(t, "containerd", 6)
	}
}

// confirmOthers checks that pods of every kind are as they were and that a
// container which is started in an old pod joins it.
func (n *kubeNode) confirmOthers(t *testing.T) {
	t.Helper()
	for name, container := range map[string]string{
		"web": "client", "userns": "main", "hostspaces": "main", "shared": "main", "secure": "main", "guaranteed": "main",
	} {
		pod := n.awaitReady(t, name)
		if got := n.check(t, name, container, "echo", "here"); got != "here" || pod.Container(container).RestartCount != 0 {
			t.Errorf("exec: %q, in %v", got, pod)
		}
	}
	for name, container := range map[string]string{"web": "client", "userns": "user", "secure": "privileged"} {
		pod := n.awaitReady(t, name)
		sandbox := n.sandbox(t, pod)
		if err := unix.Kill(n.pid(t, pod.Container(container)), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pod = n.await(t, name, "restarted in part", func(p *kubelet.Pod) bool {
			return p.Container(container).RestartCount == 1 && p.Ready()
		})
		if last := pod.Container(container).LastState; last.Terminated == nil || last.Terminated.ExitCode != 137 {
			t.Errorf("%s was killed; before, it was %v", container, last)
		}
		if got := n.sandbox(t, pod); got != sandbox {
			t.Errorf("another sandbox: %s, before %s", got, sandbox)
		}
		other := pod.Status.ContainerStatuses[0].Name
		if other == container {
			other = pod.Status.ContainerStatuses[1].Name
		}
		for _, ns := range []string{"net", "ipc", "uts", "user"} {
			a, b := n.check(t, name, container, "readlink", "/proc/self/ns/"+ns), n.check(t, name, other, "readlink", "/proc/self/ns/"+ns)
			if a != b {
				t.Errorf("%s namespace of %s in %s: %s, of %s: %s", ns, container, name, a, other, b)
			}
		}
	}
}

// kubeShimsKilled: what a shim's death takes with it, the kubelet makes anew.
func kubeShimsKilled(t *testing.T, n *kubeNode) {
	n.berthOnly(t) // stock's socket stays
	w := n.witness(t)
	n.killContainerShim(t, w)
	n.killShim(t, w.sandbox)
	pod := n.await(t, "steady", "made anew", func(p *kubelet.Pod) bool {
		return p.Container("counter").ContainerID != w.ids["counter"] && p.Ready()
	})
	if got := n.sandbox(t, pod); got == w.sandbox {
		t.Errorf("the sandbox %s lost its shim and is still ready", got)
	}
	awaitEnd(t, w.pids["counter"])
	if got := n.check(t, "steady", "counter", "hostname"); got != "steady-node" {
		t.Errorf("hostname %q", got)
	}
}

func (n *kubeNode) killContainerShim(t *testing.T, w *witness) {
	t.Helper()
	n.killShim(t, strings.TrimPrefix(w.ids["idle"], "containerd://"))
	pod := n.await(t, "steady", "restarted in part", func(p *kubelet.Pod) bool {
		return p.Container("idle").RestartCount == 1 && p.Ready()
	})
	if c := pod.Container("counter"); c.RestartCount != 0 || c.ContainerID != w.ids["counter"] {
		t.Errorf("the death of one container's shim is another's end: %v", pod)
	}
	if got := n.sandbox(t, pod); got != w.sandbox {
		t.Errorf("another sandbox: %s, before %s", got, w.sandbox)
	}
}

// killShim kills the shim of a container or of a sandbox.
func (n *kubeNode) killShim(t *testing.T, id string) {
	t.Helper()
	eventually(t, patience, func() string {
		for _, m := range host.Monitors([]string{id}, nil) {
			if m.Of == id {
				if err := unix.Kill(m.Pid, unix.SIGKILL); err != nil {
					return err.Error()
				}
				return ""
			}
		}
		return "no shim of " + id // or one that just starts itself afresh
	})
}

// kubeImages has the kubelet collect images: it removes what is unused, and
// leaves what is in use or pinned.
func kubeImages(t *testing.T, n *kubeNode) {
	images := func() []string {
		list, err := n.cri.Images.ListImages(n.ctx(t), &runtime.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, image := range list.GetImages() {
			names = append(names, image.GetRepoTags()...)
		}
		slices.Sort(names)
		return names
	}
	if got := images(); !slices.Equal(got, []string{host.Busybox, host.Pause, host.Web}) {
		t.Fatalf("images before: %v", got)
	}
	if err := n.k.Kill(); err != nil {
		t.Fatal(err)
	}
	n.k.CollectImages = true
	if err := n.k.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() string {
		if got := images(); !slices.Equal(got, []string{host.Busybox, host.Pause}) {
			return fmt.Sprintf("images: %v", got)
		}
		return ""
	})
}
