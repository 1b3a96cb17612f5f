// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/removal"
)

// Removed is one thing that is gone: a name, or an image.
type Removed = removal.Removed

// ErrConflict is what errors.Is finds when an image is not removed because of what
// uses it, ErrImageMultiplyTagged besides if that is further names; errors.As finds a
// *removal.ConflictError.
var (
	ErrConflict            = removal.ErrConflict
	ErrImageMultiplyTagged = removal.ErrImageMultiplyTagged
)

// Untag removes exactly one name, and with an image's last name the image. Digests of
// a repository go with its last tag. Who uses the image does not matter: containers
// keep the layers they stand on. The error is ErrNoSuchImage for an unknown name. It is
// UntagImage of the ImageServer.
func (s *Service) Untag(ctx context.Context, ref reference.Reference) ([]Removed, error) {
	record, err := s.store.Named(ctx, ref)
	if err != nil {
		return nil, err
	}
	return s.remover.Untag(ctx, record)
}

// Delete removes an image with all its names, whoever uses it. The error is
// ErrNoSuchImage for an unknown ID. It is DeleteImage of the ImageServer.
func (s *Service) Delete(ctx context.Context, id reference.ID) ([]Removed, error) {
	found, err := s.store.Resolve(ctx, id.Hex())
	if err != nil {
		return nil, err
	}
	records, err := s.lister.Kin(ctx, found)
	if err != nil {
		return nil, err
	}
	return s.remover.Delete(ctx, records)
}

// RemoveOptions say what Remove may remove.
type RemoveOptions struct {
	// Force removes in spite of stopped containers and of further names, and takes
	// the name from an image that runs.
	Force bool
	// Parents removes, too, what the image was made from, as far up as nobody needs
	// it.
	Parents bool
	// Platforms, if any, removes only the content of these variants. It needs Force.
	Platforms []v1.Platform
}

// Remove removes a name, or an image by its ID; see removal.Remover for the rules. It
// returns names, then the image, then its parents. The error is ErrNoSuchImage or
// ErrConflict. It is ImageDelete of the ImageService, and RemoveImage of the old
// ImageServer.
func (s *Service) Remove(ctx context.Context, nameOrID string, o RemoveOptions) ([]Removed, error) {
	return s.remover.Remove(ctx, removal.Request{Image: nameOrID, Force: o.Force, Parents: o.Parents, Platforms: o.Platforms})
}
