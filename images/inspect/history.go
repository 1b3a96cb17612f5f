// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/store"
)

// Entry is one step of how an image was made.
type Entry struct {
	// Image is the target of the image that the step ended with, if it is here as an
	// image of its own; else empty, which people are shown as <missing>.
	Image digest.Digest
	// Tags are the names of that image, sorted.
	Tags []string
	// Created is zero if the image does not say.
	Created   time.Time
	CreatedBy string
	Author    string
	Comment   string
	// Size is what the step's layer takes unpacked, in bytes; 0 for a step without a
	// layer, and for a layer that is not unpacked.
	Size int64
	// Empty says that the step made no layer.
	Empty bool
}

// History tells how an image was made, the last step first. Its class is
// ErrInvalidArgument if the image says that more layers were made than it has.
func (i *Inspector) History(ctx context.Context, r Request) ([]Entry, error) {
	ctx = i.Store.Context(ctx)
	found, err := i.Store.ResolveAll(ctx, r.Image)
	if err != nil {
		return nil, err
	}
	m, err := i.best(ctx, found.All[0].Target, r.Platform)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", r.Image, err)
	}
	config, err := m.Config(ctx)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", r.Image, err)
	}
	list, err := i.steps(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("history of image %s: %w", r.Image, err)
	}
	if err := i.nameSteps(ctx, list, found, m); err != nil {
		return nil, fmt.Errorf("history of image %s: %w", r.Image, err)
	}
	slices.Reverse(list)
	return list, nil
}

// steps are the entries in the order in which they were made, with their sizes.
func (i *Inspector) steps(ctx context.Context, config v1.Image) ([]Entry, error) {
	sizes, err := i.Layers.Usage(ctx, config.RootFS.DiffIDs)
	if err != nil {
		return nil, err
	}
	var list []Entry
	made := 0
	for _, h := range config.History {
		e := Entry{CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment, Empty: h.EmptyLayer}
		if h.Created != nil {
			e.Created = *h.Created
		}
		if !h.EmptyLayer {
			if made++; made > len(config.RootFS.DiffIDs) {
				return nil, fmt.Errorf("it has more steps with a layer than the %d layers: %w", len(config.RootFS.DiffIDs), errdefs.ErrInvalidArgument)
			}
			chain := identity.ChainID(config.RootFS.DiffIDs[:made:made])
			size, ok := sizes[chain]
			if !ok {
				log.G(ctx).WithField("snapshot", chain).Warn("a layer whose size is asked for is not unpacked")
			}
			e.Size = size
		}
		list = append(list, e)
	}
	return list, nil
}

// nameSteps says which steps ended with an image that is here: the last did, and those
// of the images that it was made from. Their history is the beginning of its own.
func (i *Inspector) nameSteps(ctx context.Context, list []Entry, found store.Resolved, m *manifest.Manifest) error {
	p, err := m.Platform(ctx)
	if err != nil {
		return err
	}
	for n := len(list); n > 0; {
		list[n-1].Image, list[n-1].Tags = found.Target(), store.NamesOf(ctx, found.All).Tags
		parent := parentOf(found.All)
		if parent == "" {
			return nil
		}
		all, err := i.Store.ByTarget(ctx, parent)
		if err != nil {
			return err
		}
		if len(all) == 0 {
			return nil
		}
		found = store.Resolved{All: all}
		steps, err := i.countSteps(ctx, all[0].Target, p)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if steps >= n {
			return nil // not what the label says, or a circle of labels
		}
		n = steps
	}
	return nil
}

func (i *Inspector) countSteps(ctx context.Context, target v1.Descriptor, p v1.Platform) (int, error) {
	m, err := manifest.Best(ctx, i.Client.ContentStore(), target, platforms.OnlyStrict(p))
	if err != nil {
		return 0, err
	}
	config, err := m.Config(ctx)
	return len(config.History), err
}
