// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/sandbox"
)

// shmBytes is the size of a pod's /dev/shm, podsandbox's. Nothing in CRI changes
// it: who needs more mounts an emptyDir of memory there.
const shmBytes = 64 << 20

// makeDir makes the pod's directory, which is not there.
func makeDir(dir string) error {
	if err := makeParents(filepath.Dir(dir)); err != nil {
		return err
	}
	err := unix.Mkdir(dir, 0o711)
	if errors.Is(err, unix.EEXIST) {
		return fault.New(fault.AlreadyExists, "pod directory "+dir+": made by another meanwhile")
	}
	if err == nil {
		err = unix.Chmod(dir, 0o711) // whatever the umask
	}
	return kernel("pod directory "+dir, err)
}

// makeParents is like MkdirAll, whatever the umask.
func makeParents(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := makeParents(filepath.Dir(dir)); err != nil {
		return err
	}
	err := unix.Mkdir(dir, 0o711)
	switch {
	case errors.Is(err, unix.EEXIST): // another pod's maker was first
		return nil
	case err != nil:
		return kernel("directory "+dir, err)
	}
	return kernel("directory "+dir, unix.Chmod(dir, 0o711))
}

// makeFiles makes what the pod's containers mount. hosts is a copy: the kubelet
// manages those of its containers itself.
func (p *planned) makeFiles() error {
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return fault.Wrap(fault.FailedPrecondition, "the host's hosts file", err)
	}
	for _, f := range [...]struct {
		name string
		text []byte
	}{
		{sandbox.HostnameFile, []byte(p.hostname + "\n")},
		{sandbox.HostsFile, hosts},
		{sandbox.ResolvFile, p.resolv},
	} {
		if err := p.makeFile(f.name, f.text); err != nil {
			return err
		}
	}
	if err := unix.Mkdir(filepath.Join(p.dir, sandbox.MembersDir), 0o700); err != nil {
		return kernel("directory "+sandbox.MembersDir, err)
	}
	return p.mountShm()
}

func (p *planned) makeFile(name string, text []byte) error {
	f, err := os.OpenFile(filepath.Join(p.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return kernel("file "+name, err)
	}
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return kernel("file "+name, err)
	}
	if err := f.Chmod(0o644); err != nil {
		return kernel("file "+name, err)
	}
	if p.owns(user) {
		if err := f.Chown(p.rootUID, p.rootGID); err != nil {
			return kernel("file "+name, err)
		}
	}
	if p.mountLabel != "" {
		if err := unix.Fsetxattr(int(f.Fd()), "security.selinux", append([]byte(p.mountLabel), 0), 0); err != nil {
			return kernel("label of the file "+name, err)
		}
	}
	return kernel("file "+name, f.Close())
}

// mountShm mounts the pod's /dev/shm. It belongs to the pod's root, as the private
// one of a container does.
func (p *planned) mountShm() error {
	if !p.owns(ipc) {
		if _, err := os.Stat("/dev/shm"); err != nil {
			return fault.Wrap(fault.FailedPrecondition, "the pod shares the host's IPC namespace", err)
		}
		return nil
	}
	dir := filepath.Join(p.dir, sandbox.ShmDir)
	if err := unix.Mkdir(dir, 0o700); err != nil {
		return kernel("directory "+sandbox.ShmDir, err)
	}
	data := "mode=1777,size=" + strconv.Itoa(shmBytes)
	if p.owns(user) {
		data += ",uid=" + strconv.Itoa(p.rootUID) + ",gid=" + strconv.Itoa(p.rootGID)
	}
	if p.mountLabel != "" {
		data += `,context="` + p.mountLabel + `"`
	}
	return kernel("mount "+sandbox.ShmDir, unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data))
}

// selinuxRoot is where SELinux is mounted, if it is enabled.
const selinuxRoot = "/sys/fs/selinux"

// checkLabel decides the SELinux context of the pod's files: user and level are the
// pod's, the type is the one that policies let containers write to.
func (p *planned) checkLabel() error {
	l := p.config.Linux.Security.SELinux
	if l == nil {
		return nil
	}
	for _, f := range [...]struct{ what, value, more string }{
		{"user", l.User, ""}, {"role", l.Role, ""}, {"type", l.Type, ""}, {"level", l.Level, ":,"},
	} {
		if strings.ContainsFunc(f.value, func(r rune) bool { return (r == ':' || unusual(r)) && !strings.ContainsRune(f.more, r) }) {
			return invalid("SELinux " + f.what + " " + strconv.Quote(f.value) + ": no such name")
		}
	}
	if fsType(selinuxRoot) != unix.SELINUX_MAGIC || l.Level == "" {
		return nil
	}
	owner := l.User
	if owner == "" {
		owner = "system_u"
	}
	p.mountLabel = owner + ":object_r:container_file_t:" + l.Level
	return nil
}
