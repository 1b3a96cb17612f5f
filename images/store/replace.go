// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/reference"
)

// The label by which containerd's CRI plugin knows records that have all it needs.
const (
	labelManaged = "io.cri-containerd.image"
	managed      = "managed"
)

// Replace makes a name stand for an image: it creates the record, or moves the one
// there is. Then
//
//   - an image that has lost its only record so is kept under a DanglingName;
//   - an image that had no name, and has one now, loses its dangling record, whose
//     labels the new one inherits;
//   - in Kubernetes' namespace the records that CRI expects are there too.
//
// All content of the image must be protected by a lease of ctx or by another
// record. Labels of the given record are added to those of an existing one when
// the target is the same, and replace them otherwise. Nothing is undone on an
// error, because each step leaves the records in order; the call can be repeated.
// No event is sent.
func (s *Store) Replace(ctx context.Context, img images.Image) error {
	ctx = s.Context(ctx)
	unlockName, err := s.locks.lock(ctx, img.Name)
	if err != nil {
		return err
	}
	defer unlockName()
	old, err := s.records.Get(ctx, img.Name)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("image %s: %w", img.Name, err)
	}
	targets := []digest.Digest{img.Target.Digest}
	if err == nil {
		targets = append(targets, old.Target.Digest)
	}
	unlock, err := s.lockAll(ctx, targets...)
	if err != nil {
		return err
	}
	defer unlock()
	if old.Name != "" && old.Target.Digest != img.Target.Digest {
		if err := s.keep(ctx, old, []string{old.Name}); err != nil {
			return err
		}
	}
	if img.Labels, err = s.inherited(ctx, img); err != nil {
		return err
	}
	for _, record := range s.RecordsFor(ctx, img) {
		if err := s.put(ctx, record); err != nil {
			return err
		}
	}
	if IsDangling(img.Name) {
		return nil
	}
	return s.dropDangling(ctx, img.Target)
}

// inherited are the labels of a new record with those that the image had while it had
// no name: what it was made from, above all.
func (s *Store) inherited(ctx context.Context, img images.Image) (map[string]string, error) {
	labels := map[string]string{}
	for _, prefix := range []string{mobyDanglingPrefix, danglingPrefix} {
		old, err := s.records.Get(ctx, prefix+img.Target.Digest.String())
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("image %s: %w", prefix+img.Target.Digest.String(), err)
		}
		maps.Copy(labels, old.Labels)
	}
	delete(labels, labelPrevious)
	maps.Copy(labels, img.Labels)
	return labels, nil
}

// CreateDangling records an image that has no name (yet). It does nothing if any
// record has that target. The content must be protected as Replace says.
func (s *Store) CreateDangling(ctx context.Context, target v1.Descriptor, labels map[string]string) (images.Image, error) {
	ctx = s.Context(ctx)
	unlock, err := s.lockAll(ctx, target.Digest)
	if err != nil {
		return images.Image{}, err
	}
	defer unlock()
	img := images.Image{Name: DanglingName(target.Digest), Target: target, Labels: labels}
	if err := s.keep(ctx, img, nil); err != nil {
		return images.Image{}, err
	}
	all, err := s.ByTarget(ctx, target.Digest)
	if err != nil {
		return images.Image{}, err
	}
	if len(all) == 0 {
		return images.Image{}, fmt.Errorf("image %s: %w", img.Name, ErrInconsistent)
	}
	return all[0], nil
}

// keep makes sure that a record of the image's target remains when those of some
// names are gone. The lock of the target is held.
func (s *Store) keep(ctx context.Context, img images.Image, going []string) error {
	all, err := s.ByTarget(ctx, img.Target.Digest)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(other images.Image) bool { return !slices.Contains(going, other.Name) }) {
		return nil
	}
	if _, err := s.content.Info(ctx, img.Target.Digest); errdefs.IsNotFound(err) {
		return nil // nothing is left that could be kept
	}
	labels := maps.Clone(img.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	if kind, _ := ParseName(img.Name); kind.User() {
		labels[labelPrevious] = img.Name
	}
	img.Name, img.Labels = DanglingName(img.Target.Digest), labels
	for _, record := range s.RecordsFor(ctx, img) {
		if err := s.put(ctx, record); err != nil {
			return err
		}
	}
	return nil
}

// dropDangling removes the records that kept an image without a name: it has one.
func (s *Store) dropDangling(ctx context.Context, target v1.Descriptor) error {
	for _, prefix := range []string{danglingPrefix, mobyDanglingPrefix} {
		name := prefix + target.Digest.String()
		if err := s.records.Delete(ctx, name, images.DeleteTarget(&target)); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("image %s: %w", name, err)
		}
	}
	return nil
}

// RecordsFor returns the records that an image of that name consists of, with
// their labels: one, and in Kubernetes' namespace those that containerd's CRI
// plugin would write as well, in the order in which it must see them:
//
//   - the digest of the configuration, which is the image's ID;
//   - the name;
//   - for a tag "repository@digest" of the target.
//
// There the ID alone keeps an image that has no name. The image is read for its
// facts; if it cannot be, the record of the name is all there is.
func (s *Store) RecordsFor(ctx context.Context, img images.Image) []images.Image {
	ctx = s.Context(ctx)
	facts, known := s.recorded(img)
	if !known {
		facts = s.read(ctx, s.content, img.Target)
	}
	names := []string{img.Name}
	if s.kubernetes() && facts.Err == nil {
		names = kubernetesNames(img, facts.Config)
	}
	records := make([]images.Image, len(names))
	for i, name := range names {
		labels := maps.Clone(img.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, facts.labels(img.Target.Digest))
		if s.kubernetes() && facts.Err == nil {
			labels[labelManaged] = managed
		}
		s.setPinned(labels, name)
		records[i] = images.Image{Name: name, Target: img.Target, Labels: labels}
	}
	return records
}

func kubernetesNames(img images.Image, config digest.Digest) []string {
	names := []string{config.String()}
	kind, ref := ParseName(img.Name)
	switch kind {
	case KindDangling, KindID:
		return names
	case KindTag:
		if digested, err := ref.WithDigest(img.Target.Digest); err == nil {
			return append(names, img.Name, digested.Text())
		}
	}
	return append(names, img.Name)
}

// put creates a record or changes the one of its name.
func (s *Store) put(ctx context.Context, img images.Image) error {
	// Twice: the record may come or go between the two requests.
	for range inconsistentTries {
		_, err := s.records.Create(ctx, img)
		if err == nil {
			return nil
		}
		if !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("create image %s: %w", img.Name, err)
		}
		old, err := s.records.Get(ctx, img.Name)
		if err == nil {
			_, err = s.records.Update(ctx, img, changed(old, &img)...)
		}
		if err == nil {
			return nil
		}
		if !errdefs.IsNotFound(err) {
			return fmt.Errorf("update image %s: %w", img.Name, err)
		}
	}
	return fmt.Errorf("image %s: %w", img.Name, ErrInconsistent)
}

// changed returns the paths to update. A record that gets another target loses the
// labels of the old one, but for the one that pins the name.
func changed(old images.Image, img *images.Image) []string {
	paths := []string{"target"}
	if old.Target.Digest != img.Target.Digest {
		if old.Labels[LabelPinned] == Pinned && old.Labels[labelPinnedBy] == "" {
			img.Labels[LabelPinned] = Pinned // somebody has pinned the name, whatever it means
		}
		return append(paths, "labels")
	}
	for key := range img.Labels {
		paths = append(paths, "labels."+key)
	}
	return paths
}

// Complete writes those records and labels of RecordsFor that a record of an image
// lacks, and tells whether it did. A record that another image has is left alone.
func (s *Store) Complete(ctx context.Context, img images.Image) (added bool, err error) {
	if !s.kubernetes() {
		return false, nil
	}
	ctx = s.Context(ctx)
	for _, want := range s.RecordsFor(ctx, img) {
		has, err := s.records.Get(ctx, want.Name)
		switch {
		case errdefs.IsNotFound(err):
		case err != nil:
			return added, fmt.Errorf("image %s: %w", want.Name, err)
		case has.Target.Digest != want.Target.Digest, has.Labels[labelManaged] == want.Labels[labelManaged]:
			continue
		}
		if err := s.put(ctx, want); err != nil {
			return added, err
		}
		added = true
	}
	return added, nil
}

// PreviousName is the name that an image without one had last, empty if that is not
// known.
func PreviousName(record images.Image) string {
	name := record.Labels[labelPrevious]
	if name == "" {
		return ""
	}
	if kind, _ := ParseName(record.Name); kind.User() {
		return ""
	}
	return name
}

// Named returns the record of exactly that name, as a registry's reference. The
// error is a DoesNotExistError if there is none.
func (s *Store) Named(ctx context.Context, ref reference.Reference) (images.Image, error) {
	return s.byName(s.Context(ctx), ref)
}
