// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images/reference"
)

// Candidates returns what a name may stand for in registries, in the order in which
// to try: one reference for a name with a registry and for an alias, else one for
// each unqualified-search registry. There is at least one. Errors are those of
// registry.Candidates. It is CandidatesForPotentiallyShortImageName of the
// ImageServer.
func (s *Service) Candidates(name string) ([]reference.Reference, error) {
	plain, err := plainName(name)
	if err != nil {
		return nil, err
	}
	return s.registry.Candidates(plain)
}

// Search returns what a name may stand for in registries, in the order in which to
// try, as Candidates, but asks nobody to choose.
func (s *Service) Search(name string) ([]reference.Reference, error) {
	plain, err := plainName(name)
	if err != nil {
		return nil, err
	}
	return s.registry.Search(plain)
}

// Meaning is what a string that a user typed stands for: one of the two.
type Meaning struct {
	// ID is that of an image here.
	ID *reference.ID
	// Candidates are the references that it may be, in the order in which to try.
	Candidates []reference.Reference
}

// ResolveNames tells what a string stands for: the image here whose ID it is, or
// begins, or else names in registries. What can be an ID alone, and is none of an
// image here, is reference.ErrCannotParseImageID; other errors are those of
// Search. It is ResolveNames of the ImageServer.
func (s *Service) ResolveNames(ctx context.Context, input string) (Meaning, error) {
	if id := s.TryIDPrefix(ctx, input); id != nil {
		_, err := s.StatusByID(ctx, *id)
		if err == nil {
			return Meaning{ID: id}, nil
		}
		if !errdefs.IsNotFound(err) {
			return Meaning{}, fmt.Errorf("image %q: %w", input, err)
		}
	}
	found, err := s.Search(input)
	return Meaning{Candidates: found}, err
}
