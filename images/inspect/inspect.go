// SPDX-License-Identifier: Apache-2.0

// Package inspect owns what there is to know of one image: which of its manifests is
// meant, what they and the records say, and how the image was made. It changes
// nothing, and refuses to list images.
package inspect

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/store"
)

// Config says where an Inspector looks. Everything is required.
type Config struct {
	Client *client.Client // stays the caller's
	Store  *store.Store
	Layers *layer.Layers // of the same namespace
}

// Inspector tells about images. Safe for concurrent use.
type Inspector struct{ Config }

// New returns an Inspector. It makes no request.
func New(c Config) *Inspector { return &Inspector{c} }

// Match is a platform's matcher, as in "linux/arm64"; of none, one that prefers the
// host's. A text that is no platform is ErrInvalidArgument.
func (i *Inspector) Match(platform string) (platforms.MatchComparer, error) {
	if platform == "" {
		return manifest.Prefer(i.Store.Platform()), nil
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return nil, fmt.Errorf("platform %q: %w: %w", platform, errdefs.ErrInvalidArgument, err)
	}
	return platforms.OnlyStrict(p), nil
}

// Choose finds an image's manifest for a platform; without one that for this host, else
// the first that is here. Its class is ErrNotFound if there is no such image, or no
// such manifest of it here.
func (i *Inspector) Choose(ctx context.Context, nameOrID, platform string) (*manifest.Manifest, error) {
	found, err := i.Store.Resolve(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	best, err := i.best(ctx, found.Target, platform)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", nameOrID, err)
	}
	return best, nil
}

func (i *Inspector) best(ctx context.Context, target v1.Descriptor, platform string) (*manifest.Manifest, error) {
	match, err := i.Match(platform)
	if err != nil {
		return nil, err
	}
	best, err := manifest.Best(i.Store.Context(ctx), i.Client.ContentStore(), target, match)
	if err != nil && platform != "" {
		return nil, fmt.Errorf("platform %s: %w", platform, err)
	}
	return best, err
}

// Manifests are the digests of an image's manifests that are here; with a platform the
// one of Choose.
func (i *Inspector) Manifests(ctx context.Context, nameOrID, platform string) (map[digest.Digest]bool, error) {
	if platform != "" {
		one, err := i.Choose(ctx, nameOrID, platform)
		if err != nil {
			return nil, err
		}
		return map[digest.Digest]bool{one.Descriptor().Digest: true}, nil
	}
	found, err := i.Store.Resolve(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	all, err := manifest.Present(i.Store.Context(ctx), i.Client.ContentStore(), found.Target)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", nameOrID, err)
	}
	of := map[digest.Digest]bool{}
	for _, m := range all {
		of[m.Descriptor().Digest] = true
	}
	return of, nil
}

// parentOf is the image that another was made from, empty if its records do not say.
func parentOf(records []images.Image) digest.Digest {
	for _, r := range records {
		if parent := digest.Digest(r.Labels[store.LabelParent]); parent.Validate() == nil {
			return parent
		}
	}
	return ""
}
