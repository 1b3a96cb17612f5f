// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// State is the directory below which pods have theirs. It is on a tmpfs, so that
// nothing of a pod outlives the machine's restart.
const State = "/run/berth"

// Names in a pod's directory. Of the namespaces only those are there that the pod
// owns: each is a bind mount that keeps the namespace without a process.
const (
	PinIPC  = "ipc"
	PinUTS  = "uts"
	PinPID  = "pid"
	PinUser = "user"

	HostnameFile = "hostname"
	HostsFile    = "hosts"
	ResolvFile   = "resolv.conf"
	ShmDir       = "shm" // a tmpfs, the members' /dev/shm

	// RecordFile says what the pod is made of, for members that join.
	RecordFile = "pod.json"
	// SpecFile is the OCI specification that containerd gets for the sandbox.
	SpecFile = "spec.json"
	// InfoFile is what a verbose status tells, but for the pod's state.
	InfoFile = "info.json"
	// StoppedFile is there once the pod has stopped.
	StoppedFile = "stopped"
	// MembersDir has a symbolic link to the bundle of each member container, by
	// the container's id.
	MembersDir = "members"
)

// InitFile is in the bundle of a sandbox whose pod has an init, and holds that's
// "<pid> <start time>".
const InitFile = "berth.init"

// Dir returns the directory of a pod below state. An id that is not a plain name
// is InvalidArgument.
func Dir(state, namespace, id string) (string, error) {
	if !plain(namespace) || !plain(id) {
		return "", fault.New(fault.InvalidArgument, "pod "+id+" in namespace "+namespace+": not plain names")
	}
	return filepath.Join(state, "sandboxes", namespace, id), nil
}

// plain tells whether name is one element of a path, and no other.
func plain(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00") && len(name) <= unix.NAME_MAX
}

// Remove unmounts what is mounted in a pod's directory and removes it. A missing
// one is no error. Nothing here waits for anyone.
func Remove(dir string) error {
	for _, name := range [...]string{ShmDir, PinIPC, PinUTS, PinPID, PinUser} {
		if err := detach(filepath.Join(dir, name)); err != nil {
			return err // what is still mounted must not be emptied
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fault.Wrap(fault.Internal, "pod directory", err)
	}
	return nil
}

// detach takes off all that is mounted at path. Members keep what they have of it.
func detach(path string) error {
	for {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil, unix.EINTR:
		case unix.EINVAL, unix.ENOENT: // nothing mounted there
			return nil
		default:
			return fault.Wrap(fault.Internal, "unmount "+path, err)
		}
	}
}
