// SPDX-License-Identifier: Apache-2.0

// Package seccomp answers system calls that a container's profile forbids, instead of
// the kernel, and counts them (seccomp_unotify(2)). The transient half has written into
// the profile that these calls are to be asked about, and where: the runtime sends a
// descriptor there for each process that it starts.
//
// It knows nothing of profiles, and does not decide what becomes of the container.
package seccomp

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
)

//go:generate go run generate.go

// Notifier is a container's. Its methods are for the loop.
type Notifier struct {
	// Counted is called for each call that was counted.
	Counted func()

	l        *loop.Loop
	path     string
	errno    int32
	listener int
	filters  []filter
	peers    int // connections of runtimes
	calls    []call
}

// filter is that of one process and its children.
type filter struct {
	fd      int
	counted bool // its calls are
}

// call is a system call that was made n times.
type call struct {
	nr   int32
	arch uint32
	n    uint64
}

// Socket is where the notifier of the shim at socket listens. It is no longer than that,
// which is as long as it may be.
func Socket(socket string) string {
	const suffix = "-seccomp"
	dir, file := filepath.Split(socket)
	return dir + file[:max(len(file)-len(suffix), min(len(file), 1))] + suffix
}

// Listen waits for filters at path, which is made. Their calls get errno, which is a
// number of errno(3), 0 for EPERM.
func Listen(l *loop.Loop, path string, errno int32) (*Notifier, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fault.Wrap(fault.ResourceExhausted, "socket for the seccomp notifier", err)
	}
	_ = unix.Unlink(path) // a dead shim's
	// The mode of the socket's own inode, less the umask, becomes that of the path.
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	const backlog = 8 // runtimes at the same time
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	n := &Notifier{l: l, path: path, errno: errno, listener: fd}
	if err == nil {
		err = n.watch()
	}
	if err != nil {
		n.Close()
		return nil, fault.Wrap(fault.Unknown, "socket for the seccomp notifier "+path, err)
	}
	return n, nil
}

func (n *Notifier) watch() error {
	return n.l.Watch(n.listener, unix.EPOLLIN, func(uint32) { n.accept() })
}

// Count begins to count the calls of all processes that there are. What the runtime
// itself may not do, before it becomes one of the container's, is nobody's offence.
func (n *Notifier) Count() {
	for i := range n.filters {
		n.filters[i].counted = true
	}
}

// Movable tells whether another program can take over now.
func (n *Notifier) Movable() bool { return n.peers == 0 }

// Close ends it. Processes that are left get ENOSYS for the calls, from the kernel.
func (n *Notifier) Close() {
	if n.listener < 0 {
		return
	}
	n.forget(n.listener)
	for _, f := range n.filters {
		n.forget(f.fd)
	}
	n.filters, n.listener = nil, -1
	_ = unix.Unlink(n.path)
}

func (n *Notifier) forget(fd int) {
	n.l.Unwatch(fd)
	_ = unix.Close(fd)
}

// accept takes a runtime's connection.
func (n *Notifier) accept() {
	fd, _, err := unix.Accept4(n.listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	n.peers++
	if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || cred.Uid != 0 {
		n.hangUp(fd)
		return
	}
	if n.l.Watch(fd, unix.EPOLLIN, func(uint32) { n.receive(fd) }) != nil {
		n.hangUp(fd)
	}
}

func (n *Notifier) hangUp(fd int) {
	n.peers--
	n.forget(fd)
}

// receive reads what a runtime sends: a document about the process, which is not
// needed, and with its beginning the descriptor of the filter.
func (n *Notifier) receive(fd int) {
	var data [4 << 10]byte
	var oob [128]byte
	got, oobn, _, _, err := unix.Recvmsg(fd, data[:], oob[:], unix.MSG_CMSG_CLOEXEC)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if oobn > 0 {
		n.adopt(oob[:oobn])
	}
	if err != nil || got == 0 {
		n.hangUp(fd)
	}
}

func (n *Notifier) adopt(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			n.add(filter{fd: fd})
		}
	}
}

// add answers for one more filter.
func (n *Notifier) add(f filter) {
	if n.l.Watch(f.fd, unix.EPOLLIN, func(ev uint32) { n.ready(f.fd, ev) }) != nil {
		_ = unix.Close(f.fd)
		return
	}
	n.filters = append(n.filters, f)
}

// Requests of the kernel's seccomp interface, and what they take.
const (
	ioctlReceive = 0xc0502100
	ioctlSend    = 0xc0182101
)

type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	_     [7]uint64 // instruction pointer and arguments
}

type response struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

func (n *Notifier) ready(fd int, ev uint32) {
	at := slices.IndexFunc(n.filters, func(f filter) bool { return f.fd == fd })
	if ev&unix.EPOLLIN == 0 { // no process has the filter any more
		n.forget(fd)
		n.filters = slices.Delete(n.filters, at, at+1)
		return
	}
	var q notification
	if ioctl(fd, ioctlReceive, unsafe.Pointer(&q)) != 0 {
		return // it has been killed meanwhile
	}
	errno := n.errno
	if errno == 0 {
		errno = int32(unix.EPERM)
	}
	_ = ioctl(fd, ioctlSend, unsafe.Pointer(&response{id: q.id, error: -errno}))
	if n.filters[at].counted {
		n.count(q.nr, q.arch, 1)
		n.Counted()
	}
}

func ioctl(fd int, request uintptr, argument unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(argument))
	return errno
}

func (n *Notifier) count(nr int32, arch uint32, times uint64) {
	for i := range n.calls {
		if c := &n.calls[i]; c.nr == nr && c.arch == arch {
			c.n += times
			return
		}
	}
	n.calls = append(n.calls, call{nr, arch, times})
}

// Text lists the calls in the order in which they were first made.
func (n *Notifier) Text() string {
	var text strings.Builder
	for i, c := range n.calls {
		if i > 0 {
			text.WriteString(", ")
		}
		text.WriteString(name(c.nr, c.arch) + " (" + strconv.FormatUint(c.n, 10) + "x)")
	}
	return text.String()
}

func name(nr int32, arch uint32) string {
	if arch == auditArch && nr >= 0 && int(nr) < len(names) && names[nr] != "" {
		return names[nr]
	}
	return "call " + strconv.Itoa(int(nr)) + " of architecture " + strconv.FormatUint(uint64(arch), 16)
}

// Names returns the names of all system calls of this machine.
func Names() []string {
	return slices.DeleteFunc(slices.Clone(names[:]), func(s string) bool { return s == "" })
}
