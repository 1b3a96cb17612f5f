// SPDX-License-Identifier: Apache-2.0

// Package rootfs mounts a container's root filesystem as containerd describes it,
// and unmounts it. What containerd's mount manager should have done before
// (templates, X-containerd options, transformed types) is refused: the shim would
// guess. Mounts inside the container are the OCI runtime's business.
//
// All functions block and are for jobs. Errors of class InvalidArgument are about
// what was asked for, those of class Internal are the kernel's.
package rootfs

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/mountinfo"
	"github.com/berthd/berth/shim/wire"
)

// unmountRounds bounds the mounts that are taken off one place, against something
// that mounts there all the time.
const unmountRounds = 1000

// Mount mounts ms on target, in order; a Target within one is relative to target
// and cannot leave it. The directory must exist. If one fails, those before it
// are undone.
//
// userns is the user namespace for mounts with uidmap and gidmap options, or -1 to
// make one from these options. It stays the caller's.
func Mount(ms []wire.Mount, target string, userns int) (err error) {
	var made []string
	defer func() {
		for i := len(made) - 1; err != nil && i >= 0; i-- {
			// What cannot be undone is found by the Unmount of the bundle's deletion.
			_ = detach(made[i])
		}
	}()
	for i := range ms {
		at, err := within(target, ms[i].Target)
		if err == nil {
			err = mount(&ms[i], at, userns)
		}
		if err != nil {
			return fault.In("mount "+ms[i].Type+" "+ms[i].Source+" on "+target, err)
		}
		made = append(made, at)
	}
	return nil
}

// within returns the path of sub below root. Symbolic links are followed as if
// root were the file system's.
func within(root, sub string) (string, error) {
	if sub == "" {
		return root, nil
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", kernel("open "+root, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, sub, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT,
	})
	if err != nil {
		return "", kernel("target "+sub, err)
	}
	defer unix.Close(fd)
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}

func mount(m *wire.Mount, at string, userns int) error {
	if err := check(m); err != nil {
		return err
	}
	o := parseOptions(m)
	if (o.uidmap == "") != (o.gidmap == "") {
		return fault.New(fault.InvalidArgument, "uidmap and gidmap come together or not at all")
	}
	if o.uidmap != "" && userns < 0 {
		fd, err := newUserns(o.uidmap, o.gidmap)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		userns = fd
	}
	if err := o.mount(m.Source, at, userns); err != nil {
		return err
	}
	if o.propagation != 0 {
		if err := unix.Mount("", at, "", o.propagation, ""); err != nil {
			_ = detach(at) // the first error says more
			return kernel("propagation", err)
		}
	}
	return nil
}

// mount makes the mount without its propagation. Nothing is left if it fails.
func (o *options) mount(source, at string, userns int) error {
	idmapped := o.uidmap != ""
	switch {
	case o.flags&unix.MS_REMOUNT != 0:
		return kernel("remount", unix.Mount(source, at, o.fstype, o.flags, strings.Join(o.data, ",")))
	case o.flags&unix.MS_BIND != 0 && idmapped:
		return o.bindMapped(source, at, userns)
	case o.flags&unix.MS_BIND != 0:
		return o.bind(source, at)
	case o.fstype == "overlay" && idmapped:
		return o.overlayMapped(source, at, userns)
	case o.fstype == "overlay":
		return o.overlay(source, at)
	}
	if o.loop {
		device, err := attachLoop(source, o.flags&unix.MS_RDONLY != 0, o.directIO)
		if err != nil {
			return err
		}
		// The mount holds the device from then on; without one it is free again.
		defer device.Close()
		source = device.Name()
	}
	if err := unix.Mount(source, at, o.fstype, o.flags, strings.Join(o.data, ",")); err != nil {
		return kernel("mount", err)
	}
	if idmapped {
		return remap(at, userns)
	}
	return nil
}

// bind makes a bind mount. The kernel ignores flags there; they need a remount,
// which replaces those that the source's mount had: they are kept, unless an
// option says otherwise.
func (o *options) bind(source, at string) error {
	if err := unix.Mount(source, at, "", o.flags&(unix.MS_BIND|unix.MS_REC), ""); err != nil {
		return kernel("bind", err)
	}
	if o.flags&^(unix.MS_BIND|unix.MS_REC) == 0 && o.cleared == 0 {
		return nil
	}
	const kept = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC // as in statfs(2)
	var st unix.Statfs_t
	err := unix.Statfs(at, &st)
	if err == nil {
		flags := o.flags | uintptr(st.Flags)&kept&^o.cleared
		err = unix.Mount("", at, "", flags&^unix.MS_REC|unix.MS_BIND|unix.MS_REMOUNT, "")
	}
	if err != nil {
		_ = detach(at) // the first error says more
		return kernel("bind with options", err)
	}
	return nil
}

// detach takes off the topmost mount at path, with all below it. It does not wait
// for users of its files. EINVAL: there is none.
func detach(path string) error {
	return unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// Unmount takes off all that is mounted at target or below it, and what a Mount
// that was killed left beside it. A target that does not exist, or that is a
// symbolic link, has nothing mounted.
func Unmount(target string) error {
	// Only what leads to target is resolved: target itself may be a file system
	// that does not answer any more.
	parent, err := filepath.EvalSymlinks(filepath.Dir(target))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Internal, "unmount", err)
	}
	path := filepath.Join(parent, filepath.Base(target))
	if err := removeMapped(path); err != nil {
		return err
	}
	return unmountAll(path)
}

func unmountAll(path string) error {
	for range unmountRounds {
		err := detach(path)
		if err == nil {
			continue
		}
		if err == unix.ENOENT {
			return nil
		}
		if err != unix.EINVAL {
			return kernel("unmount "+path, err)
		}
		if isEmpty(path) {
			return nil // so there is nowhere to be mounted at: spares reading the mount table
		}
		points, err := below(path)
		if err != nil {
			return fault.Wrap(fault.Internal, "unmount "+path, err)
		}
		if len(points) == 0 {
			return nil
		}
		for i := len(points) - 1; i >= 0; i-- {
			// EINVAL: it went with one above it.
			if err := detach(points[i]); err != nil && err != unix.EINVAL && err != unix.ENOENT {
				return kernel("unmount "+points[i], err)
			}
		}
	}
	return fault.New(fault.Unavailable, "unmount "+path+": new mounts keep appearing")
}

// below lists the mount points below dir.
func below(dir string) ([]string, error) {
	var points []string
	err := mountinfo.Each(mountinfo.Self, func(m *mountinfo.Mount) bool {
		if point := string(m.Point); strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
		return true
	})
	return points, err
}

// isEmpty tells whether path is a directory without entries.
func isEmpty(path string) bool {
	dir, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(1)
	return len(names) == 0
}

// kernel gives an error of a system call its class. NotFound and Unimplemented
// would tell containerd something about the container or about the service.
func kernel(what string, err error) error {
	switch err {
	case nil:
		return nil
	case unix.ENODEV:
		return fault.Wrap(fault.InvalidArgument, what+": unknown type of file system", err)
	}
	return fault.Wrap(fault.Internal, what, err)
}
