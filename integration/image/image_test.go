// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"io/fs"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
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
