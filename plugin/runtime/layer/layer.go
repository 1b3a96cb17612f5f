// SPDX-License-Identifier: Apache-2.0

// Package layer looks into the layers of an image as overlayfs shows them together,
// without mounting anything. It changes nothing.
package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Part is the mount of a file or directory in what a snapshot's read-only mount
// shows, which need not be mounted anywhere. A path that is not there is NotFound, one
// through a symbolic link, which would be followed on the host, InvalidArgument.
func Part(root *mount.Mount, path string) (*mount.Mount, error) {
	if !filepath.IsLocal(path) {
		return nil, fmt.Errorf("path %q: %w", path, errdefs.ErrInvalidArgument)
	}
	layers, options, err := layersOf(root)
	if err != nil {
		return nil, err
	}
	var parts []string // from the uppermost layer down, as overlayfs has them
	for _, layer := range layers {
		at, state, err := locate(layer, filepath.Clean(path))
		if err != nil {
			return nil, fmt.Errorf("path %q: %w", path, err)
		}
		if at != "" && (len(parts) == 0 || isDir(at)) { // a file below a directory is hidden by it
			parts = append(parts, at)
		}
		if state == covered {
			break
		}
	}
	switch len(parts) {
	case 0:
		return nil, fmt.Errorf("path %q: %w", path, errdefs.ErrNotFound)
	case 1: // overlayfs wants two
		return &mount.Mount{Type: "bind", Source: parts[0], Options: []string{"rbind", "ro"}}, nil
	}
	lower := strings.Join(parts, ":")
	if strings.Count(lower, ":") != len(parts)-1 {
		return nil, fmt.Errorf("path %q: colons: %w", path, errdefs.ErrNotImplemented)
	}
	return &mount.Mount{Type: "overlay", Source: "overlay", Options: append(options, "lowerdir="+lower)}, nil
}

// layersOf are the directories of a mount, the uppermost first, and the options that
// are not about them.
func layersOf(m *mount.Mount) (dirs, options []string, err error) {
	switch m.Type {
	case "bind":
		return []string{m.Source}, nil, nil
	case "overlay":
		for _, o := range m.Options {
			if lower, found := strings.CutPrefix(o, "lowerdir="); found {
				dirs = strings.Split(lower, ":")
			} else {
				options = append(options, o)
			}
		}
		return dirs, options, nil
	}
	return nil, nil, fmt.Errorf("a part of a %s mount: %w", m.Type, errdefs.ErrNotImplemented)
}

// visibility is whether the layers below one have a say.
type visibility bool

const (
	shared  visibility = false
	covered visibility = true
)

// locate finds a path in one layer, "" if it is not there. It follows no symbolic
// links, and reads overlayfs' marks: a device 0/0 for what was removed, an attribute
// of directories that hide those below.
func locate(layer, path string) (string, visibility, error) {
	state := shared
	at := layer
	names := strings.Split(path, "/")
	for i, name := range names {
		at = filepath.Join(at, name)
		info, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return "", state, nil
		}
		if err != nil {
			return "", state, err
		}
		switch mode := info.Mode(); {
		case mode&fs.ModeCharDevice != 0 && isWhiteout(at):
			return "", covered, nil
		case mode&fs.ModeSymlink != 0:
			return "", covered, fmt.Errorf("%s is a symbolic link: %w", strings.Join(names[:i+1], "/"), errdefs.ErrInvalidArgument)
		case mode.IsDir():
			if isOpaque(at) {
				state = covered
			}
		case i == len(names)-1:
			return at, covered, nil // a file
		default:
			return "", covered, nil // a file where the path has a directory
		}
	}
	return at, state, nil
}

func isDir(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

func isWhiteout(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func isOpaque(dir string) bool {
	var value [1]byte
	for _, name := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		if n, err := unix.Lgetxattr(dir, name, value[:]); err == nil && n == 1 && value[0] == 'y' {
			return true
		}
	}
	return false
}
