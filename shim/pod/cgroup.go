// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where a host has its cgroups; runtimes look nowhere else.
const cgroupRoot = "/sys/fs/cgroup"

// isSlice tells whether a cgroup's name is systemd's, which makes and removes its
// slices itself.
func isSlice(parent string) bool { return strings.HasSuffix(parent, ".slice") }

// makeCgroup makes the pod's cgroup where it is missing, and returns the
// directories that it made, parents first. The kubelet makes the cgroups of its
// pods itself; for other clients a runtime does it with the first container, but
// the pod's statistics are asked for before.
func makeCgroup(root, parent string) (made []string, err error) {
	if parent == "" || isSlice(parent) {
		return nil, nil
	}
	tops, err := hierarchies(root)
	if err != nil {
		return nil, err
	}
	for _, top := range tops {
		// Somebody's, who need not have it everywhere.
		if _, err := os.Stat(top + parent); err == nil {
			return nil, nil
		}
	}
	for _, top := range tops {
		for i := 1; i <= len(parent); i++ {
			if i < len(parent) && parent[i] != '/' {
				continue
			}
			dir := top + parent[:i]
			err := unix.Mkdir(dir, 0o755)
			switch {
			case err == nil:
				made = append(made, dir)
				if fsType(dir) == unix.CGROUP_SUPER_MAGIC {
					err = inheritCpuset(dir)
				}
			case errors.Is(err, unix.EEXIST):
				err = nil
			}
			if err != nil {
				return nil, errors.Join(kernel("cgroup "+dir, err), removeCgroups(made))
			}
		}
	}
	return made, nil
}

// removeCgroups removes what makeCgroup made.
func removeCgroups(made []string) error {
	var errs []error
	for i := len(made) - 1; i >= 0; i-- {
		if err := unix.Rmdir(made[i]); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, kernel("cgroup "+made[i], err))
		}
	}
	return errors.Join(errs...)
}

// hierarchies returns the mount points of cgroups, which are one in v2. In v1 what
// systemd has beside the controllers counts as well, as it does for runtimes.
func hierarchies(root string) ([]string, error) {
	if fsType(root) == unix.CGROUP2_SUPER_MAGIC {
		return []string{root}, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, kernel("cgroups", err)
	}
	var tops []string
	for _, e := range entries {
		// Controllers that share a hierarchy have symbolic links to it.
		if dir := filepath.Join(root, e.Name()); e.IsDir() && fsType(dir) == unix.CGROUP_SUPER_MAGIC {
			tops = append(tops, dir)
		}
	}
	return tops, nil
}

func fsType(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0
	}
	return int64(st.Type)
}

// inheritCpuset gives a new cgroup of v1 the processors and memory nodes of the one
// above: without them it takes no process. (In v2 empty means the same.)
func inheritCpuset(dir string) error {
	for _, name := range [...]string{"cpuset.cpus", "cpuset.mems"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, unix.ENOENT) {
			return nil // another controller's
		}
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(text)) > 0 {
			continue
		}
		if text, err = os.ReadFile(filepath.Join(filepath.Dir(dir), name)); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0); err != nil {
			return err
		}
	}
	return nil
}
