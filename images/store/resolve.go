// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/reference"
)

// ErrImageDoesNotExist is what errors.Is finds in the error for an image that is
// not here. Its class is ErrNotFound.
var ErrImageDoesNotExist = errdefs.ErrNotFound.WithMessage("image does not exist")

// DoesNotExistError is ErrImageDoesNotExist with what was looked for.
type DoesNotExistError struct {
	// Reference is the name as it was understood, or the ID as it was given.
	Reference string
	// Ambiguous says that more than one image has such an ID.
	Ambiguous bool
}

// Error names the image.
func (e *DoesNotExistError) Error() string {
	if e.Ambiguous {
		return fmt.Sprintf("image %s: ambiguous reference: several images have such an ID", e.Reference)
	}
	return fmt.Sprintf("image %s: %s", e.Reference, ErrImageDoesNotExist)
}

// Unwrap is ErrImageDoesNotExist.
func (e *DoesNotExistError) Unwrap() error { return ErrImageDoesNotExist }

// What the beginning of an ID may be: 4 digits tell few images apart already, and
// fewer are a slip of the fingers.
const (
	minPrefix = 4
	maxPrefix = 64
)

// inconsistentTries is how often a look-up that takes two requests is repeated
// because the store changed between them.
const inconsistentTries = 3

// ErrInconsistent says that the records changed each time they were looked at.
// Its class is ErrInternal.
var ErrInconsistent = errdefs.ErrInternal.WithMessage("inconsistent data: the records of the image keep changing")

// Resolve returns the record that a name or an ID stands for, trying in turn:
//
//   - "repo@digest": a record of that repository whose target has the digest;
//   - a name, with the tag latest if it has none: the record of that name;
//   - the name of a record as it is, for names that nobody would type otherwise;
//   - 4 to 64 digits of an ID, with or without "sha256:": any record whose target
//     or whose configuration (the ID of CRI) has that digest.
//
// So an image named like the beginning of an ID hides the ID. The error is a
// DoesNotExistError, or one of containerd's.
func (s *Store) Resolve(ctx context.Context, nameOrID string) (images.Image, error) {
	img, _, err := s.resolve(s.Context(ctx), nameOrID)
	return img, err
}

// Resolved is what a name or an ID stands for.
type Resolved struct {
	// Named is the record of exactly that name, nil if an ID was given.
	Named *images.Image
	// All are the records that share the target, in the order of their names;
	// never empty.
	All []images.Image
}

// Target is the digest of what all the records point to.
func (r Resolved) Target() digest.Digest { return r.All[0].Target.Digest }

// ResolveAll is Resolve with all the records of the image. That the records change
// between its two requests three times in a row is ErrInconsistent.
func (s *Store) ResolveAll(ctx context.Context, nameOrID string) (Resolved, error) {
	ctx = s.Context(ctx)
	for range inconsistentTries {
		img, named, err := s.resolve(ctx, nameOrID)
		if err != nil {
			return Resolved{}, err
		}
		all, err := s.ByTarget(ctx, img.Target.Digest)
		if err != nil {
			return Resolved{}, err
		}
		i := slices.IndexFunc(all, func(other images.Image) bool { return other.Name == img.Name })
		if i < 0 {
			continue
		}
		r := Resolved{All: all}
		if named {
			r.Named = &all[i]
		}
		return r, nil
	}
	return Resolved{}, fmt.Errorf("image %s: %w", nameOrID, ErrInconsistent)
}

// ByTarget lists the records of a target in the order of their names.
func (s *Store) ByTarget(ctx context.Context, target digest.Digest) ([]images.Image, error) {
	return s.Records(ctx, fmt.Sprintf("target.digest==%q", target.String()))
}

// Records lists the records that pass one of containerd's filters, all without
// one, in the order of their names.
func (s *Store) Records(ctx context.Context, filters ...string) ([]images.Image, error) {
	all, err := s.records.List(s.Context(ctx), filters...)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	slices.SortFunc(all, func(a, b images.Image) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// resolve tells in addition whether the input was the record's name.
func (s *Store) resolve(ctx context.Context, input string) (images.Image, bool, error) {
	prefix, isID := idPrefix(input)
	ref, parseErr := reference.Parse(input)
	if parseErr == nil && !isFullDigest(input) {
		find := s.byName
		if ref.Digest() != "" {
			find = s.byDigest
		}
		img, err := find(ctx, ref)
		if !errdefs.IsNotFound(err) {
			return img, err == nil, err
		}
	}
	if img, err := s.records.Get(ctx, input); err == nil && !isID {
		return img, true, nil
	} else if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
		return img, false, fmt.Errorf("image %s: %w", input, err)
	}
	if isID {
		img, err := s.byID(ctx, prefix)
		return img, false, err
	}
	if parseErr != nil {
		return images.Image{}, false, parseErr
	}
	return images.Image{}, false, &DoesNotExistError{Reference: ref.Text()}
}

// idPrefix returns the digits of what can be (the beginning of) an ID.
func idPrefix(input string) (string, bool) {
	digits := strings.TrimPrefix(input, digest.SHA256.String()+":")
	return digits, reference.IsHex(digits) && len(digits) >= minPrefix && len(digits) <= maxPrefix
}

// isFullDigest tells whether the input is "sha256:" and 64 digits. It would parse as
// the tag of a repository called sha256.
func isFullDigest(input string) bool {
	_, err := digest.Parse(input)
	return err == nil
}

func (s *Store) byName(ctx context.Context, ref reference.Reference) (images.Image, error) {
	img, err := s.records.Get(ctx, ref.Text())
	if errdefs.IsNotFound(err) {
		return images.Image{}, &DoesNotExistError{Reference: ref.Text()}
	}
	if err != nil {
		return images.Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}

// byDigest finds "repo@digest". Having the same content is not enough: the record
// must be one of that repository, or anybody could be given for it.
func (s *Store) byDigest(ctx context.Context, ref reference.Reference) (images.Image, error) {
	all, err := s.ByTarget(ctx, ref.Digest())
	if err != nil {
		return images.Image{}, err
	}
	var found *images.Image
	for i := range all {
		kind, other := ParseName(all[i].Name)
		switch {
		case kind == KindForeign:
			log.G(ctx).WithField("image", all[i].Name).Warn("the name of an image record is not one of a registry's")
		case kind != KindTag && kind != KindDigest, other.Repository() != ref.Repository():
		case found == nil, all[i].Name == ref.Text():
			found = &all[i]
		}
	}
	if found == nil {
		return images.Image{}, &DoesNotExistError{Reference: ref.Text()}
	}
	return *found, nil
}

// byID finds the image whose ID of either kind begins with the digits. Among
// several records of it those with a name come first.
func (s *Store) byID(ctx context.Context, digits string) (images.Image, error) {
	prefix := digest.SHA256.String() + ":" + digits
	found, err := s.Records(ctx,
		"target.digest~=^"+prefix, "name~=^"+prefix, `labels."`+labelConfig+`"~=^`+prefix)
	if err != nil {
		return images.Image{}, err
	}
	matches := map[digest.Digest][]images.Image{}
	for _, img := range found {
		for _, id := range s.knownIDs(img) {
			if strings.HasPrefix(id.String(), prefix) {
				matches[id] = append(matches[id], img)
				break
			}
		}
	}
	if len(matches) == 0 {
		// Records that others wrote do not say what their configuration is.
		if matches, err = s.searchConfigs(ctx, prefix); err != nil {
			return images.Image{}, err
		}
	}
	return pick(matches, digits)
}

// knownIDs are the digests by which an image is known as far as its record tells.
func (s *Store) knownIDs(img images.Image) []digest.Digest {
	ids := []digest.Digest{img.Target.Digest}
	if kind, _ := ParseName(img.Name); kind == KindID {
		ids = append(ids, digest.Digest(img.Name))
	}
	if f, ok := s.recorded(img); ok {
		ids = append(ids, f.Config)
	}
	return ids
}

func (s *Store) searchConfigs(ctx context.Context, prefix string) (map[digest.Digest][]images.Image, error) {
	all, err := s.Records(ctx)
	if err != nil {
		return nil, err
	}
	facts, err := s.Facts(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	matches := map[digest.Digest][]images.Image{}
	for _, img := range all {
		if id := facts[img.Target.Digest].Config; strings.HasPrefix(id.String(), prefix) {
			matches[id] = append(matches[id], img)
		}
	}
	return matches, nil
}

func pick(matches map[digest.Digest][]images.Image, digits string) (images.Image, error) {
	if len(matches) > 1 {
		return images.Image{}, &DoesNotExistError{Reference: digits, Ambiguous: true}
	}
	for _, all := range matches {
		return slices.MinFunc(all, func(a, b images.Image) int {
			kindA, _ := ParseName(a.Name)
			kindB, _ := ParseName(b.Name)
			return cmp.Or(cmp.Compare(kindA, kindB), cmp.Compare(a.Name, b.Name))
		}), nil
	}
	return images.Image{}, &DoesNotExistError{Reference: digits}
}

// IsNotExist tells whether an error says that an image is not here.
func IsNotExist(err error) bool { return errors.Is(err, ErrImageDoesNotExist) }
