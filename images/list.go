// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/consumer"
	"github.com/berthd/berth/images/listing"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
)

// ErrNoSuchImage is what errors.Is finds in the error for an image that is not here:
// ErrNoSuchImage and ErrImageUnknown of the ImageServer, image-does-not-exist of the
// ImageService.
var ErrNoSuchImage = store.ErrImageDoesNotExist

// What lists show, and what is asked of them.
type (
	// Image is ImageResult of the ImageServer.
	Image          = listing.Image
	ListOptions    = listing.ListOptions
	Summary        = listing.Summary
	SummaryOptions = listing.SummaryOptions
	Variant        = listing.Variant
	DiskUsage      = listing.DiskUsage
)

// List returns one Image for each configuration, in the order of their first names;
// see listing.Lister. What cannot be read does not fail it. It is ListImages of the
// ImageServer.
func (s *Service) List(ctx context.Context, o ListOptions) ([]Image, error) {
	list, err := s.lister.List(ctx, o)
	if err != nil || o.Brief {
		return list, err
	}
	return list, s.locate(list)
}

// locate adds where images are mounted.
func (s *Service) locate(list []Image) error {
	mounted, err := s.layers().ImageMounts()
	if err != nil {
		return err
	}
	for i := range list {
		list[i].MountPoint = mounted[list[i].Digest]
	}
	return nil
}

// StatusByID returns the image with an ID. The error is ErrNoSuchImage if there is
// none. It is ImageStatusByID of the ImageServer.
func (s *Service) StatusByID(ctx context.Context, id reference.ID) (*Image, error) {
	return s.status(ctx, id.Hex())
}

// StatusByName returns the image of a name. The error is ErrNoSuchImage if there is
// none. It is ImageStatusByName of the ImageServer.
func (s *Service) StatusByName(ctx context.Context, ref reference.Reference) (*Image, error) {
	return s.status(ctx, ref.Text())
}

func (s *Service) status(ctx context.Context, nameOrID string) (*Image, error) {
	img, err := s.lister.Status(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	one := []Image{*img}
	return &one[0], s.locate(one)
}

// TryIDPrefix returns the ID that a string is or begins, nil if it may mean something
// else: 64 digits are an ID whether such an image is here or not; fewer, 3 at least,
// are one if exactly one image here has an ID that begins so. Nobody who knows what
// they hold should call it. It is HeuristicallyTryResolvingStringAsIDPrefix of the
// ImageServer.
func (s *Service) TryIDPrefix(ctx context.Context, input string) *reference.ID {
	if id, err := reference.ParseID(input); err == nil {
		return &id
	}
	if len(input) < minIDPrefix || !reference.IsHex(input) {
		return nil
	}
	list, err := s.List(ctx, ListOptions{Brief: true})
	if err != nil {
		return nil
	}
	var found *reference.ID
	for i := range list {
		if !strings.HasPrefix(list[i].ID.Hex(), input) {
			continue
		}
		if found != nil {
			return nil
		}
		found = &list[i].ID
	}
	return found
}

// minIDPrefix is the least that CRI-O takes for the beginning of an ID.
const minIDPrefix = 3

// Summaries returns one Summary for each target that passes the filters, the newest
// first. A filter that there is not is ErrInvalidArgument, one that names an unknown
// image is ErrNoSuchImage. It is Images of the ImageService.
func (s *Service) Summaries(ctx context.Context, o SummaryOptions) ([]Summary, error) {
	return s.lister.Summaries(ctx, o)
}

// Count returns the number of images, by target; 0 if they cannot be listed. It is
// CountImages of the ImageService.
func (s *Service) Count(ctx context.Context) int { return s.lister.Count(ctx) }

// Children returns the targets of the images that were made from an image, sorted. The
// error is ErrNoSuchImage. It is Children of the ImageService.
func (s *Service) Children(ctx context.Context, nameOrID string) ([]digest.Digest, error) {
	return s.lister.Children(ctx, nameOrID)
}

// DiskUsage returns what all images take together. It is ImageDiskUsage of the
// ImageService.
func (s *Service) DiskUsage(ctx context.Context) (DiskUsage, error) { return s.lister.DiskUsage(ctx) }

// User is a container that uses an image.
type User = consumer.Consumer

// Users returns the containers that use the image with a target: those of the
// namespace, whoever made them.
func (s *Service) Users(ctx context.Context, target digest.Digest) ([]User, error) {
	return s.lister.Users(ctx, target)
}

// LogEvent tells Config.Events that something happened to an image; ref may be empty.
// That the image cannot be read is no error: then there are fewer attributes. It is
// LogImageEvent of the ImageService.
func (s *Service) LogEvent(ctx context.Context, action store.Action, target digest.Digest, ref string) {
	var labels map[string]string
	if records, err := s.store.ByTarget(ctx, target); err == nil && len(records) > 0 {
		labels = s.store.Labels(ctx, records[0])
	}
	s.store.Emit(action, target, ref, labels)
}

// marks are names with a count: what is being pulled. It is ImageBeingPulled of the
// ImageServer, of this service only.
type marks struct {
	mu    sync.Mutex // guards names
	names map[string]int
}

// add marks a name until the function that it returns is called, which must happen
// however the pull ends.
func (m *marks) add(name string) (remove func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names == nil {
		m.names = map[string]int{}
	}
	m.names[name]++
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.names[name]--; m.names[name] == 0 {
			delete(m.names, name)
		}
	})
}

func (m *marks) has(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.names[name] > 0
}
