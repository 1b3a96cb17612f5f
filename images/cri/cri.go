// SPDX-License-Identifier: Apache-2.0

// Package cri gives the answers of the image service the shape that the Kubernetes
// container runtime interface wants: its messages, and its rule that an image which is
// not here is no error. It decides nothing else.
package cri

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/reference"
)

// ErrMounted is what errors.Is finds when an image is not removed because it is mounted
// into a container. Its class is ErrFailedPrecondition.
var ErrMounted = errdefs.ErrFailedPrecondition.WithMessage("image is mounted as a volume")

// Service answers by an image service. Safe for concurrent use.
type Service struct{ images *images.Service }

// New returns a Service over an image service.
func New(s *images.Service) *Service { return &Service{s} }

// ListImages lists all images, or the one that a filter names if it is here.
func (s *Service) ListImages(ctx context.Context, filter string) ([]*runtime.Image, error) {
	all, err := s.images.List(ctx, images.ListOptions{Filter: filter})
	if err != nil {
		return nil, err
	}
	list := make([]*runtime.Image, len(all))
	for i := range all {
		list[i] = Image(&all[i])
	}
	return list, nil
}

// ImageStatus returns the image that a name or an ID means, nil if it is not here.
func (s *Service) ImageStatus(ctx context.Context, nameOrID string) (*runtime.Image, error) {
	list, err := s.ListImages(ctx, nameOrID)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}

// RemoveImage removes an image by its ID or the beginning of it, and a name otherwise.
// That it is not here is no error. The error is ErrMounted if a container has mounted
// it; containers that were made from it keep what they need.
func (s *Service) RemoveImage(ctx context.Context, nameOrID string) error {
	list, err := s.images.List(ctx, images.ListOptions{Filter: nameOrID, Brief: true})
	if err != nil || len(list) == 0 {
		return err
	}
	img := list[0]
	users, err := s.images.Users(ctx, img.Target.Digest)
	if err != nil {
		return err
	}
	for _, user := range users {
		if user.Volume {
			return fmt.Errorf("remove image %s: %w into container %s", nameOrID, ErrMounted, user.Container)
		}
	}
	if name, err := reference.Parse(nameOrID); err == nil && slices.Contains(img.Records, name.Text()) {
		_, err = s.images.Untag(ctx, name)
		return present(err)
	}
	_, err = s.images.Delete(ctx, img.ID)
	return present(err)
}

// present is err, unless it is that there is no image.
func present(err error) error {
	if errors.Is(err, images.ErrNoSuchImage) {
		return nil
	}
	return err
}

// Image converts an image. A user that is a number is a UID, another one a name;
// groups are dropped. An image that has lost its last name has a digest in that one's
// repository.
func Image(img *images.Image) *runtime.Image {
	m := &runtime.Image{
		Id:          img.ID.Digest().String(),
		RepoTags:    img.RepoTags,
		RepoDigests: img.RepoDigests,
		Pinned:      img.Pinned,
		Spec:        &runtime.ImageSpec{Image: img.Digest.String(), Annotations: maps.Clone(img.Annotations)},
	}
	if img.Size != nil {
		m.Size = uint64(*img.Size)
	}
	if len(m.RepoDigests) == 0 && img.PreviousName != "" && img.Digest != "" {
		m.RepoDigests = []string{img.PreviousName + "@" + img.Digest.String()}
	}
	user, _, _ := strings.Cut(img.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		m.Uid = &runtime.Int64Value{Value: uid}
	} else {
		m.Username = user
	}
	return m
}
