// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/attach"
	"github.com/berthd/berth/shim/cgroup"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/rootfs"
	"github.com/berthd/berth/shim/runc"
	"github.com/berthd/berth/shim/wire"
)

// killedStatus is what a container exits with whose end nobody recorded: it was
// killed, here.
const killedStatus = 128 + int(unix.SIGKILL)

// delete removes whatever is left of a container whose shim is out of reach, and
// answers how it ended. containerd then removes the bundle. Every step is tried
// whatever became of the others. What could not be done is a warning, on stderr,
// unless it leaves a process or a mount: then there is no answer, and the bundle
// stays for another try.
func (h *Host) delete(inv *Invocation) error {
	p := h.bundlePlan(inv)
	stopServer(p)
	exit := readExit(p)
	err := errors.Join(h.deleteContainer(p, &exit), unmount(p))
	h.leavePod(p)
	if forSandbox(inv.Bundle) {
		err = errors.Join(err, h.deletePod(inv))
	}
	h.deleteFiles(inv, p)
	if err != nil {
		return fault.Wrap(fault.Unknown, "delete "+inv.ID, err)
	}
	answer := wire.DeleteResponse{Pid: uint32(exit.pid), ExitStatus: uint32(exit.code), ExitedAt: exit.at}
	return h.answer(answer.Append(nil))
}

func (h *Host) warn(format string, args ...any) {
	fmt.Fprintf(h.Stderr, format+"\n", args...)
}

// bundlePlan returns the plan of the bundle. Without one - the machine was
// restarted, start got not that far - the host's settings tell where a container
// would be.
func (h *Host) bundlePlan(inv *Invocation) *plan.Plan {
	if inv.Bundle != "" {
		p, err := readPlan(inv.Bundle)
		if err == nil && p.ID == inv.ID && p.Namespace == inv.Namespace {
			p.Bundle = inv.Bundle
			return p
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			h.warn("%v", err)
		}
	}
	p := &plan.Plan{Namespace: inv.Namespace, ID: inv.ID, Bundle: inv.Bundle}
	if inv.Bundle != "" {
		p.Work, _ = os.Readlink(filepath.Join(inv.Bundle, "work"))
	}
	if err := h.settle(p, &spec{}, &wire.Any{}); err != nil {
		h.warn("%v", err)
	}
	p.Socket, _ = socketPath(h.SocketDir, inv.Address, inv.Namespace, inv.ID)
	return p
}

// leaveLimit is how long a shim whose container is gone may take to end by
// itself: it may have events to deliver.
const leaveLimit = 100 * time.Millisecond

// stopServer ends a shim that still lives, so that it does not see its container
// go and act on that.
func stopServer(p *plan.Plan) {
	id, err := readIdentity(filepath.Join(p.Bundle, plan.ServerFile))
	if err != nil {
		return
	}
	fd := id.open()
	if fd < 0 {
		return
	}
	defer unix.Close(fd)
	if _, err := os.Lstat(filepath.Join(p.Root, p.ID)); err != nil && ended(fd, leaveLimit) {
		return
	}
	kill(fd)
}

// exit is how a container ended.
type exit struct {
	pid  int
	code int
	at   int64 // Unix nanoseconds
}

// readExit returns the end that the shim recorded when it saw it, else that of a
// container killed now. The record may be in the bundle or in the directory that
// outlives a restart of the machine.
func readExit(p *plan.Plan) exit {
	b, err := os.ReadFile(filepath.Join(p.Bundle, plan.EndFile))
	if err == nil {
		var e exit
		if n, _ := fmt.Sscan(string(b), &e.code, &e.at, &e.pid); n == 3 {
			return e
		}
	}
	return exit{pid: readPid(p), code: killedStatus, at: time.Now().UnixNano()}
}

// readPid returns the number that init has or had, for the record only.
func readPid(p *plan.Plan) (pid int) {
	b, _ := os.ReadFile(filepath.Join(p.Bundle, plan.InitPidFile))
	_, _ = fmt.Sscan(string(b), &pid)
	return pid
}

// readState decodes the runtime's own state of the container, runc's or crun's.
func readState(p *plan.Plan, s any) error {
	b, err := os.ReadFile(filepath.Join(p.Root, p.ID, "state.json"))
	if errors.Is(err, os.ErrNotExist) {
		b, err = os.ReadFile(filepath.Join(p.Root, p.ID, "status"))
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(b, s)
}

// containerInit returns who init is, or was, from the runtime's own state, runc's
// or crun's.
func containerInit(p *plan.Plan) (identity, error) {
	var s struct {
		RuncPid   int    `json:"init_process_pid"`
		RuncStart uint64 `json:"init_process_start"`
		CrunPid   int    `json:"pid"`
		CrunStart uint64 `json:"process-start-time"`
	}
	err := readState(p, &s)
	if err != nil {
		return identity{}, err
	}
	return identity{max(s.RuncPid, s.CrunPid), max(s.RuncStart, s.CrunStart)}, nil
}

// deleteContainer kills what runs of the container and has the runtime forget
// it. Killing comes first and is done here: the runtime's forced delete waits
// 100 ms for each look at its victim.
func (h *Host) deleteContainer(p *plan.Plan, e *exit) error {
	if p.Root == "" || p.ID == "" {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(p.Root, p.ID)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var kerr error
	if id, err := containerInit(p); err == nil {
		if e.pid == 0 {
			e.pid = id.pid
		}
		kerr = killContainer(id)
	}
	err := withRuntime(p, func(r *runc.Runtime) error {
		err := r.Delete(p.ID, false)
		if err == nil || fault.CodeOf(err) == fault.NotFound {
			return nil
		}
		err = r.Delete(p.ID, true)
		if fault.CodeOf(err) == fault.NotFound {
			return nil
		}
		return err
	})
	if err != nil {
		h.warn("%v", err)
		if kerr == nil {
			h.removeState(p)
		}
	}
	return kerr
}

// removeState takes away what is left of a container without processes whose
// runtime cannot: empty cgroups and the runtime's directory.
func (h *Host) removeState(p *plan.Plan) {
	var s struct {
		Paths map[string]string `json:"cgroup_paths"` // runc's, by controller
		Path  string            `json:"cgroup-path"`  // crun's, below each hierarchy
	}
	if err := readState(p, &s); err != nil {
		h.warn("state of %s: %v", p.ID, err)
		return
	}
	paths := slices.Collect(maps.Values(s.Paths))
	if s.Path != "" {
		below, _ := filepath.Glob(filepath.Join(cgroupMount, "*", s.Path))
		paths = append(below, filepath.Join(cgroupMount, s.Path))
	}
	for _, path := range paths {
		if rel, err := filepath.Rel(cgroupMount, path); err == nil && filepath.IsLocal(rel) && rel != "." {
			removeCgroup(path)
		}
	}
	if err := withRuntime(p, func(r *runc.Runtime) error { return r.DeleteState(p.ID) }); err != nil {
		h.warn("%v", err)
	}
}

// removeCgroup removes an empty cgroup and those below it. One with processes
// stays.
func removeCgroup(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	_ = unix.Rmdir(dir)
}

// killContainer kills init and all in its cgroup.
func killContainer(id identity) error {
	fd := id.open()
	if fd < 0 {
		return nil
	}
	defer unix.Close(fd)
	g, err := cgroup.Of(id.pid) // init is alive or a zombie: its number is its own
	own := err == nil && g.Own()
	if own {
		// In a frozen cgroup, of version 1, SIGKILL waits. It is sent before the
		// thaw, so that a paused container does not run on.
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		_ = g.Thaw()
	}
	if !kill(fd) {
		return fault.New(fault.DeadlineExceeded, fmt.Sprintf("process %d does not end after SIGKILL", id.pid))
	}
	if own {
		// What is left is not of init's PID namespace. Its failure shows in the
		// runtime's delete, which needs the cgroup empty.
		_ = g.Kill()
	}
	return nil
}

func unmount(p *plan.Plan) error {
	if p.Bundle == "" {
		return nil
	}
	return rootfs.Unmount(filepath.Join(p.Bundle, "rootfs"))
}

// deleteFiles removes what is outside of the bundle: sockets, spools.
func (h *Host) deleteFiles(inv *Invocation, p *plan.Plan) {
	paths := []string{p.Socket, p.SeccompSocket}
	if p.Work != "" {
		entries, _ := os.ReadDir(p.Work) // it may be gone
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "spool-") {
				paths = append(paths, filepath.Join(p.Work, e.Name()))
			}
		}
	}
	if p.Socket != "" {
		if err := attach.Remove(p.Socket); err != nil {
			h.warn("%s: %v", inv.ID, err)
		}
	}
	for _, path := range paths {
		if path == "" {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			h.warn("%s: %v", inv.ID, err)
		}
	}
}
