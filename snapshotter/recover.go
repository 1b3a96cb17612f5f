// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
)

// recover clears what snapshots left that are gone: their limits, mounts and loop
// devices of their images, and their directories: one whose record a crash prevented
// has the number that the next snapshot will get.
func (s *Snapshotter) recover(ctx context.Context) error {
	ids, err := s.ids(ctx)
	if err == nil {
		err = errors.Join(s.projects.clear(ids), s.unmount(ids))
	}
	switch {
	case err != nil:
	case len(ids) == 0:
		// Before the first record overlayfs's snapshotter does not look at directories.
		err = s.empty()
	default:
		err = s.Cleanup(ctx)
	}
	if err != nil {
		return fmt.Errorf("recover %s: %w", s.config.Root, err)
	}
	return nil
}

// empty removes the directories of all snapshots.
func (s *Snapshotter) empty() error {
	dir := filepath.Join(s.config.Root, "snapshots")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var faults []error
	for _, e := range entries {
		faults = append(faults, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(faults...)
}

// ids are the numbers and keys of all snapshots.
func (s *Snapshotter) ids(ctx context.Context) (ids map[string]string, err error) {
	err = s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		ids, err = storage.IDMap(ctx)
		return err
	})
	if errdefs.IsNotFound(err) { // no snapshot was ever made here
		return nil, nil
	}
	return ids, err
}

// unmount unmounts images of layers that are not among ids.
func (s *Snapshotter) unmount(ids map[string]string) error {
	below := filepath.Join(s.config.Root, "snapshots")
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(below))
	if err != nil {
		return err
	}
	var faults []error
	for _, m := range mounts {
		id, _, _ := strings.Cut(strings.TrimPrefix(m.Mountpoint, below+"/"), "/")
		if _, known := ids[id]; !known {
			faults = append(faults, mount.UnmountAll(m.Mountpoint, 0))
		}
	}
	return errors.Join(faults...)
}
