// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/host"
)

var shared struct {
	once sync.Once
	d    *host.Daemon
	err  error
}

func TestMain(m *testing.M) {
	host.EnterOffline()
	code := m.Run()
	if shared.d != nil {
		if err := shared.d.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// world is a containerd with an image.
type world struct {
	*host.Daemon
	ctx context.Context
}

func newWorld(t testing.TB) *world {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	ctx, cancel := context.WithTimeout(shared.d.Context(context.Background()), time.Minute)
	t.Cleanup(cancel)
	before := shared.d.Count(t)
	t.Cleanup(func() { shared.d.Settle(t, before) })
	// A snapshot that no record has yet would be collected.
	ctx, done, err := shared.d.Client().WithLease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := done(shared.d.Context(context.Background())); err != nil {
			t.Error(err)
		}
	})
	return &world{shared.d, ctx}
}

// snapshot makes the root filesystem of a container from busybox.
func (w *world) snapshot(t testing.TB, id string, maps ...specs.LinuxIDMapping) containers.Container {
	t.Helper()
	i, err := w.Client().GetImage(w.ctx, host.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	c := containers.Container{ID: id, Snapshotter: "overlayfs"}
	var opts []snapshots.Opt
	if maps != nil {
		opts = append(opts, client.WithUserNSRemapperLabels(maps, maps))
	}
	if err := client.WithNewSnapshot(id, i, opts...)(w.ctx, w.Client(), &c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := w.Context(context.Background())
		if err := w.Client().SnapshotService("overlayfs").Remove(ctx, id); err != nil {
			t.Error(err)
		}
	})
	return c
}

// busybox is the configuration of the image that r's container is made of.
func busybox() *ocispec.Image {
	return &ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin", "A=image", "B=image"}}}
}

// run runs a container to its end, and returns what it printed. A pod's sandbox is
// named by its ID.
func (w *world) run(t testing.TB, r *Request, pod string) string {
	t.Helper()
	id := "c-" + strings.ToLower(strings.NewReplacer("/", "-", "_", "-", ",", "", " ", "").Replace(strings.TrimPrefix(t.Name(), "Test")))
	var maps []specs.LinuxIDMapping
	if r.Pod != nil {
		maps = r.Pod.Linux.UIDMappings
	}
	c := w.snapshot(t, id, maps...)
	c.SandboxID = pod
	spec, err := Build(w.ctx, w.Client(), &c, r)
	if err != nil {
		t.Fatal(err)
	}
	opts := []client.NewContainerOpts{
		client.WithSnapshotter("overlayfs"), client.WithSnapshot(id), client.WithSpec(spec), client.WithRuntime(host.Native.Name, nil),
	}
	if pod != "" {
		opts = append(opts, client.WithSandbox(pod))
	}
	made, err := w.Client().NewContainer(w.ctx, id, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := made.Delete(w.ctx); err != nil {
			t.Error(err)
		}
	}()
	var out, complaints bytes.Buffer // each has a copier of its own
	io := []cio.Opt{cio.WithStreams(nil, &out, &complaints), cio.WithFIFODir(filepath.Join(w.Dir, "fifo"))}
	if r.TTY {
		io = append(io, cio.WithTerminal)
	}
	task, err := made.NewTask(w.ctx, cio.NewCreator(io...))
	if err != nil {
		t.Fatal(err)
	}
	exited, err := task.Wait(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	status := <-exited
	if status.Error() != nil || status.ExitCode() != 0 {
		t.Errorf("exit: %v, %v: %s", status.ExitCode(), status.Error(), &complaints)
	}
	task.IO().Wait()
	if _, err := task.Delete(w.ctx); err != nil {
		t.Error(err)
	}
	return strings.ReplaceAll(out.String(), "\r", "")
}

// pod starts a sandbox and returns what its infra container's record would say.
func (w *world) pod(t testing.TB, id string, o *runtime.NamespaceOption, maps []specs.LinuxIDMapping) *specs.Spec {
	t.Helper()
	config := &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: id, Uid: id, Namespace: "default"}, Hostname: "berth-pod",
		Linux: &runtime.LinuxPodSandboxConfig{CgroupParent: "/" + w.Namespace + "/" + id, SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: o}},
	}
	s := &specs.Spec{Hostname: config.Hostname, Linux: &specs.Linux{
		CgroupsPath: "/" + w.Namespace + "/" + id, UIDMappings: maps, GIDMappings: maps,
		Namespaces: []specs.LinuxNamespace{{Type: specs.IPCNamespace, Path: "/proc/0/ns/ipc"}, {Type: specs.UTSNamespace, Path: "/proc/0/ns/uts"}, {Type: specs.PIDNamespace}},
	}}
	if maps != nil {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/proc/0/ns/user"})
		m := []*runtime.IDMapping{{HostId: maps[0].HostID, Length: maps[0].Size}}
		o.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: m, Gids: m}
	}
	now := time.Now()
	record := sandbox.Sandbox{ID: id, Sandboxer: "shim", CreatedAt: now, UpdatedAt: now, Runtime: sandbox.RuntimeOpts{Name: host.Native.Name}}
	if _, err := w.Client().SandboxStore().Create(w.ctx, record); err != nil {
		t.Fatal(err)
	}
	controller := w.Client().SandboxController("shim")
	t.Cleanup(func() {
		ctx := w.Context(context.Background())
		if err := controller.Shutdown(ctx, id); err != nil {
			t.Error(err)
		}
		if err := w.Client().SandboxStore().Delete(ctx, id); err != nil {
			t.Error(err)
		}
	})
	if err := controller.Create(w.ctx, record, sandbox.WithOptions(config)); err != nil {
		t.Fatal(err)
	}
	if _, err := controller.Start(w.ctx, id); err != nil {
		t.Fatal(err)
	}
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
