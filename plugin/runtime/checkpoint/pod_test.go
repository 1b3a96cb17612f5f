// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/netns"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/plugin/labels"
)

// pod makes a pod of berth's shim with a network namespace of its own and returns
// that.
func (b *bench) pod(t *testing.T, id string) string {
	t.Helper()
	n, err := netns.NewNetNS(filepath.Join(b.dir, "netns"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Remove(); err != nil {
			t.Error(err)
		}
	})
	c := b.Engine.Client
	s, err := c.SandboxStore().Create(b.ctx, sandbox.Sandbox{ID: id, Sandboxer: "shim", Runtime: sandbox.RuntimeOpts{Name: host.Native.Name}})
	if err != nil {
		t.Fatal(err)
	}
	controller := c.SandboxController("shim")
	t.Cleanup(func() {
		if err := controller.Shutdown(b.ctx, id); err != nil {
			t.Error(err)
		}
		if err := c.SandboxStore().Delete(b.ctx, id); err != nil {
			t.Error(err)
		}
	})
	config := &runtime.PodSandboxConfig{
		Hostname: id,
		Metadata: &runtime.PodSandboxMetadata{Name: id, Uid: id, Namespace: "default"},
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
		}},
	}
	if err := controller.Create(b.ctx, s, sandbox.WithOptions(config), sandbox.WithNetNSPath(n.GetPath())); err != nil {
		t.Fatal(err)
	}
	if _, err := controller.Start(b.ctx, id); err != nil {
		t.Fatal(err)
	}
	return n.GetPath()
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// (73) A member of one pod goes on as a member of another, in its namespaces and
// with its files.
func TestOtherPod(t *testing.T) {
	b := newBench(t)
	b.pod(t, "old")
	network := b.pod(t, "new")
	first := b.create(t, "first", containers.Container{SandboxID: "old"}, memberOf("old"))
	log := filepath.Join(b.dir, "log")
	b.start(t, first, log)
	cp, err := b.Checkpoint(b.ctx, Request{ID: "first", Dir: filepath.Join(b.dir, "dump"), LogPath: log, LeaveRunning: true})
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cp.SpecFor(Target{PodID: "new", CgroupPath: "/" + b.Namespace + "/second"})
	if err != nil {
		t.Fatal(err)
	}
	task := b.restoreAs(t, "second", cp, spec)
	proc := "/proc/" + strconv.Itoa(int(task.Pid()))
	if got, want := inode(t, proc+"/ns/net"), inode(t, network); got != want {
		t.Errorf("network namespace %d, want the pod's %d", got, want)
	}
	for _, kind := range []string{"ipc", "uts"} {
		if got, want := inode(t, proc+"/ns/"+kind), inode(t, filepath.Join("/run/berth/sandboxes", b.Namespace, "new", kind)); got != want {
			t.Errorf("%s namespace %d, want the pod's %d", kind, got, want)
		}
	}
	name, err := os.ReadFile(proc + "/root/etc/hostname")
	if err != nil || string(name) != "new\n" {
		t.Errorf("/etc/hostname is %q, %v", name, err)
	}
}

// memberOf makes a container's specification that of a pod's member.
func memberOf(pod string) oci.SpecOpts {
	all := []oci.SpecOpts{oci.WithAnnotations(map[string]string{labels.AnnotationContainerType: "container", labels.AnnotationSandboxID: pod})}
	for _, kind := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace} {
		all = append(all, oci.WithLinuxNamespace(specs.LinuxNamespace{Type: kind, Path: podNamespaces + procName(kind)}))
	}
	return oci.Compose(all...)
}
