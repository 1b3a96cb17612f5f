// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	cmount "github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
)

// mountKey is the key of a container's mount, apart from those of images.
func mountKey(id string) string { return "container-" + id }

// Mount adds a user to the mount of what a container writes to and returns its root.
// A running container has a mount of its own besides: what it changes meanwhile may
// be seen late, and must not be changed here.
func (l *Layers) Mount(ctx context.Context, id string) (string, error) {
	ctx = l.context(ctx)
	root, err := l.mounts.Mount(ctx, mountKey(id), func(ctx context.Context) ([]cmount.Mount, error) {
		r, err := l.Rootfs(ctx, id)
		if err != nil {
			return nil, err
		}
		mounts, err := l.client.SnapshotService(r.Snapshotter).Mounts(ctx, r.Key)
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", r.Key, err)
		}
		return labelled(mounts, r.MountLabel)
	})
	if err != nil {
		return "", fmt.Errorf("container %s: %w", id, err)
	}
	return root, nil
}

// Unmount takes a user from the mount of what a container writes to. Without one it
// is mount.ErrNotMounted. The container itself may be gone.
func (l *Layers) Unmount(ctx context.Context, id string) error {
	if _, err := l.mounts.Unmount(l.context(ctx), mountKey(id), nil); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	return nil
}

// Perform mounts what a container writes to for the length of a call. The error is
// fn's, joined with that of the unmount.
func (l *Layers) Perform(ctx context.Context, id string, fn func(root string) error) error {
	root, err := l.Mount(ctx, id)
	if err != nil {
		return err
	}
	err = fn(root)
	return errors.Join(err, l.Unmount(context.WithoutCancel(ctx), id))
}

// labelled gives the files of a mount an SELinux label, where SELinux is enabled: an
// overlay by an option; what is bound keeps the labels on the disk, so those are set.
func labelled(mounts []cmount.Mount, mountLabel string) ([]cmount.Mount, error) {
	if mountLabel == "" || !selinux.GetEnabled() {
		return mounts, nil
	}
	for _, m := range mounts {
		if m.Type != "overlay" {
			if err := selinux.Chcon(m.Source, mountLabel, true); err != nil {
				return nil, fmt.Errorf("label %s as %s: %w", m.Source, mountLabel, err)
			}
		}
	}
	return withContext(mounts, mountLabel), nil
}

func withContext(mounts []cmount.Mount, mountLabel string) []cmount.Mount {
	mounts = slices.Clone(mounts)
	for i, m := range mounts {
		if m.Type == "overlay" {
			mounts[i].Options = append(slices.Clip(m.Options), label.FormatMountLabel("", mountLabel))
		}
	}
	return mounts
}
