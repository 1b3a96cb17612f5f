// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/inspect"
)

// What Inspect, Manifest and History take and give.
type (
	InspectRequest = inspect.Request
	Details        = inspect.Details
	HistoryEntry   = inspect.Entry
)

// Inspect tells all about an image and the variant of a platform. Its class is
// ErrNotFound if there is no such image, or no such variant of it here. It is GetImage
// of the ImageService.
func (s *Service) Inspect(ctx context.Context, r InspectRequest) (Details, error) {
	return s.inspector().Inspect(ctx, r)
}

// Manifest describes the manifest of an image's variant, with its platform. Its class
// is as that of Inspect. It is GetImageManifest of the ImageService.
func (s *Service) Manifest(ctx context.Context, r InspectRequest) (v1.Descriptor, error) {
	return s.inspector().Manifest(ctx, r)
}

// Manifests lists all manifests of an image, those that are not here too. It is the
// list of manifests in ImageInspect of the ImageService.
func (s *Service) Manifests(ctx context.Context, nameOrID string) ([]Variant, error) {
	found, err := s.store.Resolve(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	return s.lister.Variants(ctx, found.Target)
}

// History tells how an image was made, the last step first. Its class is
// ErrInvalidArgument if the image says that more layers were made than it has. It is
// ImageHistory of the ImageService.
func (s *Service) History(ctx context.Context, r InspectRequest) ([]HistoryEntry, error) {
	return s.inspector().History(ctx, r)
}

func (s *Service) inspector() *inspect.Inspector {
	return inspect.New(inspect.Config{Client: s.client, Store: s.store, Layers: s.layers()})
}
