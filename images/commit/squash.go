// SPDX-License-Identifier: Apache-2.0

package commit

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// SquashRequest says which layers are to become one.
type SquashRequest struct {
	// Image is whose layers, by name or ID.
	Image string
	// Base is the image whose layers stay as they are, by name or ID; the image must
	// be made from it. Empty: none stays.
	Base string
	// Platform chooses the image's variant; nil: the best for this host.
	Platform platforms.MatchComparer
	// Comment is what the history says of the layer; empty: what was merged.
	Comment string
}

// Squash makes an image like another one, with all its layers above the base merged
// into one, or none if they cancel out. The configuration stays; the history too, but
// what was merged is said to have made no layer. The other image stays. The classes
// are ErrNotFound for an image that does not exist, and ErrFailedPrecondition if the
// image is not made from the base.
func (m *Maker) Squash(ctx context.Context, r SquashRequest) (_ Image, err error) {
	ctx, done, err := m.Layers.Lease(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("squash image %s: %w", r.Image, err)
	}
	defer done(&err)
	img, err := m.squash(ctx, r)
	if err != nil {
		return Image{}, fmt.Errorf("squash image %s: %w", r.Image, err)
	}
	return img, nil
}

func (m *Maker) squash(ctx context.Context, r SquashRequest) (Image, error) {
	whole, err := m.find(ctx, r.Image, r.Platform)
	if err != nil {
		return Image{}, err
	}
	bottom := scratch()
	if r.Base != "" {
		p := whole.image.Platform
		if bottom, err = m.find(ctx, r.Base, platforms.Only(p)); err != nil {
			return Image{}, err
		}
	}
	kept := len(bottom.image.RootFS.DiffIDs)
	if diffIDs := whole.image.RootFS.DiffIDs; len(diffIDs) < kept || !slices.Equal(diffIDs[:kept], bottom.image.RootFS.DiffIDs) {
		return Image{}, fmt.Errorf("base %s: %w", r.Base, errBase)
	}
	merged, err := m.merge(ctx, whole, bottom)
	if err != nil {
		return Image{}, err
	}
	d := whole.draft()
	d.layers, d.diffIDs = d.layers[:kept:kept], d.diffIDs[:kept:kept]
	d.history = emptied(d.history, kept)
	d.annotations = maps.Clone(whole.document.Annotations)
	d.created = m.Now().UTC()
	comment := r.Comment
	if comment == "" {
		comment = "merge " + whole.target.String()
		if bottom.target != "" {
			comment += " to " + bottom.target.String()
		}
	}
	d.add(merged, v1.History{Created: &d.created, CreatedBy: "berth image squash", Comment: comment})
	return m.finish(ctx, bottom, d, bottom.parentLabel())
}

// merge writes the layer that makes the bottom into the whole.
func (m *Maker) merge(ctx context.Context, whole, bottom base) (_ addition, err error) {
	if len(whole.image.RootFS.DiffIDs) == len(bottom.image.RootFS.DiffIDs) {
		return addition{}, nil
	}
	top, err := m.Layers.Unpack(ctx, whole.manifest)
	if err != nil {
		return addition{}, err
	}
	upper, remove, err := m.Layers.View(ctx, m.Layers.Snapshotter(), top)
	if err != nil {
		return addition{}, err
	}
	defer remove(&err)
	lower, remove, err := m.Layers.View(ctx, m.Layers.Snapshotter(), identity.ChainID(bottom.image.RootFS.DiffIDs).String())
	if err != nil {
		return addition{}, err
	}
	defer remove(&err)
	return m.compare(ctx, difference{lower: lower, upper: upper, types: whole.types})
}

// emptied is a history whose entries above the first layers made none.
func emptied(history []v1.History, layers int) []v1.History {
	history = slices.Clone(history)
	for i := range history {
		switch {
		case history[i].EmptyLayer:
		case layers > 0:
			layers--
		default:
			history[i].EmptyLayer = true
		}
	}
	return history
}
