// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/cgroup"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/runc"
	"github.com/berthd/berth/shim/wire"
)

// readPlan returns the plan that start left in the bundle.
func readPlan(bundle string) (*plan.Plan, error) {
	b, err := os.ReadFile(filepath.Join(bundle, plan.File))
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, "bundle", err)
	}
	p := &plan.Plan{}
	return p, p.Decode(b)
}

// update applies the LinuxResources on stdin to the container.
func (h *Host) update(inv *Invocation) error {
	input, err := h.input()
	if err != nil {
		return err
	}
	p, err := readPlan(inv.Bundle)
	if err != nil {
		return err
	}
	p.Bundle = inv.Bundle
	memory := containerMemory(p)
	resources, err := adjust(input, memory)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("berth-resources", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "resources")
	defer f.Close()
	if _, err := f.WriteAt(resources, 0); err != nil {
		return fault.Wrap(fault.Unknown, "resources", err)
	}
	return withRuntime(p, func(r *runc.Runtime) error { return r.Update(p.ID, fd) })
}

// memory is what a new limit is held against.
type memory struct {
	usage uint64 // bytes; 0 when unknown
	swap  bool   // swap is accounted
}

func containerMemory(p *plan.Plan) memory {
	var m memory
	id, err := containerInit(p)
	if err != nil {
		return m
	}
	g, err := cgroup.Of(id.pid)
	if err != nil || !g.Own() {
		return m
	}
	m.usage, _ = g.MemoryUsage() // unknown: the runtime decides
	m.swap = swapAccounted(id.pid)
	return m
}

// swapAccounted tells whether the kernel counts swap in the memory cgroup of pid:
// it can be switched off at boot.
func swapAccounted(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	limit := ""
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(parts) < 3:
		case slices.Contains(strings.Split(parts[1], ","), "memory"):
			limit = filepath.Join(cgroupMount, "memory", parts[2], "memory.memsw.limit_in_bytes")
		case parts[1] == "" && limit == "":
			limit = filepath.Join(cgroupMount, parts[2], "memory.swap.max")
		}
	}
	_, err = os.Stat(limit)
	return err == nil
}

// adjust checks resources, JSON of LinuxResources, and returns them as the
// runtime gets them. A limit below what is in use is refused here: the kernel
// would kill, or the runtime fail half way. With a limit the swap limit follows
// it where swap is counted, or the container could gain swap. What the shim does
// not know is passed on.
func adjust(resources []byte, m memory) ([]byte, error) {
	all := map[string]json.RawMessage{}
	if err := json.Unmarshal(resources, &all); err != nil {
		return nil, fault.Wrap(fault.InvalidArgument, "resources", err)
	}
	if all["memory"] == nil {
		return resources, nil
	}
	var limits struct {
		Limit *int64 `json:"limit"`
		Swap  *int64 `json:"swap"`
	}
	mem := map[string]json.RawMessage{}
	if err := json.Unmarshal(all["memory"], &mem); err != nil {
		return nil, fault.Wrap(fault.InvalidArgument, "resources: memory", err)
	}
	if err := json.Unmarshal(all["memory"], &limits); err != nil {
		return nil, fault.Wrap(fault.InvalidArgument, "resources: memory", err)
	}
	if limits.Limit == nil || *limits.Limit == 0 {
		return resources, nil
	}
	limit := *limits.Limit
	switch {
	case limit < 0:
		return nil, fault.New(fault.InvalidArgument, fmt.Sprintf("memory limit of %d bytes is negative", limit))
	case uint64(limit) < m.usage:
		return nil, fault.New(fault.FailedPrecondition, fmt.Sprintf("memory limit of %d bytes is below the %d bytes in use", limit, m.usage))
	case !m.swap || limits.Swap != nil && *limits.Swap != 0:
		return resources, nil
	}
	mem["swap"] = mem["limit"]
	var err error
	if all["memory"], err = json.Marshal(mem); err != nil {
		return nil, fault.Wrap(fault.Internal, "resources", err)
	}
	return json.Marshal(all)
}

// options answers with the bundle's plan under the options on stdin, and leaves
// it in the bundle.
func (h *Host) options(inv *Invocation) error {
	input, err := h.input()
	if err != nil {
		return err
	}
	var a wire.Any
	if err := a.Decode(input); err != nil {
		return fault.In("options on standard input", err)
	}
	p, err := readPlan(inv.Bundle)
	if err != nil {
		return err
	}
	s, err := readSpec(inv.Bundle)
	if err != nil {
		return err
	}
	if err := h.settle(p, s, &a); err != nil {
		return err
	}
	f, err := writePlan(p)
	if err != nil {
		return err
	}
	f.Close()
	return h.answer(p.Append(nil))
}
