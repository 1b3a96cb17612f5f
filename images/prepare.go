// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/remote"
)

// PrepareRequest says which image to look at.
type PrepareRequest struct {
	// Name is what the user has typed, as in PullRequest.
	Name string
	// Platform selects the variant of a multi-platform image; empty is the host's.
	Platform string
	Access   registry.Access
}

// Prepare looks at an image in its registry, without its layers: what its ID would
// be, among others. Of several candidates it is the first that is there. The caller
// closes the image. It is PrepareImage of the ImageServer.
func (s *Service) Prepare(ctx context.Context, r PrepareRequest) (*remote.Image, error) {
	platform := s.config.Platform
	if r.Platform != "" {
		wanted, err := platforms.Parse(r.Platform)
		if err != nil {
			return nil, fmt.Errorf("platform %q: %w: %w", r.Platform, err, errdefs.ErrInvalidArgument)
		}
		platform = platforms.Only(wanted)
	}
	candidates, err := s.Candidates(r.Name)
	if err != nil {
		return nil, err
	}
	var img *remote.Image
	for _, ref := range candidates {
		if img, err = s.open(ctx, ref, r.Access, platform); err == nil || ctx.Err() != nil {
			break
		}
	}
	return img, err
}

func (s *Service) open(ctx context.Context, ref reference.Reference, a registry.Access, platform platforms.MatchComparer) (*remote.Image, error) {
	resolver, err := s.registry.Resolver(ctx, ref, a)
	if err != nil {
		return nil, err
	}
	return remote.Open(ctx, resolver, ref, platform)
}

// Platforms tells for which platforms a registry has an image; none if it has the image
// without an index. The request's own platform does not matter.
func (s *Service) Platforms(ctx context.Context, r PrepareRequest) (all []v1.Platform, err error) {
	candidates, err := s.Candidates(r.Name)
	if err != nil {
		return nil, err
	}
	for _, ref := range candidates {
		var resolver remotes.Resolver
		if resolver, err = s.registry.Resolver(ctx, ref, r.Access); err == nil {
			all, err = remote.Platforms(ctx, resolver, ref)
		}
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return all, err
}

// CanPull tells whether an image is there to be pulled, and if not, why. It is
// CanPull of the ImageServer.
func (s *Service) CanPull(ctx context.Context, r PrepareRequest) (bool, error) {
	img, err := s.Prepare(ctx, r)
	if err != nil {
		return false, err
	}
	return true, img.Close()
}
