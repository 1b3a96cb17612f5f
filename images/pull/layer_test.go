// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
)

// Layers that are unpacked side by side give what they give one by one: here one
// writes into directories that it does not have, one removes, and one replaces.
func TestLayersThatLean(t *testing.T) {
	r := open(t, nil)
	ref, _ := r.push(t, "leaning:1", func(ref string) (*image.Image, error) {
		var layers []image.Layer
		for _, files := range [][]image.File{
			{{Path: "private", Mode: fs.ModeDir | 0o700}, {Path: "shared", Mode: fs.ModeDir | fs.ModeSticky | 0o777}, {Path: "private/gone", Mode: 0o600, Data: []byte("1")}},
			{{Path: "own", Mode: fs.ModeDir | 0o711}, {Path: "own/a", Mode: 0o600, Data: []byte("2")}},
			{{Path: "private/b", Mode: 0o600, Data: []byte("3")}, {Path: "shared/c", Mode: 0o600, Data: []byte("4")}},
			{{Path: "private/.wh.gone", Mode: 0o600}, {Path: "own", Mode: fs.ModeDir | 0o755}},
		} {
			l, err := image.NewLayer(image.Gzip, files...)
			if err != nil {
				return nil, err
			}
			layers = append(layers, l)
		}
		return image.Build(ref, image.Variant{Layers: layers})
	})
	result := r.pull(t, ref)
	r.mounted(t, result.Config, func(root string) {
		for path, want := range map[string]fs.FileMode{
			"private": fs.ModeDir | 0o700, "shared": fs.ModeDir | fs.ModeSticky | 0o777, "own": fs.ModeDir | 0o755,
			"private/b": 0o600, "shared/c": 0o600, "own/a": 0o600,
		} {
			info, err := os.Lstat(filepath.Join(root, path))
			if err != nil {
				t.Error(err)
			} else if info.Mode() != want {
				t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
			}
		}
		if _, err := os.Lstat(filepath.Join(root, "private/gone")); !os.IsNotExist(err) {
			t.Errorf("what a layer removes is there (%v)", err)
		}
	})
}

// mounted calls f with the root of an image's files.
func (r *rig) mounted(t *testing.T, config digest.Digest, f func(root string)) {
	t.Helper()
	ctx, done, err := r.d.Client().WithLease(r.context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := done(ctx); err != nil {
			t.Error(err)
		}
	}()
	ids, err := images.RootFS(ctx, r.d.Client().ContentStore(), v1.Descriptor{Digest: config, MediaType: v1.MediaTypeImageConfig})
	if err != nil {
		t.Fatal(err)
	}
	sn := r.d.Client().SnapshotService(r.config.Unpacker.Snapshotter)
	mounts, err := sn.View(ctx, t.Name(), identity.ChainID(ids).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sn.Remove(ctx, t.Name()); err != nil {
			t.Error(err)
		}
	}()
	root := t.TempDir()
	if err := mount.All(mounts, root); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.UnmountAll(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	f(root)
}

// A39: a snapshotter that gets layers by itself needs none in the content store.
func TestRemoteSnapshotter(t *testing.T) {
	dir := t.TempDir()
	lazy := &lazy{}
	socket := lazy.serve(t, dir)
	d := host.Run(t, host.Options{Images: []string{}, TOML: fmt.Sprintf(`
[proxy_plugins.lazy]
type = "snapshot"
address = %q
[proxy_plugins.lazy.exports]
enable_remote_snapshot_annotations = "true"
`, socket)})
	r := openOn(t, d, func(c *pull.Config) { c.Unpacker.Snapshotter = "lazy" })
	ref, img := r.push(t, "lazy:1", image.Noise(3, 1<<16))
	lazy.from = img
	result, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layersOf(t, img) {
		if n := r.registry.Fetches(l); n > 0 {
			t.Errorf("a layer was fetched %d times", n)
		}
		if _, err := d.Client().ContentStore().Info(r.context(t), l); !errdefs.IsNotFound(err) {
			t.Errorf("a layer is in the content store (%v)", err)
		}
	}
	equal(t, "reference that the snapshotter was told", lazy.ref, ref.Text())
	r.mounted(t, result.Config, func(root string) {
		if entries, err := os.ReadDir(root); err != nil || len(entries) < 3 {
			t.Errorf("the image has the files %v (%v)", entries, err)
		}
	})
}

// lazy is a remote snapshotter: it takes the layers that it is asked to prepare
// from an image in memory.
type lazy struct {
	snapshots.Snapshotter

	from *image.Image
	ref  string
}

func (l *lazy) serve(t *testing.T, dir string) (socket string) {
	t.Helper()
	inner, err := overlay.NewSnapshotter(filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	l.Snapshotter = inner
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(l))
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := inner.Close(); err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// Prepare implements snapshots.Snapshotter.
func (l *lazy) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := l.Snapshotter.Prepare(ctx, key, parent, opts...)
	var info snapshots.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return nil, err
		}
	}
	target, layer := info.Labels["containerd.io/snapshot.ref"], info.Labels["containerd.io/snapshot/cri.layer-digest"]
	if err != nil || target == "" || layer == "" {
		return mounts, err
	}
	l.ref = info.Labels["containerd.io/snapshot/cri.image-ref"]
	if err := l.fill(ctx, mounts, digest.Digest(layer)); err != nil {
		return nil, err
	}
	if err := l.Commit(ctx, target, key, append(opts, snapshots.WithLabels(info.Labels))...); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("snapshot %s: %w", target, errdefs.ErrAlreadyExists)
}

func (l *lazy) fill(ctx context.Context, mounts []mount.Mount, layer digest.Digest) error {
	m, err := images.Manifest(ctx, l.from, l.from.Manifest(), platforms.All)
	if err != nil {
		return err
	}
	for _, desc := range m.Layers {
		if desc.Digest != layer {
			continue
		}
		b, err := content.ReadBlob(ctx, l.from, desc)
		if err != nil {
			return err
		}
		plain, err := compression.DecompressStream(bytes.NewReader(b))
		if err != nil {
			return err
		}
		defer plain.Close()
		return mount.WithTempMount(ctx, mounts, func(root string) error {
			_, err := archive.Apply(ctx, root, plain)
			return err
		})
	}
	return fmt.Errorf("layer %s: %w", layer, errdefs.ErrNotFound)
}
