// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
)

// Labels of pinned records. LabelPinned is that of containerd's CRI plugin: the
// kubelet spares an image as long as one of its records carries it.
const (
	LabelPinned = "io.cri-containerd.pinned"
	Pinned      = "pinned"

	// labelPinnedBy says that a pattern of the configuration has pinned the record:
	// when the patterns change the pins go that they have made, and no others.
	labelPinnedBy = "io.berth.image.pinned-by"
	byPattern     = "pattern"
)

// setPinned gives the labels of a new record the pin of the configuration.
func (s *Store) setPinned(labels map[string]string, name string) {
	delete(labels, LabelPinned)
	delete(labels, labelPinnedBy)
	if s.options.Pinned(name) {
		labels[LabelPinned], labels[labelPinnedBy] = Pinned, byPattern
	}
}

// IsPinned tells whether a record is pinned: by a pattern of the configuration, or by
// the label that anybody may give it.
func (s *Store) IsPinned(record images.Image) bool {
	return record.Labels[LabelPinned] == Pinned || s.options.Pinned(record.Name)
}

// SyncPins gives the records whose names match a pattern of the configuration the
// label of pinned ones, and takes it from those which have it by a pattern that is no
// more. What cannot be changed does not stop it.
func (s *Store) SyncPins(ctx context.Context) error {
	all, err := s.Records(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range all {
		has, want := r.Labels[LabelPinned] == Pinned, s.options.Pinned(r.Name)
		switch {
		case want && !has:
			err = s.setPin(ctx, r, Pinned, byPattern)
		case !want && has && r.Labels[labelPinnedBy] == byPattern:
			err = s.setPin(ctx, r, "", "")
		default:
			continue
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Pin gives a record the label of pinned ones until Unpin takes it away.
func (s *Store) Pin(ctx context.Context, r images.Image) error {
	return s.setPin(ctx, r, Pinned, "")
}

// Unpin takes it away. Its class is ErrFailedPrecondition if the configuration pins
// the record.
func (s *Store) Unpin(ctx context.Context, r images.Image) error {
	if s.options.Pinned(r.Name) {
		return fmt.Errorf("unpin image %s: the configuration pins it: %w", r.Name, errdefs.ErrFailedPrecondition)
	}
	return s.setPin(ctx, r, "", "")
}

// setPin changes the two labels; empty ones are removed by that. A record that has
// gone needs none.
func (s *Store) setPin(ctx context.Context, r images.Image, pinned, by string) error {
	r.Labels = map[string]string{LabelPinned: pinned, labelPinnedBy: by}
	_, err := s.records.Update(s.Context(ctx), r, "labels."+LabelPinned, "labels."+labelPinnedBy)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("pin image %s: %w", r.Name, err)
	}
	return nil
}
