// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"

	"github.com/berthd/berth/images/archive"
)

// What Save, Load and Import take and give.
type (
	SaveRequest   = archive.SaveRequest
	LoadRequest   = archive.LoadRequest
	ImportRequest = archive.ImportRequest
	Loaded        = archive.Loaded
)

// Save writes images to a stream, as an archive that all tools read. The classes are
// those of archive.Archiver's Save. It is ExportImage of the ImageService.
func (s *Service) Save(ctx context.Context, r SaveRequest) error {
	return s.archiver().Save(ctx, r)
}

// Load stores and unpacks the images of an archive. The classes are those of
// archive.Archiver's Load. It is LoadImage of the ImageService.
func (s *Service) Load(ctx context.Context, r LoadRequest) ([]Loaded, error) {
	return s.archiver().Load(ctx, r)
}

// Import makes an image of a root file system's tar stream. The classes are those of
// archive.Archiver's Import. It is ImportImage of the ImageService.
func (s *Service) Import(ctx context.Context, r ImportRequest) (Loaded, error) {
	return s.archiver().Import(ctx, r)
}

func (s *Service) archiver() *archive.Archiver {
	return archive.New(archive.Config{
		Client:   s.client,
		Store:    s.store,
		Unpacker: s.unpacker,
		Now:      s.config.Now,
	})
}
