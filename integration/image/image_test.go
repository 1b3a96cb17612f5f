// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"io/fs"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func sample(t *testing.T) *Image {
	t.Helper()
	files := []File{
		dir("bin", 0o755),
		{Path: "bin/true", Mode: 0o755, Data: []byte("program")},
		{Path: "bin/false", Mode: fs.ModeSymlink | 0o777, Link: "true"},
		dir("tmp", 0o777|fs.ModeSticky),
	}
	img, err := New("berth.test/sample:2", files, v1.ImageConfig{Cmd: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestKinds has containerd's own importer read every kind, and finds all that is
// not foreign.
func TestKinds(t *testing.T) {
	for _, kind := range Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			img, err := kind.Build("berth.test/" + kind.Name + ":1")
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := img.Archive(&out); err != nil {
				t.Fatal(err)
			}
			store, err := local.NewStore(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			index, err := archive.ImportIndex(t.Context(), store, &out)
			if err != nil {
				t.Fatal(err)
			}
			found := 0
			count := images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
				if images.IsNonDistributable(desc.MediaType) {
					return nil, nil
				}
				found++
				if _, err := store.Info(ctx, desc.Digest); err != nil {
					t.Errorf("%s %s: %v", desc.MediaType, desc.Digest, err)
				}
				return images.Children(ctx, store, desc)
			})
			if err := images.Walk(t.Context(), count, index); err != nil {
				t.Fatal(err)
			}
			if found <= len(img.blobs) {
				t.Errorf("%d descriptors reached, want the index and at least %d", found, len(img.blobs))
			}
		})
	}
}

// TestZeroLayer reads a bomb as a tar stream.
func TestZeroLayer(t *testing.T) {
	layer, err := ZeroLayer(2 * chunk)
	if err != nil {
		t.Fatal(err)
	}
	if len(layer.data) > 100<<10 {
		t.Errorf("%d bytes, want few", len(layer.data))
	}
	raw, err := gzip.NewReader(bytes.NewReader(layer.data))
	if err != nil {
		t.Fatal(err)
	}
	diff := digest.Canonical.Digester()
	stream := io.TeeReader(raw, diff.Hash())
	r := tar.NewReader(stream)
	if h, err := r.Next(); err != nil || h.Size != 2*chunk {
		t.Fatalf("header %+v, %v", h, err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("second header: %v, want the end", err)
	}
	if _, err := io.Copy(io.Discard, stream); err != nil {
		t.Fatal(err)
	}
	if diff.Digest() != layer.diff {
		t.Errorf("digest %s, want %s", diff.Digest(), layer.diff)
	}
}

// TestArchive has containerd's own importer read an archive.
func TestArchive(t *testing.T) {
	img := sample(t)
	var out bytes.Buffer
	if err := img.Archive(&out); err != nil {
		t.Fatal(err)
	}
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	index, err := archive.ImportIndex(t.Context(), store, &out)
	if err != nil {
		t.Fatal(err)
	}
	data, err := content.ReadBlob(t.Context(), store, index)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(data, []byte(`"io.containerd.image.name":"berth.test/sample:2"`)) {
		t.Errorf("index does not name the image: %s", data)
	}
	manifest, err := images.Manifest(t.Context(), store, index, platforms.Only(amd64))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := manifest.Layers[0].Digest, img.blobs[0].desc.Digest; got != want {
		t.Errorf("layer %s, want %s", got, want)
	}
}

func TestDigestDependsOnContentOnly(t *testing.T) {
	if a, b := sample(t).Manifest().Digest, sample(t).Manifest().Digest; a != b {
		t.Errorf("two builds, two digests: %s and %s", a, b)
	}
}

func TestReaderAt(t *testing.T) {
	img := sample(t)
	for _, b := range img.blobs {
		got, err := content.ReadBlob(t.Context(), img, b.desc)
		if err != nil || !bytes.Equal(got, b.data) {
			t.Errorf("blob %s: %d bytes, %v; want %d bytes", b.desc.MediaType, len(got), err, len(b.data))
		}
	}
	if _, err := img.ReaderAt(t.Context(), v1.Descriptor{Digest: "sha256:0"}); !errdefs.IsNotFound(err) {
		t.Errorf("unknown blob: %v, want not found", err)
	}
}
