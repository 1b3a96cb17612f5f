// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

const (
	// The name of a client's socket is that of the shim's own with its end replaced
	// by a suffix that is shorter: so it is never too long, and the shim's sockets
	// can be told from others'.
	replaced   = 24
	suffix     = "-attach-"
	randomHalf = 6 // bytes; two characters each
	// backlog is of no use: a socket is for one client.
	backlog = 1
)

// prefix is what all sockets for clients of the shim at socket begin with.
func prefix(socket string) string {
	dir, name := filepath.Split(socket)
	return dir + name[:max(len(name)-replaced, min(len(name), 1))] + suffix
}

// listen makes a socket for one client of the shim at socket, for root only.
func listen(socket string) (fd int, path string, err error) {
	var random [randomHalf]byte
	if _, err := unix.Getrandom(random[:], 0); err != nil {
		return -1, "", os.NewSyscallError("getrandom", err)
	}
	path = prefix(socket) + hex(random[:])
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		// The mode of the socket's own inode, less the umask, becomes that of the path.
		err = unix.Fchmod(fd, 0o600)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return -1, "", fault.Wrap(class(err), "socket "+path, err)
	}
	return fd, path, nil
}

func class(err error) fault.Code {
	switch err {
	case unix.EMFILE, unix.ENFILE, unix.ENOSPC, unix.ENOMEM, unix.ENOBUFS:
		return fault.ResourceExhausted
	}
	return fault.Unknown
}

// hex writes b in hexadecimal digits. encoding/hex would be another package in
// the resident process.
func hex(b []byte) string {
	const digits = "0123456789abcdef"
	text := make([]byte, 0, 2*len(b))
	for _, c := range b {
		text = append(text, digits[c>>4], digits[c&15])
	}
	return string(text)
}

// Remove takes away the sockets that a shim at socket has left behind which was
// killed. It is for the transient half.
func Remove(socket string) error {
	dir, start := filepath.Split(prefix(socket))
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	for _, e := range entries {
		if len(e.Name()) != len(start)+2*randomHalf || e.Name()[:len(start)] != start {
			continue
		}
		if e := os.Remove(dir + e.Name()); e != nil && !os.IsNotExist(e) && err == nil {
			err = e
		}
	}
	return err
}

// root tells whether the peer of a connection is root. The socket's mode says so
// too, but its directory may be chosen by others.
func root(fd int) bool {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && cred.Uid == 0
}
