// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"golang.org/x/sys/unix"
)

// oldestKernel has what the shim waits for processes with: P_PIDFD (waitid(2)).
const oldestKernel = "5.4"

func (d *Doctor) kernel(context.Context) []Check {
	version := d.read("/proc/sys/kernel/osrelease")
	checks := []Check{
		feature{"kernel", "everything: processes are waited for by pidfd", "run Linux " + oldestKernel + " or newer", Missing}.
			is(atLeast(version, oldestKernel), "Linux %s", version),
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		unix.Close(fd)
	}
	checks = append(checks,
		feature{"pidfd", "everything: processes are signalled and waited for by pidfd", "allow pidfd_open(2), which a sandbox or seccomp filter refuses", Missing}.
			by(err, "pidfd_open works"),
		d.overlay(),
		d.userNamespaces(),
		d.idMappedMounts(),
		feature{"recursive read-only mounts", "read-only mounts with all below them (Kubernetes: recursiveReadOnly)", "run Linux 5.12 or newer", Warn}.
			is(atLeast(version, "5.12"), "mount_setattr(2) came with 5.12; this is %s", version),
	)
	return append(checks, d.tmpfs())
}

func (d *Doctor) overlay() Check {
	f := feature{"overlayfs", "the default snapshotter", "load the module overlay, or use another snapshotter", Missing}
	for line := range strings.Lines(d.read("/proc/filesystems")) {
		if strings.TrimSpace(strings.TrimPrefix(line, "nodev")) == "overlay" {
			return f.is(true, "the kernel has it")
		}
	}
	return f.is(false, "not in /proc/filesystems")
}

func (d *Doctor) userNamespaces() Check {
	f := feature{"user namespaces", "pods with a user namespace", "set user.max_user_namespaces above 0 and build the kernel with CONFIG_USER_NS", Warn}
	if _, err := os.Stat(d.at("/proc/self/ns/user")); err != nil {
		return f.by(err, "")
	}
	n, err := strconv.Atoi(d.read("/proc/sys/user/max_user_namespaces"))
	if err != nil {
		return f.by(err, "")
	}
	return f.is(n > 0, "at most %d", n)
}

func (d *Doctor) idMappedMounts() Check {
	f := feature{"id-mapped mounts", "pods with a user namespace without copies of their images", "run Linux 5.19 or newer, where overlayfs has them", Warn}
	ok, err := overlayutils.SupportsIDMappedMounts()
	if err == nil && !ok {
		err = fmt.Errorf("overlayfs cannot be id-mapped")
	}
	return f.by(err, "overlayfs can be id-mapped")
}

func (d *Doctor) tmpfs() Check {
	var st unix.Statfs_t
	err := unix.Statfs(d.at("/run"), &st)
	f := feature{"/run", "state that has to be gone after a reboot", "mount a tmpfs at /run, or choose another state directory", Warn}
	if err != nil {
		return f.by(err, "")
	}
	return f.is(st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC, "file system type %#x", st.Type)
}

// at is where a path of the system is looked for.
func (d *Doctor) at(path string) string { return d.root + path }

// read returns a file without the space around, "" if it cannot be read.
func (d *Doctor) read(path string) string {
	b, _ := os.ReadFile(d.at(path))
	return strings.TrimSpace(string(b))
}

func (d *Doctor) exists(path string) bool {
	_, err := os.Stat(d.at(path))
	return err == nil
}

// atLeast compares versions such as "6.1.0-13-amd64" number by number, as far as
// least goes.
func atLeast(version, least string) bool {
	have := strings.FieldsFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	for i, text := range strings.Split(least, ".") {
		want, _ := strconv.Atoi(text)
		got := 0
		if i < len(have) {
			got, _ = strconv.Atoi(have[i])
		}
		if got != want {
			return got > want
		}
	}
	return true
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
