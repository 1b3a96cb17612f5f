// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/join"
	"github.com/berthd/berth/shim/options"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/wire"
)

// request is what containerd asks of `start`, by either protocol.
type request struct {
	wire.BootstrapParams
	options wire.Any
	legacy  bool // containerd before 2.3
}

// parseRequest tells the protocol by the input: newer containerds pass the older
// protocol's flags too. Bytes that are options could by chance be read as
// parameters, so these have to agree with the flags.
func parseRequest(inv *Invocation, input []byte) (*request, error) {
	r := &request{}
	err := r.Decode(input)
	if err == nil && r.InstanceID == inv.ID && r.Namespace == inv.Namespace && inv.ID != "" {
		for i := range r.Extensions {
			if options.Known(&r.Extensions[i]) {
				r.options = r.Extensions[i]
				break
			}
		}
		return r, nil
	}
	r = &request{legacy: true, BootstrapParams: wire.BootstrapParams{
		InstanceID: inv.ID, Namespace: inv.Namespace,
		ContainerdGrpcAddress: inv.Address, ContainerdBinary: inv.PublishBinary,
		ContainerdTtrpcAddress: os.Getenv("TTRPC_ADDRESS"),
	}}
	if inv.Debug {
		r.LogLevel = wire.LogLevelDebug
	}
	if err := r.options.Decode(input); err != nil {
		return nil, fault.Wrap(fault.InvalidArgument, "standard input is neither bootstrap parameters nor options", err)
	}
	return r, nil
}

// answer is what containerd expects: a message, or JSON if it has said that it
// knows about versions, or the address alone.
func (r *request) answer(address string) []byte {
	switch {
	case !r.legacy:
		result := wire.BootstrapResult{Version: apiVersion, Address: address, Protocol: "ttrpc"}
		return result.Append(nil)
	case os.Getenv("MAX_SHIM_VERSION") != "":
		return fmt.Appendf(nil, `{"version":%d,"address":%q,"protocol":"ttrpc"}`, apiVersion, address)
	}
	return []byte(address)
}

// start brings a shim to life for the container of the bundle, or finds the one
// that lives, and answers with its address.
func (h *Host) start(inv *Invocation) error {
	input, err := h.input()
	if err != nil {
		return err
	}
	r, err := parseRequest(inv, input)
	if err != nil {
		return err
	}
	dir := r.SocketDir
	if dir == "" {
		dir = h.SocketDir
	}
	socket, err := socketPath(dir, r.ContainerdGrpcAddress, inv.Namespace, inv.ID)
	if err != nil {
		return err
	}
	if !alive(socket) {
		p := h.plan(inv, r, socket)
		if forSandbox(inv.Bundle) {
			err = h.planSandbox(p, &r.options)
		} else {
			err = h.planContainer(inv, p, &r.options)
		}
		if err == nil {
			err = launch(inv, p)
		}
		if err != nil {
			h.leavePod(p)
			return err
		}
	}
	return h.answer(r.answer("unix://" + socket))
}

// plan returns what every resident has to know.
func (h *Host) plan(inv *Invocation, r *request, socket string) *plan.Plan {
	p := &plan.Plan{
		Namespace: inv.Namespace, ID: inv.ID, Bundle: inv.Bundle, Socket: socket, Binary: h.Binary,
		Address: path(r.ContainerdGrpcAddress), TTRPCAddress: path(r.ContainerdTtrpcAddress),
		ContainerdBinary: r.ContainerdBinary, LogLevel: r.LogLevel,
		Debug: inv.Debug || r.LogLevel <= wire.LogLevelDebug,
	}
	// containerd makes it a link to the directory that outlives a reboot.
	p.Work, _ = os.Readlink(filepath.Join(inv.Bundle, "work"))
	return p
}

// planContainer makes p one for the container of the bundle, which joins its pod
// first.
func (h *Host) planContainer(inv *Invocation, p *plan.Plan, a *wire.Any) error {
	j := join.Joiner{State: h.PodState, Namespace: p.Namespace, ID: p.ID, Bundle: p.Bundle, Note: inv.note}
	pod, err := j.Join()
	if err != nil {
		return err
	}
	if pod != nil {
		p.SandboxID, p.UsernsPath = pod.SandboxID, pod.UsernsPath
	}
	s, err := readSpec(p.Bundle)
	if err != nil {
		return err
	}
	if err := inv.tolerateOOMScore(s); err != nil {
		return err
	}
	if err := inv.notify(s, p); err != nil {
		return err
	}
	return h.settle(p, s, a)
}

// settle puts options and specification into p.
func (h *Host) settle(p *plan.Plan, s *spec, a *wire.Any) error {
	o, err := options.Load(h.Settings, a)
	if err != nil {
		return err
	}
	if p.Runtime, err = program(o.Program()); err != nil {
		return err
	}
	p.OptionsType, p.OptionsSum = a.TypeURL[strings.LastIndexByte(a.TypeURL, '/')+1:], plan.Sum(a.Value)
	o.Apply(p)
	return s.apply(o, p)
}

// program returns the absolute path of the OCI runtime. A name is looked up in
// PATH. (os/exec would do, at the price of what it initialises.)
func program(name string) (string, error) {
	if strings.Contains(name, "/") {
		if !executable(name) {
			return "", fault.New(fault.FailedPrecondition, "OCI runtime "+name+": not an executable file")
		}
		full, err := filepath.Abs(name)
		return full, err
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if full := filepath.Join(dir, name); filepath.IsAbs(full) && executable(full) {
			return full, nil
		}
	}
	return "", fault.New(fault.FailedPrecondition, "OCI runtime "+name+": executable file not found in $PATH")
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// path takes the scheme off an address.
func path(address string) string { return strings.TrimPrefix(address, "unix://") }

// coreScheduling gives the shim, and so the container, a core scheduling cookie
// of its own when the host asks for that in SCHED_CORE, as containerd's shim does.
func coreScheduling() error {
	if os.Getenv("SCHED_CORE") == "" {
		return nil
	}
	const scopeProcessGroup = 2 // prctl(2), PR_SCHED_CORE_SCOPE_PROCESS_GROUP
	if err := unix.Prctl(unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_CREATE, 0, scopeProcessGroup, 0); err != nil {
		return fault.Wrap(fault.Unknown, "core scheduling", err)
	}
	return nil
}
