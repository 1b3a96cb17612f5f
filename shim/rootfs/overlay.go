// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

const lowerdir = "lowerdir="

// overlay mounts an overlay. mount(2) takes one page of options, which an image of
// many layers exceeds; then the layers are named relative to the directory that
// they have in common.
func (o *options) overlay(source, at string) error {
	dir := ""
	data := strings.Join(o.data, ",")
	if len(data) >= os.Getpagesize() {
		var short []string
		dir, short = shorten(o.data)
		data = strings.Join(short, ",")
	}
	if len(data) >= os.Getpagesize() {
		return fault.New(fault.InvalidArgument, "overlay options of "+strconv.Itoa(len(data))+" bytes do not fit into a page")
	}
	if dir == "" {
		return kernel("mount", unix.Mount(source, at, o.fstype, o.flags, data))
	}
	return kernel("mount", mountFrom(dir, func() error {
		return unix.Mount(source, at, o.fstype, o.flags, data)
	}))
}

// mountFrom calls f with dir as working directory, which is the process's: so in a
// thread that has its own, and that is given up afterwards.
func mountFrom(dir string, f func() error) error {
	result := make(chan error, 1) // one send
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- func() error {
			back, err := unix.Open(".", unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(back)
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Chdir(dir); err != nil {
				return err
			}
			// The main thread cannot end, and would go on holding dir.
			defer unix.Fchdir(back)
			return f()
		}()
	}()
	return <-result
}

// shorten returns the directory that all lower directories have in common, and the
// options with their names relative to it. Empty if there is none.
func shorten(data []string) (string, []string) {
	i, dirs := lowerDirs(data)
	dir := commonParent(dirs)
	if dir == "" {
		return "", data
	}
	short := append([]string(nil), data...)
	relative := make([]string, len(dirs))
	for i, d := range dirs {
		relative[i] = strings.TrimPrefix(d, dir)
	}
	short[i] = lowerdir + strings.Join(relative, ":")
	return unescape(dir), short
}

// lowerDirs returns the index of the lowerdir option and its directories, topmost
// first, with overlayfs's escapes; -1 if there is none.
func lowerDirs(data []string) (int, []string) {
	for i, o := range data {
		if after, ok := strings.CutPrefix(o, lowerdir); ok {
			return i, splitDirs(after)
		}
	}
	return -1, nil
}

// splitDirs splits at colons that are not escaped by a backslash.
func splitDirs(s string) []string {
	var dirs []string
	start := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ':':
			dirs = append(dirs, s[start:i])
			start = i + 1
		}
	}
	return append(dirs, s[start:])
}

// unescape removes the backslashes with which overlayfs protects colons, commas
// and backslashes in names.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// commonParent returns the directory, with a slash at its end, that all dirs lie
// below. Empty if that is only the root, or if one is relative or empty.
func commonParent(dirs []string) string {
	if len(dirs) == 0 {
		return ""
	}
	common := dirs[0]
	for _, d := range dirs[1:] {
		n := 0
		for n < len(common) && n < len(d) && common[n] == d[n] {
			n++
		}
		common = common[:n]
	}
	common = common[:strings.LastIndexByte(common, '/')+1]
	if len(common) < 2 || common[0] != '/' {
		return ""
	}
	for _, d := range dirs {
		if len(d) == len(common) {
			return ""
		}
	}
	return common
}

// mappedDir is where the layers of an id-mapped overlay at path are mounted while
// the overlay is made: overlayfs takes only layers that have a place.
func mappedDir(path string) string { return path + ".idmap" }

// overlayMapped mounts an overlay over id-mapped clones of its lower directories.
// The upper directory has the mapped ids already: the snapshotter made it so.
func (o *options) overlayMapped(source, at string, userns int) (err error) {
	i, dirs := lowerDirs(o.data)
	if i < 0 {
		return fault.New(fault.InvalidArgument, "id-mapped overlay without lowerdir")
	}
	scratch := mappedDir(at)
	if err := removeMapped(at); err != nil {
		return err
	}
	defer func() {
		if cerr := removeMapped(at); err == nil && cerr != nil {
			_ = detach(at) // the caller is told that nothing is mounted
			err = cerr
		}
	}()
	mapped := make([]string, len(dirs))
	for n, dir := range dirs {
		clone := filepath.Join(scratch, strconv.Itoa(n))
		if err := os.MkdirAll(clone, 0o700); err != nil {
			return fault.Wrap(fault.Internal, "id-mapped layer", err)
		}
		if err := cloneMapped(unescape(dir), clone, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, userns, 0); err != nil {
			return err
		}
		mapped[n] = escape(clone)
	}
	data := append([]string(nil), o.data...)
	data[i] = lowerdir + strings.Join(mapped, ":")
	return (&options{fstype: o.fstype, flags: o.flags, data: data}).overlay(source, at)
}

// escape is the inverse of unescape.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(s)
}

// removeMapped removes the place of id-mapped layers beside path, if it is there.
func removeMapped(path string) error {
	scratch := mappedDir(path)
	entries, err := os.ReadDir(scratch)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Internal, "id-mapped layers", err)
	}
	for _, e := range entries {
		clone := filepath.Join(scratch, e.Name())
		if err := unmountAll(clone); err != nil {
			return err
		}
		// Not RemoveAll: were a layer still there, it would lose its files.
		if err := unix.Rmdir(clone); err != nil {
			return kernel("remove "+clone, err)
		}
	}
	return kernel("remove "+scratch, unix.Rmdir(scratch))
}
