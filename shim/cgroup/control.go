// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

const (
	// killRounds bounds how often Kill looks for processes it has not signalled
	// yet. A process that has SIGKILL pending cannot fork, so each round leaves
	// only what its members made before: without a fork bomb two rounds do.
	killRounds = 100
	// removeRounds bounds the retries of a removal: a process may be in its cgroup
	// for some microseconds after its parent was told of its end.
	removeRounds = 20
	// pidsBytes holds the list of some sixty processes. A longer one grows it.
	pidsBytes = 512
	// freezeLimit is how long Freeze waits. A process in an uninterruptible wait
	// (a lost disk) cannot be frozen in v1 and must not hold the caller for ever.
	freezeLimit = 2 * time.Second
	// freezePollMS is how often a v1 freezer is asked. It notifies nobody.
	freezePollMS = 1
	// thawEvery and thawMS let the processes of a v1 cgroup run for a moment
	// when freezing gets nowhere: one in the middle of execve waits for its
	// threads to end, and a frozen thread does not.
	thawEvery, thawMS = 20, 5
)

// errShared is returned where going on would reach processes of others.
var errShared = fault.New(fault.FailedPrecondition, "container has no cgroup of its own")

// ownController returns the directory in c's hierarchy, if it is the container's
// own. In v2 there is only the one hierarchy.
func (g *Group) ownController(c controllers) string {
	if g.v2 {
		c = unified
	}
	for i := range g.places {
		if p := &g.places[i]; p.has&c != 0 && !p.shared {
			return p.dir
		}
	}
	return ""
}

// own returns a directory that holds the container's processes and no others:
// that of the freezer if possible, empty if there is none.
func (g *Group) own() string {
	if dir := g.ownController(freezer); dir != "" {
		return dir
	}
	for i := range g.places {
		if p := &g.places[i]; !p.shared {
			return p.dir
		}
	}
	return ""
}

// Own tells whether the container has a cgroup of its own. Without one, Kill,
// Pids, Freeze and Remove refuse with FailedPrecondition or do nothing.
func (g *Group) Own() bool { return g.own() != "" }

// Pids appends the processes of the cgroup and of those below it to dst. It may
// run in a job. Nobody polls it: it allocates about a kilobyte.
func (g *Group) Pids(dst []int) ([]int, error) {
	dir := g.own()
	if dir == "" {
		return dst, errShared
	}
	r := reader{text: make([]byte, pidsBytes)} // the buffer of g is the loop's
	return listPids(&r, dst, dir)
}

func listPids(r *reader, dst []int, dir string) ([]int, error) {
	r.found, r.err = false, nil
	dst = r.appendPids(dst, dir)
	switch {
	case r.err != nil:
		return dst, fault.Wrap(fault.Internal, "processes of the cgroup", r.err)
	case !r.found:
		return dst, ErrGone
	}
	return dst, nil
}

// appendPids appends the processes in dir and below. In a threaded cgroup of v2
// cgroup.procs is not supported; its processes are listed further up.
func (r *reader) appendPids(dst []int, dir string) []int {
	text := r.read(dir, "cgroup.procs")
	for len(text) > 0 {
		var line []byte
		line, text = cut(text, '\n')
		if pid, ok := parseNumber(line); ok && pid > 0 {
			dst = append(dst, int(pid))
		}
	}
	for _, name := range children(dir) {
		dst = r.appendPids(dst, dir+"/"+name)
	}
	return dst
}

// children lists the cgroups directly below dir. Most have none, which the link
// count of the directory tells without reading it.
func children(dir string) []string {
	var st unix.Stat_t
	if unix.Lstat(dir, &st) != nil || st.Nlink == 2 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // removed meanwhile
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// Kill sends SIGKILL to every process of the cgroup and of those below it, also
// to frozen ones, which it thaws. It does not wait for their end. It blocks, for
// a job. A cgroup that is gone has nobody to kill.
func (g *Group) Kill() error {
	dir := g.own()
	if dir == "" {
		return errShared
	}
	// Linux 5.14 kills a v2 cgroup as a whole.
	if g.v2 && write(dir+"/cgroup.kill", "1") == nil {
		return nil
	}
	if at := g.ownController(freezer); at != "" && !g.v2 {
		// While frozen nobody forks, exits or has its number used again. Where it
		// does not work the rounds do.
		_ = freezeV1(at)
		defer func() { _ = g.Thaw() }()
	}
	return killAll(dir)
}

// killAll signals until no process is left that the round before did not know.
func killAll(dir string) error {
	var r reader
	var pids, before []int
	for range killRounds {
		var err error
		if pids, err = listPids(&r, pids[:0], dir); err == ErrGone {
			return nil
		}
		if err != nil {
			return err
		}
		slices.Sort(pids)
		fresh := false
		for _, pid := range pids {
			if _, known := slices.BinarySearch(before, pid); !known {
				fresh = true
			}
			_ = unix.Kill(pid, unix.SIGKILL) // ESRCH: it has ended
		}
		if !fresh {
			return nil
		}
		pids, before = before, pids
	}
	return fault.New(fault.Unavailable, "kill cgroup "+dir+": new processes keep appearing")
}

// Freeze stops all processes of the cgroup and waits until they are stopped:
// DeadlineExceeded, and thawed again, after two seconds. It blocks, for a job.
func (g *Group) Freeze() error {
	dir := g.ownController(freezer)
	if dir == "" {
		return errShared
	}
	var err error
	if g.v2 {
		err = freezeV2(dir)
	} else {
		err = freezeV1(dir)
	}
	if err != nil {
		_ = g.Thaw() // the first error says more
		return control("freeze", dir, err)
	}
	return nil
}

// Thaw lets the processes of the cgroup go on.
func (g *Group) Thaw() error {
	dir := g.ownController(freezer)
	if dir == "" {
		return errShared
	}
	if g.v2 {
		return control("thaw", dir, write(dir+"/cgroup.freeze", "0"))
	}
	return control("thaw", dir, write(dir+"/freezer.state", "THAWED"))
}

// freezeV1 writes anew each time: a process that was forked meanwhile keeps the
// state at FREEZING (cgroup-v1/freezer-subsystem.rst).
func freezeV1(dir string) error {
	var r reader
	end := time.Now().Add(freezeLimit)
	for try := 1; ; try++ {
		if err := write(dir+"/freezer.state", "FROZEN"); err != nil {
			return err
		}
		if text := r.read(dir, "freezer.state"); string(text) == "FROZEN\n" {
			return nil
		}
		if time.Now().After(end) {
			return unix.ETIMEDOUT
		}
		pause := freezePollMS
		if try%thawEvery == 0 {
			if err := write(dir+"/freezer.state", "THAWED"); err != nil {
				return err
			}
			pause = thawMS
		}
		_, _ = unix.Poll(nil, pause)
	}
}

func freezeV2(dir string) error {
	if err := write(dir+"/cgroup.freeze", "1"); err != nil {
		return err
	}
	// Opened before it is read, so that a change after the reading wakes poll.
	fd, err := unix.Open(dir+"/cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var text [256]byte
	for end := time.Now().Add(freezeLimit); ; {
		n, err := unix.Pread(fd, text[:], 0)
		if err != nil && err != unix.EINTR {
			return err
		}
		if frozen, _ := valueIn(text[:max(n, 0)], "frozen"); frozen == 1 {
			return nil
		}
		left := time.Until(end)
		if left <= 0 {
			return unix.ETIMEDOUT
		}
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
		if _, err := unix.Poll(ready, int(left/time.Millisecond)+1); err != nil && err != unix.EINTR {
			return err
		}
	}
}

// Remove removes the container's own cgroups and those below them. It returns an
// error that is unix.EBUSY, class Unavailable, while there are processes in one;
// the others are removed nevertheless. Cgroups that are gone are no error.
func (g *Group) Remove() error {
	var first error
	for i := range g.places {
		p := &g.places[i]
		if p.shared {
			continue
		}
		err := removeTree(p.dir)
		for n := 1; err == unix.EBUSY && n < removeRounds; n++ {
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
			err = removeTree(p.dir)
		}
		if err != nil && first == nil {
			first = control("remove", p.dir, err)
		}
	}
	return first
}

// removeTree removes dir. Its files go with it; only the cgroups below it must be
// gone before.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == unix.EBUSY || err == unix.ENOTEMPTY {
		below := children(dir)
		for _, name := range below {
			if err := removeTree(dir + "/" + name); err != nil {
				return err
			}
		}
		if len(below) > 0 {
			err = unix.Rmdir(dir)
		}
	}
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// control gives an error of a write, or of a removal, its class.
func control(what, dir string, err error) error {
	class := fault.Internal
	switch {
	case err == nil:
		return nil
	case gone(err):
		class = fault.NotFound
	case err == unix.EBUSY:
		class = fault.Unavailable
	case err == unix.ETIMEDOUT:
		class = fault.DeadlineExceeded
	}
	return fault.Wrap(class, what+" cgroup "+dir, err)
}

// write writes a control file. It does not create one.
func write(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		_, err = unix.Write(fd, []byte(value))
		if err != unix.EINTR {
			return err
		}
	}
}
