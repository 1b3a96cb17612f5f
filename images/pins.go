// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"slices"

	"github.com/containerd/containerd/v2/core/images"

	"github.com/berthd/berth/images/pin"
	"github.com/berthd/berth/images/reference"
)

// setPins compiles the patterns and the name of the pause image.
func (s *Service) setPins(patterns []string) {
	if pause := s.config.PauseImage; pause != "" {
		patterns = append(slices.Clone(patterns), pause)
		if ref, err := reference.Parse(pause); err == nil {
			patterns = append(patterns, ref.Text()) // as its record is called
		}
	}
	compiled := pin.Compile(patterns)
	s.pins.Store(&compiled)
}

// pinned tells whether a name matches a pattern of the current list.
func (s *Service) pinned(name string) bool { return s.pins.Load().Match(name) }

// UpdatePins replaces the patterns of pinned images; the pause image stays pinned.
// Images listed from now on follow them, and so does the label by which containerd's
// CRI plugin spares records: see SyncPins. It is UpdatePinnedImagesList of the
// ImageServer.
func (s *Service) UpdatePins(ctx context.Context, patterns []string) error {
	s.setPins(patterns)
	return s.SyncPins(ctx)
}

// SyncPins has the records that are here carry the label of pinned ones by the
// patterns: for records that others made, or that came before the patterns. Those
// that Pin or others have pinned stay so.
func (s *Service) SyncPins(ctx context.Context) error { return s.store.SyncPins(ctx) }

// Pin spares an image from garbage collection: by a name as long as the name stands
// for it, by an ID with all its records. The error is ErrNoSuchImage.
func (s *Service) Pin(ctx context.Context, nameOrID string) error {
	return s.eachNamed(ctx, nameOrID, s.store.Pin)
}

// Unpin ends that. The error is ErrNoSuchImage, or of the class ErrFailedPrecondition
// for what the configuration pins.
func (s *Service) Unpin(ctx context.Context, nameOrID string) error {
	return s.eachNamed(ctx, nameOrID, s.store.Unpin)
}

// eachNamed calls f for the record of a name, or for all of an ID.
func (s *Service) eachNamed(ctx context.Context, nameOrID string, f func(context.Context, images.Image) error) error {
	found, err := s.store.ResolveAll(ctx, nameOrID)
	if err != nil {
		return err
	}
	if found.Named != nil {
		return f(ctx, *found.Named)
	}
	var errs []error
	for _, r := range found.All {
		errs = append(errs, f(ctx, r))
	}
	return errors.Join(errs...)
}
