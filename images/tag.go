// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
)

// Tag gives an image one more name. A name that it has already is a success; one that
// another image has moves, and that image stays without it: see store.Replace. Its
// class is ErrInvalidArgument for a name with a digest, which nobody can choose, and
// ErrNoSuchImage. It is TagImage of the ImageService.
func (s *Service) Tag(ctx context.Context, nameOrID string, name reference.Reference) error {
	if name.Digest() != "" {
		return fmt.Errorf("tag %s: a digest is no name to give: %w", name.Text(), errdefs.ErrInvalidArgument)
	}
	found, err := s.store.Resolve(ctx, nameOrID)
	if err != nil {
		return err
	}
	if err := s.store.Replace(ctx, images.Image{Name: name.Text(), Target: found.Target}); err != nil {
		return fmt.Errorf("tag %s: %w", name.Text(), err)
	}
	s.store.Emit(store.ActionTag, found.Target.Digest, name.Text(), s.store.Labels(ctx, found))
	return nil
}
