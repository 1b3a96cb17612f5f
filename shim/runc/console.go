// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
)

// Console is a socket on which the runtime delivers the master of the terminal
// it has made.
type Console struct {
	path string
	fd   int
}

// ListenConsole makes the socket at path, which is best relative to the bundle,
// the working directory of the shim and of the runtime: so it never is too long
// for a socket's. A stale one is replaced.
func ListenConsole(path string) (*Console, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	c := &Console{path: path, fd: fd}
	_ = unix.Unlink(path)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "bind", Path: path, Err: err}
	}
	if err := unix.Listen(fd, 1); err != nil {
		c.Close()
		return nil, os.NewSyscallError("listen", err)
	}
	return c, nil
}

// Receive returns the master, non-blocking and the caller's to close. It is
// called after the runtime has returned, when the message is there already, and
// so rarely waits at all. Not for the loop's goroutine.
func (c *Console) Receive(l *loop.Loop, timeout time.Duration) (int, error) {
	conn := -1
	for conn < 0 {
		var err error
		conn, _, err = unix.Accept4(c.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err := retry(l, c.fd, err, timeout); err != nil {
			return -1, fault.In("console", err)
		}
	}
	defer unix.Close(conn)
	name := make([]byte, 4096) // the runtime sends the terminal's path along
	oob := make([]byte, unix.CmsgSpace(4*4))
	for {
		_, n, _, _, err := unix.Recvmsg(conn, name, oob, unix.MSG_CMSG_CLOEXEC)
		if err == nil {
			return master(oob[:n])
		}
		if err := retry(l, conn, err, timeout); err != nil {
			return -1, fault.In("console", err)
		}
	}
}

// retry waits after err of a non-blocking call until it is worth another try.
func retry(l *loop.Loop, fd int, err error, timeout time.Duration) error {
	switch err {
	case nil, unix.EINTR:
		return nil
	case unix.EAGAIN:
		return l.Await(fd, unix.EPOLLIN, timeout)
	}
	return err
}

// master takes the one descriptor out of a control message.
func master(oob []byte) (int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, fault.Wrap(fault.Internal, "console", err)
	}
	var fds []int
	for i := range msgs {
		if rights, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, rights...)
		}
	}
	if len(fds) == 1 {
		err := unix.SetNonblock(fds[0], true)
		if _, terr := unix.IoctlGetTermios(fds[0], unix.TCGETS); terr != nil {
			err = terr // not a terminal
		}
		if err == nil {
			return fds[0], nil
		}
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	return -1, fault.New(fault.Internal, "console: the runtime sent no terminal")
}

// Close removes the socket.
func (c *Console) Close() {
	unix.Close(c.fd)
	_ = unix.Unlink(c.path) // it may be gone with the bundle
}
