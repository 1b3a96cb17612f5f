// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandbox is the shim of a pod, spoken to directly.
type sandbox struct {
	sandboxapi.TTRPCSandboxService
	e      *env
	id     string
	bundle string
	dir    string // the pod's
	shim   *shim  // its Task API
}

// sandbox starts the shim of a pod. At the end of the test the pod is shut down
// and the shim must have ended.
func (e *env) sandbox(t *testing.T) *sandbox {
	t.Helper()
	name := id(t)
	bundle := filepath.Join(e.State(), "io.containerd.sandbox.controller.v1.shim", e.Namespace, name)
	if err := os.MkdirAll(bundle, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(bundle) })
	result, err := e.start(t, name, bundle, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &shim{e: e, id: name, bundle: bundle, address: result.Address}
	s.dial(t)
	p := &sandbox{
		TTRPCSandboxService: sandboxapi.NewTTRPCSandboxClient(s.conn),
		e:                   e, id: name, bundle: bundle, dir: filepath.Join("/run/berth/sandboxes", e.Namespace, name), shim: s,
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(e.Context(context.Background()), patience)
		defer cancel()
		_, _ = p.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: name})
		_ = s.conn.Close()
		p.awaitEnd(t)
	})
	return p
}

func (p *sandbox) awaitEnd(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, func() string {
		if c, err := net.Dial("unix", p.shim.socket()); err == nil {
			_ = c.Close()
			return "the shim listens after ShutdownSandbox"
		}
		if _, err := os.Lstat(p.dir); err == nil {
			return p.dir + " is still there"
		}
		return ""
	})
}

// hostNetworkPod is a pod that needs nothing from outside.
func hostNetworkPod() *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "pod", Uid: "uid", Namespace: "default"},
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_CONTAINER},
		}},
	}
}

func (p *sandbox) request(t *testing.T, config *runtime.PodSandboxConfig) *sandboxapi.CreateSandboxRequest {
	t.Helper()
	a, err := typeurl.MarshalAnyToProto(config)
	if err != nil {
		t.Fatal(err)
	}
	return &sandboxapi.CreateSandboxRequest{SandboxID: p.id, BundlePath: p.bundle, Options: a}
}

// run creates and starts the pod.
func (p *sandbox) run(t *testing.T, config *runtime.PodSandboxConfig) *sandboxapi.StartSandboxResponse {
	t.Helper()
	if _, err := p.CreateSandbox(p.e.ctx(t), p.request(t, config)); err != nil {
		t.Fatalf("create: %v", err)
	}
	r, err := p.StartSandbox(p.e.ctx(t), &sandboxapi.StartSandboxRequest{SandboxID: p.id})
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	return r
}

func (p *sandbox) state(t *testing.T) string {
	t.Helper()
	r, err := p.SandboxStatus(p.e.ctx(t), &sandboxapi.SandboxStatusRequest{SandboxID: p.id, Verbose: true})
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	if text := r.GetInfo()["info"]; text != "" {
		var info struct{ ProcessStatus string }
		if err := json.Unmarshal([]byte(text), &info); err != nil || (info.ProcessStatus == "running") != (r.GetState() == "SANDBOX_READY") {
			t.Errorf("it is %s, and more verbosely %q, %v", r.GetState(), info.ProcessStatus, err)
		}
	}
	return r.GetState()
}

func (p *sandbox) stop(t *testing.T, seconds uint32) {
	t.Helper()
	if _, err := p.StopSandbox(p.e.ctx(t), &sandboxapi.StopSandboxRequest{SandboxID: p.id, TimeoutSecs: seconds}); err != nil {
		t.Fatalf("stop: %v", err)
	}
}

// (79)
func TestSandboxLife(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		p := e.sandbox(t)
		if got := p.state(t); got != "SANDBOX_NOTREADY" {
			t.Errorf("before Create it is %s", got)
		}
		started := time.Now()
		r := p.run(t, hostNetworkPod())
		if r.GetPid() != 0 {
			t.Errorf("pid %d is told, want 0", r.GetPid())
		}
		if at := r.GetCreatedAt().AsTime(); at.Before(started.Add(-time.Second)) || at.After(time.Now()) {
			t.Errorf("created at %v", at)
		}
		spec, err := typeurl.UnmarshalAny(r.GetSpec())
		if err != nil {
			t.Fatal(err)
		}
		for _, ns := range spec.(*specs.Spec).Linux.Namespaces {
			if ns.Type == specs.PIDNamespace {
				continue // each container has its own
			}
			var st unix.Statfs_t
			if err := unix.Statfs(ns.Path, &st); err != nil || st.Type != unix.NSFS_MAGIC {
				t.Errorf("namespace %s at %q: %v, type %x", ns.Type, ns.Path, err, st.Type)
			}
		}
		if got := p.state(t); got != "SANDBOX_READY" {
			t.Errorf("started it is %s", got)
		}
		if _, err := p.CreateSandbox(e.ctx(t), p.request(t, hostNetworkPod())); !errdefs.IsAlreadyExists(class(err)) {
			t.Errorf("created again: %v", err)
		}
		if _, err := p.StartSandbox(e.ctx(t), &sandboxapi.StartSandboxRequest{SandboxID: p.id}); !errdefs.IsFailedPrecondition(class(err)) {
			t.Errorf("started again: %v", err)
		}
		pl, err := p.Platform(e.ctx(t), &sandboxapi.PlatformRequest{SandboxID: p.id})
		if err != nil || pl.GetPlatform().GetOS() != "linux" || pl.GetPlatform().GetArchitecture() == "" {
			t.Errorf("platform: %v, %v", pl, err)
		}
		if _, err := p.PingSandbox(e.ctx(t), &sandboxapi.PingRequest{SandboxID: p.id}); err != nil {
			t.Errorf("ping: %v", err)
		}
		if _, err := p.UpdateSandbox(e.ctx(t), &sandboxapi.UpdateSandboxRequest{SandboxID: p.id}); err != nil {
			t.Errorf("update: %v", err)
		}
		m, err := p.SandboxMetrics(e.ctx(t), &sandboxapi.SandboxMetricsRequest{SandboxID: p.id})
		if err != nil || m.GetMetrics().GetID() != p.id {
			t.Errorf("metrics: %v, %v", m, err)
		}
		p.refuses(t)

		waits := make(chan *sandboxapi.WaitSandboxResponse, 3)
		for range cap(waits) {
			go func() {
				r, _ := p.WaitSandbox(e.ctx(t), &sandboxapi.WaitSandboxRequest{SandboxID: p.id})
				waits <- r
			}()
		}
		for range 2 { // what is stopped can be stopped
			p.stop(t, 1)
		}
		for range cap(waits) {
			if r := <-waits; r.GetExitStatus() != 0 || r.GetExitedAt().AsTime().Before(started) {
				t.Errorf("wait: %v", r)
			}
		}
		if r, err := p.WaitSandbox(e.ctx(t), &sandboxapi.WaitSandboxRequest{SandboxID: p.id}); err != nil || r.GetExitedAt() == nil {
			t.Errorf("wait for a stopped pod: %v, %v", r, err)
		}
		if got := p.state(t); got != "SANDBOX_NOTREADY" {
			t.Errorf("stopped it is %s", got)
		}
		if _, err := p.ShutdownSandbox(e.ctx(t), &sandboxapi.ShutdownSandboxRequest{SandboxID: p.id}); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		_ = p.shim.conn.Close() // as containerd does
		p.awaitEnd(t)
	})
}

// refuses tries what the shim of a pod does not do.
func (p *sandbox) refuses(t *testing.T) {
	t.Helper()
	ctx := p.e.ctx(t)
	for name, call := range map[string]func(id string) error{
		"start": func(id string) error {
			_, err := p.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: id})
			return err
		},
		"stop": func(id string) error {
			_, err := p.StopSandbox(ctx, &sandboxapi.StopSandboxRequest{SandboxID: id})
			return err
		},
		"status": func(id string) error {
			_, err := p.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: id})
			return err
		},
		"metrics": func(id string) error {
			_, err := p.SandboxMetrics(ctx, &sandboxapi.SandboxMetricsRequest{SandboxID: id})
			return err
		},
		"wait": func(id string) error {
			_, err := p.WaitSandbox(ctx, &sandboxapi.WaitSandboxRequest{SandboxID: id})
			return err
		},
		"shutdown": func(id string) error {
			_, err := p.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: id})
			return err
		},
	} {
		if err := call("another"); !errdefs.IsNotFound(class(err)) || !strings.Contains(err.Error(), "another") {
			t.Errorf("%s of another pod: %v", name, err)
		}
	}
	// What containerd asks when it comes back.
	if _, err := p.shim.Connect(ctx, &taskapi.ConnectRequest{ID: p.id}); err != nil {
		t.Errorf("connect: %v", err)
	}
	if _, err := p.shim.State(ctx, &taskapi.StateRequest{ID: p.id}); !errdefs.IsNotFound(class(err)) {
		t.Errorf("state: %v", err)
	}
	if _, err := p.shim.Pids(ctx, &taskapi.PidsRequest{ID: p.id}); !errdefs.IsNotFound(class(err)) {
		t.Errorf("pids: %v", err)
	}
	if _, err := p.shim.Create(ctx, &taskapi.CreateTaskRequest{ID: p.id, Bundle: p.bundle}); !errdefs.IsFailedPrecondition(class(err)) {
		t.Errorf("create a container: %v", err)
	}
	if _, err := p.shim.Shutdown(ctx, &taskapi.ShutdownRequest{ID: p.id}); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if got := p.state(t); got != "SANDBOX_READY" {
		t.Errorf("after all that it is %s", got)
	}
}

// A pod that cannot be made is refused in words that name why, ShutdownSandbox is
// all that containerd calls then, and nothing is left.
func TestSandboxRefused(t *testing.T) {
	const key = "kernel.shm_rmid_forced"
	before := read(t, "/proc/sys/kernel/shm_rmid_forced")
	long := strings.Repeat("h", 300)
	hostIPC := func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Ipc = runtime.NamespaceMode_NODE
	}
	cases := map[string]struct {
		change func(*runtime.PodSandboxConfig)
		names  []string
	}{
		"hostname":              {func(c *runtime.PodSandboxConfig) { c.Hostname = long; own(c) }, []string{"hostname", "300"}},
		"hostname with a slash": {func(c *runtime.PodSandboxConfig) { c.Hostname = "a/b"; own(c) }, []string{"hostname", "a/b"}},
		"DNS option with a newline": {func(c *runtime.PodSandboxConfig) {
			c.DnsConfig = &runtime.DNSConfig{Options: []string{"a\nnameserver 1.1.1.1"}}
		}, []string{"option"}},
		"DNS server with a newline": {func(c *runtime.PodSandboxConfig) { c.DnsConfig = &runtime.DNSConfig{Servers: []string{"1.1.1.1\nx"}} }, []string{"server"}},
		"sysctl of a shared IPC":    {func(c *runtime.PodSandboxConfig) { hostIPC(c); c.Linux.Sysctls = map[string]string{key: "1"} }, []string{key}},
		"sysctl of a shared net":    {func(c *runtime.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"} }, []string{"net.ipv4.ip_forward"}},
		"sysctl of no namespace":    {func(c *runtime.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} }, []string{"vm.swappiness"}},
		"sysctl with a path":        {func(c *runtime.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.shm/../x": "1"} }, []string{"kernel.shm/../x"}},
		"cgroup with a path":        {func(c *runtime.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" }, []string{"/a/../../b"}},
		"value that is refused":     {func(c *runtime.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{key: "many"} }, []string{key}},
		"network of its own":        {own, []string{"network"}},
	}
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		for _, name := range slices.Sorted(maps.Keys(cases)) {
			t.Run(name, func(t *testing.T) {
				p := e.sandbox(t)
				config := hostNetworkPod()
				cases[name].change(config)
				_, err := p.CreateSandbox(e.ctx(t), p.request(t, config))
				if !errdefs.IsInvalidArgument(class(err)) && !errdefs.IsFailedPrecondition(class(err)) {
					t.Fatalf("got %v", err)
				}
				for _, word := range cases[name].names {
					if !strings.Contains(err.Error(), word) {
						t.Errorf("%q does not name %s", err, word)
					}
				}
				if _, err := os.Lstat(p.dir); err == nil {
					t.Errorf("%s is left", p.dir)
				}
				if _, err := p.StartSandbox(e.ctx(t), &sandboxapi.StartSandboxRequest{SandboxID: p.id}); !errdefs.IsFailedPrecondition(class(err)) {
					t.Errorf("start: %v", err)
				}
			})
		}
		t.Run("options of another kind", func(t *testing.T) {
			p := e.sandbox(t)
			_, err := p.CreateSandbox(e.ctx(t), &sandboxapi.CreateSandboxRequest{
				SandboxID: p.id, BundlePath: p.bundle, Options: &anypb.Any{TypeUrl: "example.Pod"},
			})
			if !errdefs.IsInvalidArgument(class(err)) || !strings.Contains(err.Error(), "example.Pod") {
				t.Errorf("got %v", err)
			}
		})
	})
	if after := read(t, "/proc/sys/kernel/shm_rmid_forced"); after != before {
		t.Errorf("the host's %s is %s, was %s", key, after, before)
	}
}

// own gives the pod a network namespace, which nobody has made.
func own(c *runtime.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_POD
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// A pod survives changes of its shim's program: with its init, its waiters, and
// what it knows of itself.
func TestSandboxUpgrade(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		p := e.sandbox(t)
		config := hostNetworkPod()
		config.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
		r := p.run(t, config)
		wait := make(chan *sandboxapi.WaitSandboxResponse, 1)
		go func() {
			r, _ := p.WaitSandbox(e.ctx(t), &sandboxapi.WaitSandboxRequest{SandboxID: p.id})
			wait <- r
		}()
		binaries := [2]string{e.rt.Binary(), e.copyOf(t)}
		for i := range 10 {
			if err := requestUpgrade(e.ctx(t), p.shim, binaries[(i+1)%2]); err != nil {
				t.Fatalf("upgrade %d: %v", i, err)
			}
			status, err := p.SandboxStatus(e.ctx(t), &sandboxapi.SandboxStatusRequest{SandboxID: p.id})
			if err != nil || status.GetState() != "SANDBOX_READY" || !status.GetCreatedAt().AsTime().Equal(r.GetCreatedAt().AsTime()) {
				t.Fatalf("upgrade %d: %v, %v", i, status, err)
			}
		}
		init := p.init(t)
		if err := unix.Kill(init, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// Without its init no member can start: the pod has ended.
		if r := <-wait; r.GetExitStatus() != 137 {
			t.Errorf("wait: %v, want status 137", r)
		}
		if got := p.state(t); got != "SANDBOX_NOTREADY" {
			t.Errorf("without its init it is %s", got)
		}
	})
}

// init returns the init of a pod that shares its PID namespace.
func (p *sandbox) init(t *testing.T) int {
	t.Helper()
	children := strings.Fields(read(t, "/proc/"+strconv.Itoa(p.shim.pid)+"/task/"+strconv.Itoa(p.shim.pid)+"/children"))
	if len(children) != 1 {
		t.Fatalf("the shim has the children %v, want one, the init", children)
	}
	pid, err := strconv.Atoi(children[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// A killed shim's pod is removed by `delete`, its init too.
func TestSandboxShimKilled(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		p := e.sandbox(t)
		config := hostNetworkPod()
		config.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
		config.Linux.CgroupParent = "/" + e.Namespace + "-" + config.Metadata.Uid
		p.run(t, config)
		init := p.init(t)
		if err := unix.Kill(p.shim.pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if out, err := e.command(p.id, p.bundle, "-bundle", p.bundle, "delete").Output(); err != nil {
			t.Errorf("delete: %v: %s", err, out)
		}
		p.awaitEnd(t)
		eventually(t, 10*time.Second, func() string { // whoever is its parent now reaps it
			if err := unix.Kill(init, 0); err != unix.ESRCH {
				return fmt.Sprintf("the pod's init: %v, want it gone", err)
			}
			return ""
		})
	})
}

// member makes the shim of a container that is to join the pod, with the
// specification that containerd writes for it.
func (p *sandbox) member(t *testing.T, name string, opts ...oci.SpecOpts) *shim {
	t.Helper()
	e := p.e
	cid := p.id[:min(len(p.id), 40)] + "-" + name
	all := append([]oci.SpecOpts{
		oci.WithAnnotations(map[string]string{
			"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": p.id,
		}),
		oci.WithHostNamespace(specs.NetworkNamespace),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.IPCNamespace, Path: "/proc/0/ns/ipc"}),
		oci.WithoutMounts("/etc/hosts"),
		func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UTSNamespace })
			return nil
		},
	}, opts...)
	return e.shimNamed(t, cid, nil, all...)
}

// StopSandbox ends members that still run, first politely.
func TestSandboxStopsMembers(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		p := e.sandbox(t)
		p.run(t, hostNetworkPod())
		polite := p.member(t, "polite", sh(`trap 'exit 5' TERM; while :; do sleep 0.05; done`))
		deaf := p.member(t, "deaf", sh(`trap '' TERM; while :; do sleep 0.05; done`))
		for _, m := range []*shim{polite, deaf} {
			m.run(t, stdio{})
		}
		ipc := func(pid string) string {
			link, err := os.Readlink("/proc/" + pid + "/ns/ipc")
			if err != nil {
				t.Fatal(err)
			}
			return link
		}
		first, second := ipc(read(t, polite.bundle+"/init.pid")), ipc(read(t, deaf.bundle+"/init.pid"))
		if first != second || first == ipc("self") {
			t.Errorf("IPC namespaces: %s and %s, the host's %s", first, second, ipc("self"))
		}
		if members, err := os.ReadDir(p.dir + "/members"); err != nil || len(members) != 2 {
			t.Errorf("members: %v, %v", members, err)
		}
		time.Sleep(200 * time.Millisecond) // for the traps to be set
		p.stop(t, 1)
		if code := polite.wait(t, ""); code != 5 {
			t.Errorf("the polite one ended with %d, want 5", code)
		}
		if code := deaf.wait(t, ""); code != 137 {
			t.Errorf("the deaf one ended with %d, want 137", code)
		}
		for _, m := range []*shim{polite, deaf} {
			m.delete(t, "")
		}
		eventually(t, 10*time.Second, func() string {
			if members, _ := os.ReadDir(p.dir + "/members"); len(members) != 0 {
				return "members that are deleted are still in the pod's list"
			}
			return ""
		})
	})
}

// A member of a pod that is gone is not run in the host's namespaces.
func TestSandboxStateLost(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		p := e.sandbox(t)
		p.run(t, hostNetworkPod())
		if err := unix.Unmount(p.dir+"/ipc", unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		start := func(name string) string {
			cid := p.id[:min(len(p.id), 40)] + "-" + name
			bundle := e.bundle(t, cid, oci.WithAnnotations(map[string]string{
				"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": p.id,
			}), oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.IPCNamespace, Path: "/proc/0/ns/ipc"}))
			_, err := e.start(t, cid, bundle, nil)
			if err == nil {
				t.Fatal("a member is started")
			}
			b, rerr := os.ReadFile(bundle + "/config.json")
			if rerr != nil || !json.Valid(b) {
				t.Errorf("config.json: %v", rerr)
			}
			return err.Error()
		}
		if err := start("pin"); !strings.Contains(err, p.dir+"/ipc") {
			t.Errorf("without the pin: %s", err)
		}
		unmountAll(t, p.dir)
		if err := os.RemoveAll(p.dir); err != nil {
			t.Fatal(err)
		}
		if err := start("directory"); !strings.Contains(err, p.id) {
			t.Errorf("without the directory: %s", err)
		}
		if got := p.state(t); got != "SANDBOX_READY" {
			t.Logf("the pod is %s", got)
		}
	})
}

func unmountAll(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"uts", "ipc", "shm"} {
		if err := unix.Unmount(dir+"/"+name, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			t.Fatal(err)
		}
	}
}

// What a pod keeps outside of containerd is not for others than root to change.
func TestSandboxFilesAreRoots(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		p := e.sandbox(t)
		p.run(t, hostNetworkPod())
		for path, want := range map[string]os.FileMode{
			p.shim.socket(): 0o600, p.dir + "/pod.json": 0o600, p.dir + "/members": 0o700, p.dir: 0o711,
		} {
			st, err := os.Lstat(path)
			if err != nil || st.Mode().Perm() != want {
				t.Errorf("%s: %v, %v, want %v", path, st.Mode().Perm(), err, want)
			}
		}
	})
}
