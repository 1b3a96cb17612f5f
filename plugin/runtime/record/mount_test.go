// SPDX-License-Identifier: Apache-2.0

package record

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/plugin/labels"
)

func owner(t testing.TB, path string) uint32 {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

func mountsOf(t testing.TB, path string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), " "+path+" ")
}

// (6, 23, 24)
func TestMount(t *testing.T) {
	w := newWorld(t)
	c := w.container(t, w.pod(t, nil), nil).Container
	first, err := w.Mount(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.again(t).Mount(t.Context(), c.Metadata.Name) // counts survive
	if err != nil || second != first || mountsOf(t, first) != 1 {
		t.Errorf("second: %s, %v, mounted %d times", second, err, mountsOf(t, first))
	}
	if _, err := os.Stat(first + "/bin/busybox"); err != nil {
		t.Error(err)
	}
	for want := 1; want >= 0; want-- {
		if err := w.Unmount(t.Context(), c.ID); err != nil || mountsOf(t, first) != want {
			t.Errorf("unmount: %v, mounted %d times, want %d", err, mountsOf(t, first), want)
		}
	}
	for range 3 {
		if _, err := w.Mount(t.Context(), c.ID); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := w.UnmountAll(t.Context(), c.ID); err != nil || mountsOf(t, first) != 0 {
			t.Errorf("unmount all: %v, mounted %d times", err, mountsOf(t, first))
		}
	}
	// A busy one goes all the same.
	if _, err := w.Mount(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(first + "/bin")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.UnmountAll(t.Context(), c.ID); err != nil || mountsOf(t, first) != 0 {
		t.Errorf("busy: %v", err)
	}
	_ = f.Close()

	for what, call := range map[string]func(string) error{
		"Mount":   func(ref string) error { _, err := w.Mount(t.Context(), ref); return err },
		"WorkDir": func(ref string) error { _, err := w.WorkDir(t.Context(), ref); return err },
		"RunDir":  func(ref string) error { _, err := w.RunDir(t.Context(), ref); return err },
	} {
		for _, ref := range []string{"", "nobody"} {
			if err := call(ref); !errors.Is(err, ErrInvalidContainerID) {
				t.Errorf("%s of %q: %v", what, ref, err)
			}
		}
	}
	// (5)
	for what, call := range map[string]func(string) error{
		"Unmount":    func(ref string) error { return w.Unmount(t.Context(), ref) },
		"UnmountAll": func(ref string) error { return w.UnmountAll(t.Context(), ref) },
		"Remove":     func(ref string) error { return w.Remove(t.Context(), ref) },
	} {
		if err := call("nobody"); err != nil {
			t.Errorf("%s of nobody: %v", what, err)
		}
		if err := call(""); !errors.Is(err, ErrInvalidContainerID) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s of nothing: %v", what, err)
		}
	}
}

// (8, 37)
func TestDamaged(t *testing.T) {
	w := newWorld(t)
	c := w.container(t, w.pod(t, nil), nil).Container
	set := func(key, value string) {
		t.Helper()
		ctx := w.in(t.Context())
		loaded, err := w.d.Client().LoadContainer(ctx, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := loaded.SetLabels(ctx, map[string]string{key: value}); err != nil {
			t.Fatal(err)
		}
	}
	set("io.berth.created-at", "yesterday")
	if _, err := w.Mount(t.Context(), c.ID); !errors.Is(err, labels.ErrUndecodable) || mountsOf(t, c.RunDir+"/rootfs") != 0 {
		t.Errorf("undecodable: %v", err)
	}
	if err := w.SetMetadata(t.Context(), c.ID, c.Metadata); err != nil {
		t.Errorf("mend: %v", err)
	}
	set("io.berth.managed", "2")
	if m, err := w.Metadata(t.Context(), c.ID); err != nil || m.Schema != 2 {
		t.Errorf("newer: %+v, %v", m, err)
	}
	for what, err := range map[string]error{
		"set":        w.SetMetadata(t.Context(), c.ID, c.Metadata),
		"update":     w.UpdateMetadata(t.Context(), c.ID, func(m *labels.Metadata) { m.MountLabel = "x" }),
		"remove":     w.Remove(t.Context(), c.ID),
		"remove pod": w.RemovePod(t.Context(), c.Metadata.Pod.ID),
	} {
		if !errors.Is(err, labels.ErrNewerSchema) {
			t.Errorf("%s a newer one: %v", what, err)
		}
	}
	entry, err := w.Pod(t.Context(), c.Metadata.Pod.ID)
	if err != nil || len(entry.Members) != 1 {
		t.Errorf("it is not listed: %+v, %v", entry, err)
	}
	set("io.berth.managed", "1")
	if err := os.RemoveAll(c.WorkDir); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WorkDir(t.Context(), c.ID); !errdefs.IsDataLoss(err) {
		t.Errorf("without work directory: %v", err)
	}
}

// (26, 27)
func TestDirectories(t *testing.T) {
	w := newWorld(t)
	c := w.container(t, w.pod(t, nil), nil).Container
	write := func(path string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(c.WorkDir + "/kept")
	write(c.RunDir + "/lost")
	if err := os.RemoveAll(w.o.State); err != nil { // a reboot
		t.Fatal(err)
	}
	w = w.again(t)
	dir, err := w.RunDir(t.Context(), c.ID)
	if err != nil || dir != c.RunDir {
		t.Fatalf("run directory: %s, %v", dir, err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
	if dir, err := w.WorkDir(t.Context(), c.ID); err != nil || dir != c.WorkDir {
		t.Errorf("work directory: %s, %v", dir, err)
	}
	if _, err := os.Stat(c.WorkDir + "/kept"); err != nil {
		t.Error(err)
	}
	write(c.RunDir + "/again")
	if _, err := w.Mount(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{c.WorkDir, c.RunDir} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// (25, 68)
func TestTask(t *testing.T) {
	w := newWorld(t)
	pod := w.pod(t, nil)
	c := w.container(t, pod, nil).Container
	ctx := w.in(t.Context())
	controller := w.d.Client().SandboxController("shim")
	config := &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "pod", Uid: "uid", Namespace: "default"},
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_CONTAINER},
		}},
	}
	if err := controller.Create(ctx, *pod.Sandbox, sandbox.WithOptions(config)); err != nil {
		t.Fatal(err)
	}
	if _, err := controller.Start(ctx, pod.Container.ID); err != nil {
		t.Fatal(err)
	}
	loaded, err := w.d.Client().LoadContainer(ctx, c.ID)
	if err != nil {
		t.Fatal(err)
	}
	task, err := loaded.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	before := w.census(t)
	path, err := w.Mount(t.Context(), c.ID)
	if err != nil || path != filepath.Join(w.d.Bundle(c.ID), "rootfs") {
		t.Errorf("mounted at %s, %v", path, err)
	}
	if _, err := os.Stat(path + "/bin/busybox"); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"container": w.Remove(t.Context(), c.ID), "pod": w.RemovePod(t.Context(), pod.Container.ID),
	} {
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.ID) {
			t.Errorf("%s removed: %v", what, err)
		}
	}
	if diff := cmp.Diff(before, w.census(t)); diff != "" {
		t.Errorf("changed:\n%s", diff)
	}
	if err := w.Unmount(t.Context(), c.ID); err != nil {
		t.Error(err)
	}
	if _, err := task.Delete(ctx, client.WithProcessKill); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(t.Context(), c.ID); err != nil {
		t.Error(err)
	}
	if err := w.RemovePod(t.Context(), pod.Container.ID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("pod removed whose sandbox lives: %v", err)
	}
	if err := controller.Shutdown(ctx, pod.Container.ID); err != nil {
		t.Error(err)
	}
	if err := w.RemovePod(t.Context(), pod.Container.ID); err != nil {
		t.Error(err)
	}
}

func TestLabelled(t *testing.T) {
	got := labelled([]mount.Mount{{Type: "overlay", Options: []string{"ro"}}, {Type: "bind"}}, "u:r:t:s0:c1,c2")
	want := []mount.Mount{{Type: "overlay", Options: []string{"ro", `context="u:r:t:s0:c1,c2"`}}, {Type: "bind"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
