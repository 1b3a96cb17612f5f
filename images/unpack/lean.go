// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"io/fs"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
)

// leans tells whether a layer that was unpacked apart from those below it needs
// them: it has files in directories that it does not have itself. containerd makes
// such a directory with the owner and the mode of the one below, which it cannot
// see now. It also leaves it the time at which it was made, whereas a directory of
// the layer has its own: by this one is told from the other. A layer that was
// made in the future leans as well, to be on the safe side.
func leans(mounts []mount.Mount, start time.Time) bool {
	if kind := mounts[len(mounts)-1].Type; kind != "bind" && kind != "overlay" {
		return false // the snapshotter does not have directories, or sees to it
	}
	root := place(mounts)
	// Clocks of file systems go in ticks of up to 10 ms.
	start = start.Add(-time.Second)
	found := false
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() || path == root {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.ModTime().After(start) {
			found = true
			return fs.SkipAll
		}
		return err
	})
	return found || err != nil
}
