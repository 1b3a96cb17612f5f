// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/unpack"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
)

// The tests drive a real containerd.

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

var shared struct {
	once sync.Once
	d    *host.Daemon
	err  error
}

// rig is an Unpacker and a lease, with which goes all that the test has made.
type rig struct {
	*host.Daemon
	*unpack.Unpacker
	t   *testing.T
	ctx context.Context
}

const limit = 32 << 20

func newRig(t *testing.T) *rig {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{Images: []string{}}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	r := &rig{Daemon: shared.d, t: t}
	r.Unpacker = unpack.New(unpack.Config{Client: r.Daemon.Client(), Snapshotter: "overlayfs", Max: limit})
	// It opens its data base at the first change.
	sn, end := r.Daemon.Client().SnapshotService("overlayfs"), r.Context(context.Background())
	if _, err := sn.Prepare(end, "first", ""); err != nil {
		t.Fatal(err)
	}
	if err := sn.Remove(end, "first"); err != nil {
		t.Fatal(err)
	}
	before := r.Count(t)
	manager := r.Daemon.Client().LeasesService()
	lease, err := manager.Create(end, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	r.ctx = leases.WithLease(r.Context(t.Context()), lease.ID)
	t.Cleanup(func() {
		if err := manager.Delete(end, lease, leases.SynchronousDelete); err != nil {
			t.Error(err)
		}
		r.Settle(t, before)
	})
	return r
}

// put has an image in the content store, without a record.
func (r *rig) put(v image.Variant) *manifest.Manifest {
	r.t.Helper()
	img, err := image.Build("berth.test/unpack:1", v)
	if err != nil {
		r.t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := img.Archive(&archive); err != nil {
		r.t.Fatal(err)
	}
	records, err := r.Daemon.Client().Import(r.ctx, &archive)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, record := range records {
		if err := r.Daemon.Client().ImageService().Delete(r.ctx, record.Name); err != nil {
			r.t.Fatal(err)
		}
	}
	m, err := manifest.Best(r.ctx, r.Daemon.Client().ContentStore(), records[0].Target, platforms.Default())
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

func (r *rig) layer(files ...image.File) image.Layer {
	r.t.Helper()
	l, err := image.NewLayer(image.Gzip, files...)
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// A layer that has a file in a directory of another gets that directory as it is.
func TestUnpackLeaning(t *testing.T) {
	r := newRig(t)
	m := r.put(image.Variant{Layers: []image.Layer{
		r.layer(image.File{Path: "private", Mode: fs.ModeDir | 0o700}),
		r.layer(image.File{Path: "private/a", Mode: 0o600, Data: []byte("a")}),
	}})
	top, err := r.Unpack(r.ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	sn := r.Daemon.Client().SnapshotService("overlayfs")
	mounts, err := sn.View(r.ctx, t.Name(), top)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := mount.All(mounts, root); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.UnmountAll(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	info, err := os.Stat(filepath.Join(root, "private"))
	if err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("directory: %v, %v; want mode 0700", info, err)
	}
	if _, err := os.Stat(filepath.Join(root, "private/a")); err != nil {
		t.Error(err)
	}
}

// The limit is for all layers of an image, and for each that is added.
func TestTooLarge(t *testing.T) {
	r := newRig(t)
	noise := func(id byte, size int) image.Layer {
		l, err := image.NoiseLayer(id, size)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	within := r.put(image.Variant{Layers: []image.Layer{noise(1, limit/2), noise(2, limit/4)}})
	if _, err := r.Unpack(r.ctx, within); err != nil {
		t.Error(err)
	}
	// What is unpacked already does not count.
	more := r.put(image.Variant{Layers: []image.Layer{noise(1, limit/2), noise(2, limit/4), noise(3, limit/2)}})
	if _, err := r.Unpack(r.ctx, more); err != nil {
		t.Error(err)
	}
	other := r.put(image.Variant{Layers: []image.Layer{noise(4, limit/2), noise(5, limit*3/4)}})
	if _, err := r.Unpack(r.ctx, other); !errors.Is(err, unpack.ErrTooLarge) || !errdefs.IsResourceExhausted(err) {
		t.Errorf("together: %v, want ErrTooLarge", err)
	}
	large := r.put(image.Variant{Layers: []image.Layer{noise(6, limit*2)}})
	doc, err := large.Manifest(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	config, err := large.Config(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	layer := rootfs.Layer{Blob: doc.Layers[0], Diff: v1.Descriptor{Digest: config.RootFS.DiffIDs[0]}}
	if err := r.Add(r.ctx, layer, nil); !errors.Is(err, unpack.ErrTooLarge) {
		t.Errorf("added: %v, want ErrTooLarge", err)
	}
	r.Unpacker.Max = limit * 3
	if err := r.Add(r.ctx, layer, nil); err != nil {
		t.Errorf("added within the limit: %v", err)
	}
}

// A configuration with layers that the manifest lacks is no image's.
func TestNoImage(t *testing.T) {
	r := newRig(t)
	store := r.Daemon.Client().ContentStore()
	write := func(mediaType string, document any) v1.Descriptor {
		text, err := json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
		if err := content.WriteBlob(r.ctx, store, desc.Digest.String(), bytes.NewReader(text), desc); err != nil {
			t.Fatal(err)
		}
		return desc
	}
	config := write(v1.MediaTypeImageConfig, v1.Image{RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromString("none")}}})
	m, err := manifest.New(store, write(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: config, Layers: []v1.Descriptor{},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Unpack(r.ctx, m); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v, want InvalidArgument", err)
	}
}
