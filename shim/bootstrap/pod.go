// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/options"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/pod"
	"github.com/berthd/berth/shim/sandbox"
	"github.com/berthd/berth/shim/wire"
)

// sandboxController is the folder of containerd's state in which the bundles of
// sandboxes are, each in one for its namespace.
const sandboxController = "io.containerd.sandbox.controller.v1.shim"

// forSandbox tells whether a shim is wanted for a sandbox, not for a container.
// No more than the place tells: a sandbox may have a specification too.
func forSandbox(bundle string) bool {
	return filepath.Base(filepath.Dir(filepath.Dir(bundle))) == sandboxController
}

// planSandbox makes p one for the sandbox of the bundle.
func (h *Host) planSandbox(p *plan.Plan, a *wire.Any) error {
	o, err := options.Load(h.Settings, a)
	if err != nil {
		return err
	}
	o.Apply(p)
	p.Sandboxer = true
	return nil
}

// makePod makes the pod that the CreateSandboxRequest on stdin asks for.
func (h *Host) makePod(inv *Invocation) error {
	request, err := h.input()
	if err != nil {
		return err
	}
	p, err := readPlan(inv.Bundle)
	if err != nil {
		return err
	}
	inv.Debug = p.Debug
	m := pod.Maker{
		State: h.PodState, Namespace: inv.Namespace, ID: inv.ID, Bundle: inv.Bundle,
		Ports: !p.NoUnprivilegedPorts, ICMP: !p.NoUnprivilegedICMP, Process: p.PodProcess,
		Logf: func(format string, args ...any) { inv.note("debug", format, args...) },
	}
	answer, err := m.Make(request)
	if err != nil {
		return err
	}
	return h.answer(answer)
}

// deletePod removes a pod whose shim is out of reach. Its members, if any, run
// on, unless they share the PID namespace that ends here.
func (h *Host) deletePod(inv *Invocation) error {
	dir, err := sandbox.Dir(h.PodState, inv.Namespace, inv.ID)
	if err != nil {
		return err
	}
	if init, err := readIdentity(filepath.Join(inv.Bundle, sandbox.InitFile)); err == nil {
		if fd := init.open(); fd >= 0 {
			defer unix.Close(fd)
			if !kill(fd) {
				return fault.New(fault.DeadlineExceeded, fmt.Sprintf("init of the pod, process %d, does not end after SIGKILL", init.pid))
			}
		}
	}
	record, err := pod.Read(dir)
	if err != nil {
		if fault.CodeOf(err) != fault.NotFound { // not made, or gone
			h.warn("%v", err)
		}
		return sandbox.Remove(dir)
	}
	// Of our own server, which is dead by now, no more than a zombie may be left.
	server, _ := readIdentity(filepath.Join(inv.Bundle, plan.ServerFile))
	if server != (identity{record.Owner.Pid, record.Owner.StartTime}) && record.Owner.Alive() {
		return nil // a pod of this name that another shim has, say of a second containerd
	}
	if record.MadeCgroup {
		if err := sandbox.RemoveCgroup(dir, record.CgroupParent); err != nil {
			h.warn("pod's cgroup: %v", err)
		}
	}
	return sandbox.Remove(dir)
}

// leavePod forgets that the container of p is, or was to be, a member of a pod.
func (h *Host) leavePod(p *plan.Plan) {
	if err := sandbox.Leave(h.PodState, p.Namespace, p.SandboxID, p.ID); err != nil {
		h.warn("%v", err)
	}
}
