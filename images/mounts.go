// SPDX-License-Identifier: Apache-2.0

package images

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/mount"
)

// MountRequest says which image to mount.
type MountRequest struct {
	Image    string // by name or ID
	Platform string // as in LayerRequest
}

// ImageMount is an image that is mounted.
type ImageMount struct {
	Manifest digest.Digest
	Root     string // where
}

// MountImage adds a user to the read-only mount of an image and returns it. The image
// is unpacked if need be, and kept until it is unmounted. The mount outlives the
// process.
func (s *Service) MountImage(ctx context.Context, r MountRequest) (ImageMount, error) {
	m, err := s.inspector().Choose(ctx, r.Image, r.Platform)
	if err != nil {
		return ImageMount{}, err
	}
	root, err := s.layers().MountImage(ctx, m)
	return ImageMount{Manifest: m.Descriptor().Digest, Root: root}, err
}

// ImageMounts lists the images that are mounted, in the order of their digests.
func (s *Service) ImageMounts() ([]ImageMount, error) {
	found, err := s.layers().ImageMounts()
	if err != nil {
		return nil, err
	}
	var all []ImageMount
	for m, root := range found {
		all = append(all, ImageMount{Manifest: m, Root: root})
	}
	slices.SortFunc(all, func(a, b ImageMount) int { return cmp.Compare(a.Manifest, b.Manifest) })
	return all, nil
}

// UnmountImage takes a user from the mount of an image; last tells that it is not
// mounted any more. The image may be given by its mount or the digest of its manifest
// too: its name may be gone. The error is mount.ErrNotMounted if it is not mounted; if
// several variants are and no platform is given the class is ErrFailedPrecondition.
func (s *Service) UnmountImage(ctx context.Context, r MountRequest) (last bool, err error) {
	all, err := s.ImageMounts()
	if err != nil {
		return false, err
	}
	chosen := slices.DeleteFunc(slices.Clone(all), func(m ImageMount) bool { return m.Root != r.Image && m.Manifest.String() != r.Image })
	if len(chosen) == 0 {
		of, err := s.inspector().Manifests(ctx, r.Image, r.Platform)
		if err != nil {
			return false, err
		}
		chosen = slices.DeleteFunc(all, func(m ImageMount) bool { return !of[m.Manifest] })
	}
	switch len(chosen) {
	case 0:
		return false, fmt.Errorf("image %s: %w", r.Image, mount.ErrNotMounted)
	case 1:
		return s.layers().UnmountImage(ctx, chosen[0].Manifest)
	}
	return false, fmt.Errorf("image %s: %d platforms are mounted; say which: %w", r.Image, len(chosen), errdefs.ErrFailedPrecondition)
}
