// SPDX-License-Identifier: Apache-2.0

// Package image makes small OCI images from files of this machine, without a
// container runtime or a network. It owns their bytes, as an archive or blob by
// blob; it refuses to know registries and stores.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	_ "crypto/sha256" // go-digest takes its hash from the registered ones
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is a one-layer image for linux/amd64, held in memory. The same files
// and configuration give the same digests. Safe for concurrent use.
type Image struct {
	// Ref is the full reference, with a tag.
	Ref string

	manifest v1.Descriptor
	blobs    []blob // layer, config, manifest: the order in which a registry takes them
}

type blob struct {
	desc v1.Descriptor
	data []byte
}

// New builds an image from a layer's files and the configuration of its
// containers. Without PATH in the environment it is set.
func New(ref string, files []File, config v1.ImageConfig) (*Image, error) {
	raw, err := layer(files)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	if len(config.Env) == 0 {
		config.Env = []string{"PATH=/bin:/sbin:/usr/bin"}
	}
	img := &Image{Ref: ref}
	zipped := img.add(v1.MediaTypeImageLayerGzip, compress(raw))
	described, err := img.addJSON(v1.MediaTypeImageConfig, v1.Image{
		Platform: amd64,
		Config:   config,
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(raw)}},
	})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	img.manifest, err = img.addJSON(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    described,
		Layers:    []v1.Descriptor{zipped},
	})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}

var amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}

func (i *Image) add(mediaType string, data []byte) v1.Descriptor {
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	i.blobs = append(i.blobs, blob{desc, data})
	return desc
}

func (i *Image) addJSON(mediaType string, value any) (v1.Descriptor, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return i.add(mediaType, data), nil
}

func compress(raw []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	// Neither can fail: the sink is memory.
	_, _ = w.Write(raw)
	_ = w.Close()
	return out.Bytes()
}

// Manifest describes the manifest, the root of the image.
func (i *Image) Manifest() v1.Descriptor { return i.manifest }

// ReaderAt opens a blob of the image, as content.Provider has it. Its class is
// ErrNotFound for a descriptor that is not the image's.
func (i *Image) ReaderAt(_ context.Context, desc v1.Descriptor) (content.ReaderAt, error) {
	for _, b := range i.blobs {
		if b.desc.Digest == desc.Digest {
			return memory{bytes.NewReader(b.data)}, nil
		}
	}
	return nil, fmt.Errorf("image %s: blob %s: %w", i.Ref, desc.Digest, errdefs.ErrNotFound)
}

var _ content.Provider = (*Image)(nil)

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// Archive writes the image as an OCI archive, the form that `ctr images import`
// takes. The image arrives under its full reference.
func (i *Image) Archive(w io.Writer) error {
	top := i.manifest
	top.Platform = &amd64
	top.Annotations = map[string]string{
		"io.containerd.image.name": i.Ref,
		v1.AnnotationRefName:       i.Ref[strings.LastIndexByte(i.Ref, ':')+1:],
	}
	index, err := json.Marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{top},
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", i.Ref, err)
	}
	layout, err := json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return fmt.Errorf("image %s: %w", i.Ref, err)
	}
	files := []File{{Path: v1.ImageLayoutFile, Mode: 0o644, Data: layout}, {Path: v1.ImageIndexFile, Mode: 0o644, Data: index}}
	for _, b := range i.blobs {
		path := v1.ImageBlobsDir + "/" + b.desc.Digest.Algorithm().String() + "/" + b.desc.Digest.Encoded()
		files = append(files, File{Path: path, Mode: 0o644, Data: b.data})
	}
	t := tar.NewWriter(w)
	for _, f := range files {
		if err := f.write(t); err != nil {
			return fmt.Errorf("image %s: %w", i.Ref, err)
		}
	}
	return t.Close()
}
