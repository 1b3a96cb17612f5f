// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/mount"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/image"
)

const multi = "berth.test/multi:1"

// built adds an image of a kind under a name.
func (s *stored) built(build image.Builder, name string) *image.Image {
	s.t.Helper()
	img, err := build(name)
	s.must(err)
	s.add(img, nil, name)
	return img
}

func (s *stored) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// A63 to A66 over the service, with an image of which two platforms are here.
func TestLayerOfContainer(t *testing.T) {
	s := newStored(t, nil)
	s.built(image.MultiPlatform, multi)
	empty, err := s.ContainerSize(s.ctx(), "one")
	if err != nil || empty != (images.LayerSize{}) {
		t.Errorf("size of nothing: got %v, %v", empty, err)
	}
	for id, platform := range map[string]string{"host": "", "arm": "linux/arm64"} {
		made, err := s.CreateLayer(s.ctx(), images.LayerRequest{ID: id, Image: multi, Platform: platform, Init: func(root string) error {
			return os.WriteFile(root+"/etc/resolv.conf", nil, 0o644)
		}})
		s.must(err)
		want := map[string]string{"host": "amd64", "arm": "arm64"}[id]
		s.must(s.Perform(s.ctx(), id, func(root string) error {
			if arch, err := os.ReadFile(root + "/etc/arch"); string(arch) != want {
				t.Errorf("%s: got %q, %v", id, arch, err)
			}
			return os.WriteFile(root+"/etc/mine", []byte("x"), 0o644)
		}))
		changes, err := s.Changes(s.ctx(), id)
		if diff := cmp.Diff([]images.Change{{Kind: layer.Added, Path: "/etc/mine"}}, changes); err != nil || diff != "" {
			t.Errorf("changes: %v (-want +got):\n%s", err, diff)
		}
		if found, err := s.Layer(s.ctx(), id); err != nil || found.Parent != made.Parent {
			t.Errorf("found %+v, %v", found, err)
		}
		if size, err := s.ContainerSize(s.ctx(), id); err != nil || size.Writable == 0 || size.Total <= size.Writable {
			t.Errorf("size: got %+v, %v", size, err)
		}
	}
	root, err := s.Mount(s.ctx(), "host")
	s.must(err)
	if !strings.HasPrefix(root, "/") {
		t.Errorf("mounted at %s", root)
	}
	s.must(s.Unmount(s.ctx(), "host"))
	if err := s.Unmount(s.ctx(), "host"); !errors.Is(err, mount.ErrNotMounted) {
		t.Errorf("second unmount: got %v", err)
	}
	for _, id := range []string{"host", "host", "arm"} {
		s.must(s.ReleaseLayer(s.ctx(), id))
	}
}

func TestLayerOfWhat(t *testing.T) {
	s := newStored(t, nil)
	s.built(image.MultiPlatform, multi)
	if _, err := s.CreateLayer(s.ctx(), images.LayerRequest{ID: "one", Image: "none:1"}); !errors.Is(err, store.ErrImageDoesNotExist) {
		t.Errorf("unknown image: got %v", err)
	}
	_, err := s.CreateLayer(s.ctx(), images.LayerRequest{ID: "one", Image: multi, Platform: "linux/s390x"})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/s390x") || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("absent platform: got %v", err)
	}
	if _, err := s.CreateLayer(s.ctx(), images.LayerRequest{ID: "one", Image: multi, Platform: "a/b/c/d"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no platform: got %v", err)
	}
	if _, err := s.LayerFolders(s.ctx(), "one"); !errdefs.IsNotImplemented(err) {
		t.Errorf("folders: got %v", err)
	}
	if _, err := s.LayerMountID(s.ctx(), "one"); !errdefs.IsNotImplemented(err) {
		t.Errorf("mount ID: got %v", err)
	}
	if got := s.LayerStoreStatus(); len(got) != 1 || got[0][1] != "io.containerd.snapshotter.v1" || s.StorageDriver() != "overlayfs" {
		t.Errorf("status: got %v, %s", got, s.StorageDriver())
	}
	_ = s.DistributionServices()
}

func TestLayerDiskUsage(t *testing.T) {
	s := newStored(t, nil)
	if used, err := s.LayerDiskUsage(s.ctx()); err != nil || used != 0 {
		t.Errorf("nothing: got %d, %v", used, err)
	}
	s.busybox("berth.test/a:1")
	once, err := s.LayerDiskUsage(s.ctx())
	s.must(err)
	_, err = s.CreateLayer(s.ctx(), images.LayerRequest{ID: "one", Image: "berth.test/a:1"})
	s.must(err)
	s.must(s.Perform(s.ctx(), "one", func(root string) error { return os.WriteFile(root+"/x", nil, 0o644) }))
	made, err := s.Commit(s.ctx(), images.CommitRequest{Container: "one"})
	s.must(err)
	s.must(s.ReleaseLayer(s.ctx(), "one"))
	twice, err := s.LayerDiskUsage(s.ctx())
	if err != nil || once == 0 || twice <= once || twice > once+1<<20 {
		t.Errorf("with %s: got %d, %v, want a little more than %d", made.ID, twice, err, once)
	}
}

func TestMountImages(t *testing.T) {
	s := newStored(t, nil)
	s.built(image.MultiPlatform, multi)
	host, err := s.MountImage(s.ctx(), images.MountRequest{Image: multi})
	s.must(err)
	arm, err := s.MountImage(s.ctx(), images.MountRequest{Image: multi, Platform: "linux/arm64"})
	s.must(err)
	for root, want := range map[string]string{host.Root: "amd64", arm.Root: "arm64"} {
		if arch, err := os.ReadFile(root + "/etc/arch"); string(arch) != want {
			t.Errorf("%s: got %q, %v, want %s", root, arch, err, want)
		}
	}
	all, err := s.ImageMounts()
	if err != nil || len(all) != 2 || !slices.Contains(all, host) || !slices.Contains(all, arm) {
		t.Errorf("mounts: got %v, %v", all, err)
	}
	if _, err := s.UnmountImage(s.ctx(), images.MountRequest{Image: multi}); !errdefs.IsFailedPrecondition(err) || errors.Is(err, mount.ErrNotMounted) {
		t.Errorf("which: got %v", err)
	}
	if last, err := s.UnmountImage(s.ctx(), images.MountRequest{Image: multi, Platform: "linux/arm64"}); err != nil || !last {
		t.Errorf("by platform: got %v, %v", last, err)
	}
	if last, err := s.UnmountImage(s.ctx(), images.MountRequest{Image: multi}); err != nil || !last {
		t.Errorf("by name: got %v, %v", last, err)
	}
	if _, err := s.UnmountImage(s.ctx(), images.MountRequest{Image: multi}); !errors.Is(err, mount.ErrNotMounted) {
		t.Errorf("not mounted: got %v", err)
	}
	// A mount keeps its image, whatever becomes of the name.
	again, err := s.MountImage(s.ctx(), images.MountRequest{Image: multi})
	s.must(err)
	records, err := s.Store().Records(s.ctx())
	s.must(err)
	_, err = s.Store().Unlink(s.ctx(), records...)
	s.must(errors.Join(err, s.Store().Collect(s.ctx()), s.Cleanup(s.ctx())))
	if _, err := os.ReadFile(again.Root + "/etc/arch"); err != nil {
		t.Error(err)
	}
	if last, err := s.UnmountImage(s.ctx(), images.MountRequest{Image: again.Root}); err != nil || !last {
		t.Errorf("by its mount: got %v, %v", last, err)
	}
	if _, err := s.MountImage(s.ctx(), images.MountRequest{Image: multi}); !errors.Is(err, store.ErrImageDoesNotExist) {
		t.Errorf("unknown image: got %v", err)
	}
}
