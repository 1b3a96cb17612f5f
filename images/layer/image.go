// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	cmount "github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/manifest"
)

// imagePrefix begins the key of an image's mount, which is the name of its snapshot
// and of its lease too. The manifest's digest follows; all are SHA-256.
const imagePrefix = "berth-image-mount-"

// labelMounts of such a lease is the directory below which the image is mounted.
const labelMounts = "io.berth.image-mount.below"

func imageKey(m digest.Digest) string { return imagePrefix + m.Encoded() }

// MountImage adds a user to the read-only mount of an image and returns its root. The
// image is unpacked if need be and kept, even without a name, until the last user has
// unmounted it or the machine is booted and Sweep called.
func (l *Layers) MountImage(ctx context.Context, m *manifest.Manifest) (string, error) {
	ctx = l.context(ctx)
	key := imageKey(m.Descriptor().Digest)
	root, err := l.mounts.Mount(ctx, key, func(ctx context.Context) ([]cmount.Mount, error) {
		mounts, err := l.view(ctx, key, m)
		if err != nil {
			err = errors.Join(err, l.dropImage(context.WithoutCancel(ctx), key))
		}
		return mounts, err
	})
	if err != nil {
		return "", fmt.Errorf("image %s: %w", m.Descriptor().Digest, err)
	}
	return root, nil
}

// view makes the snapshot that is mounted, or finds what was there before a reboot.
func (l *Layers) view(ctx context.Context, key string, m *manifest.Manifest) ([]cmount.Mount, error) {
	request, done, err := step(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	_, err = l.client.LeasesService().Create(request, leases.WithID(key), leases.WithLabel(labelMounts, l.mounts.Dir()))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("lease %s: %w", key, err)
	}
	ctx = leases.WithLease(ctx, key)
	chain, err := l.Unpack(ctx, m)
	if err != nil {
		return nil, err
	}
	mounts, err := l.snapshots().View(leases.WithLease(request, key), key, chain)
	if errdefs.IsAlreadyExists(err) {
		mounts, err = l.snapshots().Mounts(ctx, key)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", key, err)
	}
	return mounts, nil
}

func (l *Layers) dropImage(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	return l.drop(ctx, key, key)
}

// UnmountImage takes a user from the mount of an image, or all of them; last tells
// that it is not mounted any more. Without one it is mount.ErrNotMounted.
func (l *Layers) UnmountImage(ctx context.Context, m digest.Digest) (last bool, err error) {
	key := imageKey(m)
	last, err = l.mounts.Unmount(l.context(ctx), key, func(ctx context.Context) error {
		return l.dropImage(ctx, key)
	})
	if err != nil {
		return false, fmt.Errorf("image %s: %w", m, err)
	}
	return last, nil
}

// ImageMount returns where an image is mounted, empty if it is not. A mount that has
// gone away by itself counts as none.
func (l *Layers) ImageMount(m digest.Digest) (string, error) {
	root, found, err := l.mounts.Find(imageKey(m))
	if err != nil || !found {
		return "", err
	}
	return root, nil
}

// ImageMounts lists where images are mounted, by their manifests.
func (l *Layers) ImageMounts() (map[digest.Digest]string, error) {
	keys, err := l.mounts.Keys()
	if err != nil {
		return nil, err
	}
	found := map[digest.Digest]string{}
	for _, key := range keys {
		hex, ok := strings.CutPrefix(key, imagePrefix)
		if !ok {
			continue
		}
		m := digest.NewDigestFromEncoded(digest.SHA256, hex)
		root, err := l.ImageMount(m)
		if err != nil {
			return nil, err
		}
		if root != "" {
			found[m] = root
		}
	}
	return found, nil
}

// Sweep removes what mounts left behind that have gone away by themselves, at a reboot
// for example: their places, and the leases that keep images for them. Mounts that are
// there stay.
func (l *Layers) Sweep(ctx context.Context) error {
	ctx = l.context(ctx)
	keys, err := l.mounts.Keys()
	if err != nil {
		return err
	}
	all, err := l.client.LeasesService().List(ctx, fmt.Sprintf("labels.%q==%q", labelMounts, l.mounts.Dir()))
	if err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	for _, lease := range all {
		keys = append(keys, lease.ID)
	}
	var errs []error
	for _, key := range keys {
		_, err := l.mounts.Sweep(ctx, key, func(ctx context.Context) error {
			if !strings.HasPrefix(key, imagePrefix) {
				return nil
			}
			return l.dropImage(ctx, key)
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
