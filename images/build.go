// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images/build"
)

// What BaseLayer and BuildCache give.
type (
	BaseLayer  = build.Layer
	BuildCache = build.Cache
	BuildStep  = build.Step
)

// PullPolicy says when an image is pulled that a build starts from.
type PullPolicy uint8

// When to pull.
const (
	PullMissing PullPolicy = iota // if it is not here
	PullAlways
	PullNever
)

// OpenRequest says what a build starts from.
type OpenRequest struct {
	// Image is a name or an ID; empty is nothing, with no files.
	Image    string
	Platform string // as in LayerRequest
	Policy   PullPolicy
	// Pull says how to pull; its name and platforms are set from the above.
	Pull PullRequest
}

// Open keeps the layers that a build starts from and tells what is known of their
// image, which is zero for nothing. The caller must release the layers. It is
// GetImageAndReleasableLayer of the ImageService.
func (s *Service) Open(ctx context.Context, r OpenRequest) (Details, *BaseLayer, error) {
	if r.Image == "" {
		layers, err := s.builder().Open(ctx, nil)
		return Details{}, layers, err
	}
	d, err := s.ensure(ctx, r)
	if err != nil {
		return Details{}, nil, err
	}
	// By its digest: the name may have moved.
	m, err := s.inspector().Choose(ctx, d.Target.Digest.String(), r.Platform)
	if err != nil {
		return Details{}, nil, err
	}
	layers, err := s.builder().Open(ctx, m)
	if err != nil {
		return Details{}, nil, fmt.Errorf("image %s: %w", r.Image, err)
	}
	return d, layers, nil
}

// ensure tells about an image, which it pulls as the policy says.
func (s *Service) ensure(ctx context.Context, r OpenRequest) (Details, error) {
	wanted := InspectRequest{Image: r.Image, Platform: r.Platform}
	if r.Policy != PullAlways {
		d, err := s.Inspect(ctx, wanted)
		if r.Policy == PullNever || !errdefs.IsNotFound(err) {
			return d, err
		}
	}
	r.Pull.Name = r.Image
	if r.Platform != "" {
		r.Pull.Platforms = []string{r.Platform}
	}
	pulled, err := s.Pull(ctx, r.Pull)
	if err != nil {
		return Details{}, err
	}
	wanted.Image = pulled.Target.Digest.String()
	return s.Inspect(ctx, wanted)
}

// BuildCache finds the steps of builds that were made before, here or for images, given
// by name or ID, that are sources of the cache. Those that are not here are ignored. It
// is MakeImageCache of the ImageService.
func (s *Service) BuildCache(ctx context.Context, sources []string) (*BuildCache, error) {
	return s.builder().Cache(ctx, sources)
}

func (s *Service) builder() *build.Builder {
	return build.New(build.Config{
		Client: s.client,
		Store:  s.store,
		Layers: s.layers(),
		Mounts: s.mounts(),
		Maker:  s.maker(),
	})
}
