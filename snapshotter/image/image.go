// SPDX-License-Identifier: Apache-2.0

// Package image keeps a writable layer in a file system of its own: a file of a
// fixed size, formatted as ext4 and mounted through a loop device. It is the limit
// of a layer where the file system below has no project quotas. It owns what is
// below a layer's directory and no record of layers.
//
// The file is mounted once for all users of the layer and stays so while the layer
// lives: a second mount of one file would be a second loop device with a cache of
// its own, and they would destroy each other's data.
package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// MinBytes is the least limit: below it ext4 has no room for itself.
const MinBytes = 1 << 20

// Layer is a layer's directory. Its methods are not safe for concurrent use on one
// directory.
type Layer string

// File has the file system.
func (l Layer) File() string { return filepath.Join(string(l), "layer.img") }

func (l Layer) mounted() string { return filepath.Join(string(l), "rw") }

// Upper is where the layer's content is while it is mounted, and Work overlayfs's
// working directory beside it.
func (l Layer) Upper() string { return filepath.Join(l.mounted(), "upper") }

// Work is overlayfs's working directory; see Upper.
func (l Layer) Work() string { return filepath.Join(l.mounted(), "work") }

// Exists tells whether the layer has an image.
func (l Layer) Exists() bool {
	_, err := os.Lstat(l.File())
	return err == nil
}

// Supported returns ErrNotImplemented with the reason where images cannot be made.
func Supported() error {
	if _, err := exec.LookPath(mkfs); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotImplemented)
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return fmt.Errorf("loop devices: %w: %w", err, errdefs.ErrNotImplemented)
	}
	return nil
}

const mkfs = "mkfs.ext4"

// Create makes an image in which about so many bytes fit, with content as its root:
// a directory that has upper and work. It does not mount it. When it fails nothing
// is left.
func (l Layer) Create(ctx context.Context, bytes int64, content string) (err error) {
	if bytes < MinBytes {
		return fmt.Errorf("a layer of %d bytes is below the least, %d: %w", bytes, MinBytes, errdefs.ErrInvalidArgument)
	}
	// Under a temporary name: a file that a crash left half formatted is not an image.
	file := l.File() + ".new"
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file))
		}
	}()
	if err := errors.Join(f.Truncate(bytes+overhead(bytes)), f.Close()); err != nil {
		return err
	}
	// No journal: a layer is not used again after a power loss, or at the user's
	// risk, and a small image would be half journal. No blocks kept for root.
	out, err := exec.CommandContext(ctx, mkfs, "-q", "-F", "-b", "4096", "-i", "4096", "-m", "0",
		"-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard", "-d", content, file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("format %s: %w: %s", file, err, strings.TrimSpace(string(out)))
	}
	return os.Rename(file, l.File())
}

// overhead is what ext4 takes for itself: an inode of 256 bytes for each 4 KiB, so
// that blocks run out before inodes, maps of block groups, and the first blocks.
func overhead(bytes int64) int64 { return bytes/15 + 512<<10 }

// Mount mounts the image unless it is mounted.
func (l Layer) Mount() error {
	dir := l.mounted()
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
		return err
	}
	// What is deleted in the layer goes back to the file system below (discard).
	m := mount.Mount{Type: "ext4", Source: l.File(), Options: []string{"loop", "discard", "noatime"}}
	if err := m.Mount(dir); err != nil {
		return fmt.Errorf("mount %s: %w", l.File(), err)
	}
	return nil
}

// Unmount unmounts the image; the loop device goes with it. An image that is not
// mounted is no error.
func (l Layer) Unmount() error {
	err := mount.UnmountAll(l.mounted(), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Remove removes the image. It must not be mounted.
func (l Layer) Remove() error {
	return errors.Join(remove(l.File()), remove(l.mounted()))
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Usage is what the mounted layer holds, asked of its file system: it takes the
// same time whatever that is.
func (l Layer) Usage() (bytes, inodes int64, err error) {
	if mounted, err := mountinfo.Mounted(l.mounted()); err != nil || !mounted {
		if err == nil {
			err = fmt.Errorf("%s is not mounted: %w", l.File(), errdefs.ErrFailedPrecondition)
		}
		return 0, 0, err
	}
	var s unix.Statfs_t
	if err := unix.Statfs(l.mounted(), &s); err != nil {
		return 0, 0, fmt.Errorf("usage of %s: %w", l.File(), err)
	}
	// The first eleven inodes are ext4's own, with lost+found.
	const own = 11
	return int64(s.Blocks-s.Bfree) * s.Bsize, int64(s.Files-s.Ffree) - own, nil
}
