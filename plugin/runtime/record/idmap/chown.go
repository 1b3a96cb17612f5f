// SPDX-License-Identifier: Apache-2.0

package idmap

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/labels"
)

// Chown gives everything below root, and root, to the IDs that the map has for the
// present owners. Files keep their setuid and setgid bits and their capabilities,
// which then count in the namespace. An owner that is not mapped is
// FailedPrecondition. Nobody else may change the tree meanwhile.
func Chown(ctx context.Context, root string, m labels.IDMap) error {
	type inode struct{ dev, ino uint64 }
	linked := map[inode]bool{} // that have other names, and are done
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		id := inode{st.Dev, st.Ino}
		if linked[id] {
			return nil
		}
		linked[id] = st.Nlink > 1 && !info.IsDir()
		return chown(path, info, m)
	})
	if err != nil {
		return fmt.Errorf("map owners below %s: %w", root, err)
	}
	return nil
}

func chown(path string, info fs.FileInfo, m labels.IDMap) error {
	st := info.Sys().(*syscall.Stat_t)
	uid, known := host(m.UIDs, st.Uid)
	gid, knownGroup := host(m.GIDs, st.Gid)
	if !known || !knownGroup {
		return fmt.Errorf("%s: owner %d:%d is not mapped: %w", path, st.Uid, st.Gid, errdefs.ErrFailedPrecondition)
	}
	capability, err := readCapability(path, info)
	if err != nil {
		return err
	}
	if err := os.Lchown(path, int(uid), int(gid)); err != nil {
		return err
	}
	// What chown(2) takes away from a file that is given away.
	if mode := info.Mode(); mode&fs.ModeSymlink == 0 && mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	if capability == nil {
		return nil
	}
	root, _ := host(m.UIDs, 0)
	return unix.Lsetxattr(path, capabilityXattr, forRoot(capability, root), 0)
}

const (
	capabilityXattr = "security.capability"
	// From linux/capability.h: the second revision of the attribute has five words,
	// the third one more, the user ID of the root of the namespace it counts in.
	maxCapabilityBytes = 24
	rootlessBytes      = 20
	revisionMask       = 0xFF000000
	revision3          = 0x03000000
)

func readCapability(path string, info fs.FileInfo) ([]byte, error) {
	if !info.Mode().IsRegular() {
		return nil, nil
	}
	b := make([]byte, maxCapabilityBytes)
	n, err := unix.Lgetxattr(path, capabilityXattr, b)
	switch err {
	case nil:
		return b[:n], nil
	case unix.ENODATA, unix.ENOTSUP:
		return nil, nil
	}
	return nil, fmt.Errorf("%s: %s: %w", path, capabilityXattr, err)
}

// forRoot returns a capability that counts in the namespace with that root: without
// one it would count in the host's only.
func forRoot(capability []byte, root uint32) []byte {
	if len(capability) < rootlessBytes {
		return capability // of the first revision, which has no root
	}
	b := append([]byte{}, capability[:rootlessBytes]...)
	magic := binary.LittleEndian.Uint32(b)
	binary.LittleEndian.PutUint32(b, magic&^revisionMask|revision3)
	return binary.LittleEndian.AppendUint32(b, root)
}
