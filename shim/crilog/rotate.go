// SPDX-License-Identifier: Apache-2.0

package crilog

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// rotateIfDue replaces the file by an empty one, unless it is empty: a line that
// is longer than the limit is written whole. When rotation fails, or would not
// be safe, the file grows on, and the next attempt comes a file's size later.
func (w *Writer) rotateIfDue() {
	if w.size == 0 || w.size < w.retryAt {
		return
	}
	if err := w.rotate(); err != nil {
		if w.retryAt == 0 {
			w.warn("the log is not rotated", err)
		}
		w.retryAt = w.size + w.o.MaxSize
	}
}

// rotate opens the new file before it gives up the old one, and lets the path
// name a log at every moment. All names are resolved below one directory, opened
// once without following symbolic links: the log may be in a directory that a
// pod can write to.
func (w *Writer) rotate() error {
	dir, name, err := w.directory()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	switch err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT: // somebody else renamed it: only a new one is needed
	case err != nil:
		return pathError("stat", w.o.Path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return unsafePath(w.o.Path, "not a regular file")
	}
	tmp := name + ".tmp"
	if err := unix.Unlinkat(dir, tmp, 0); err != nil && err != unix.ENOENT {
		return pathError("unlink", w.o.Path+".tmp", err)
	}
	fd, err := unix.Openat(dir, tmp, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, fileMode)
	if err != nil {
		return pathError("open", w.o.Path+".tmp", err)
	}
	if err = w.shift(dir, name); err == nil {
		err = unix.Renameat(dir, tmp, dir, name)
	}
	if err != nil {
		_ = unix.Close(fd)
		_ = unix.Unlinkat(dir, tmp, 0)
		return pathError("rename", w.o.Path, err)
	}
	w.replace(fd, 0)
	return nil
}

// shift renames the chain of rotated files by one, oldest first, and links the
// log to the first place.
func (w *Writer) shift(dir int, name string) error {
	if w.o.MaxFiles <= 1 {
		return nil
	}
	for i := w.o.MaxFiles - 1; i > 0; i-- {
		err := unix.Renameat(dir, rotated(name, i), dir, rotated(name, i+1))
		if err != nil && err != unix.ENOENT {
			return err
		}
	}
	err := unix.Linkat(dir, name, dir, rotated(name, 1), 0)
	if err == unix.EPERM || err == unix.EOPNOTSUPP || err == unix.EMLINK { // no hard links here
		err = unix.Renameat(dir, name, dir, rotated(name, 1))
	}
	if err == unix.ENOENT {
		return nil
	}
	return err
}

func rotated(name string, i int) string { return name + "." + strconv.Itoa(i) }

// directory opens the log's directory if renaming in it is safe.
func (w *Writer) directory() (dir int, name string, err error) {
	i := strings.LastIndexByte(w.o.Path, '/')
	parent, name := w.o.Path[:i+1], w.o.Path[i+1:]
	for part := range strings.SplitSeq(w.o.Path, "/") {
		if part == ".." {
			return -1, "", unsafePath(w.o.Path, "it holds ..")
		}
	}
	if !w.allowed(parent) {
		return -1, "", unsafePath(w.o.Path, "not below an allowed directory")
	}
	dir, err = unix.Openat2(unix.AT_FDCWD, parent, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err == unix.ELOOP {
		return -1, "", unsafePath(w.o.Path, "a directory is a symbolic link")
	}
	if err != nil {
		return -1, "", pathError("open", parent, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		_ = unix.Close(dir)
		return -1, "", pathError("stat", parent, err)
	}
	if st.Mode&unix.S_IWOTH != 0 {
		_ = unix.Close(dir)
		return -1, "", unsafePath(w.o.Path, "everybody can write to its directory")
	}
	return dir, name, nil
}

// allowed tells whether parent, which ends with a slash, is at or below one of
// the allowed directories.
func (w *Writer) allowed(parent string) bool {
	if len(w.o.AllowedDirs) == 0 {
		return true
	}
	for _, d := range w.o.AllowedDirs {
		if strings.HasPrefix(parent, strings.TrimRight(d, "/")+"/") {
			return true
		}
	}
	return false
}

func unsafePath(path, why string) error {
	return fault.Wrap(fault.FailedPrecondition, "log", &os.PathError{Op: "rotate", Path: path, Err: fault.New(fault.FailedPrecondition, why)})
}
