// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A process that joins a user namespace must have one thread, and a Go program has
// several. So a pod's namespaces are made by a fork of this process that executes
// nothing: the helper. It runs on a copy of this process's memory, in which no
// other thread exists. It may do nothing but bare system calls on memory that was
// prepared before, must not grow the stack and must not write pointers; the
// functions for that are those named run here, all of them nosplit.

// step is what the helper was doing.
type step int32

const (
	stepDone step = iota
	stepJoinUser
	stepMapped
	stepCredentials
	stepUnshare
	stepHostname
	stepDomain
	stepNetwork
	stepSysctl
	stepClone
	stepRoot
	stepStdio
	stepDrop
	stepExec
)

// report is what the helper tells through its pipe: once for itself, once more
// when the init fails before its exec.
type report struct {
	step  step
	index int32 // which of the sysctls
	errno int32
	pid   int32 // the init's
}

const reportBytes = int(unsafe.Sizeof(report{}))

// setting is one file below /proc/sys and what to write into it. path ends in a
// zero byte.
type setting struct {
	path  *byte
	value []byte
}

// job is all that the helper works on.
type job struct {
	flags   uint64  // of clone(2) for the helper: CLONE_NEWUSER or none
	unshare uintptr // flags of unshare(2), possibly none
	status  [2]int  // pipe: reports
	orders  [2]int  // pipe: one byte after the id maps, if flags has CLONE_NEWUSER, and one that lets the helper go

	userns   int // to join, or -1
	netns    int // to join, or -1
	hostname []byte
	domain   []byte
	settings []setting

	init    bool
	root    int // the init's root directory
	null    int // its descriptors 0 to 2
	program int
	id      uintptr // its user and group
	argv    [2]*byte
	empty   *byte
	filter  unix.SockFprog

	clone  cloneArgs
	report report
	order  [1]byte
}

// cloneArgs is struct clone_args of clone3(2) in its first version.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

// raw is a bare system call, like syscall.RawSyscall6, which needs more stack than
// there is for what must not grow it.
func raw(nr, a, b, c, d, e uintptr) (r uintptr, errno syscall.Errno)

// run forks the helper. It has no exit signal, so that it is nobody's business but
// its maker's (wait4(2) without __WALL does not see it), and no signal ever reaches
// it: this program's handlers would not work there.
//
//go:norace
//go:nosplit
func (j *job) run() (pid int, pidfd int, errno syscall.Errno) {
	var before uint64
	all, fd := ^uint64(0), int32(-1)
	j.clone = cloneArgs{flags: j.flags | unix.CLONE_PIDFD, pidfd: uint64(uintptr(unsafe.Pointer(&fd)))}
	_, _ = raw(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&before)), 8, 0)
	r, errno := raw(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&j.clone)), unsafe.Sizeof(j.clone), 0, 0, 0)
	if r == 0 && errno == 0 {
		j.runHelper()
	}
	_, _ = raw(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&before)), 0, 8, 0)
	runtime.KeepAlive(j)
	return int(r), int(fd), errno
}

// runHelper is the helper: it makes everything, reports, and waits for its order
// to go. When that does not come, because its maker failed or is gone, it takes
// the init with it.
//
//go:norace
//go:nosplit
func (j *job) runHelper() {
	// Out of the maker's process group, which may be killed as a whole.
	_, _ = raw(unix.SYS_SETSID, 0, 0, 0, 0, 0)
	_, _ = raw(unix.SYS_CLOSE, uintptr(j.status[0]), 0, 0, 0, 0)
	_, _ = raw(unix.SYS_CLOSE, uintptr(j.orders[1]), 0, 0, 0, 0)
	errno := j.runNamespaces()
	if errno == 0 && j.init {
		j.report.step = stepClone
		j.clone = cloneArgs{flags: unix.CLONE_NEWPID, exitSignal: uint64(unix.SIGCHLD)}
		var r uintptr
		r, errno = raw(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&j.clone)), unsafe.Sizeof(j.clone), 0, 0, 0)
		if r == 0 && errno == 0 {
			j.runInit()
		}
		j.report.pid = int32(r)
	}
	if errno == 0 {
		j.report.step = stepDone
	}
	j.runReport(errno)
	_, _ = raw(unix.SYS_CLOSE, uintptr(j.status[1]), 0, 0, 0, 0)
	if errno == 0 && !j.runOrder() && j.init {
		_, _ = raw(unix.SYS_KILL, uintptr(j.report.pid), uintptr(unix.SIGKILL), 0, 0, 0)
		_, _ = raw(unix.SYS_WAIT4, uintptr(j.report.pid), 0, 0, 0, 0)
	}
	for {
		_, _ = raw(unix.SYS_EXIT_GROUP, 0, 0, 0, 0, 0)
	}
}

// runOrder waits for a byte from the maker. It returns false when there is none to
// come.
//
//go:norace
//go:nosplit
func (j *job) runOrder() bool {
	n, errno := raw(unix.SYS_READ, uintptr(j.orders[0]), uintptr(unsafe.Pointer(&j.order)), 1, 0, 0)
	return n == 1 && errno == 0
}

//go:norace
//go:nosplit
func (j *job) runReport(errno syscall.Errno) {
	j.report.errno = int32(errno)
	_, _ = raw(unix.SYS_WRITE, uintptr(j.status[1]), uintptr(unsafe.Pointer(&j.report)), unsafe.Sizeof(j.report), 0, 0)
}

//go:norace
//go:nosplit
func (j *job) runNamespaces() syscall.Errno {
	if errno := j.runUser(); errno != 0 {
		return errno
	}
	j.report.step = stepUnshare
	if _, errno := raw(unix.SYS_UNSHARE, j.unshare, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	j.report.step = stepHostname
	if len(j.hostname) > 0 {
		if _, errno := raw(unix.SYS_SETHOSTNAME, uintptr(unsafe.Pointer(unsafe.SliceData(j.hostname))), uintptr(len(j.hostname)), 0, 0, 0); errno != 0 {
			return errno
		}
	}
	j.report.step = stepDomain
	if len(j.domain) > 0 {
		if _, errno := raw(unix.SYS_SETDOMAINNAME, uintptr(unsafe.Pointer(unsafe.SliceData(j.domain))), uintptr(len(j.domain)), 0, 0, 0); errno != 0 {
			return errno
		}
	}
	j.report.step = stepNetwork
	if j.netns >= 0 {
		if _, errno := raw(unix.SYS_SETNS, uintptr(j.netns), unix.CLONE_NEWNET, 0, 0, 0); errno != 0 {
			return errno
		}
	}
	return j.runSettings()
}

// runUser makes the helper the root of its user namespace.
//
//go:norace
//go:nosplit
func (j *job) runUser() syscall.Errno {
	switch {
	case j.userns >= 0:
		j.report.step = stepJoinUser
		if _, errno := raw(unix.SYS_SETNS, uintptr(j.userns), unix.CLONE_NEWUSER, 0, 0, 0); errno != 0 {
			return errno
		}
	case j.flags != 0:
		j.report.step = stepMapped
		if !j.runOrder() {
			return unix.ECANCELED
		}
	default:
		return 0
	}
	j.report.step = stepCredentials
	if _, errno := raw(unix.SYS_SETRESGID, 0, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	if _, errno := raw(unix.SYS_SETGROUPS, 0, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	_, errno := raw(unix.SYS_SETRESUID, 0, 0, 0, 0, 0)
	return errno
}

// runSettings writes the sysctls. The kernel looks at who writes: those of a
// user-namespaced pod's IPC are not writable from outside.
//
//go:norace
//go:nosplit
func (j *job) runSettings() syscall.Errno {
	j.report.step = stepSysctl
	for i := range j.settings {
		s := &j.settings[i]
		j.report.index = int32(i)
		at := unix.AT_FDCWD
		fd, errno := raw(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(s.path)), unix.O_WRONLY|unix.O_CLOEXEC, 0, 0)
		if errno != 0 {
			return errno
		}
		n, errno := raw(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.value))), uintptr(len(s.value)), 0, 0)
		_, _ = raw(unix.SYS_CLOSE, fd, 0, 0, 0, 0)
		if errno == 0 && n != uintptr(len(s.value)) {
			errno = unix.EINVAL // the kernel took the begin of it for all
		}
		if errno != 0 {
			return errno
		}
	}
	return 0
}

// maxDescriptors is far above the number of any that a process which makes a pod has.
const maxDescriptors = 256

// runInit is the pod's first process until its exec.
//
// It stands in the host's mount namespace, and a container that shares its process
// namespace and may trace sees it. So its root is a mount of its own, with an empty
// directory that is deleted already: /proc/1/root leads nowhere, whereas from the
// root that a chroot(2) alone makes ".." leads out. It has no privileges, nor ways
// to get some.
//
//go:norace
//go:nosplit
func (j *job) runInit() {
	errno := j.runConfine()
	if errno == 0 {
		j.report.step = stepExec
		_, errno = raw(unix.SYS_EXECVEAT, uintptr(j.program), uintptr(unsafe.Pointer(j.empty)), uintptr(unsafe.Pointer(&j.argv)), uintptr(unsafe.Pointer(&j.argv[1])), unix.AT_EMPTY_PATH)
	}
	j.runReport(errno)
	for {
		_, _ = raw(unix.SYS_EXIT_GROUP, 1, 0, 0, 0, 0)
	}
}

//go:norace
//go:nosplit
func (j *job) runConfine() syscall.Errno {
	_, _ = raw(unix.SYS_SETSID, 0, 0, 0, 0, 0)
	j.report.step = stepRoot
	if _, errno := raw(unix.SYS_FCHDIR, uintptr(j.root), 0, 0, 0, 0); errno != 0 {
		return errno
	}
	dot := [2]byte{'.'}
	if _, errno := raw(unix.SYS_CHROOT, uintptr(unsafe.Pointer(&dot)), 0, 0, 0, 0); errno != 0 {
		return errno
	}
	j.report.step = stepStdio
	for fd := range uintptr(3) {
		if _, errno := raw(unix.SYS_DUP3, uintptr(j.null), fd, 0, 0, 0); errno != 0 {
			return errno
		}
	}
	// By close_range(2) only from Linux 5.11 on.
	for fd := uintptr(3); fd < maxDescriptors; fd++ {
		_, _ = raw(unix.SYS_FCNTL, fd, unix.F_SETFD, unix.FD_CLOEXEC, 0, 0)
	}
	j.report.step = stepDrop
	if _, errno := raw(unix.SYS_SETGROUPS, 0, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	if _, errno := raw(unix.SYS_SETRESGID, j.id, j.id, j.id, 0, 0); errno != 0 {
		return errno
	}
	if _, errno := raw(unix.SYS_SETRESUID, j.id, j.id, j.id, 0, 0); errno != 0 {
		return errno
	}
	if _, errno := raw(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); errno != 0 {
		return errno
	}
	// A kernel without seccomp has no filters: then there is less to rely on.
	_, errno := raw(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&j.filter)), 0, 0)
	if errno == unix.EINVAL {
		errno = 0
	}
	return errno
}
