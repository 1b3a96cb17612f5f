// SPDX-License-Identifier: Apache-2.0

package idmap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Shift changes the owners of all files below root, and of root, from those in the
// namespace to the host's. Capabilities, set-user-id bits and times of the files stay.
// Nobody else may use the files meanwhile. After an error some have the new owner
// and others the old.
func Shift(ctx context.Context, root string, m Map) error {
	if m.Empty() {
		return nil
	}
	done := map[inode]bool{}
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("shift owners: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return fmt.Errorf("shift owners: %w", err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		if stat.Nlink > 1 && !info.IsDir() {
			id := inode{uint64(stat.Dev), stat.Ino}
			if done[id] {
				return nil // under another name
			}
			done[id] = true
		}
		if err := m.shift(path, info, stat); err != nil {
			return fmt.Errorf("shift owner of %s: %w", path, err)
		}
		return nil
	})
}

type inode struct{ dev, ino uint64 }

// shift gives one file its new owner. The kernel takes capabilities and the bits
// away with the owner.
func (m Map) shift(path string, info fs.FileInfo, stat *syscall.Stat_t) error {
	uid, gid, err := m.ToHost(int(stat.Uid), int(stat.Gid))
	if err != nil {
		return err
	}
	var capability []byte
	if info.Mode().IsRegular() {
		if capability, err = getxattr(path, attrCapability); err != nil {
			return err
		}
	}
	if err := os.Lchown(path, uid, gid); err != nil {
		return err
	}
	if mode := stat.Mode & 0o7777; mode&(unix.S_ISUID|unix.S_ISGID) != 0 && info.Mode().Type() != fs.ModeSymlink {
		if err := unix.Chmod(path, mode); err != nil {
			return err
		}
	}
	if capability != nil {
		return unix.Lsetxattr(path, attrCapability, portable(capability), 0)
	}
	return nil
}

// getxattr returns nil for an attribute that a file does not have.
func getxattr(path, name string) ([]byte, error) {
	data := make([]byte, bytesOfRevision3)
	n, err := unix.Lgetxattr(path, name, data)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
	}
	return data[:n], nil
}
