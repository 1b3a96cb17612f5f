// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/images/idmap"
	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/mount"
	"github.com/berthd/berth/images/unpack"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
)

var shifted = idmap.Map{
	UIDs: []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}},
	GIDs: []specs.LinuxIDMapping{{HostID: 200000, Size: 65536}},
}

var snapshotters = []string{"overlayfs", "native"}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func write(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) }

// stacked has two layers, the upper one changing the lower.
func stacked(ref string) (*image.Image, error) { return stackedWith(ref, v1.ImageConfig{}) }

func stackedWith(ref string, config v1.ImageConfig) (*image.Image, error) {
	var layers []image.Layer
	for _, files := range [][]image.File{
		{
			{Path: "etc", Mode: fs.ModeDir | 0o755},
			{Path: "etc/kept", Mode: 0o644, Data: []byte("kept")},
			{Path: "etc/changed", Mode: 0o644, Data: []byte("old")},
			{Path: "bin", Mode: fs.ModeDir | 0o755},
			{Path: "bin/tool", Mode: 0o755, Data: []byte("tool")},
		},
		{{Path: "etc/changed", Mode: 0o644, Data: []byte("changed")}},
	} {
		l, err := image.NewLayer(image.Gzip, files...)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return image.Build(ref, image.Variant{Layers: layers, Config: config})
}

func TestPrepare(t *testing.T) {
	for _, snapshotter := range snapshotters {
		t.Run(snapshotter, func(t *testing.T) {
			r := newRig(t, snapshotter)
			m := r.pull(stacked)
			y := r.prepare(layer.PrepareRequest{ID: "one", Parent: m})
			chain, err := m.ChainID(r.ctx)
			if err != nil || y.Parent != chain.String() {
				t.Errorf("parent: got %s, %v, want %s", y.Parent, err, chain)
			}
			r.perform("one", func(root string) error {
				data, err := os.ReadFile(root + "/etc/changed")
				if string(data) != "changed" {
					t.Errorf("got %q, %v", data, err)
				}
				return write(root+"/etc/mine", "mine")
			})
			// What it has is found by another process.
			again, err := r.open(snapshotter).Layer(t.Context(), "one")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(y.Metadata(), again.Metadata()); diff != "" {
				t.Errorf("metadata (-want +got):\n%s", diff)
			}
			if _, err := r.Prepare(t.Context(), layer.PrepareRequest{ID: "one", Parent: m}); !errdefs.IsAlreadyExists(err) {
				t.Errorf("second time: got %v", err)
			}
			if _, err := r.Layer(t.Context(), "one"); err != nil {
				t.Errorf("after the second time: %v", err)
			}
			empty := r.prepare(layer.PrepareRequest{ID: "two"})
			if empty.Parent != "" {
				t.Errorf("empty: on %s", empty.Parent)
			}
			r.perform("two", func(root string) error {
				if list, err := os.ReadDir(root); err != nil || len(list) != 0 {
					t.Errorf("empty: got %v, %v", list, err)
				}
				return write(root+"/file", "x")
			})
		})
	}
}

func TestPrepareRefuses(t *testing.T) {
	r := newRig(t, "overlayfs")
	for name, req := range map[string]layer.PrepareRequest{
		"no id":  {},
		"a path": {ID: "../x"},
		"no root": {ID: "x", IDs: idmap.Map{
			UIDs: []specs.LinuxIDMapping{{ContainerID: 1, HostID: 1, Size: 1}}, GIDs: []specs.LinuxIDMapping{{HostID: 1, Size: 1}},
		}},
	} {
		if _, err := r.Prepare(t.Context(), req); !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A63
func TestInit(t *testing.T) {
	for _, snapshotter := range snapshotters {
		t.Run(snapshotter, func(t *testing.T) {
			r := newRig(t, snapshotter)
			m := r.pull(stacked)
			stop := errors.New("stop")
			ctx, done, err := r.Lease(t.Context())
			if err == nil {
				_, err = r.Unpack(ctx, m)
				done(&err)
			}
			if err != nil {
				t.Fatal(err)
			}
			before := r.Count(t)
			for range 2 { // a name left behind would be in the way
				_, err := r.Prepare(t.Context(), layer.PrepareRequest{ID: "one", Parent: m, Init: func(root string) error {
					return errors.Join(stop, write(root+"/etc/init", "x"))
				}})
				if !errors.Is(err, stop) || !strings.Contains(err.Error(), "one") {
					t.Fatalf("got %v, want the error of init", err)
				}
			}
			after := r.Count(t)
			for _, kind := range []string{"snapshots", "leases", "mounts"} {
				if diff := cmp.Diff(sorted(before[kind]), sorted(after[kind])); diff != "" {
					t.Errorf("%s (-before +after):\n%s", kind, diff)
				}
			}
			y := r.prepare(layer.PrepareRequest{ID: "one", Parent: m, Init: func(root string) error { return write(root+"/etc/init", "x") }})
			if y.Parent != "one-init" {
				t.Errorf("parent: got %s", y.Parent)
			}
			r.perform("one", func(root string) error {
				if !exists(root + "/etc/init") {
					t.Error("init's file is not there")
				}
				return nil
			})
			// It is not the container's doing.
			if list, err := r.Changes(t.Context(), "one"); err != nil || len(list) != 0 {
				t.Errorf("changes: got %v, %v", list, err)
			}
		})
	}
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

func TestIDs(t *testing.T) {
	for _, snapshotter := range snapshotters {
		t.Run(snapshotter, func(t *testing.T) {
			r := newRig(t, snapshotter)
			m := r.pull(stacked)
			first := r.prepare(layer.PrepareRequest{ID: "first", Parent: m, IDs: shifted})
			second := r.prepare(layer.PrepareRequest{ID: "second", Parent: m, IDs: shifted})
			if first.Parent != second.Parent {
				t.Errorf("on %s and %s, want them to share it", first.Parent, second.Parent)
			}
			r.prepare(layer.PrepareRequest{ID: "one", Parent: m, IDs: shifted, Init: func(root string) error { return write(root+"/etc/init", "x") }})
			for id, names := range map[string][]string{
				"second": {"", "etc", "etc/kept", "etc/changed", "bin/tool"},
				"one":    {"", "etc", "etc/kept", "etc/changed", "bin/tool", "etc/init"},
			} {
				r.perform(id, func(root string) error {
					for _, name := range names {
						info, err := os.Lstat(filepath.Join(root, name))
						if err != nil {
							t.Error(err)
							continue
						}
						if st := info.Sys().(*syscall.Stat_t); st.Uid != 100000 || st.Gid != 200000 {
							t.Errorf("/%s: got owner %d:%d", name, st.Uid, st.Gid)
						}
					}
					return nil
				})
			}
			y, err := r.Layer(t.Context(), "one")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(shifted, y.IDs); diff != "" {
				t.Errorf("ids (-want +got):\n%s", diff)
			}
			rootfs, err := r.Rootfs(t.Context(), "one")
			chain, _ := m.ChainID(r.ctx)
			if err != nil || !slices.Contains(rootfs.Ancestors, chain.String()) {
				t.Errorf("ancestors: got %v, %v, want %s among them", rootfs.Ancestors, err, chain)
			}
		})
	}
}

// A65
func TestRelease(t *testing.T) {
	r := newRig(t, "overlayfs")
	m := r.pull(stacked)
	if _, err := r.Prepare(t.Context(), layer.PrepareRequest{ID: "one", Parent: m}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Mount(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Release(t.Context(), "one"); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Layer(t.Context(), "one"); !errdefs.IsNotFound(err) {
		t.Errorf("after it: got %v", err)
	}
	// Others' snapshots are not ours to remove.
	lease, err := r.Client().LeasesService().Create(r.ctx)
	if err == nil {
		_, err = r.Client().SnapshotService("overlayfs").Prepare(leases.WithLease(r.ctx, lease.ID), "foreign", "")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Release(t.Context(), "foreign"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("foreign: got %v", err)
	}
	if err := r.Release(t.Context(), lease.ID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("foreign lease: got %v", err)
	}
	if err := r.Client().LeasesService().Delete(r.ctx, lease, leases.SynchronousDelete); err != nil {
		t.Error(err)
	}
	// What is left of a process that was killed while it made one.
	if lease, err = r.Client().LeasesService().Create(r.ctx, leases.WithID("half"), leases.WithLabel("io.berth.layer", "half")); err == nil {
		_, err = r.Client().SnapshotService("overlayfs").Prepare(leases.WithLease(r.ctx, lease.ID), "half-init-key", "")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Release(t.Context(), "half"); err != nil {
		t.Errorf("half a layer: %v", err)
	}
	if _, err := r.Client().SnapshotService("overlayfs").Stat(r.ctx, "half-init-key"); !errdefs.IsNotFound(err) {
		t.Errorf("half a layer: %v", err)
	}
}

// A64
func TestMountTwice(t *testing.T) {
	r := newRig(t, "overlayfs")
	y := r.prepare(layer.PrepareRequest{ID: "one", Parent: r.pull(stacked)})
	root, err := y.Mount(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Another process, which ends.
	if again, err := r.open("overlayfs").Mount(t.Context(), "one"); err != nil || again != root {
		t.Fatalf("second: got %s, %v, want %s", again, err, root)
	}
	if err := y.Unmount(t.Context()); err != nil {
		t.Error(err)
	}
	if !exists(root + "/etc/kept") {
		t.Error("not mounted any more after one of two unmounts")
	}
	if err := y.Unmount(t.Context()); err != nil {
		t.Error(err)
	}
	if exists(root + "/etc/kept") {
		t.Error("still mounted after the second unmount")
	}
	if err := y.Unmount(t.Context()); !errors.Is(err, mount.ErrNotMounted) {
		t.Errorf("third: got %v, want ErrNotMounted", err)
	}
	if _, err := r.Mount(t.Context(), "none"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "none") {
		t.Errorf("unknown container: got %v", err)
	}
}

func TestPerform(t *testing.T) {
	r := newRig(t, "overlayfs")
	r.prepare(layer.PrepareRequest{ID: "one", Parent: r.pull(stacked)})
	stop := errors.New("stop")
	var seen string
	err := r.Perform(t.Context(), "one", func(root string) error {
		seen = root
		return stop
	})
	if !errors.Is(err, stop) || exists(seen) {
		t.Errorf("got %v, mounted %v", err, exists(seen))
	}
	err = r.Perform(t.Context(), "one", func(root string) error {
		return errors.Join(stop, unix.Unmount(root, 0))
	})
	if !errors.Is(err, stop) || !errors.Is(err, mount.ErrNotMounted) {
		t.Errorf("got %v, want both errors", err)
	}
}

// A66
func TestChanges(t *testing.T) {
	for _, snapshotter := range snapshotters {
		t.Run(snapshotter, func(t *testing.T) {
			r := newRig(t, snapshotter)
			m := r.pull(stacked)
			r.prepare(layer.PrepareRequest{ID: "one", Parent: m})
			r.perform("one", func(root string) error {
				return errors.Join(write(root+"/etc/added", "x"), write(root+"/etc/changed", "again"), os.RemoveAll(root+"/bin"))
			})
			r.prepare(layer.PrepareRequest{ID: "mapped", Parent: m, IDs: shifted})
			r.perform("mapped", func(root string) error { return write(root+"/etc/changed", "again") })
			before := r.Count(t)
			mapped, err := r.Changes(t.Context(), "mapped")
			if diff := cmp.Diff([]layer.Change{{Kind: layer.Modified, Path: "/etc/changed"}}, mapped); err != nil || diff != "" {
				t.Errorf("with other owners: %v (-want +got):\n%s", err, diff)
			}
			got, err := r.Changes(t.Context(), "one")
			if err != nil {
				t.Fatal(err)
			}
			want := []layer.Change{
				{Kind: layer.Deleted, Path: "/bin"},
				{Kind: layer.Added, Path: "/etc/added"},
				{Kind: layer.Modified, Path: "/etc/changed"},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			r.Settle(t, before)
			if _, err := r.Changes(t.Context(), "none"); !errdefs.IsNotFound(err) {
				t.Errorf("unknown container: got %v", err)
			}
		})
	}
}

// Spec 4.2: GetContainerLayerSize
func TestContainerSize(t *testing.T) {
	r := newRig(t, "overlayfs")
	m := r.pull(stacked)
	y := r.prepare(layer.PrepareRequest{ID: "one", Parent: m})
	empty, err := r.ContainerSize(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	r.perform("one", func(root string) error { return write(root+"/data", strings.Repeat("x", 1<<20)) })
	full, err := r.ContainerSize(t.Context(), "one")
	if err != nil || full.Writable < empty.Writable+1<<20 || full.Total-full.Writable != empty.Total-empty.Writable || full.Total <= full.Writable {
		t.Errorf("got %+v, %v, after %+v", full, err, empty)
	}
	config, err := m.Config(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	sizes, err := r.Usage(t.Context(), config.RootFS.DiffIDs)
	var sum int64
	for _, size := range sizes {
		sum += size
	}
	if err != nil || len(sizes) != 2 || sum != full.Total-full.Writable {
		t.Errorf("usage of the image: got %v, %v, want %d in two", sizes, err, full.Total-full.Writable)
	}
	if size, err := r.ContainerSize(t.Context(), "none"); err != nil || size != (layer.Size{}) {
		t.Errorf("unknown: got %v, %v", size, err)
	}
	_, err = r.Client().ContainerService().Create(r.ctx, containers.Container{
		ID: "bare", Snapshotter: "overlayfs", SnapshotKey: y.ID + "-gone", Runtime: containers.RuntimeInfo{Name: "none"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.ContainerSize(t.Context(), "bare"); !errdefs.IsNotFound(err) {
		t.Errorf("without its snapshot: got %v", err)
	}
	if err := r.Client().ContainerService().Delete(r.ctx, "bare"); err != nil {
		t.Error(err)
	}
}

func TestMountImage(t *testing.T) {
	r := newRig(t, "overlayfs")
	m := r.pull(stacked)
	name := m.Descriptor().Digest
	root, err := r.MountImage(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(root + "/etc/changed"); string(data) != "changed" {
		t.Errorf("got %q, %v", data, err)
	}
	if err := write(root+"/etc/mine", "x"); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: got %v", err)
	}
	// Another process finds it.
	other := r.open("overlayfs")
	if found, err := other.ImageMount(name); err != nil || found != root {
		t.Errorf("found: got %q, %v, want %s", found, err, root)
	}
	if again, err := other.MountImage(t.Context(), m); err != nil || again != root {
		t.Errorf("second: got %q, %v, want %s", again, err, root)
	}
	for _, want := range []bool{false, true} {
		if last, err := other.UnmountImage(t.Context(), name); err != nil || last != want {
			t.Errorf("unmount: got %v, %v, want %v", last, err, want)
		}
	}
	if _, err := other.UnmountImage(t.Context(), name); !errors.Is(err, mount.ErrNotMounted) {
		t.Errorf("third unmount: got %v", err)
	}
	if found, err := other.ImageMount(name); err != nil || found != "" {
		t.Errorf("found: got %q, %v", found, err)
	}
}

func TestSweep(t *testing.T) {
	r := newRig(t, "overlayfs")
	m := r.pull(stacked)
	r.prepare(layer.PrepareRequest{ID: "one", Parent: m})
	before := r.Count(t)
	kept, err := r.Mount(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	root, err := r.MountImage(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !exists(root+"/etc/kept") || !exists(kept+"/etc/kept") {
		t.Error("swept what is in use")
	}
	// As after a reboot.
	if err := unix.Unmount(root, 0); err != nil {
		t.Fatal(err)
	}
	if found, err := r.ImageMount(m.Descriptor().Digest); err != nil || found != "" {
		t.Errorf("found: got %q, %v", found, err)
	}
	// The view is there, so it is mounted again with it.
	if again, err := r.MountImage(t.Context(), m); err != nil || !exists(again+"/etc/kept") {
		t.Errorf("mounted again: %q, %v", again, err)
	}
	if err := errors.Join(unix.Unmount(root, 0), os.RemoveAll(filepath.Dir(root)), r.Sweep(t.Context())); err != nil {
		t.Fatal(err)
	}
	if !exists(kept + "/etc/kept") {
		t.Error("swept what is in use")
	}
	if err := r.Unmount(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	r.Settle(t, before)
}

func TestUnpackWithoutBlobs(t *testing.T) {
	r := newRig(t, "overlayfs")
	m := r.pull(stacked)
	doc, err := m.Manifest(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	ctx, done, err := r.Client().WithLease(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := done(context.Background()); err != nil {
			t.Log(err)
		}
	}()
	if _, err := r.Unpack(ctx, m); err != nil {
		t.Fatal(err)
	}
	// As CRI's discard_unpacked_layers does.
	if err := r.Client().ContentStore().Delete(r.ctx, doc.Layers[0].Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Unpack(ctx, m); err != nil {
		t.Errorf("unpacked already: %v", err)
	}
	if _, err := r.open("native").Unpack(ctx, m); !errdefs.IsNotFound(err) {
		t.Errorf("not unpacked yet: got %v, want NotFound", err)
	}
}

// Images that take too much, by one layer or by several, are not unpacked; nothing of
// them is left, though that of others is.
func TestUnpackTooMuch(t *testing.T) {
	const limit = 64 << 20
	for _, snapshotter := range snapshotters {
		t.Run(snapshotter, func(t *testing.T) {
			r := newRig(t, snapshotter)
			l := r.within(snapshotter, limit)
			for name, build := range map[string]image.Builder{"bomb": image.Bomb(2 << 30), "layers": image.Noise(3, limit/2-1<<20)} {
				t.Run(name, func(t *testing.T) {
					r := &rig{Daemon: r.Daemon, Layers: l, t: t, ctx: r.ctx}
					m := r.pull(build)
					before := r.Count(t)
					_, err := r.Prepare(t.Context(), layer.PrepareRequest{ID: "large", Parent: m})
					if !errors.Is(err, unpack.ErrTooLarge) || !errdefs.IsResourceExhausted(err) {
						t.Errorf("got %v, want ErrTooLarge", err)
					}
					if _, err := r.MountImage(t.Context(), m); !errors.Is(err, unpack.ErrTooLarge) {
						t.Errorf("mount: got %v, want ErrTooLarge", err)
					}
					r.Settle(t, before)
				})
			}
			r.Layers = l
			r.prepare(layer.PrepareRequest{ID: "small", Parent: r.pull(stacked)})
		})
	}
}

// A configuration keeps the snapshot of another image with the same layers.
func TestUnpackedByAnother(t *testing.T) {
	r := newRig(t, "overlayfs")
	r.prepare(layer.PrepareRequest{ID: "first", Parent: r.pull(stacked)})
	m := r.pullAs("berth.test/layer:2", func(ref string) (*image.Image, error) {
		return stackedWith(ref, v1.ImageConfig{User: "another"})
	})
	config, err := m.ConfigDigest(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := m.ChainID(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	r.prepare(layer.PrepareRequest{ID: "second", Parent: m})
	info, err := r.Client().ContentStore().Info(r.ctx, config)
	if err != nil || info.Labels["containerd.io/gc.ref.snapshot.overlayfs"] != chain.String() {
		t.Errorf("labels of the configuration: %v, %v; want %s", info.Labels, err, chain)
	}
}

// Containers of one image and map start at the same time, and share its copy.
func TestPrepareAtOnce(t *testing.T) {
	for _, snapshotter := range snapshotters {
		t.Run(snapshotter, func(t *testing.T) {
			r := newRig(t, snapshotter)
			m := r.pull(stacked)
			var all sync.WaitGroup
			parents := make([]string, 6)
			for i := range parents {
				all.Go(func() {
					y, err := r.Prepare(t.Context(), layer.PrepareRequest{ID: fmt.Sprint("c", i), Parent: m, IDs: shifted})
					if err != nil {
						t.Error(err)
						return
					}
					parents[i] = y.Parent
				})
			}
			all.Wait()
			for i, parent := range parents {
				if parent == "" || parent != parents[0] {
					t.Errorf("parents: got %v, want one", parents)
				}
				r.release(fmt.Sprint("c", i))
			}
		})
	}
}

// Mounts live on when containerd is killed, and are found by who comes after.
func TestContainerdKilled(t *testing.T) {
	d := host.Run(t, host.Options{Images: []string{}})
	r := &rig{Daemon: d, t: t, ctx: d.Context(t.Context())}
	r.Layers = r.open("overlayfs")
	m := r.pull(stacked)
	if _, err := r.Prepare(t.Context(), layer.PrepareRequest{ID: "one", Parent: m}); err != nil {
		t.Fatal(err)
	}
	root, err := r.Mount(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	of, err := r.MountImage(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Kill(), d.Start()); err != nil {
		t.Fatal(err)
	}
	r.Layers = r.open("overlayfs")
	if err := write(root+"/etc/mine", "x"); err != nil || !exists(of+"/etc/kept") {
		t.Errorf("after the kill: %v, %v", err, exists(of+"/etc/kept"))
	}
	if again, err := r.Mount(t.Context(), "one"); err != nil || again != root {
		t.Errorf("mounted at %s, %v, want %s", again, err, root)
	}
	if changes, err := r.Changes(t.Context(), "one"); err != nil || len(changes) != 1 {
		t.Errorf("changes: got %v, %v", changes, err)
	}
	for range 2 {
		if err := r.Unmount(t.Context(), "one"); err != nil {
			t.Error(err)
		}
	}
	if last, err := r.UnmountImage(t.Context(), m.Descriptor().Digest); err != nil || !last {
		t.Errorf("unmount: got %v, %v", last, err)
	}
	r.release("one")
	r.ctx = d.Context(context.Background())
}

// A call that ends too early leaves nothing.
func TestCancelled(t *testing.T) {
	for _, snapshotter := range snapshotters {
		t.Run(snapshotter, func(t *testing.T) {
			r := newRig(t, snapshotter)
			m := r.pull(stacked)
			request := layer.PrepareRequest{ID: "one", Parent: m, IDs: shifted, Init: func(root string) error { return write(root+"/etc/init", "x") }}
			for name, call := range map[string]func(context.Context) error{
				"prepare": func(ctx context.Context) error {
					_, err := r.Prepare(ctx, request)
					if err == nil {
						r.release("one")
					}
					return err
				},
				"mount": func(ctx context.Context) error {
					_, err := r.MountImage(ctx, m)
					if err == nil {
						_, err = r.UnmountImage(context.Background(), m.Descriptor().Digest)
					}
					return err
				},
			} {
				for wait := 500 * time.Microsecond; ; wait = wait * 5 / 4 {
					if wait > time.Minute || t.Failed() {
						t.Fatalf("%s does not succeed in %v", name, wait)
					}
					ctx, cancel := context.WithTimeout(t.Context(), wait)
					err := call(ctx)
					cancel()
					if err == nil {
						break
					}
					if !errors.Is(err, context.DeadlineExceeded) && !errdefs.IsCanceled(err) && !errdefs.IsDeadlineExceeded(err) {
						t.Errorf("%s after %v: %v", name, wait, err)
					}
					if found, err := r.ImageMount(m.Descriptor().Digest); found != "" || err != nil {
						t.Errorf("%s after %v: mounted at %s, %v", name, wait, found, err)
					}
				}
			}
		})
	}
}
