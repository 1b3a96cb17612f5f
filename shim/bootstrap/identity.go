// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// identity tells a process from a later one with its number: by when it started,
// in clock ticks since boot (proc(5), stat field 22).
type identity struct {
	pid   int
	start uint64
}

// identityOf returns the identity of the process that has the number now.
func identityOf(pid int) (identity, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return identity{}, err
	}
	// The name, in parentheses, may hold anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const startField = 22 - 3 // after pid and name, counted from 0
	if len(fields) <= startField {
		return identity{}, fault.New(fault.Internal, "malformed /proc stat")
	}
	start, err := strconv.ParseUint(string(fields[startField]), 10, 64)
	return identity{pid, start}, err
}

func (id identity) String() string { return fmt.Sprintf("%d %d", id.pid, id.start) }

// readIdentity reads what String has written to a file.
func readIdentity(path string) (identity, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return identity{}, err
	}
	var id identity
	if _, err := fmt.Sscan(string(b), &id.pid, &id.start); err != nil || id.pid <= 1 {
		return identity{}, fault.New(fault.InvalidArgument, path+": not a process's identity")
	}
	return id, nil
}

// open returns a pidfd, -1 when the process is gone. The number is checked after
// the pidfd is there, so it cannot pass to another process in between.
func (id identity) open() int {
	if id.pid <= 1 {
		return -1
	}
	fd, err := unix.PidfdOpen(id.pid, 0)
	if err != nil {
		return -1
	}
	if now, err := identityOf(id.pid); err != nil || now != id {
		unix.Close(fd)
		return -1
	}
	return fd
}

// ended waits until the process behind pidfd has ended, at most limit.
func ended(pidfd int, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		left := max(time.Until(deadline).Milliseconds(), 0)
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left))
		if n > 0 {
			return true
		}
		if err != unix.EINTR {
			return false
		}
	}
}

// killLimit is how long a killed process may take to end. It is in the kernel's
// hands; a process in a stuck system call takes longer.
const killLimit = 10 * time.Second

// kill ends the process and waits for that.
func kill(pidfd int) bool {
	// It fails only for a process that has ended.
	_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	return ended(pidfd, killLimit)
}
