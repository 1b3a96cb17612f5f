// SPDX-License-Identifier: Apache-2.0

// Package remote looks at images in registries without their layers: what a name
// stands for, the manifest for this host, and its configuration. It stores nothing.
package remote

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
)

// maxDocument bounds manifests, indexes and configurations, in bytes: registries
// take manifests of 4 MiB, and configurations are held in memory.
const maxDocument = 8 << 20

// Image is an image in a registry. What has been read of it is kept until Close.
type Image struct {
	// Reference is the name by which it was asked for.
	Reference reference.Reference
	// Target is what the name stands for: a manifest or an index.
	Target v1.Descriptor
	// Manifest is the one for the platform.
	Manifest *manifest.Manifest
	// Config is the digest of its configuration: the ID that the image will have.
	Config digest.Digest

	documents *documents
}

// Open asks a registry for an image and reads its manifest and its configuration.
// The caller closes the image. The class is ErrNotFound if there is no such image,
// or none for the platform; else the classes are those of package registry.
func Open(ctx context.Context, resolver remotes.Resolver, ref reference.Reference, platform platforms.MatchComparer) (*Image, error) {
	img, err := find(ctx, resolver, ref)
	if err != nil {
		return nil, err
	}
	desc, err := img.choose(ctx, platform)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Text(), err)
	}
	if img.Manifest, err = manifest.New(img.documents, desc); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Text(), err)
	}
	if img.Config, err = img.Manifest.ConfigDigest(ctx); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Text(), err)
	}
	if _, err = img.Manifest.Config(ctx); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Text(), err)
	}
	return img, nil
}

// find asks what a name stands for.
func find(ctx context.Context, resolver remotes.Resolver, ref reference.Reference) (*Image, error) {
	img := &Image{Reference: ref}
	var err error
	if _, img.Target, err = resolver.Resolve(ctx, ref.Text()); err != nil {
		return nil, registry.Classify(err)
	}
	fetcher, err := resolver.Fetcher(ctx, ref.Text())
	if err != nil {
		return nil, registry.Classify(err)
	}
	img.documents = &documents{fetcher: fetcher, known: map[digest.Digest][]byte{}}
	return img, nil
}

// Platforms asks a registry for which platforms it has an image, by its index; an image
// without one has none to choose from. Errors are those of Open.
func Platforms(ctx context.Context, resolver remotes.Resolver, ref reference.Reference) (all []v1.Platform, err error) {
	img, err := find(ctx, resolver, ref)
	if err != nil {
		return nil, err
	}
	err = images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		if images.IsIndexType(desc.MediaType) {
			return images.Children(ctx, img.documents, desc)
		}
		if p := desc.Platform; p != nil && p.OS != "unknown" && !slices.ContainsFunc(all, platforms.OnlyStrict(*p).Match) {
			all = append(all, *p)
		}
		return nil, images.ErrSkipDesc
	}), img.Target)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Text(), err)
	}
	return all, nil
}

// Close lets go of what was read. Manifest must not be used any more.
func (i *Image) Close() error {
	i.documents.forget()
	return nil
}

// choose walks down to the manifest that suits the platform best.
func (i *Image) choose(ctx context.Context, platform platforms.MatchComparer) (v1.Descriptor, error) {
	children := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(i.documents), platform), platform, 1)
	var chosen *v1.Descriptor
	err := images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		if images.IsIndexType(desc.MediaType) {
			return children(ctx, desc)
		}
		chosen = &desc
		return nil, images.ErrSkipDesc
	}), i.Target)
	switch {
	case err != nil:
		return v1.Descriptor{}, err
	case chosen == nil:
		return v1.Descriptor{}, fmt.Errorf("no matching manifest for this platform: %w", errdefs.ErrNotFound)
	}
	return *chosen, nil
}

// documents is a provider of what is small, from a registry.
type documents struct {
	fetcher remotes.Fetcher

	mu    sync.Mutex // guards known
	known map[digest.Digest][]byte
}

var _ content.Provider = (*documents)(nil)

// ReaderAt implements content.Provider. Layers are not found.
func (d *documents) ReaderAt(ctx context.Context, desc v1.Descriptor) (content.ReaderAt, error) {
	if images.IsLayerType(desc.MediaType) {
		return nil, fmt.Errorf("layer %s was not fetched: %w", desc.Digest, errdefs.ErrNotFound)
	}
	b, err := d.document(ctx, desc)
	if err != nil {
		return nil, err
	}
	return document{bytes.NewReader(b)}, nil
}

func (d *documents) document(ctx context.Context, desc v1.Descriptor) ([]byte, error) {
	d.mu.Lock()
	b, ok := d.known[desc.Digest]
	d.mu.Unlock()
	if ok {
		return b, nil
	}
	b, err := d.fetch(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", desc.MediaType, desc.Digest, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known[desc.Digest] = b
	return b, nil
}

func (d *documents) fetch(ctx context.Context, desc v1.Descriptor) ([]byte, error) {
	if desc.Size > maxDocument {
		return nil, fmt.Errorf("%d bytes are too many: %w", desc.Size, errdefs.ErrInvalidArgument)
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	rc, err := d.fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, registry.Classify(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, maxDocument+1))
	if err != nil {
		return nil, registry.Classify(err)
	}
	if desc.Digest.Algorithm().FromBytes(b) != desc.Digest {
		return nil, fmt.Errorf("the registry sent something else: %w", errdefs.ErrDataLoss)
	}
	return b, nil
}

func (d *documents) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.known)
}

// document is a blob in memory.
type document struct{ *bytes.Reader }

// Close implements content.ReaderAt.
func (document) Close() error { return nil }
