// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// cloneMapped mounts a copy of the mount at source on at, with the ids that userns
// maps and the attributes of attr. recursive is AT_RECURSIVE or 0. Needs Linux
// 5.12, and a file system that allows it (mount_setattr(2)).
func cloneMapped(source, at string, attr *unix.MountAttr, userns int, recursive uint) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|recursive)
	if err != nil {
		return kernel("open "+source, err)
	}
	defer unix.Close(tree)
	if err := mapTree(tree, attr, userns, recursive); err != nil {
		return fault.In(source, err)
	}
	return attach(tree, at)
}

// mapTree gives a tree that is not mounted anywhere yet its ids and attributes.
func mapTree(tree int, attr *unix.MountAttr, userns int, recursive uint) error {
	attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
	attr.Propagation = unix.MS_PRIVATE
	attr.Userns_fd = uint64(userns)
	return kernel("map ids", unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|recursive, attr))
}

func attach(tree int, at string) error {
	return kernel("attach", unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// bindMapped makes an id-mapped bind mount.
func (o *options) bindMapped(source, at string, userns int) error {
	// The first four flags have the same values as mount(2)'s.
	const same = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	attr := &unix.MountAttr{Attr_set: uint64(o.flags & same), Attr_clr: uint64(o.cleared & same)}
	if o.flags&unix.MS_NOATIME != 0 {
		attr.Attr_set |= unix.MOUNT_ATTR_NOATIME
		attr.Attr_clr |= unix.MOUNT_ATTR__ATIME
	}
	if o.flags&unix.MS_NODIRATIME != 0 {
		attr.Attr_set |= unix.MOUNT_ATTR_NODIRATIME
	}
	recursive := uint(0)
	if o.flags&unix.MS_REC != 0 {
		recursive = unix.AT_RECURSIVE
	}
	return cloneMapped(source, at, attr, userns, recursive)
}

// remap replaces the mount at path, just made, by an id-mapped one. It takes the
// mount off if that fails.
func remap(path string, userns int) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if derr := detach(path); err == nil {
		err = derr
	}
	if err != nil {
		return kernel("map ids", err)
	}
	defer unix.Close(tree)
	if err := mapTree(tree, &unix.MountAttr{}, userns, 0); err != nil {
		return err
	}
	return attach(tree, path)
}

// newUserns returns a descriptor of a new user namespace with the given mappings,
// "inside:outside:size" separated by commas.
//
// A namespace is born with a process. This one is a fork that only waits to be
// killed: it has no exit signal, so that it is nobody's business but this
// function's (wait4(2) without __WALL does not see it).
func newUserns(uidmap, gidmap string) (int, error) {
	uids, err := mapLines(uidmap)
	if err != nil {
		return -1, err
	}
	gids, err := mapLines(gidmap)
	if err != nil {
		return -1, err
	}
	// The child dies with the thread that made it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, pidfd, errno := forkWaiting(unix.CLONE_NEWUSER)
	if errno != 0 {
		return -1, kernel("user namespace", errno)
	}
	defer func() {
		// It cannot have ended before, and nothing can be done about a failure.
		_ = unix.PidfdSendSignal(int(pidfd), unix.SIGKILL, nil, 0)
		for unix.Waitid(unix.P_PIDFD, int(pidfd), nil, unix.WEXITED|unix.WALL, nil) == unix.EINTR {
		}
		_ = unix.Close(int(pidfd))
	}()
	proc := "/proc/" + strconv.Itoa(int(pid))
	if err := os.WriteFile(proc+"/uid_map", uids, 0); err != nil {
		return -1, fault.Wrap(fault.Internal, "uidmap "+uidmap, err)
	}
	if err := os.WriteFile(proc+"/gid_map", gids, 0); err != nil {
		return -1, fault.Wrap(fault.Internal, "gidmap "+gidmap, err)
	}
	fd, err := unix.Open(proc+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return fd, kernel("user namespace", err)
}

// cloneArgs is struct clone_args of clone3(2) in its first version.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

// forkWaiting forks, with the given flags of clone(2). The child runs on a copy of
// this process's memory, in which no other thread exists: it may do nothing but
// bare system calls, and must not grow the stack.
//
//go:norace
//go:nosplit
func forkWaiting(flags uint64) (pid uintptr, pidfd int32, errno syscall.Errno) {
	args := cloneArgs{
		flags: flags | unix.CLONE_PIDFD,
		pidfd: uint64(uintptr(unsafe.Pointer(&pidfd))),
	}
	pid, _, errno = unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno != 0 || pid != 0 {
		return pid, pidfd, errno
	}
	_, _, _ = unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
	for {
		_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}

// mapLines turns "0:100000:65536,..." into the lines of a map file.
func mapLines(mapping string) ([]byte, error) {
	var lines []byte
	for entry := range strings.SplitSeq(mapping, ",") {
		fields := strings.Split(entry, ":")
		ok := len(fields) == 3
		for i := 0; ok && i < len(fields); i++ {
			n, err := strconv.ParseUint(fields[i], 10, 32)
			ok = err == nil && (i < 2 || n > 0)
			lines = strconv.AppendUint(lines, n, 10)
			lines = append(lines, " \n"[i/2])
		}
		if !ok {
			return nil, fault.New(fault.InvalidArgument, "id mapping "+mapping+": want inside:outside:size")
		}
	}
	return lines, nil
}
