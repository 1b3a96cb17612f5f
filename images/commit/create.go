// SPDX-License-Identifier: Apache-2.0

package commit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/manifest"
)

// mediaTypeJSON is that of a container's configuration, which is no image's.
const mediaTypeJSON = "application/json"

// memberContainerConfig is the member of Docker's configuration that says how the
// container ran that the image was made of.
const memberContainerConfig = "container_config"

// CreateRequest says what a builder's image consists of.
type CreateRequest struct {
	// Config is the configuration's document, with the digests of all layers.
	Config []byte
	// Parent is the image that has all layers but the last, by name or ID; empty for
	// nothing.
	Parent string
	// Layer is the blob of the last layer in the content store; empty if the parent
	// has them all.
	Layer digest.Digest
}

// Create makes an image of a configuration, which is written as it is, and of layers
// that are here. The classes are ErrNotFound for a parent or a layer that is not here,
// and ErrInvalidArgument if the configuration is not for these layers.
func (m *Maker) Create(ctx context.Context, r CreateRequest) (_ Image, err error) {
	ctx, done, err := m.Layers.Lease(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("create image: %w", err)
	}
	defer done(&err)
	img, err := m.create(ctx, r)
	if err != nil {
		return Image{}, fmt.Errorf("create image: %w", err)
	}
	return img, nil
}

func (m *Maker) create(ctx context.Context, r CreateRequest) (Image, error) {
	var image v1.Image
	var fields map[string]json.RawMessage
	for _, into := range []any{&image, &fields} {
		if err := json.Unmarshal(r.Config, into); err != nil {
			return Image{}, fmt.Errorf("configuration: %w: %w", errdefs.ErrInvalidArgument, err)
		}
	}
	b := scratch()
	if r.Parent != "" {
		var err error
		if b, err = m.find(ctx, r.Parent, nil); err != nil {
			return Image{}, err
		}
	}
	d := b.draft()
	if r.Layer != "" {
		last, err := m.layer(ctx, r.Layer, b.types)
		if err != nil {
			return Image{}, err
		}
		d.layers = append(d.layers, last)
	}
	if err := m.match(ctx, d, image.RootFS.DiffIDs); err != nil {
		return Image{}, err
	}
	labels, err := m.stepLabels(ctx, b, fields[memberContainerConfig])
	if err != nil {
		return Image{}, err
	}
	return m.record(ctx, d, document{raw: r.Config, diffIDs: image.RootFS.DiffIDs}, labels)
}

// match wants a configuration to name the layers of the parent and the one that comes
// with them.
func (m *Maker) match(ctx context.Context, d draft, named []digest.Digest) error {
	n := len(d.diffIDs)
	if len(named) != len(d.layers) || !slices.Equal(named[:n], d.diffIDs) {
		return fmt.Errorf("configuration: its %d layers are not the %d of the image: %w", len(named), len(d.layers), errdefs.ErrInvalidArgument)
	}
	for _, last := range d.layers[n:] {
		diffID, err := images.GetDiffID(ctx, m.Client.ContentStore(), last)
		if err != nil {
			return fmt.Errorf("layer %s: %w", last.Digest, err)
		}
		if diffID != named[n] {
			return fmt.Errorf("layer %s is %s, and %s in the configuration: %w", last.Digest, diffID, named[n], errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// document is a configuration that is written as it is.
type document struct {
	raw     []byte
	diffIDs []digest.Digest
}

func (m *Maker) record(ctx context.Context, d draft, doc document, labels map[string]string) (Image, error) {
	target, config, err := m.writeAll(ctx, d, doc)
	if err != nil {
		return Image{}, err
	}
	made, err := manifest.New(m.Client.ContentStore(), target)
	if err != nil {
		return Image{}, err
	}
	if _, err := m.Layers.Unpack(ctx, made); err != nil {
		return Image{}, err
	}
	record, err := m.Store.CreateDangling(ctx, target, labels)
	if err != nil {
		return Image{}, err
	}
	img := Image{Record: record, ID: config.Digest}
	if len(doc.diffIDs) > len(d.diffIDs) {
		img.Layer = doc.diffIDs[len(doc.diffIDs)-1]
	}
	return img, nil
}

// layer describes a layer's blob by what it is compressed with.
func (m *Maker) layer(ctx context.Context, blob digest.Digest, types mediaTypes) (v1.Descriptor, error) {
	if err := m.hold(ctx, blob); err != nil {
		return v1.Descriptor{}, err
	}
	info, err := m.Client.ContentStore().Info(ctx, blob)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("layer %s: %w", blob, err)
	}
	desc := v1.Descriptor{MediaType: types.layer, Digest: info.Digest, Size: info.Size}
	in, err := m.Client.ContentStore().ReaderAt(ctx, desc)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("layer %s: %w", blob, err)
	}
	defer in.Close()
	magic := make([]byte, min(16, info.Size)) // more than any compression's mark has
	if _, err := io.ReadFull(io.NewSectionReader(in, 0, info.Size), magic); err != nil {
		return v1.Descriptor{}, fmt.Errorf("layer %s: %w", blob, err)
	}
	switch compression.DetectCompression(magic) {
	case compression.Gzip:
	case compression.Zstd:
		desc.MediaType = v1.MediaTypeImageLayerZstd
	case compression.Uncompressed:
		desc.MediaType = v1.MediaTypeImageLayer
		if types == typesDocker {
			desc.MediaType = images.MediaTypeDockerSchema2Layer
		}
	case compression.Unknown:
		return v1.Descriptor{}, fmt.Errorf("layer %s: unknown compression: %w", blob, errdefs.ErrInvalidArgument)
	}
	return desc, nil
}

// stepLabels say on the record of a builder's image what it was made from.
func (m *Maker) stepLabels(ctx context.Context, b base, containerConfig []byte) (map[string]string, error) {
	labels := b.parentLabel()
	if labels == nil {
		labels = map[string]string{LabelScratch: "true"}
	}
	if len(containerConfig) > 0 {
		if !json.Valid(containerConfig) {
			return nil, fmt.Errorf("container's configuration: not JSON: %w", errdefs.ErrInvalidArgument)
		}
		desc, err := m.put(ctx, mediaTypeJSON, containerConfig, nil)
		if err != nil {
			return nil, err
		}
		labels[LabelContainerConfig] = desc.Digest.String()
	}
	return labels, nil
}
