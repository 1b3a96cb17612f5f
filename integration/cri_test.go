// SPDX-License-Identifier: Apache-2.0

package integration

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

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
)

// node is what a test of pods runs in: a containerd with its CRI plugin.
type node struct {
	*env
	*cri.Client
	handler string // the runtime handler under test
	bridge  string // the pods' network
	conf    string // folder of the networks' configurations and state
}

// Other runtime handlers of a node. They differ from the one under test in one
// thing each.
const (
	handlerPorts   = "ports"   // a network with IPv6 and port mappings
	handlerBroken  = "broken"  // a network that cannot be made
	handlerBounded = "bounded" // a spool of 4 MiB; not the drop-in form
)

// criNamespace is where the CRI plugin keeps its containers.
const criNamespace = "k8s.io"

// pauseless is berth's shim as the sandbox too: pods without a pause container.
// In every other form a pod's sandbox is a pause container, a task like any other.
var pauseless = host.Runtime{Label: "pauseless", Name: host.Native.Name, Berth: true}

// podRuntimes are the runtimes to test with pods.
func podRuntimes() []host.Runtime {
	all := host.Runtimes()
	if slices.Contains(all, host.Native) {
		all = append(all, pauseless)
	}
	return all
}

// nodes runs f for each runtime under test, each on a node of its own.
func nodes(t *testing.T, f func(t *testing.T, n *node)) {
	t.Helper()
	for _, rt := range podRuntimes() {
		t.Run(rt.Label, func(t *testing.T) {
			t.Parallel()
			f(t, newNode(t, rt, host.Options{}))
		})
	}
}

var networks atomic.Int32

// newNode starts a node that ends with the test.
func newNode(t *testing.T, rt host.Runtime, o host.Options) *node {
	t.Helper()
	if _, err := os.Stat(rt.Binary()); err != nil {
		t.Fatalf("%v (run `make build`)", err)
	}
	number := networks.Add(1)
	n := &node{handler: rt.Label, conf: t.TempDir(), bridge: fmt.Sprintf("bit%d", number)}
	// 198.18.0.0/15 and 2001:2::/48 are set aside for tests of networks (RFC 2544, RFC 5180).
	v4, v6 := fmt.Sprintf("198.18.%d.0/24", number), fmt.Sprintf("2001:2:0:%x::/64", number)
	n.network(t, "net", fmt.Sprintf(`{"type": "bridge", "bridge": %q, "ipam": {"type": "host-local",
		"dataDir": %q, "ranges": [[{"subnet": %q}]]}}`, n.bridge, n.conf+"/ipam", v4))
	n.network(t, handlerPorts, fmt.Sprintf(`{"type": "bridge", "bridge": "%[1]sp", "isGateway": true,
		"ipam": {"type": "host-local", "dataDir": %[2]q, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
			"ranges": [[{"subnet": "198.19.%[3]d.0/24"}], [{"subnet": %[4]q}]]}},
		{"type": "portmap", "capabilities": {"portMappings": true}}`, n.bridge, n.conf+"/ipam6", number, v6))
	n.network(t, handlerBroken, `{"type": "bridge", "bridge": "no/such", "ipam": {"type": "host-local"}}`)
	o.CRI, o.Images, o.TOML = true, []string{}, n.config(rt)+o.TOML
	n.env = &env{rt: rt, Daemon: host.Run(t, o)}
	if err := n.makeCgroup(); err != nil {
		t.Fatal(err)
	}
	n.load(t, host.Deps("images/busybox.tar"))
	if n.pauseImage(t) {
		n.load(t, host.Deps("images/pause.tar"))
	}
	t.Cleanup(func() {
		if n.Client != nil {
			_ = n.Client.Close()
		}
	})
	n.connect(t)
	return n
}

// makeCgroup makes the pods' cgroup, as the kubelet does: what a runtime finds it
// leaves. systemd makes its slices itself.
func (n *node) makeCgroup() error {
	if host.Systemd() {
		return nil
	}
	roots := []string{"/sys/fs/cgroup"}
	if !host.Unified() {
		var err error
		if roots, err = filepath.Glob("/sys/fs/cgroup/*"); err != nil {
			return err
		}
	}
	for _, root := range roots {
		if err := os.Mkdir(root+"/"+n.Namespace, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// pauseless tells whether the pods have no pause container.
func (n *node) pauseless() bool { return n.rt.Label == pauseless.Label }

// pauseImage tells whether containerd wants the pause image for the pods. An older one
// does for pods of all kinds.
func (n *node) pauseImage(t *testing.T) bool {
	t.Helper()
	return !n.pauseless() || n.older(t)
}

// older tells whether this containerd is the oldest that the tests are for, 2.3.
func (n *node) older(t *testing.T) bool {
	t.Helper()
	v, err := n.Daemon.Client().Version(n.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	return strings.HasPrefix(v.Version, "v2.3.")
}

// network writes a network's configuration.
func (n *node) network(t *testing.T, name, plugins string) {
	t.Helper()
	write(t, n.conf+"/"+name+"/10-test.conflist",
		fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [%s]}`, name, plugins))
}

// load puts the images of an archive where the CRI finds them.
func (n *node) load(t *testing.T, archive string) {
	t.Helper()
	if out, err := n.Ctr("-n", criNamespace, "images", "import", archive).CombinedOutput(); err != nil {
		t.Fatalf("import %s: %v: %s", archive, err, out)
	}
}

func (n *node) config(rt host.Runtime) string {
	var text strings.Builder
	text.WriteString(fmt.Sprintf(`
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %[1]q

[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true # a machine may lack CAP_SYS_RESOURCE
  netns_mounts_under_state_dir = true
  drain_exec_sync_io_timeout = "2s"
  max_container_log_line_size = 16384
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[2]q]
    conf_dir = %[3]q
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = %[4]q
`, host.Pause, host.Deps("cni"), n.conf+"/net", rt.Label))
	text.WriteString(handlerConfig(rt, rt.Label, ""))
	for _, name := range []string{handlerPorts, handlerBroken} {
		text.WriteString(handlerConfig(rt, name, fmt.Sprintf("cni_conf_dir = %q", n.conf+"/"+name)))
	}
	if rt.Name == host.Native.Name {
		text.WriteString(handlerConfig(rt, handlerBounded, "") + "    [" + handlerTable(handlerBounded) + ".options]\n      spool_max = \"4MiB\"\n")
	}
	return text.String()
}

func handlerTable(name string) string {
	return "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes." + name
}

// handlerConfig is the configuration of a runtime handler, with a line more.
func handlerConfig(rt host.Runtime, name, line string) string {
	text := fmt.Sprintf("  [%s]\n    runtime_type = %q\n    %s\n", handlerTable(name), rt.Name, line)
	switch rt {
	case pauseless:
		text += "    sandboxer = \"shim\"\n    disable_pause_image_pull = true\n"
	case host.DropIn:
		text += fmt.Sprintf("    runtime_path = %q\n    [%s.options]\n      BinaryName = \"runc\"\n", rt.Path, handlerTable(name))
	}
	return text
}

// connect makes a new client and waits until the node is ready for pods. The
// client of a containerd that has been stopped is of no more use.
func (n *node) connect(t *testing.T) {
	t.Helper()
	if n.Client != nil {
		_ = n.Client.Close()
	}
	var err error
	if n.Client, err = cri.Dial(n.Socket); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() string {
		if err := n.Ready(n.ctx(t)); err != nil {
			return err.Error()
		}
		image, err := n.Images.ImageStatus(n.ctx(t), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: host.Busybox}})
		if err != nil || image.GetImage() == nil {
			return fmt.Sprintf("image: %v, %v", image, err)
		}
		return ""
	})
}

// sub is t.Run with a count of everything before and after.
func (n *node) sub(t *testing.T, name string, f func(t *testing.T, n *node)) {
	t.Run(name, func(t *testing.T) {
		within(t, n.env, func(t *testing.T, _ *env) { f(t, n) })
	})
}

// podCase is a named case of the table of pods.
type podCase struct {
	name string
	f    func(t *testing.T, n *node)
}

// together runs cases at the same time, because they wait more than they
// compute, with a count of everything before and after all of them: run a case
// alone to know whose a difference is.
func (n *node) together(t *testing.T, cases ...podCase) {
	const most = 4 // at a time
	before := n.Count(t)
	var running sync.WaitGroup
	slots := make(chan struct{}, most)
	for _, c := range cases {
		slots <- struct{}{} // in the order given: the longest first
		running.Go(func() {
			t.Run(c.name, func(t *testing.T) { c.f(t, n) })
			<-slots
		})
	}
	running.Wait()
	n.Settle(t, before)
}

// podOption changes a pod's configuration before it is made.
type podOption func(*runtime.PodSandboxConfig)

// pod runs a pod that is removed at the end of the test, with all its
// containers.
func (n *node) pod(t *testing.T, options ...podOption) *cri.Pod {
	t.Helper()
	return n.podOf(t, n.handler, options...)
}

func (n *node) podOf(t *testing.T, handler string, options ...podOption) *cri.Pod {
	t.Helper()
	pod, err := n.Client.Run(n.ctx(t), handler, n.podConfig(t, options...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		pod := pod.Use(n.Client) // containerd may have been restarted
		if err := pod.Stop(ctx); err != nil {
			t.Errorf("stop pod: %v", err)
		}
		if err := pod.Remove(ctx); err != nil {
			t.Errorf("remove pod: %v", err)
		}
	})
	return pod
}

var pods atomic.Int32

func (n *node) podConfig(t *testing.T, options ...podOption) *runtime.PodSandboxConfig {
	t.Helper()
	number := pods.Add(1)
	config := &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{
			Name: fmt.Sprintf("pod%d", number), Uid: fmt.Sprintf("uid%d", number), Namespace: "test",
		},
		Hostname:     "pod",
		LogDirectory: t.TempDir(),
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    "/" + n.Namespace,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: ownPIDs()},
		},
	}
	if host.Systemd() {
		config.Linux.CgroupParent = n.Namespace + ".slice"
	}
	for _, o := range options {
		o(config)
	}
	return config
}

// ownPIDs are the kubelet's usual namespaces: the pod's for all but processes.
func ownPIDs() *runtime.NamespaceOption {
	return &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
}

// container is a configuration for busybox; its log is NAME.log.
func container(name string, args ...string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: host.Busybox},
		Command:  args,
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			Resources:       &runtime.LinuxContainerResources{},
			SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: ownPIDs()},
		},
	}
}

// shell is a container that runs a script.
func shell(name, script string) *runtime.ContainerConfig { return container(name, "sh", "-c", script) }

// idle is a container that does nothing but end at once on SIGTERM.
func idle(name string) *runtime.ContainerConfig {
	return shell(name, "trap 'exit 0' TERM; sleep 100000 & wait")
}

// containerOption changes a container's configuration before it is made.
type containerOption func(*runtime.ContainerConfig)

// security is a containerOption for what a container may do.
func security(change func(*runtime.LinuxContainerSecurityContext)) containerOption {
	return func(c *runtime.ContainerConfig) { change(c.Linux.SecurityContext) }
}

var numbered atomic.Int32

// in is a container in a pod that runs a script. It shares with the pod the
// namespaces that the pod shares.
func in(pod *cri.Pod, script string, options ...containerOption) *runtime.ContainerConfig {
	c := shell(fmt.Sprintf("c%d", numbered.Add(1)), script)
	if ns := pod.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(); ns != nil {
		c.Linux.SecurityContext.NamespaceOptions = proto.CloneOf(ns)
	}
	for _, o := range options {
		o(c)
	}
	return c
}

// output runs a script in a container of the pod and returns what it wrote to
// stdout. The container is left in the pod.
func (n *node) output(t *testing.T, pod *cri.Pod, script string, options ...containerOption) string {
	t.Helper()
	config := in(pod, script, options...)
	s := n.awaitState(t, startIn(t, n, pod, config), runtime.ContainerState_CONTAINER_EXITED)
	pieces, err := cri.ReadLog(logOf(pod, config))
	if err != nil {
		t.Fatal(err)
	}
	if s.GetExitCode() != 0 {
		t.Errorf("%q exits with %d: %s", script, s.GetExitCode(), cri.Text(pieces, "stderr"))
	}
	return strings.TrimSpace(cri.Text(pieces, "stdout"))
}

// refused fails unless a container cannot be created, or cannot be started, with
// an error that says why.
func (n *node) refused(t *testing.T, pod *cri.Pod, config *runtime.ContainerConfig, why string) {
	t.Helper()
	if id, err := pod.Start(n.ctx(t), config); err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("container %s: %v, want an error with %q", id, err, why)
	}
}

// podRefused fails unless a pod cannot be run, with an error that says why.
func (n *node) podRefused(t *testing.T, handler, why string, options ...podOption) {
	t.Helper()
	pod, err := n.Client.Run(n.ctx(t), handler, n.podConfig(t, options...))
	if err == nil {
		t.Errorf("pod %s runs, want an error with %q", pod.ID, why)
		_ = pod.Stop(n.ctx(t))
		_ = pod.Remove(n.ctx(t))
	} else if !strings.Contains(err.Error(), why) {
		t.Errorf("pod: %v, want an error with %q", err, why)
	}
}

// startIn starts a container and returns its id.
func startIn(t *testing.T, n *node, pod *cri.Pod, config *runtime.ContainerConfig) string {
	t.Helper()
	id, err := pod.Start(n.ctx(t), config)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// logOf is the path of a container's log.
func logOf(pod *cri.Pod, config *runtime.ContainerConfig) string {
	return filepath.Join(pod.Config.GetLogDirectory(), config.GetLogPath())
}

// awaitState waits for a container's state and returns its status.
func (n *node) awaitState(t *testing.T, id string, want runtime.ContainerState) *runtime.ContainerStatus {
	t.Helper()
	var status *runtime.ContainerStatus
	eventually(t, patience, func() string {
		var err error
		if status, err = n.ContainerStatus(n.ctx(t), id); err != nil {
			return err.Error()
		}
		if status.GetState() != want {
			return fmt.Sprintf("state %v, want %v", status.GetState(), want)
		}
		return ""
	})
	return status
}

// awaitLog waits until a container's log ends with a line and returns what both
// streams hold.
func awaitLog(t *testing.T, path, last string) (stdout, stderr string) {
	t.Helper()
	eventually(t, patience, func() string {
		pieces, err := cri.ReadLog(path)
		if err != nil {
			return err.Error()
		}
		stdout, stderr = cri.Text(pieces, "stdout"), cri.Text(pieces, "stderr")
		if !strings.HasSuffix(stdout, last+"\n") && !strings.HasSuffix(stderr, last+"\n") {
			return fmt.Sprintf("log of %d pieces without last line %q", len(pieces), last)
		}
		return ""
	})
	return stdout, stderr
}

// check runs a command in a container and returns its stdout, trimmed.
func (n *node) check(t *testing.T, id string, command ...string) string {
	t.Helper()
	got, err := n.ExecSync(n.ctx(t), id, 0, command...)
	if err != nil {
		t.Fatalf("%q: %v", command, err)
	}
	if got.GetExitCode() != 0 {
		t.Fatalf("%q exits with %d: %s", command, got.GetExitCode(), got.GetStderr())
	}
	return strings.TrimSpace(string(got.GetStdout()))
}

// ctx is a context for calls of the CRI, which needs no namespace.
func (n *node) ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// elapsed fails unless the time since then is within bounds.
func elapsed(t *testing.T, since time.Time, low, high time.Duration) {
	t.Helper()
	if d := time.Since(since); d < low || d > high {
		t.Errorf("took %v, want between %v and %v", d, low, high)
	}
}
