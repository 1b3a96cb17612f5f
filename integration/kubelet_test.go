// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/kubelet"
)

// kubeNode is a node with a real kubelet, on which the handler under test is the
// default one. Its pods are the manifests in kubelet/pods.
type kubeNode struct {
	d      *host.Daemon
	k      *kubelet.Kubelet
	cri    *cri.Client // for what the kubelet does not tell
	shared string      // a folder that pods mount; $SHARED in manifests
	before host.Census // without the kubelet
	follow followed    // of the pod talk's log

	berth     bool
	pauseless bool // the shim is the sandboxer
}

// kubeCase is something to find out about pods of some manifests.
type kubeCase struct {
	name string
	test func(t *testing.T, n *kubeNode)
	pods []string
	// short tells that the case depends on the machine's cgroups.
	short bool
	begin func(t *testing.T, n *kubeNode) // called as soon as there are pods
}

// kubeCases come in an order that has the slow pods ready when their turn comes:
// most of what is tested takes time rather than work. The last ones disturb all
// pods.
var kubeCases = []kubeCase{
	{name: "init containers", test: kubeInit, pods: []string{"web"}, short: true},
	{name: "probes", test: kubeProbes, pods: []string{"probes"}},
	{name: "sidecars", test: kubeSidecars, pods: []string{"sidecar"}},
	{name: "graceful end", test: kubeGraceful, pods: []string{"graceful"}},
	{name: "forced end", test: kubeStubborn, pods: []string{"stubborn"}},
	{name: "user namespace", test: kubeUserNamespace, pods: []string{"userns"}, short: true},
	{name: "host namespaces", test: kubeHostNamespaces, pods: []string{"hostspaces"}},
	{name: "shared processes", test: kubeSharedProcesses, pods: []string{"shared"}},
	{name: "security", test: kubeSecurity, pods: []string{"secure"}},
	{name: "volumes", test: kubeVolumes, pods: []string{"volumes"}},
	{name: "exec", test: kubeExec, pods: []string{"web"}},
	{name: "attach", test: kubeAttach, pods: []string{"attach"}},
	{name: "port forward", test: kubeForward, pods: []string{"web"}},
	{name: "resources", test: kubeResources, pods: []string{"guaranteed"}, short: true},
	{name: "crash loop", test: kubeCrashLoop, pods: []string{"crash"}},
	{name: "out of memory", test: kubeOOM, pods: []string{"oom"}, short: true},
	{name: "log rotation", test: kubeRotation, pods: []string{"talk"}, begin: kubeFollow},
	{name: "stats", test: kubeStats, pods: []string{"stats", "web"}, short: true},
	{name: "checkpoint", test: kubeCheckpoint, pods: []string{"steady"}},
	{name: "kubelet restart", test: kubeRestart, pods: []string{"steady", "leaving"}},
	{name: "containerd restart", test: kubeContainerdRestart, pods: []string{
		"steady", "leaving", "web", "userns", "hostspaces", "shared", "secure", "guaranteed",
	}},
	{name: "stats of the runtime", test: kubeRuntimeStats, pods: []string{"stats", "web"}},
	{name: "shims killed", test: kubeShimsKilled, pods: []string{"steady"}},
	{name: "first process killed", test: kubeFirstProcessKilled, pods: []string{"shared"}},
	{name: "image collection", test: kubeImages, pods: []string{"web"}, short: true},
}

// TestKubelet runs static pods under a real kubelet, all at once.
func TestKubelet(t *testing.T) {
	for _, form := range kubeForms() {
		t.Run(form.name, func(t *testing.T) {
			t.Parallel() // they wait more than they work
			n := form.start(t)
			var applied []string
			for _, c := range kubeCases {
				for _, pod := range c.pods {
					if (c.short || !testing.Short()) && !slices.Contains(applied, pod) {
						n.apply(t, pod)
						applied = append(applied, pod)
					}
				}
			}
			for _, c := range kubeCases {
				if c.begin != nil && !testing.Short() {
					c.begin(t, n)
				}
			}
			for _, c := range kubeCases {
				if c.short || !testing.Short() {
					t.Run(c.name, func(t *testing.T) { c.test(t, n) })
				}
			}
			for _, pod := range applied {
				_ = n.k.Remove(pod) // some are gone
			}
			// The kubelet collects what has ended every minute; when it finds the disk too
			// full, as since the last case, every ten seconds.
			eventually(t, 2*patience, func() string {
				left, err := n.cri.ListPodSandbox(n.ctx(t), &runtime.ListPodSandboxRequest{})
				if err != nil || len(left.GetItems()) > 0 {
					return fmt.Sprintf("pods left: %v, %v", left.GetItems(), err)
				}
				return ""
			})
			_ = n.cri.Close()
			if err := n.k.Close(); err != nil {
				t.Error(err)
			}
			n.d.Settle(t, n.before)
		})
	}
}

// kubeForm is a runtime with a form of sandbox.
type kubeForm struct {
	name      string
	rt        host.Runtime
	pauseless bool
}

// kubeForms are berth with pause containers and without, and what
// BERTH_TEST_RUNTIME names.
func kubeForms() []kubeForm {
	var forms []kubeForm
	for _, rt := range host.Runtimes() {
		if rt == host.DropIn && os.Getenv("BERTH_TEST_RUNTIME") == "" {
			continue // another name of the first one, as far as a kubelet can tell
		}
		forms = append(forms, kubeForm{name: rt.Label, rt: rt})
		if rt == host.Native {
			forms = append(forms, kubeForm{name: rt.Label + " pauseless", rt: rt, pauseless: true})
		}
	}
	return forms
}

var bridges atomic.Int32

func (form kubeForm) start(t *testing.T) *kubeNode {
	t.Helper()
	if _, err := os.Stat(form.rt.Binary()); err != nil {
		t.Fatalf("%v (run `make build`)", err)
	}
	n := &kubeNode{shared: t.TempDir(), berth: form.rt.Berth, pauseless: form.pauseless}
	if err := os.Chmod(n.shared, 0o777); err != nil {
		t.Fatal(err)
	}
	n.d = host.Run(t, host.Options{CRI: true, Images: []string{}, TOML: form.config(t)})
	for _, image := range []string{"busybox", "web", "pause"} {
		out, err := n.d.Ctr("-n", "k8s.io", "images", "import", host.Deps("images/"+image+".tar")).CombinedOutput()
		if err != nil {
			t.Fatalf("import %s: %v: %s", image, err, out)
		}
	}
	n.before = n.d.Count(t)
	var err error
	if n.cri, err = cri.Dial(n.d.Socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.cri.Close() })
	if n.k, err = kubelet.New(n.d); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kubelet's log:\n%s", n.k.Log(40))
		}
		if err := n.k.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// config is containerd's.
func (form kubeForm) config(t *testing.T) string {
	t.Helper()
	handler := fmt.Sprintf("runtime_type = %q", form.rt.Name)
	if form.rt.Path != "" {
		handler += fmt.Sprintf("\nruntime_path = %q", form.rt.Path)
	}
	pinned := "sandbox"
	if form.pauseless {
		handler += "\nsandboxer = \"shim\"\ndisable_pause_image_pull = true"
		pinned = "kept" // any image will do, for a test of collection
	}
	// 198.18.0.0/15 is set aside for tests of networks (RFC 2544). The gateway is
	// for the kubelet's probes.
	conf, number := t.TempDir(), bridges.Add(1)
	network := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "kubelet", "plugins": [{
		"type": "bridge", "bridge": "bkube%d", "isGateway": true,
		"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "198.18.%d.0/24"}]]}}]}`,
		number, conf+"/ipam", 128+number)
	if err := os.WriteFile(conf+"/10-kubelet.conflist", []byte(network), 0o644); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  %s = %q

[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true # a machine may lack CAP_SYS_RESOURCE
  netns_mounts_under_state_dir = true
  drain_exec_sync_io_timeout = "2s"
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%q]
    conf_dir = %q
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "default"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.default]
%s
  # The kubelet goes by what an entry of runc says of cgroups.
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = false
`, pinned, host.Pause, host.Deps("cni"), conf, handler)
}

// apply makes the pod of a manifest.
func (n *kubeNode) apply(t *testing.T, name string, replace ...string) {
	t.Helper()
	text, err := os.ReadFile("kubelet/pods/" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	replace = append(replace, "$SHARED", n.shared, "$CPU", "100m", "$MEMORY", "32Mi")
	if err := n.k.Apply(name, strings.NewReplacer(replace...).Replace(string(text))); err != nil {
		t.Fatal(err)
	}
}

// await waits until a pod is as wanted and returns it.
func (n *kubeNode) await(t *testing.T, name, what string, ok func(p *kubelet.Pod) bool) *kubelet.Pod {
	t.Helper()
	var pod *kubelet.Pod
	eventually(t, patience, func() string {
		var err error
		if pod, err = n.k.Pod(name); err != nil {
			return err.Error()
		}
		if !ok(pod) {
			return fmt.Sprintf("not %s: %v", what, pod)
		}
		return ""
	})
	return pod
}

func (n *kubeNode) awaitReady(t *testing.T, name string) *kubelet.Pod {
	t.Helper()
	return n.await(t, name, "ready", (*kubelet.Pod).Ready)
}

// remove has the kubelet end a pod and waits for it.
func (n *kubeNode) remove(t *testing.T, name string) {
	t.Helper()
	if err := n.k.Remove(name); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() string {
		left, err := n.k.Running()
		if err != nil || slices.Contains(left, name+"-"+kubelet.Node) {
			return fmt.Sprintf("%s is among %v, %v", name, left, err)
		}
		return ""
	})
}

// exec runs a command through the kubelet and returns its trimmed output and
// exit code, as kubectl does it nowadays.
func (n *kubeNode) exec(t *testing.T, pod, container string, command ...string) (string, int) {
	t.Helper()
	var out syncBuffer // for both streams
	err := n.k.Exec(n.ctx(t), pod, container, cri.Streams{Over: cri.WebSocket, Stdout: &out, Stderr: &out}, command...)
	var exit *cri.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("exec %q in %s/%s: %v", command, pod, container, err)
	}
	if exit != nil {
		return strings.TrimSpace(out.String()), exit.Code
	}
	return strings.TrimSpace(out.String()), 0
}

// check is exec of a command that must succeed.
func (n *kubeNode) check(t *testing.T, pod, container string, command ...string) string {
	t.Helper()
	out, code := n.exec(t, pod, container, command...)
	if code != 0 {
		t.Fatalf("%q in %s/%s exits with %d: %s", command, pod, container, code, out)
	}
	return out
}

// script is check of a shell's.
func (n *kubeNode) script(t *testing.T, pod, container, text string) string {
	t.Helper()
	return n.check(t, pod, container, "sh", "-c", text)
}

// pid is the first process of a container, seen from the host.
func (n *kubeNode) pid(t *testing.T, c kubelet.Container) int {
	t.Helper()
	status, err := n.cri.RuntimeServiceClient.ContainerStatus(n.ctx(t), &runtime.ContainerStatusRequest{
		ContainerId: strings.TrimPrefix(c.ContainerID, "containerd://"), Verbose: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(status.GetInfo()["info"]), &info); err != nil || info.Pid == 0 {
		t.Fatalf("no pid of %s: %v", c.ContainerID, err)
	}
	return info.Pid
}

// sandbox is the id of a pod's sandbox that is ready.
func (n *kubeNode) sandbox(t *testing.T, pod *kubelet.Pod) string {
	t.Helper()
	list, err := n.cri.ListPodSandbox(n.ctx(t), &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{
		LabelSelector: map[string]string{"io.kubernetes.pod.uid": pod.Metadata.UID},
		State:         &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil || len(list.GetItems()) != 1 {
		t.Fatalf("ready sandboxes of %s: %v, %v, want one", pod.Metadata.Name, list.GetItems(), err)
	}
	return list.GetItems()[0].GetId()
}

// born tells a process from a later one of the same number.
func born(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return fmt.Sprint(pid, " started at ", fields[19])
}

// awaitEnd waits until a process is no more.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	eventually(t, patience, func() string {
		if err := unix.Kill(pid, 0); err == nil {
			return fmt.Sprintf("process %d lives", pid)
		}
		return ""
	})
}

// read is what pods have written to a file of the shared folder.
func (n *kubeNode) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(n.shared + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// tell makes a file in the shared folder that a pod waits for.
func (n *kubeNode) tell(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(n.shared+"/"+name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// berthOnly ends a case that containerd's own shim does not claim to pass.
func (n *kubeNode) berthOnly(t *testing.T) {
	t.Helper()
	if !n.berth {
		t.Skip("only berth promises this")
	}
}

func (n *kubeNode) ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
