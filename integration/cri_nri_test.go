// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
)

// TestNRI has a plugin of the Node Resource Interface watch pods and change
// containers. Where stock containerd leaves a gap, it is written down here.
func TestNRI(t *testing.T) {
	for _, rt := range podRuntimes() {
		t.Run(rt.Label, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, rt, host.Options{NRI: true})
			n.sub(t, "events", nriEvents)
			n.sub(t, "refusal", nriRefusal)
			n.sub(t, "synchronization", nriSynchronization)
		})
	}
}

// plugin records what it is told.
type plugin struct {
	mu         sync.Mutex
	calls      []string
	pods       map[string]*api.PodSandbox
	containers map[string]*api.Container
}

// Names that make the plugin act.
const (
	refusedPod      = "refused-by-plugin"
	changedVariable = "PLUGIN"
)

func (p *plugin) note(call, id string, pod *api.PodSandbox, container *api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, call+" "+id)
	if pod != nil {
		p.pods[pod.GetId()] = pod
	}
	if container != nil {
		p.containers[container.GetId()] = container
	}
}

func (p *plugin) called(call, id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.calls, call+" "+id)
}

func (p *plugin) pod(id string) *api.PodSandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods[id]
}

func (p *plugin) container(id string) *api.Container {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.containers[id]
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, pod := range pods {
		p.note("have pod", pod.GetId(), pod, nil)
	}
	for _, c := range containers {
		p.note("have container", c.GetId(), nil, c)
	}
	p.note("synchronize", "", nil, nil)
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("run", pod.GetId(), pod, nil)
	if pod.GetName() == refusedPod {
		return errors.New("the plugin does not want it")
	}
	return nil
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	p.note("update", pod.GetId(), nil, nil)
	return nil
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("stop", pod.GetId(), nil, nil)
	return nil
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("remove", pod.GetId(), nil, nil)
	return nil
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("create", c.GetId(), nil, c)
	adjust := &api.ContainerAdjustment{}
	adjust.AddEnv(changedVariable, "was here")
	adjust.AddMount(&api.Mount{Source: "/etc/hostname", Destination: "/plugin", Type: "bind", Options: []string{"bind", "ro"}})
	return adjust, nil, nil
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	p.note("started", c.GetId(), nil, c)
	return nil
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("stopped", c.GetId(), nil, nil)
	return nil, nil
}

// plug connects a plugin until the test ends.
func (n *node) plug(t *testing.T) *plugin {
	t.Helper()
	p := &plugin{pods: map[string]*api.PodSandbox{}, containers: map[string]*api.Container{}}
	s, err := stub.New(p, stub.WithPluginName("test"), stub.WithPluginIdx("10"), stub.WithSocketPath(n.NRISocket()), stub.WithOnClose(func() {}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Stop()
		s.Wait()
	})
	eventually(t, patience, func() string {
		if !p.called("synchronize", "") {
			return "the plugin has not heard of anything"
		}
		return ""
	})
	return p
}

// pid is a container's process as the CRI has it.
func (n *node) pid(t *testing.T, id string) int {
	t.Helper()
	answer, err := n.RuntimeServiceClient.ContainerStatus(n.ctx(t), &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(answer.GetInfo()["info"], `"pid":`)
	var pid int
	if _, err := fmt.Sscan(strings.TrimRight(strings.SplitN(after, ",", 2)[0], "}"), &pid); err != nil {
		t.Fatalf("no process in %q", answer.GetInfo()["info"])
	}
	return pid
}

// checkPod compares a pod as a plugin sees it with the namespaces of a container
// in it.
func (n *node) checkPod(t *testing.T, pod *api.PodSandbox, container string) {
	t.Helper()
	// The gap: a pod without a pause container has no process, and says so. With
	// one its namespaces are those of the process.
	if (pod.GetPid() == 0) != n.pauseless() {
		t.Errorf("the pod has process %d", pod.GetPid())
	}
	kinds := map[string]string{"ipc": "ipc", "uts": "uts", "network": "net", "user": "user"}
	found := map[string]bool{}
	for _, ns := range pod.GetLinux().GetNamespaces() {
		name := kinds[ns.GetType()]
		path := ns.GetPath()
		if name == "" || path == "" && n.pauseless() && ns.GetType() != "user" {
			if name != "" {
				t.Errorf("%s namespace without a path", ns.GetType())
			}
			continue
		}
		if path == "" {
			path = fmt.Sprintf("/proc/%d/ns/%s", pod.GetPid(), name)
		}
		a, err := os.Stat(path)
		if err != nil {
			t.Error(err)
			continue
		}
		b, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", n.pid(t, container), name))
		if err != nil {
			t.Fatal(err)
		}
		if a.Sys().(*syscall.Stat_t).Ino != b.Sys().(*syscall.Stat_t).Ino {
			t.Errorf("the %s namespace at %s is not the container's", ns.GetType(), path)
		}
		found[ns.GetType()] = true
	}
	for _, kind := range []string{"ipc", "uts", "network"} {
		if !found[kind] {
			t.Errorf("the plugin does not see the %s namespace among %v", kind, pod.GetLinux().GetNamespaces())
		}
	}
}

func nriEvents(t *testing.T, n *node) {
	p := n.plug(t)
	pod, users := n.pod(t), n.pod(t, sharing(ownUsers))
	var ids []string
	for _, pod := range []*cri.Pod{pod, users} {
		id := startIn(t, n, pod, stay(pod))
		ids = append(ids, id)
		n.checkPod(t, p.pod(pod.ID), id)
		if got := n.check(t, id, "sh", "-c", "echo $"+changedVariable+"; cat /plugin"); !strings.HasPrefix(got, "was here\n") {
			t.Errorf("what the plugin changed: %q", got)
		}
		// The gap: the plugin sees the container as containerd made it, before it
		// joins; its process is right.
		eventually(t, patience, func() string {
			if got, want := int(p.container(id).GetPid()), n.pid(t, id); got != want {
				return fmt.Sprintf("the plugin sees process %d of the container, want %d", got, want)
			}
			return ""
		})
		if p.container(id).GetPodSandboxId() != pod.ID {
			t.Errorf("container %v", p.container(id))
		}
	}
	if _, err := n.UpdatePodSandboxResources(n.ctx(t), &runtime.UpdatePodSandboxResourcesRequest{
		PodSandboxId: pod.ID, Resources: &runtime.LinuxContainerResources{CpuShares: 512},
	}); err != nil {
		t.Error(err)
	}
	if err := errors.Join(n.Client.Stop(n.ctx(t), ids[0], 0), pod.Stop(n.ctx(t)), pod.Remove(n.ctx(t))); err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"run " + pod.ID, "create " + ids[0], "started " + ids[0], "update " + pod.ID, "stopped " + ids[0], "stop " + pod.ID, "remove " + pod.ID} {
		what, of, _ := strings.Cut(call, " ")
		if !p.called(what, of) {
			t.Errorf("the plugin has not heard of %s", call)
		}
	}
}

// nriRefusal fails pods after their sandbox has started: nothing is left of them.
func nriRefusal(t *testing.T, n *node) {
	n.plug(t)
	for _, kind := range []func(*runtime.NamespaceOption){ownIPC, sharedPIDs, ownUsers, hostNetwork} {
		n.podRefused(t, n.handler, "the plugin does not want it", sharing(kind), func(c *runtime.PodSandboxConfig) {
			c.Metadata.Name = refusedPod
		})
	}
}

// nriSynchronization connects plugins to pods that run already, and again after
// containerd was killed.
func nriSynchronization(t *testing.T, n *node) {
	pod := n.pod(t)
	id := startIn(t, n, pod, stay(pod))
	for _, restart := range []bool{false, true} {
		if restart {
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := n.Daemon.Start(); err != nil {
				t.Fatal(err)
			}
			n.connect(t)
		}
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			p := n.plug(t)
			if p.pod(pod.ID) == nil || p.container(id) == nil {
				t.Fatalf("the plugin sees pod %v, container %v", p.pod(pod.ID), p.container(id))
			}
			n.checkPod(t, p.pod(pod.ID), id)
			if got, want := int(p.container(id).GetPid()), n.pid(t, id); got != want {
				t.Errorf("the plugin sees process %d of the container, want %d", got, want)
			}
		})
	}
}
