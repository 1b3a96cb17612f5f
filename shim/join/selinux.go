// SPDX-License-Identifier: Apache-2.0

package join

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

const (
	selinuxMount = "/sys/fs/selinux"
	selinuxXattr = "security.selinux"
	// maxLabelBytes is the size of a page, which the kernel's own file takes.
	maxLabelBytes = 4096
)

// selinux tells whether the kernel enforces or at least logs a policy.
func selinux() bool {
	var st unix.Statfs_t
	return unix.Statfs(selinuxMount, &st) == nil && st.Type == unix.SELINUX_MAGIC && st.Flags&unix.ST_RDONLY == 0
}

// relabel gives a file of the pod, or a folder with all that is in it, the label
// of a container's files. A filesystem without labels is left as it is.
func relabel(path, label string) error {
	label = shared(labelOf(path), label)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		err = relabelIn(os.NewFile(uintptr(fd), path), label)
	} else if err == unix.ENOTDIR {
		err = nil
	}
	if err == nil {
		err = setLabel(path, label)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, "label "+label+" on "+path, err)
	}
	return nil
}

// relabelIn labels what is in a folder, which it closes. Members of the pod write
// there meanwhile: nothing is followed, and what is gone is gone.
func relabelIn(dir *os.File, label string) error {
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			fd, err := unix.Openat(int(dir.Fd()), e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err == nil {
				err = relabelIn(os.NewFile(uintptr(fd), e.Name()), label)
			}
			if err != nil && err != unix.ENOENT && err != unix.ENOTDIR && err != unix.ELOOP {
				return err
			}
		}
		if err := setLabel(filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), e.Name()), label); err != nil {
			return err
		}
	}
	return nil
}

func setLabel(path, label string) error {
	switch err := unix.Lsetxattr(path, selinuxXattr, []byte(label), 0); err {
	case unix.ENOTSUP, unix.ENOENT:
		return nil
	default:
		return err
	}
}

// labelOf returns a file's label, "" if it has none.
func labelOf(path string) string {
	b := make([]byte, maxLabelBytes)
	n, err := unix.Lgetxattr(path, selinuxXattr, b)
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(b[:n]), "\x00")
}

// shared returns the label for a file that has one already. With a pause container
// all members have the categories that were drawn for the pod. Without, and
// unless the pod's author names them, containerd draws for each member anew: the
// label of the last would shut the others out. A file that has another member's
// is therefore left to all categories.
func shared(present, label string) string {
	const fields = 4 // user:role:type:level
	have, want := strings.SplitN(present, ":", fields), strings.SplitN(label, ":", fields)
	if len(have) < fields || len(want) < fields || have[2] != want[2] || have[3] == want[3] {
		return label
	}
	want[3] = "s0"
	return strings.Join(want, ":")
}
