// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"

	"github.com/berthd/berth/images/commit"
)

// What Commit, CommitStep, Create and Squash take and give.
type (
	CommitRequest = commit.Request
	CreateRequest = commit.CreateRequest
	Made          = commit.Image
)

// SquashRequest says which layers are to become one.
type SquashRequest struct {
	Image    string // whose layers, by name or ID
	Base     string // the image whose layers stay, by name or ID; empty: none
	Platform string // as in LayerRequest
	Comment  string // for the history; empty: what was merged
}

// Commit makes an image of a container's changes, without a name: see Tag. That
// nobody changes the container meanwhile is the caller's business. The classes are
// those of commit.Maker's Commit. It is CommitImage of the ImageService.
func (s *Service) Commit(ctx context.Context, r CommitRequest) (Made, error) {
	return s.maker().Commit(ctx, r)
}

// CommitStep is Commit for a builder: the image is found by BuildCache. It is
// CommitBuildStep of the ImageService.
func (s *Service) CommitStep(ctx context.Context, r CommitRequest) (Made, error) {
	r.Step = true
	return s.maker().Commit(ctx, r)
}

// Create makes an image of a configuration and of layers that are here, for a
// builder. It is CreateImage of the ImageService.
func (s *Service) Create(ctx context.Context, r CreateRequest) (Made, error) {
	return s.maker().Create(ctx, r)
}

// Squash makes an image like another one with fewer layers, without a name. The other
// stays. The classes are those of commit.Maker's Squash. It is SquashImage of the
// ImageService.
func (s *Service) Squash(ctx context.Context, r SquashRequest) (Made, error) {
	c := commit.SquashRequest{Image: r.Image, Base: r.Base, Comment: r.Comment}
	match, err := s.inspector().Match(r.Platform)
	if err != nil {
		return Made{}, err
	}
	c.Platform = match
	return s.maker().Squash(ctx, c)
}

func (s *Service) maker() *commit.Maker {
	return commit.New(commit.Config{
		Client:   s.client,
		Store:    s.store,
		Layers:   s.layers(),
		Platform: s.config.Platform,
		Now:      s.config.Now,
	})
}
