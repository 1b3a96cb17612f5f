// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/process"
)

// Leave takes a container out of the list of its pod's members. One that is not
// in it, or no pod, is no error. An id that is no plain name is InvalidArgument.
func Leave(state, namespace, pod, container string) error {
	if pod == "" {
		return nil
	}
	dir, err := Dir(state, namespace, pod)
	if err != nil {
		return err
	}
	if !plain(container) {
		return fault.New(fault.InvalidArgument, "container "+container+": not a plain name")
	}
	err = unix.Unlink(filepath.Join(dir, MembersDir, container))
	if err == nil || err == unix.ENOENT {
		return nil
	}
	return fault.Wrap(fault.Internal, "leave pod "+pod, err)
}

// killLimit is how long a killed process may take to end; after that it is
// reported and left to the kernel.
const killLimit = 10 * time.Second

// stopMembers ends the containers that still run in the pod of dir: by SIGTERM,
// and by SIGKILL after patience. Their own shims see it and tell containerd.
// Usually there are none: whoever stops a pod has stopped them. It blocks.
func stopMembers(l *loop.Loop, dir string, patience time.Duration) error {
	links, err := os.ReadDir(filepath.Join(dir, MembersDir))
	if err != nil {
		return nil // as many as can be found
	}
	var running []member
	for _, link := range links {
		if bundle, err := os.Readlink(filepath.Join(dir, MembersDir, link.Name())); err == nil {
			if m := findMember(link.Name(), bundle); m.pidfd >= 0 {
				defer unix.Close(m.pidfd)
				running = append(running, m)
			}
		}
	}
	if patience > 0 {
		signal(running, unix.SIGTERM)
		running = await(l, running, patience)
	}
	signal(running, unix.SIGKILL)
	var errs []error
	for _, m := range await(l, running, killLimit) {
		errs = append(errs, fault.New(fault.DeadlineExceeded, "container "+m.id+" does not end after SIGKILL"))
	}
	return errors.Join(errs...)
}

// member is a container of the pod, by its init.
type member struct {
	id    string
	pidfd int // -1: it does not run
}

// findMember finds the init of the container in bundle: the child that its shim
// says it has. A number that has passed to another process is not taken for it,
// as neither its parent nor the shim is the one that the bundle names.
func findMember(id, bundle string) member {
	m := member{id, -1}
	shim := numbers(filepath.Join(bundle, plan.ServerFile))
	init := numbers(filepath.Join(bundle, plan.InitPidFile))
	if len(shim) != 2 || len(init) != 1 || init[0] <= 1 {
		return m
	}
	fd, err := unix.PidfdOpen(int(init[0]), 0)
	if err != nil {
		return m
	}
	// The pidfd holds the process whose parent is looked at now.
	if process.Parent(int(init[0])) != int(shim[0]) || process.StartTime(int(shim[0])) != shim[1] {
		unix.Close(fd)
		return m
	}
	m.pidfd = fd
	return m
}

// numbers reads the decimal numbers of a small file.
func numbers(path string) []uint64 {
	b, _ := os.ReadFile(path) // without one there are none
	var list []uint64
	for text := range strings.FieldsSeq(string(b)) {
		n, err := strconv.ParseUint(text, 10, 63)
		if err != nil {
			return nil
		}
		list = append(list, n)
	}
	return list
}

func signal(members []member, sig unix.Signal) {
	for _, m := range members {
		_ = unix.PidfdSendSignal(m.pidfd, sig, nil, 0) // ESRCH: it has ended
	}
}

// await waits for the members' ends, at most limit for all, and returns those
// that still run.
func await(l *loop.Loop, members []member, limit time.Duration) []member {
	deadline := time.Now().Add(limit)
	var left []member
	for _, m := range members {
		if err := l.Await(m.pidfd, unix.EPOLLIN, max(time.Until(deadline), time.Millisecond)); err != nil {
			left = append(left, m)
		}
	}
	return left
}
