// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// maxSocketPathBytes is what containerd allows for the path of a socket; the
// kernel's own limit is 107.
const maxSocketPathBytes = 105

// socketPath is where the shim of a container listens. It depends on what tells
// containers apart on a host: the containerd, the namespace, the id.
func socketPath(dir, address, namespace, id string) (string, error) {
	sum := sha256([]byte(filepath.Join(address, namespace, id)))
	path := filepath.Join(dir, hex.EncodeToString(sum[:]))
	if len(path) > maxSocketPathBytes {
		return "", fault.New(fault.InvalidArgument, fmt.Sprintf("socket path %s is longer than %d bytes: use a shorter socket directory", path, maxSocketPathBytes))
	}
	return path, nil
}

// alive tells whether a process listens at path.
func alive(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	return err == nil || err == unix.EAGAIN // a full queue is somebody's
}

// backlog of the listening socket: containerd has one connection, other clients
// few.
const backlog = 64

// listen makes the socket at path, for root only. What is there is dead and is
// replaced. The caller closes it.
func listen(path string) (int, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return -1, fault.Wrap(fault.Unknown, "socket directory", err)
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return -1, fault.Wrap(fault.Unknown, "old socket "+path, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	// The mode of the socket's own inode, less the umask, becomes that of the path.
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fault.Wrap(fault.Unknown, "socket "+path, err)
	}
	return fd, nil
}
