// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	criclient "github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/plugin/labels"
	berth "github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/network"
)

// kubelet is a daemon with CRI, and a service in the kubelet's namespace.
type kubelet struct {
	*rig
	*criclient.Client
}

// Runtime handlers of the kubelet's.
const (
	withPause = "pause"
	pauseless = "pauseless"
)

func newKubelet(t *testing.T) *kubelet {
	t.Helper()
	conf, err := host.Network()
	if err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf(`
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %q
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%q]
    conf_dir = %q
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "pause"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.pause]
    runtime_type = "io.containerd.berth.v1"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.pauseless]
    runtime_type = "io.containerd.berth.v1"
    sandboxer = "shim"
    disable_pause_image_pull = true
`, host.Pause, host.Deps("cni"), conf)
	d := host.Run(t, host.Options{CRI: true, Images: []string{}, TOML: toml})
	for _, image := range []string{"busybox.tar", "pause.tar"} {
		if out, err := d.Ctr("-n", "k8s.io", "images", "import", host.Deps("images/"+image)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	config := serviceConfig(t, d)
	config.Namespace, config.Network = "k8s.io", network.Config{ConfDir: conf, BinDirs: []string{host.Deps("cni")}}
	s, err := berth.Open(ctx(t), config)
	if err != nil {
		t.Fatal(err)
	}
	k := &kubelet{rig: &rig{d, s, config}}
	t.Cleanup(func() { k.clean(t, ctx(t)) })
	if k.Client, err = criclient.Dial(d.Socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Client.Close() })
	eventually(t, patience, func() string {
		if err := k.Ready(ctx(t)); err != nil {
			return err.Error()
		}
		i, err := k.Images.ImageStatus(ctx(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: host.Busybox}})
		if err != nil || i.GetImage() == nil {
			return fmt.Sprintf("image: %v, %v", i, err)
		}
		return ""
	})
	return k
}

// run makes a pod with a container, as the kubelet does.
func (k *kubelet) run(t *testing.T, handler string) (pod *criclient.Pod, container string) {
	t.Helper()
	pod, err := k.Client.Run(ctx(t), handler, &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: handler, Uid: "uid-" + handler, Namespace: "test", Attempt: 3},
		LogDirectory: t.TempDir(), Labels: map[string]string{"who": "kubelet"},
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + k.Namespace},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pod.Stop(ctx(t)); err != nil {
			t.Error(err)
		}
		if err := pod.Remove(ctx(t)); err != nil {
			t.Error(err)
		}
	})
	container, err = pod.Start(ctx(t), &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "app-" + handler}, Image: &cri.ImageSpec{Image: host.Busybox},
		Command: []string{"sh", "-c", idle}, LogPath: "app.log", Linux: &cri.LinuxContainerConfig{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return pod, container
}

// (P35, P39 to P43, P45)
func TestRuntimeForeign(t *testing.T) {
	k := newKubelet(t)
	mine := k.pod(t, hostPod(t))
	own := k.start(t, shell(mine, "main", idle))
	if out, err := k.Ctr("-n", "k8s.io", "run", "-d", "--runtime", host.Native.Name, host.Busybox, "other", "sleep", "1000").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		_ = k.Ctr("-n", "k8s.io", "task", "rm", "-f", "other").Run()
		_ = k.Ctr("-n", "k8s.io", "container", "rm", "other").Run()
	})
	pods := map[string]*criclient.Pod{}
	apps := map[string]string{}
	for _, handler := range []string{withPause, pauseless} {
		pods[handler], apps[handler] = k.run(t, handler)
	}
	all, err := k.Pods(ctx(t), berth.PodFilter{})
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, handler := range []string{withPause, pauseless} {
		p, err := k.Pod(ctx(t), handler)
		if err != nil || string(p.ID) != pods[handler].ID || p.Owner != "cri" || p.State != berth.PodReady || p.Attempt != 3 ||
			p.UID != "uid-"+handler || p.Namespace != "test" || p.Labels["who"] != "kubelet" {
			t.Errorf("%s: %+v, %v", handler, p, err)
		}
		if len(p.Containers) != 1 || string(p.Containers[0].ID) != apps[handler] || p.Containers[0].State != berth.ContainerRunning {
			t.Errorf("%s: containers %+v", handler, p.Containers)
		}
		for what, do := range map[string]func() error{
			"stop pod":   func() error { return k.StopPod(ctx(t), handler, 0) },
			"remove pod": func() error { return k.RemovePod(ctx(t), handler, berth.RemoveOptions{}) },
			"stop":       func() error { return k.Service.StopContainer(ctx(t), apps[handler], 0) },
			"remove":     func() error { return k.Service.RemoveContainer(ctx(t), apps[handler], berth.RemoveOptions{}) },
			"kill":       func() error { return k.Service.Kill(ctx(t), apps[handler], "KILL", false) },
			"create": func() error {
				_, err := k.Service.CreateContainer(ctx(t), berth.ContainerRequest{Pod: handler, Name: "x", Image: host.Busybox})
				return err
			},
		} {
			if err := do(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "kubelet") {
				t.Errorf("%s of %s: %v", what, handler, err)
			}
		}
	}
	cs, err := k.Containers(ctx(t), berth.ContainerFilter{})
	if err != nil || len(cs) != 3 || slices.ContainsFunc(cs, func(c berth.Container) bool { return c.ID == "other" }) {
		t.Errorf("%+v, %v", cs, err)
	}
	cs, err = k.Containers(ctx(t), berth.ContainerFilter{AllOwners: true})
	if err != nil || len(cs) != 4 || !slices.ContainsFunc(cs, func(c berth.Container) bool {
		return c.ID == "other" && c.Owner == "other" && c.State == berth.ContainerRunning && c.PodID == ""
	}) {
		t.Errorf("%+v, %v", cs, err)
	}
	k.ctr(t, own)
	k.restarted(t, mine)
	stopped := pods[pauseless]
	if err := stopped.Stop(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if p, err := k.Pod(ctx(t), stopped.ID); err != nil || p.State != berth.PodNotReady {
		t.Errorf("stopped by the kubelet: %s, %v", p.State, err)
	}
	// Who insists gets what CRI does.
	if err := k.RemovePod(ctx(t), pods[withPause].ID, berth.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if _, err := k.Pod(ctx(t), pods[withPause].ID); !errdefs.IsNotFound(err) {
		t.Errorf("removed by force: %v", err)
	}
	if err := k.Service.RemoveContainer(ctx(t), "other", berth.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
}

// ctr works with berth's container.
func (k *kubelet) ctr(t *testing.T, c berth.Container) {
	t.Helper()
	id := string(c.ID)
	for _, call := range []struct {
		args []string
		want string
	}{
		{[]string{"container", "ls"}, id},
		{[]string{"task", "ls"}, "RUNNING"},
		{[]string{"snapshot", "ls"}, id},
		{[]string{"container", "info", id}, `"io.berth.managed": "1"`},
		{[]string{"task", "exec", "--exec-id", "x", id, "echo", "seen"}, "seen"},
		{[]string{"task", "pause", id}, ""},
	} {
		out, err := k.Ctr(append([]string{"-n", "k8s.io"}, call.args...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), call.want) {
			t.Errorf("ctr %v: %v: %s", call.args, err, out)
		}
	}
	if got := k.state(t, id); got != berth.ContainerPaused {
		t.Errorf("paused by ctr: %s", got)
	}
	for _, args := range [][]string{{"task", "resume", id}, {"task", "kill", "-s", "KILL", id}} {
		if out, err := k.Ctr(append([]string{"-n", "k8s.io"}, args...)...).CombinedOutput(); err != nil {
			t.Errorf("ctr %v: %v: %s", args, err, out)
		}
	}
	eventually(t, patience, func() string {
		got, err := k.Container(ctx(t), id)
		if err != nil || got.State != berth.ContainerExited || got.ExitCode == nil || *got.ExitCode != 137 {
			return fmt.Sprintf("killed by ctr: %+v, %v", got, err)
		}
		return ""
	})
}

// restarted looks at what CRI makes of berth's objects when it starts. (P35)
func (k *kubelet) restarted(t *testing.T, mine berth.Pod) {
	t.Helper()
	if err := k.Daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(k.Dir, "log")
	before, _ := os.ReadFile(log)
	if err := k.Daemon.Start(); err != nil {
		t.Fatal(err)
	}
	k.reopen(t)
	eventually(t, patience, func() string {
		if err := k.Ready(ctx(t)); err != nil {
			return err.Error()
		}
		return ""
	})
	after, _ := os.ReadFile(log)
	for line := range strings.Lines(string(after[len(before):])) {
		// CRI deletes sandbox records that are not its own, with these words; the
		// pod's is made again when somebody works on the pod.
		known := strings.Contains(line, "failed to get metadata for stored sandbox")
		if strings.Contains(line, string(mine.ID)) && strings.Contains(line, "level=error") && !known {
			t.Errorf("CRI says of berth's pod: %s", line)
		}
	}
	list, err := k.ListPodSandbox(ctx(t), &cri.ListPodSandboxRequest{})
	if err != nil || slices.ContainsFunc(list.GetItems(), func(p *cri.PodSandbox) bool { return p.GetId() == string(mine.ID) }) {
		t.Errorf("the kubelet sees berth's pod: %v, %v", list, err)
	}
	if got, err := k.Pod(ctx(t), mine.Name); err != nil || got.State != berth.PodReady || got.ID != mine.ID {
		t.Errorf("%+v, %v", got, err)
	}
	k.start(t, shell(mine, "later", idle))
	if _, err := k.Daemon.Client().SandboxStore().Get(namespaces.WithNamespace(ctx(t), "k8s.io"), string(mine.ID)); err != nil {
		t.Error(err)
	}
}

// One pod is found among many containers, and how long that takes.
// BERTH_TEST_FULL=1 makes ten thousand of them.
func TestRuntimeMany(t *testing.T) {
	n := 500
	if os.Getenv("BERTH_TEST_FULL") != "" {
		n = 10_000
	}
	r := serviceOn(t, host.Run(t, host.Options{}))
	p := r.pod(t, hostPod(t))
	for _, name := range []string{"one", "two", "three"} {
		r.start(t, shell(p, name, idle))
	}
	r.fill(t, 0, n)
	for what, look := range map[string]func() error{
		"by ID":        func() error { _, err := r.Pod(ctx(t), string(p.ID)); return err },
		"by name":      func() error { _, err := r.Pod(ctx(t), p.Name); return err },
		"by full name": func() error { _, err := r.Pod(ctx(t), p.FullName); return err },
		"by a prefix":  func() error { _, err := r.Pod(ctx(t), string(p.ID)[:10]); return err },
	} {
		best := time.Hour
		for range 5 {
			start := time.Now()
			if err := look(); err != nil {
				t.Fatal(err)
			}
			best = min(best, time.Since(start))
		}
		t.Logf("one pod among %d containers, %s: %v", n, what, best)
	}
	start := time.Now()
	pods, err := r.Pods(ctx(t), berth.PodFilter{})
	t.Logf("%d pods, all containers: %v, %v", len(pods), time.Since(start), err)
}

// (P44) A list is as many calls of containerd among 500 containers as among 50.
func TestRuntimeListCalls(t *testing.T) {
	r := serviceOn(t, host.Run(t, host.Options{}))
	p := r.pod(t, hostPod(t))
	r.start(t, shell(p, "one", idle))
	var calls atomic.Int32
	counted, err := client.New(r.Socket, client.WithExtraDialOpts([]grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, q, a any, c *grpc.ClientConn, next grpc.UnaryInvoker, o ...grpc.CallOption) error {
			calls.Add(1)
			return next(ctx, method, q, a, c, o...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, c *grpc.ClientConn, method string, next grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			calls.Add(1)
			return next(ctx, d, c, method, o...)
		}),
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer counted.Close()
	config := r.config
	config.Client = counted
	s, err := berth.Open(ctx(t), config)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	lists := map[string]func() (int, error){
		"pods": func() (int, error) { l, err := s.Pods(ctx(t), berth.PodFilter{}); return len(l), err },
		"containers": func() (int, error) {
			l, err := s.Containers(ctx(t), berth.ContainerFilter{AllOwners: true})
			return len(l), err
		},
	}
	before := make(map[string]int32)
	made := 0
	for _, n := range []int{50, 500} {
		r.fill(t, made, n)
		made = n
		for what, list := range lists {
			calls.Store(0)
			found, err := list()
			if err != nil || found < n/3 {
				t.Errorf("%s: %d, %v", what, found, err)
			}
			t.Logf("%d %s: %d calls", found, what, calls.Load())
			if was, again := before[what]; again && was != calls.Load() {
				t.Errorf("%s: %d calls among few, %d among many", what, was, calls.Load())
			}
			before[what] = calls.Load()
		}
	}
}

// fill makes records of containers, as those of pods with three containers each, up
// to n of them.
func (r *rig) fill(t *testing.T, from, n int) {
	t.Helper()
	c := r.Context(context.Background())
	model, err := r.Client().ContainerService().List(c, `labels."io.berth.kind"==container`)
	if err != nil || len(model) == 0 {
		t.Fatal(err)
	}
	m, err := labels.Decode(model[0])
	if err != nil {
		t.Fatal(err)
	}
	work := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range work {
				m := m
				m.Pod = labels.Pod{ID: fmt.Sprintf("pod%d", i/3), FullName: fmt.Sprintf("pod-%d", i/3), Name: fmt.Sprintf("pod-%d", i/3)}
				m.Name = fmt.Sprintf("container-%d", i)
				record := containers.Container{ID: fmt.Sprintf("many%d", i), Runtime: model[0].Runtime, Spec: model[0].Spec}
				if i%3 == 0 {
					infra := m
					infra.Kind, infra.Name, infra.MetadataName, infra.Attempt = labels.KindInfra, m.Pod.InfraName(), m.Pod.Name, 0
					b := sandbox.Sandbox{ID: m.Pod.ID, Sandboxer: "shim", Runtime: sandbox.RuntimeOpts{Name: host.Native.Name}}
					if err := infra.EncodeSandbox(&b); err != nil {
						t.Error(err)
					}
					if _, err := r.Client().SandboxStore().Create(c, b); err != nil {
						t.Error(err)
					}
				}
				if err := m.Encode(&record); err != nil {
					t.Error(err)
					continue
				}
				if _, err := r.Client().ContainerService().Create(c, record); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := from; i < n; i++ {
		work <- i
	}
	close(work)
	wg.Wait()
	t.Cleanup(func() {
		c := r.Context(context.Background()) // on a slow disk it is more than a test may take
		for i := from; i < n; i++ {
			_ = r.Client().ContainerService().Delete(c, fmt.Sprintf("many%d", i))
			if i%3 == 0 {
				_ = r.Client().SandboxStore().Delete(c, fmt.Sprintf("pod%d", i/3))
			}
		}
	})
}
