// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/manifest"
)

// variant is a manifest of an image that is there with all its blobs, or all that may
// be distributed.
type variant struct {
	*manifest.Manifest
	doc      v1.Manifest
	pseudo   bool
	platform v1.Platform // not of a pseudo image
}

// absentee is a manifest that lacks a blob.
type absentee struct {
	platform v1.Platform // zero if unknown
	blob     digest.Digest
}

// found is what an image consists of.
type found struct {
	indexes  []v1.Descriptor        // each once
	seen     map[digest.Digest]bool // of indexes
	variants []variant
	absent   []absentee
}

// Bounds of what images may lead to. Real ones are an index of some twenty manifests,
// rarely in another index, of some twenty layers each, and a few dozen of such images
// in an archive.
const (
	maxDepth   = 4
	maxReached = 100_000
)

// finder looks into images, for one operation.
type finder struct {
	provider content.Provider
	// reached counts blobs, each as often as it is reached: documents that hold each
	// other many times over would keep all who walk them busy for ever.
	reached int
	// What has been read, by the descriptor it was read for.
	indexes   map[digest.Digest][]v1.Descriptor
	manifests map[string]manifested
}

// manifested is what a manifest turned out to be: one of both.
type manifested struct {
	variant  *variant
	absentee *absentee
}

func newFinder(provider content.Provider) finder {
	return finder{provider: provider, indexes: map[digest.Digest][]v1.Descriptor{}, manifests: map[string]manifested{}}
}

func (f *finder) count(n int) error {
	if f.reached += n; f.reached > maxReached {
		return fmt.Errorf("more than %d blobs: %w", maxReached, errdefs.ErrInvalidArgument)
	}
	return nil
}

// look finds the indexes and manifests of an image. The class is ErrInvalidArgument if
// there is no end of them, or one is not what it should be.
func (f *finder) look(ctx context.Context, target v1.Descriptor) (*found, error) {
	image := &found{seen: map[digest.Digest]bool{}}
	return image, f.walk(ctx, image, target, maxDepth)
}

func (f *finder) walk(ctx context.Context, image *found, desc v1.Descriptor, depth int) error {
	if err := f.count(1); err != nil {
		return err
	}
	switch {
	case images.IsManifestType(desc.MediaType):
		return f.add(ctx, image, desc)
	case !images.IsIndexType(desc.MediaType):
		return nil
	case depth == 0:
		return fmt.Errorf("more than %d indexes in each other: %w", maxDepth, errdefs.ErrInvalidArgument)
	}
	list, known := f.indexes[desc.Digest]
	if !known {
		var err error
		list, err = images.Children(ctx, f.provider, desc)
		if errdefs.IsNotFound(err) {
			image.absent = append(image.absent, absentee{blob: desc.Digest})
			return nil
		}
		if err != nil {
			return classed(ctx, err, errdefs.ErrInvalidArgument)
		}
		f.indexes[desc.Digest] = list
	}
	if !image.seen[desc.Digest] {
		image.seen[desc.Digest] = true
		image.indexes = append(image.indexes, desc)
	}
	for _, child := range list {
		if err := f.walk(ctx, image, child, depth-1); err != nil {
			return err
		}
	}
	return nil
}

// add adds a manifest to an image.
func (f *finder) add(ctx context.Context, image *found, desc v1.Descriptor) error {
	desc.Data = nil // what counts is what the content store has
	key := fmt.Sprint(desc.Digest, desc.Size, desc.MediaType, platformOf(desc), desc.Annotations)
	m, known := f.manifests[key]
	if !known {
		var err error
		if m, err = f.open(ctx, desc); err != nil {
			return err
		}
		f.manifests[key] = m
	}
	if m.absentee != nil {
		image.absent = append(image.absent, *m.absentee)
		return nil
	}
	image.variants = append(image.variants, *m.variant)
	return f.count(1 + len(m.variant.doc.Layers))
}

func platformOf(desc v1.Descriptor) v1.Platform {
	if desc.Platform == nil {
		return v1.Platform{}
	}
	return *desc.Platform
}

// open reads a manifest.
func (f *finder) open(ctx context.Context, desc v1.Descriptor) (manifested, error) {
	m, err := manifest.New(f.provider, desc)
	if err != nil {
		return manifested{}, err
	}
	missing, err := m.Missing(ctx)
	if err != nil {
		return manifested{}, err
	}
	missing = slices.DeleteFunc(missing, func(d v1.Descriptor) bool { return images.IsNonDistributable(d.MediaType) })
	if len(missing) > 0 {
		platform, _ := m.Platform(ctx) // unknown if what is missing would tell
		return manifested{absentee: &absentee{platform, missing[0].Digest}}, nil
	}
	v := &variant{Manifest: m}
	if v.doc, err = m.Manifest(ctx); err != nil {
		return manifested{}, err
	}
	if v.pseudo, err = m.IsPseudo(ctx); err != nil || v.pseudo {
		return manifested{variant: v}, err
	}
	if _, err = m.Config(ctx); err != nil {
		return manifested{}, err
	}
	v.platform, err = m.Platform(ctx)
	return manifested{variant: v}, err
}

// pick keeps the variants for some platforms, all of which there must be, and the
// attestations of these; the class is ErrNotFound. Without platforms it keeps all, and
// there must be one; what it means that there is none the caller knows.
func (f *found) pick(wanted []v1.Platform) error {
	switch {
	case len(wanted) > 0 || len(f.variants) > 0:
	case len(f.absent) > 0:
		return fmt.Errorf("blob %s is missing", f.absent[0].blob)
	default:
		return errors.New("an index without images")
	}
	for _, p := range wanted {
		if !slices.ContainsFunc(f.variants, func(v variant) bool { return v.suits(p) }) {
			return f.lacks(p)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	kept := map[digest.Digest]bool{}
	for _, v := range f.variants {
		kept[v.Descriptor().Digest] = slices.ContainsFunc(wanted, v.suits)
	}
	f.variants = slices.DeleteFunc(f.variants, func(v variant) bool {
		return !kept[v.Descriptor().Digest] && !kept[v.Subject()]
	})
	return nil
}

func (v variant) suits(p v1.Platform) bool {
	return !v.pseudo && platforms.OnlyStrict(p).Match(v.platform)
}

func (f *found) lacks(p v1.Platform) error {
	for _, a := range f.absent {
		if platforms.OnlyStrict(p).Match(a.platform) {
			return fmt.Errorf("platform %s: blob %s is missing: %w", platforms.Format(p), a.blob, errdefs.ErrNotFound)
		}
	}
	var present []string
	for _, v := range f.variants {
		if !v.pseudo {
			present = append(present, platforms.Format(v.platform))
		}
	}
	return fmt.Errorf("no variant for platform %s (present: %v): %w", platforms.Format(p), present, errdefs.ErrNotFound)
}

// validate refuses platforms that nothing can suit.
func validate(wanted ...v1.Platform) error {
	for _, p := range wanted {
		if p.OS == "" || p.Architecture == "" {
			return fmt.Errorf("platform %q: neither the system nor the architecture may be missing: %w", platforms.Format(p), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
