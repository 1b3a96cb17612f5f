// SPDX-License-Identifier: Apache-2.0

// Package image makes images without a container runtime or a network: small ones
// from files of this machine, and all the kinds that software must be able to take
// or refuse (Kinds). It owns their bytes, and hands them out as an archive, an OCI
// layout, blob by blob, or to a registry.
package image

import (
	"bytes"
	"context"
	_ "crypto/sha256" // go-digest takes its hash from the registered ones
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is a manifest, or an index of several, and what they refer to, held in
// memory. The same contents give the same digests. Safe for concurrent use.
type Image struct {
	// Ref is the full reference, with a tag.
	Ref string

	root  v1.Descriptor
	blobs []blob // children first: the order in which a registry takes them
}

type blob struct {
	desc v1.Descriptor
	data []byte
}

// New builds an image of one layer for linux/amd64 from the layer's files and the
// configuration of its containers. Without PATH in the environment it is set.
func New(ref string, files []File, config v1.ImageConfig) (*Image, error) {
	layer, err := NewLayer(Gzip, files...)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return Build(ref, Variant{Layers: []Layer{layer}, Config: config})
}

// add keeps a blob once, however often it is referred to.
func (i *Image) add(desc v1.Descriptor, data []byte) v1.Descriptor {
	if !slices.ContainsFunc(i.blobs, func(b blob) bool { return b.desc.Digest == desc.Digest }) {
		i.blobs = append(i.blobs, blob{desc, data})
	}
	return desc
}

func (i *Image) addJSON(mediaType string, value any) (v1.Descriptor, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return i.add(describe(mediaType, data), data), nil
}

func describe(mediaType string, data []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// Manifest describes the root of the image: its manifest, or the index of all.
func (i *Image) Manifest() v1.Descriptor { return i.root }

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
