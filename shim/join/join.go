// SPDX-License-Identifier: Apache-2.0

// Package join makes a container a member of a pod that has no pause container.
//
// containerd takes the namespaces of a pod from a process. Such a pod has none
// and says so with the number 0, so containerd writes /proc/0/ns/<type> into the
// specification of each member, paths that exist nowhere. It also leaves out the
// pod's files, which it cannot know. Before the container's shim starts, Join
// puts both in place in the bundle's config.json; everything else there keeps
// its meaning. A pod that cannot be joined is an error, as the other choice
// would be the host's namespaces.
//
// The pod's directory and its record are those of packages sandbox and pod.
package join

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/pod"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/sandbox"
)

// Joiner joins one container to its pod.
type Joiner struct {
	// State is the directory below which pods have theirs, sandbox.State.
	State string
	// Namespace and ID are containerd's of the container, plain names.
	Namespace string
	ID        string
	// Bundle is the container's directory.
	Bundle string
	// Note is told in one line what was rewritten. May be nil.
	Note func(level, format string, args ...any)
}

// Pod is what a member's shim needs to know of its pod.
type Pod struct {
	SandboxID string
	// UsernsPath is the user namespace that the container joins, for the identity
	// map of its root filesystem. "" if it has none of its own.
	UsernsPath string
}

// Join rewrites config.json so that the container joins its pod, and enters the
// container in the pod's list of members. It returns nil without an error, and
// has touched nothing, when the container is in no pod of ours. Joining again is
// as joining once.
//
// A pod that has stopped, or whose state is lost, is FailedPrecondition, an id
// that is no plain name or a malformed specification InvalidArgument. After an
// error nothing is changed.
func (j *Joiner) Join() (*Pod, error) {
	path := filepath.Join(j.Bundle, "config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.FailedPrecondition, "bundle", err)
	}
	// Most containers outside of Kubernetes are told by this, without a parser.
	if !bytes.Contains(raw, []byte(sandboxIDAnnotation)) && !bytes.Contains(raw, []byte(marker)) {
		return nil, nil
	}
	s, err := parse(raw)
	if err != nil {
		return nil, fault.In(path, err)
	}
	dir, record, err := j.find(s)
	if err != nil || record == nil {
		return nil, err
	}
	p := &Pod{SandboxID: s.sandboxID}
	if err := j.join(path, s, dir, record); err != nil {
		return nil, fault.In("join pod "+p.SandboxID, err)
	}
	p.UsernsPath = s.pins["user"]
	return p, nil
}

// find returns the directory and the record of the pod that the container is to
// be a member of, or no record if that is none of ours.
func (j *Joiner) find(s *spec) (string, *pod.Record, error) {
	marked := s.marked()
	if !s.member {
		if marked {
			return "", nil, fault.New(fault.FailedPrecondition, "container "+j.ID+" is to join namespaces of a pod, and no pod is named")
		}
		return "", nil, nil
	}
	if !plain(j.ID) {
		return "", nil, fault.New(fault.InvalidArgument, "container "+j.ID+": not a plain name")
	}
	dir, err := sandbox.Dir(j.State, j.Namespace, s.sandboxID)
	if err != nil {
		return "", nil, err
	}
	_, err = os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) && !marked {
		return "", nil, nil // a pod with a pause container
	}
	var record *pod.Record
	if err == nil {
		record, err = pod.Read(dir)
	}
	if err != nil {
		return "", nil, fault.Wrap(fault.FailedPrecondition, "pod "+s.sandboxID+": its state was lost", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, sandbox.StoppedFile)); err == nil {
		return "", nil, fault.New(fault.FailedPrecondition, "pod "+s.sandboxID+" has stopped")
	}
	return dir, record, nil
}

// join does all that can fail, and then replaces the file.
func (j *Joiner) join(path string, s *spec, dir string, record *pod.Record) error {
	if err := s.joinNamespaces(record); err != nil {
		return err
	}
	s.addFiles(dir, record)
	if err := s.check(dir, record); err != nil {
		return err
	}
	bundle, err := filepath.Abs(j.Bundle)
	if err != nil {
		return fault.Wrap(fault.FailedPrecondition, "bundle", err)
	}
	entered, err := enter(dir, j.ID, bundle)
	if err != nil {
		return err
	}
	if err := s.save(path); err != nil {
		if entered {
			_ = leave(dir, j.ID) // the first error is the one to tell
		}
		return err
	}
	if j.Note != nil && len(s.changes) > 0 {
		j.Note("info", "config.json rewritten to join pod %s: %s", s.sandboxID, strings.Join(s.changes, ", "))
	}
	return nil
}

// check looks at what the specification now names of the pod: a pin without its
// mount is an empty file, which the runtime would report without its name, and a
// shm without one is a folder on the host that nothing bounds.
func (s *spec) check(dir string, record *pod.Record) error {
	for kind, pin := range s.pins {
		if err := namespaceAt(pin); err != nil {
			return fault.Wrap(fault.FailedPrecondition, kind+" namespace "+pin, err)
		}
	}
	if i := record.Init; s.pins["pid"] != "" && i != nil && process.StartTime(i.Pid) != i.StartTime {
		return fault.New(fault.FailedPrecondition, "pid namespace: its init has ended")
	}
	var home, st unix.Stat_t
	if err := unix.Stat(dir, &home); err != nil {
		return fault.Wrap(fault.FailedPrecondition, dir, err)
	}
	for _, f := range s.files {
		if err := unix.Stat(f, &st); err != nil {
			return fault.Wrap(fault.FailedPrecondition, f, err)
		}
		if filepath.Base(f) == sandbox.ShmDir && st.Dev == home.Dev {
			return fault.New(fault.FailedPrecondition, f+": nothing is mounted there")
		}
	}
	return nil
}

// namespaceAt returns an error unless a namespace is at path.
func namespaceAt(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return err
	}
	if st.Type != unix.NSFS_MAGIC {
		return errors.New("no namespace is mounted there")
	}
	return nil
}

// save writes the specification if it has changed. The pod's files get the
// container's label first.
func (s *spec) save(path string) error {
	if len(s.changes) == 0 {
		return nil
	}
	if s.mountLabel != "" && selinux() {
		for _, f := range s.files {
			if err := relabel(f, s.mountLabel); err != nil {
				return err
			}
		}
	}
	if err := Replace(path, s.encode()); err != nil {
		return fault.Wrap(fault.Internal, "config.json", err)
	}
	return nil
}

// Replace puts content in the place of a file, whose owner and mode it keeps. A
// reader finds the one or the other.
func Replace(path string, content []byte) (err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	temp := path + ".join"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(temp, path)
		}
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return f.Chmod(os.FileMode(st.Mode & 0o777))
}

// enter puts a container in a pod's list of members, and tells whether it was
// not there before.
func enter(dir, id, bundle string) (bool, error) {
	link := filepath.Join(dir, sandbox.MembersDir, id)
	if target, err := os.Readlink(link); err == nil {
		if target == bundle {
			return false, nil
		}
		// Of a container that had the id before, and whose delete did not come.
		if err := leave(dir, id); err != nil {
			return false, err
		}
	}
	if err := os.Symlink(bundle, link); err != nil {
		return false, fault.Wrap(fault.FailedPrecondition, "list of members", err)
	}
	return true, nil
}

func leave(dir, id string) error {
	err := unix.Unlink(filepath.Join(dir, sandbox.MembersDir, id))
	if err != nil && err != unix.ENOENT {
		return fault.Wrap(fault.Internal, "list of members: "+id, err)
	}
	return nil
}

// plain tells whether a name stays in its folder.
func plain(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00") && len(name) <= unix.NAME_MAX
}
