// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/runtime/record/claim"
)

// Files in a run directory.
const (
	rootfsDir = "rootfs"
	// mountsFile has the number of users of the mount, in decimal.
	mountsFile = "mounts"
)

// Mount mounts the root filesystem of a container and returns where. Each call adds
// a user of the same mount. While the container has a task it is mounted already:
// the path is that of the task, which counts no users. It is CRI-O's StartContainer.
//
// An unknown container is ErrInvalidContainerID, one without a root filesystem
// FailedPrecondition, a record that cannot be decoded labels.ErrUndecodable.
func (s *Store) Mount(ctx context.Context, ref string) (string, error) {
	ctx = s.in(ctx)
	r, err := s.known(ctx, ref)
	if err != nil {
		return "", err
	}
	c, err := s.view(r)
	if err != nil {
		return "", err
	}
	if r.SnapshotKey == "" {
		return "", fmt.Errorf("container %s has no root filesystem: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	unlock, err := s.lock(ctx, c.ID, claim.Exclusive)
	if err != nil {
		return "", err
	}
	defer unlock()
	task, err := s.hasTask(ctx, c.ID)
	if err != nil {
		return "", err
	}
	if task {
		return s.taskRootfs(c.ID)
	}
	path, err := s.mount(ctx, &c)
	if err != nil {
		return "", fmt.Errorf("mount root filesystem of %s: %w", c.ID, err)
	}
	return path, nil
}

func (s *Store) taskRootfs(id string) (string, error) {
	path := filepath.Join(s.o.Tasks, s.o.Namespace, id, rootfsDir)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("root filesystem of the task of %s: %w", id, system(err))
	}
	return path, nil
}

func (s *Store) mount(ctx context.Context, c *Container) (string, error) {
	path := filepath.Join(c.RunDir, rootfsDir)
	mounted, err := isMounted(path)
	if err != nil {
		return "", err
	}
	users := 0
	if mounted {
		if users, err = readUsers(c.RunDir); err != nil {
			return "", err
		}
		return path, writeUsers(c.RunDir, users+1)
	}
	mounts, err := s.client.SnapshotService(c.Record.Snapshotter).Mounts(ctx, c.Record.SnapshotKey)
	if err != nil {
		return "", err
	}
	// Before the mount: what is mounted without a count would be taken for unused.
	if err := writeUsers(c.RunDir, 1); err != nil {
		return "", err
	}
	if err := os.Mkdir(path, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", system(err)
	}
	if err := mount.All(labelled(mounts, c.Metadata.MountLabel), path); err != nil {
		return "", errors.Join(fmt.Errorf("%w: %w", err, errdefs.ErrInternal), unmount(ctx, c.RunDir))
	}
	return path, nil
}

// labelled adds the mount label to the options of filesystems that take one. A bind
// mount shows files that have labels of their own.
func labelled(mounts []mount.Mount, mountLabel string) []mount.Mount {
	if mountLabel == "" {
		return mounts
	}
	for i, m := range mounts {
		kind := m.Type[strings.LastIndex(m.Type, "/")+1:] // before it: what the mount manager does first
		if kind == "overlay" || kind == "tmpfs" {
			mounts[i].Options = append(m.Options, fmt.Sprintf("context=%q", mountLabel))
		}
	}
	return mounts
}

// Unmount ends the use of one call of Mount, and with the last the mount. An
// unknown container, or one that is not mounted, is success, an empty ID
// ErrInvalidContainerID.
func (s *Store) Unmount(ctx context.Context, ref string) error {
	return s.unmount(ctx, ref, func(dir string) (int, error) {
		users, err := readUsers(dir)
		return users - 1, err
	})
}

// UnmountAll ends the mount, however many use it. Everything else is as with
// Unmount. It is CRI-O's StopContainer, and has to be called before a task is made:
// the filesystem must not be mounted twice.
func (s *Store) UnmountAll(ctx context.Context, ref string) error {
	return s.unmount(ctx, ref, func(string) (int, error) { return 0, nil })
}

// unmount unmounts if no user is left.
func (s *Store) unmount(ctx context.Context, ref string, left func(dir string) (int, error)) error {
	ctx = s.in(ctx)
	r, err := s.known(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	unlock, err := s.lock(ctx, r.ID, claim.Exclusive)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	dir := s.runDir(r.ID)
	users, err := left(dir)
	if err != nil {
		return err
	}
	if users > 0 {
		return writeUsers(dir, users)
	}
	return unmount(ctx, dir)
}

// unmount ends the mount of a run directory, if there is one.
func unmount(ctx context.Context, dir string) error {
	path := filepath.Join(dir, rootfsDir)
	err := mount.UnmountRecursive(path, 0)
	if errors.Is(err, unix.EBUSY) {
		// Somebody works in it, and will not see it end. It keeps the snapshot's
		// files on disk until then.
		log.G(ctx).WithField("path", path).WithError(err).Warn("root filesystem is busy; detached")
		err = mount.UnmountRecursive(path, unix.MNT_DETACH)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmount %s: %w: %w", path, err, errdefs.ErrInternal)
	}
	for _, name := range []string{rootfsDir, mountsFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return system(err)
		}
	}
	return nil
}

func isMounted(path string) (bool, error) {
	mounted, err := mountinfo.Mounted(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return mounted, system(err)
}

// readUsers returns 0 when nothing has been counted.
func readUsers(dir string) (int, error) {
	b, err := os.ReadFile(filepath.Join(dir, mountsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, system(err)
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %w", filepath.Join(dir, mountsFile), err, errdefs.ErrDataLoss)
	}
	return n, nil
}

func writeUsers(dir string, n int) error {
	path := filepath.Join(dir, mountsFile)
	if err := os.WriteFile(path+".new", strconv.AppendInt(nil, int64(n), 10), 0o600); err != nil {
		return system(err)
	}
	return system(os.Rename(path+".new", path))
}

// removeDir removes a directory of a container with what is in it, but nothing that
// is mounted there.
func removeDir(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return system(err)
	}
	if len(mounts) > 0 {
		// Not FailedPrecondition: by now the record is gone, and Recover ends this.
		return fmt.Errorf("remove %s: %s is mounted: %w", dir, mounts[0].Mountpoint, errdefs.ErrUnavailable)
	}
	return system(os.RemoveAll(dir))
}
