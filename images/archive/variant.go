// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
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
	provider content.Provider
	indexes  []v1.Descriptor
	variants []variant
	absent   []absentee
}

// look finds the indexes and manifests of an image. It walks every path there is: who
// does not trust the image bounds them before.
func look(ctx context.Context, provider content.Provider, target v1.Descriptor) (*found, error) {
	f := &found{provider: provider}
	err := images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		switch {
		case images.IsManifestType(desc.MediaType):
			return nil, f.add(ctx, desc)
		case images.IsIndexType(desc.MediaType):
			list, err := images.Children(ctx, provider, desc)
			if errdefs.IsNotFound(err) {
				f.absent = append(f.absent, absentee{blob: desc.Digest})
				return nil, images.ErrSkipDesc
			}
			f.indexes = append(f.indexes, desc)
			return list, err
		}
		return nil, nil
	}), target)
	return f, err
}

func (f *found) add(ctx context.Context, desc v1.Descriptor) error {
	desc.Data = nil // what counts is what the content store has
	m, err := manifest.New(f.provider, desc)
	if err != nil {
		return err
	}
	missing, err := m.Missing(ctx)
	if err != nil {
		return err
	}
	missing = slices.DeleteFunc(missing, func(d v1.Descriptor) bool { return images.IsNonDistributable(d.MediaType) })
	if len(missing) > 0 {
		platform, _ := m.Platform(ctx) // unknown if what is missing would tell
		f.absent = append(f.absent, absentee{platform, missing[0].Digest})
		return nil
	}
	v := variant{Manifest: m}
	if v.doc, err = m.Manifest(ctx); err != nil {
		return err
	}
	if v.pseudo, err = m.IsPseudo(ctx); err != nil {
		return err
	}
	if !v.pseudo {
		if _, err = m.Config(ctx); err != nil {
			return err
		}
		if v.platform, err = m.Platform(ctx); err != nil {
			return err
		}
	}
	f.variants = append(f.variants, v)
	return nil
}

// pick keeps the variants for some platforms, all of which there must be, and the
// attestations of these. Without platforms it keeps all, and there must be one. The
// class is ErrNotFound.
func (f *found) pick(wanted []v1.Platform) error {
	if len(wanted) == 0 && len(f.variants) == 0 {
		if len(f.absent) == 0 {
			return fmt.Errorf("an index without images: %w", errdefs.ErrNotFound)
		}
		return fmt.Errorf("blob %s is missing: %w", f.absent[0].blob, errdefs.ErrNotFound)
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
