// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Walk calls fn for every manifest that a target reaches, in the order of its index;
// indexes in indexes are followed. Manifests are not read, indexes are: one that the
// content store lacks is an error of the class ErrNotFound. Anything but manifests
// and indexes is passed over. An error of fn ends the walk and is returned.
func Walk(ctx context.Context, provider content.Provider, target v1.Descriptor, fn func(*Manifest) error) error {
	return images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		if images.IsManifestType(desc.MediaType) {
			return nil, fn(&Manifest{provider: provider, desc: desc})
		}
		return entries(ctx, provider, desc)
	}), target)
}

// entries are those of an index; anything else has none.
func entries(ctx context.Context, provider content.Provider, desc v1.Descriptor) ([]v1.Descriptor, error) {
	if !images.IsIndexType(desc.MediaType) {
		return nil, nil
	}
	if err := bounded(desc); err != nil {
		return nil, err
	}
	list, err := images.Children(ctx, provider, desc)
	if err != nil {
		return nil, unreadable("index", desc.Digest, err)
	}
	return list, nil
}

// WalkPresent is Walk for what is there: indexes and manifests that the content store
// lacks are passed over. A manifest that is given to fn can be read; its
// configuration and its layers may be missing.
func WalkPresent(ctx context.Context, provider content.Provider, target v1.Descriptor, fn func(*Manifest) error) error {
	return images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		if !images.IsManifestType(desc.MediaType) {
			list, err := entries(ctx, provider, desc)
			return list, present(err)
		}
		m := &Manifest{provider: provider, desc: desc}
		if _, err := m.Manifest(ctx); err != nil {
			return nil, present(err)
		}
		return nil, fn(m)
	}), target)
}

// present is err, unless it is that something is missing.
func present(err error) error {
	if errdefs.IsNotFound(err) {
		return images.ErrSkipDesc
	}
	return err
}

// Present lists the manifests of WalkPresent.
func Present(ctx context.Context, provider content.Provider, target v1.Descriptor) ([]*Manifest, error) {
	var all []*Manifest
	err := WalkPresent(ctx, provider, target, func(m *Manifest) error {
		all = append(all, m)
		return nil
	})
	return all, err
}

// Best returns the image of a target that suits a platform best, among those whose
// manifest and configuration are in the content store; one with all its layers comes
// before one without. Pseudo images never suit. Its class is ErrNotFound if there is
// none; the error then lists the platforms that are present.
func Best(ctx context.Context, provider content.Provider, target v1.Descriptor, platform platforms.MatchComparer) (*Manifest, error) {
	var suited []candidate
	var others []string
	err := WalkPresent(ctx, provider, target, func(m *Manifest) error {
		c, err := consider(ctx, m)
		switch {
		case err != nil:
			return err
		case c == nil:
		case platform.Match(c.platform):
			suited = append(suited, *c)
		default:
			others = append(others, platforms.Format(c.platform))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(suited) == 0 {
		return nil, fmt.Errorf("%s: no image for the platform (present: %s): %w", target.Digest, strings.Join(others, ", "), errdefs.ErrNotFound)
	}
	return best(ctx, suited, platform)
}

type candidate struct {
	*Manifest
	platform v1.Platform
	complete bool
}

// consider returns nil for what is no image or cannot be one here.
func consider(ctx context.Context, m *Manifest) (*candidate, error) {
	pseudo, err := m.IsPseudo(ctx)
	if err != nil || pseudo {
		return nil, err
	}
	if _, err := m.RawConfig(ctx); errdefs.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	p, err := m.Platform(ctx)
	if err != nil {
		return nil, err
	}
	return &candidate{Manifest: m, platform: p}, nil
}

func best(ctx context.Context, all []candidate, platform platforms.MatchComparer) (*Manifest, error) {
	if len(all) == 1 {
		return all[0].Manifest, nil // looking for its layers would decide nothing
	}
	for i := range all {
		var err error
		if all[i].complete, err = all[i].Available(ctx); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		switch {
		case a.complete != b.complete:
			return before(a.complete)
		case platform.Less(a.platform, b.platform):
			return -1
		case platform.Less(b.platform, a.platform):
			return 1
		}
		return 0
	})
	return all[0].Manifest, nil
}

func before(first bool) int {
	if first {
		return -1
	}
	return 1
}

// Prefer matches every platform and orders those that a comparer matches first.
func Prefer(platform platforms.MatchComparer) platforms.MatchComparer { return preference{platform} }

type preference struct{ preferred platforms.MatchComparer }

func (preference) Match(v1.Platform) bool { return true }

func (p preference) Less(a, b v1.Platform) bool {
	first, second := p.preferred.Match(a), p.preferred.Match(b)
	if first != second {
		return first
	}
	return first && p.preferred.Less(a, b)
}
