// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images/push"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/transfer"
)

// PushRequest says what to push.
type PushRequest struct {
	// Name is that of an image here; it says where to push it, too.
	Name string
	// Platform selects a variant of a multi-platform image, as in "linux/arm64".
	// It alone is sent then.
	Platform string
	Access   registry.Access
	// Progress is told what has changed, every transfer.Interval. It may be nil.
	Progress func(transfer.Progress)
}

// PushResult says what was pushed.
type PushResult = push.Result

// Push sends an image to the registry of its name. See push.Pusher for what is sent
// of a multi-platform image. It is PushImage of the ImageService.
func (s *Service) Push(ctx context.Context, r PushRequest) (PushResult, error) {
	ref, err := reference.Parse(strings.TrimPrefix(r.Name, defaultTransport))
	if err != nil {
		return PushResult{}, err
	}
	result, err := s.pusher.Push(ctx, push.Request{Reference: ref, Access: r.Access, Platform: r.Platform}, r.Progress)
	if err != nil {
		return PushResult{}, err
	}
	s.store.Emit(store.ActionPush, result.Target.Digest, ref.Text(), s.store.Labels(ctx, images.Image{Name: ref.Text(), Target: result.Target}))
	return result, nil
}

// PushAll pushes every tag of a repository that is here, and ends with the first
// that fails. The name must have neither tag nor digest. Its class is ErrNotFound
// if there is no tag. It is PushImage of the ImageService with such a name.
func (s *Service) PushAll(ctx context.Context, r PushRequest) ([]PushResult, error) {
	name, found := named(r.Name)
	if found {
		return nil, fmt.Errorf("push all tags of %q: it says which: %w", name, errdefs.ErrInvalidArgument)
	}
	repository, err := reference.Parse(name)
	if err != nil {
		return nil, err
	}
	records, err := s.store.Records(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, record := range records {
		if kind, ref := store.ParseName(record.Name); kind == store.KindTag && ref.Repository() == repository.Repository() {
			names = append(names, record.Name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("an image does not exist locally with the name %s: %w", repository.Repository(), errdefs.ErrNotFound)
	}
	slices.Sort(names)
	var all []PushResult
	for _, r.Name = range names {
		result, err := s.Push(ctx, r)
		if err != nil {
			return all, err
		}
		all = append(all, result)
	}
	return all, nil
}

func (s *Service) newPusher() *push.Pusher {
	return push.New(push.Config{
		Client: s.client, Records: s.store, Registry: s.registry,
		Platform: s.config.Platform, Uploads: s.uploads, Now: s.config.Now,
	})
}
