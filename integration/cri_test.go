// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
)

// node is what a test of pods runs in: a containerd with its CRI plugin, in
// which every pod's sandbox is a pause container, a task like any other.
type node struct {
	*env
	*cri.Client
	handler string
	bridge  string // the pods' network
	conf    string // folder of the network's configuration and state
}

// criNamespace is where the CRI plugin keeps its containers.
const criNamespace = "k8s.io"

var networks atomic.Int32

// nodes runs f for each runtime under test, each on a node of its own.
func nodes(t *testing.T, f func(t *testing.T, n *node)) {
	t.Helper()
	for _, rt := range host.Runtimes() {
		t.Run(rt.Label, func(t *testing.T) {
			t.Parallel()
			f(t, newNode(t, rt))
		})
	}
}

func newNode(t *testing.T, rt host.Runtime) *node {
	t.Helper()
	if _, err := os.Stat(rt.Binary()); err != nil {
		t.Fatalf("%v (run `make build`)", err)
	}
	n := &node{handler: rt.Label, conf: t.TempDir()}
	number := os.Getpid()*4 + int(networks.Add(1))
	n.bridge = fmt.Sprintf("bit%d", number)
	// 198.18.0.0/15 is set aside for tests of networks (RFC 2544).
	network := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "test", "plugins": [{
		"type": "bridge", "bridge": %q, "ipam": {"type": "host-local", "dataDir": %q,
		"ranges": [[{"subnet": "198.18.%d.0/24"}]]}}]}`, n.bridge, n.conf+"/ipam", number%256)
	write(t, n.conf+"/net/10-test.conflist", network)
	n.env = &env{rt: rt, Daemon: host.Run(t, host.Options{CRI: true, Images: []string{}, TOML: n.config()})}
	for _, image := range []string{"busybox", "pause"} {
		out, err := n.Ctr("-n", criNamespace, "images", "import", host.Deps("images/"+image+".tar")).CombinedOutput()
		if err != nil {
			t.Fatalf("import %s: %v: %s", image, err, out)
		}
	}
	t.Cleanup(func() {
		if n.Client != nil {
			_ = n.Client.Close()
		}
		if err := removeBridge(n.bridge); err != nil {
			t.Errorf("remove bridge %s: %v", n.bridge, err)
		}
	})
	n.connect(t)
	return n
}

func (n *node) config() string {
	return fmt.Sprintf(`
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
    default_runtime_name = "stock"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stock]
    runtime_type = "io.containerd.runc.v2"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.berth]
    runtime_type = "io.containerd.berth.v1"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.bounded]
    runtime_type = "io.containerd.berth.v1"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.bounded.options]
      spool_max = "4MiB"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dropin]
    runtime_type = "io.containerd.runc.v2"
    runtime_path = %[4]q
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dropin.options]
      BinaryName = "runc"
`, host.Pause, host.Deps("cni"), n.conf+"/net", host.DropIn.Binary())
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

// removeBridge deletes a network bridge, if it exists: down first, as the
// kernel wants it.
func removeBridge(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err == unix.ENODEV {
		return nil
	}
	request.SetUint16(request.Uint16() &^ unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCBRDELBR, request)
}
