// SPDX-License-Identifier: Apache-2.0

package push

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/manifest"
)

// selection decides what of an image is sent.
type selection struct {
	content  content.Store
	platform platforms.MatchComparer
	source   string // the label that lists where in the registry a blob is
}

// choose returns what is to be sent of a target; see Pusher.Push.
func (s *selection) choose(ctx context.Context, target v1.Descriptor, platform string) (Result, error) {
	if platform != "" {
		return s.chooseFor(ctx, target, platform)
	}
	if !images.IsIndexType(target.MediaType) {
		return Result{Target: target}, s.sendable(ctx, target)
	}
	lacking, err := s.lacking(ctx, target)
	if err != nil {
		return Result{}, err
	}
	if len(lacking) == 0 {
		return Result{Target: target}, nil
	}
	present, err := s.present(ctx, target)
	if err != nil {
		return Result{}, err
	}
	if len(present) == 0 {
		return Result{}, fmt.Errorf("image %s: none of its variants is here, %s is missing: %w", target.Digest, lacking[0].Digest, errdefs.ErrNotFound)
	}
	slices.SortStableFunc(present, func(a, b variant) int {
		switch {
		case s.platform.Match(a.platform) != s.platform.Match(b.platform):
			if s.platform.Match(a.platform) {
				return -1
			}
			return 1
		case s.platform.Less(a.platform, b.platform):
			return -1
		case s.platform.Less(b.platform, a.platform):
			return 1
		}
		return 0
	})
	chosen := present[0].desc
	return Result{Target: chosen, Instead: &target, Missing: lacking}, s.sendable(ctx, chosen)
}

// chooseFor returns the variant for a platform.
func (s *selection) chooseFor(ctx context.Context, target v1.Descriptor, platform string) (Result, error) {
	wanted, err := platforms.Parse(platform)
	if err != nil {
		return Result{}, fmt.Errorf("platform %q: %w: %w", platform, err, errdefs.ErrInvalidArgument)
	}
	matcher := platforms.OnlyStrict(wanted)
	present, err := s.present(ctx, target)
	if err != nil {
		return Result{}, err
	}
	for _, v := range present {
		if matcher.Match(v.platform) {
			r := Result{Target: v.desc}
			if v.desc.Digest != target.Digest {
				r.Instead = &target
			}
			return r, s.sendable(ctx, v.desc)
		}
	}
	return Result{}, fmt.Errorf("image %s: its variant for %s is not here: %w", target.Digest, platform, errdefs.ErrNotFound)
}

// variant is an image whose manifest and configuration are here.
type variant struct {
	desc     v1.Descriptor
	platform v1.Platform
}

func (s *selection) present(ctx context.Context, target v1.Descriptor) ([]variant, error) {
	var all []variant
	err := manifest.WalkPresent(ctx, s.content, target, func(m *manifest.Manifest) error {
		pseudo, err := m.IsPseudo(ctx)
		if err != nil || pseudo {
			return err
		}
		if _, err := m.Config(ctx); errdefs.IsNotFound(err) {
			return nil
		} else if err != nil {
			return err
		}
		platform, err := m.Platform(ctx)
		all = append(all, variant{m.Descriptor(), platform})
		return err
	})
	return all, err
}

// lacking lists what of an index is neither here nor can be had in the registry.
func (s *selection) lacking(ctx context.Context, target v1.Descriptor) ([]v1.Descriptor, error) {
	var all []v1.Descriptor
	err := manifest.Walk(ctx, s.content, target, func(m *manifest.Manifest) error {
		missing, err := s.missing(ctx, m)
		all = append(all, missing...)
		return err
	})
	if errdefs.IsNotFound(err) && len(all) == 0 {
		return []v1.Descriptor{target}, nil // an index in it
	}
	return all, err
}

// sendable returns an error that names what is missing of a manifest.
func (s *selection) sendable(ctx context.Context, desc v1.Descriptor) error {
	m, err := manifest.New(s.content, desc)
	if err != nil {
		return err
	}
	missing, err := s.missing(ctx, m)
	if err != nil {
		return err
	}
	var errs []error
	for _, lost := range missing {
		errs = append(errs, fmt.Errorf("%s %s is not here, and not known to be in the registry", lost.MediaType, lost.Digest))
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", errors.Join(errs...), errdefs.ErrNotFound)
	}
	return nil
}

// missing lists what is missing of a manifest, except for layers that need not be
// here: those that may not be distributed, and those that the registry can mount
// from where the image has been.
func (s *selection) missing(ctx context.Context, m *manifest.Manifest) ([]v1.Descriptor, error) {
	missing, err := m.Missing(ctx)
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	info, err := s.content.Info(ctx, m.Descriptor().Digest)
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	known := info.Labels[s.source] != ""
	return slices.DeleteFunc(missing, func(desc v1.Descriptor) bool {
		return images.IsNonDistributable(desc.MediaType) || known && images.IsLayerType(desc.MediaType)
	}), nil
}
