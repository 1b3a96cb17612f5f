// SPDX-License-Identifier: Apache-2.0

// Package pod makes what a pod without a pause container consists of: namespaces
// that bind mounts keep, the files and /dev/shm of its containers, its cgroup, and
// the record by which containers join it. It is the transient half of shim/sandbox
// and is executed, as the verb make-pod, once per pod.
//
// It refuses whatever would change the host: a sysctl of a namespace that the pod
// shares with it, names that lead elsewhere, lines smuggled into files.
package pod

import (
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/sandbox"
)

// oomScore is what podsandbox gives pause (kubernetes issue 47938): a pod loses its
// containers first.
const oomScore = "-998"

// killTimeout bounds the wait for the end of a process that has been killed.
const killTimeout = 5 * time.Second

// Maker makes one pod, for the process that is the parent of this one.
type Maker struct {
	State     string // directory, see sandbox.Dir
	Namespace string // containerd's
	ID        string
	Bundle    string
	// Ports lets the pod's processes bind all ports, ICMP send echo requests, both
	// without privileges, unless the pod has sysctls that say otherwise.
	Ports, ICMP bool
	// Process gives the pod a first process even if its containers do not share a
	// process namespace: then nothing is in that process's but itself.
	Process bool
	// Logf is told what went less than well. It may be nil.
	Logf func(format string, args ...any)
}

// Make makes the pod of an encoded containerd.runtime.sandbox.v1
// CreateSandboxRequest. The answer is fields of a message: 1 and 2 are the pid and
// start time of the pod's first process, if it has one; 3 is its cgroup; 4 tells that the cgroup was made here. That first
// process has become a child of the nearest subreaper above. It blocks, for a few
// milliseconds. A process may make one pod at a time: a fork has copies of all
// descriptors, and would keep another's pipes open.
//
// InvalidArgument, NotFound, FailedPrecondition: the pod cannot be as it was asked
// for. AlreadyExists: there is such a pod, and its owner lives. ResourceExhausted,
// Internal: the machine is at its limits, or odd. After any error nothing is left.
func (m *Maker) Make(request []byte) (answer []byte, err error) {
	r, err := m.make(request)
	if err != nil {
		return nil, fault.In("pod "+m.ID, err)
	}
	return r.answer(), nil
}

func (m *Maker) make(request []byte) (r *Record, err error) {
	p, err := m.plan(request)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := m.clear(p.dir); err != nil {
		return nil, err
	}
	var u undo
	defer u.onError(&err)
	if err := makeDir(p.dir); err != nil {
		return nil, err
	}
	u.add(func() error { return sandbox.Remove(p.dir) })
	cgroups, err := makeCgroup(cgroupRoot, p.cgroupParent)
	if err != nil {
		return nil, err
	}
	u.add(func() error { return removeCgroups(cgroups) })
	h, err := startHelper(p)
	if err != nil {
		return nil, err
	}
	if h != nil {
		u.add(func() error { h.abort(); return nil })
	}
	if err := p.makeFiles(); err != nil { // while the helper works
		return nil, err
	}
	r = m.record(p)
	r.MadeCgroup = len(cgroups) > 0
	if h == nil {
		return r, p.write(r)
	}
	if r.Init, err = m.settle(p, h); err != nil {
		return nil, err
	}
	if err := p.write(r); err != nil {
		return nil, err
	}
	return r, h.release()
}

// settle pins what the helper made, and returns the pod's first process, or nil.
func (m *Maker) settle(p *planned, h *helper) (*Process, error) {
	first, err := h.finish()
	if err != nil {
		return nil, err
	}
	for _, pin := range [...]struct {
		typ string
		of  int
	}{{ipc, h.pid}, {uts, h.pid}, {user, h.pid}, {pid, first}} {
		if !p.owns(pin.typ) {
			continue
		}
		if err := bind("/proc/"+strconv.Itoa(pin.of)+"/ns/"+pin.typ, p.namespaces[pin.typ].Path); err != nil {
			return nil, kernel("keep the "+pin.typ+" namespace", err)
		}
	}
	if first == 0 {
		return nil, nil
	}
	proc := &Process{first, process.StartTime(first)}
	if proc.StartTime == 0 {
		return nil, fault.New(fault.Internal, "the pod's init ended at once")
	}
	// Lowering it takes CAP_SYS_RESOURCE, which a nested containerd does not have.
	if err := os.WriteFile("/proc/"+strconv.Itoa(first)+"/oom_score_adj", []byte(oomScore), 0); err != nil {
		m.logf("pod %s: oom_score_adj of the init stays as it is: %v", m.ID, err)
	}
	return proc, nil
}

// bind makes an empty file and mounts the namespace on it.
func bind(namespace, at string) error {
	fd, err := unix.Open(at, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return err
	}
	_ = unix.Close(fd)
	return unix.Mount(namespace, at, "", unix.MS_BIND, "")
}

func (m *Maker) record(p *planned) *Record {
	owner := os.Getppid()
	return &Record{
		Version: recordVersion, ID: m.ID, Namespace: m.Namespace, Bundle: m.Bundle,
		Owner:      Process{owner, process.StartTime(owner)},
		Namespaces: p.namespaces, Hostname: p.hostname, CgroupParent: p.cgroupParent, Shm: p.owns(ipc),
		UIDs: p.uids, GIDs: p.gids, MountLabel: p.mountLabel,
	}
}

// clear removes what is left of a pod whose owner is dead.
func (m *Maker) clear(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	r, err := Read(dir)
	switch {
	case err != nil:
		m.logf("pod %s: remove what is left of another without a record: %v", m.ID, err)
	case r.Owner.Alive():
		return fault.New(fault.AlreadyExists, "process "+strconv.Itoa(r.Owner.Pid)+" has it")
	case r.Init != nil:
		if err := r.Init.kill(); err != nil {
			return err
		}
	}
	return sandbox.Remove(dir)
}

// kill kills the process, if it is still that one, and waits for its end.
func (p Process) kill() error {
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return kernel("left process "+strconv.Itoa(p.Pid), err)
	}
	defer unix.Close(fd)
	if !p.Alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return kernel("left process "+strconv.Itoa(p.Pid), err)
	}
	ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(killTimeout); ; {
		n, err := unix.Poll(ended, int(time.Until(end)/time.Millisecond))
		switch {
		case n > 0:
			return nil
		case err == nil:
			return fault.New(fault.DeadlineExceeded, "left process "+strconv.Itoa(p.Pid)+" does not end")
		case !errors.Is(err, unix.EINTR):
			return kernel("left process "+strconv.Itoa(p.Pid), err)
		}
	}
}

func (m *Maker) logf(format string, args ...any) {
	if m.Logf != nil {
		m.Logf(format, args...)
	}
}

// undo is what a failure takes back, last things first and to the end.
type undo []func() error

func (u *undo) add(step func() error) { *u = append(*u, step) }

func (u *undo) onError(err *error) {
	if *err == nil {
		return
	}
	errs := []error{*err}
	for i := len(*u) - 1; i >= 0; i-- {
		if e := (*u)[i](); e != nil {
			errs = append(errs, e)
		}
	}
	if len(errs) > 1 {
		*err = errors.Join(errs...)
	}
}
