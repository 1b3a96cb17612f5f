// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/wire"
)

// Verbs of the shim's own program for work that needs a parser which the
// resident must not touch: it is executed, answers and ends. shim/bootstrap
// implements them.
const (
	// VerbUpdate checks LinuxResources (JSON, on stdin) against the container
	// and has the runtime apply them.
	VerbUpdate = "update"
	// VerbOptions turns an Any of runtime options (on stdin) into the encoded
	// Plan of the bundle with these options (on stdout).
	VerbOptions = "options"
)

// Update applies resources, the JSON of LinuxResources, to the container of p.
// What they do not name stays. A limit that cannot be is InvalidArgument or
// FailedPrecondition, and the runtime is not asked.
func Update(r *Runtime, p *plan.Plan, resources []byte) error {
	_, err := r.Transient(p, VerbUpdate, resources)
	return err
}

// Options returns p with the options in a instead of those that the shim was
// started with.
func Options(r *Runtime, p *plan.Plan, a *wire.Any) (*plan.Plan, error) {
	out, err := r.Transient(p, VerbOptions, a.Append(nil))
	if err != nil {
		return nil, err
	}
	changed := &plan.Plan{}
	if err := changed.Decode(out); err != nil {
		return nil, err
	}
	return changed, nil
}

// Transient executes the shim's program for verb with in on its stdin, and
// returns its stdout. Its exit status is the class of the error, its stderr the
// text.
func (r *Runtime) Transient(p *plan.Plan, verb string, in []byte) ([]byte, error) {
	var fds [3]int
	for i, name := range [...]string{"in", "out", "err"} {
		fd, err := memfd(verb + "-" + name)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	for off := 0; off < len(in); { // pwrite leaves the offset for the reader
		n, err := unix.Pwrite(fds[0], in[off:], int64(off))
		if err != nil {
			return nil, os.NewSyscallError("pwrite", err)
		}
		off += n
	}
	exit, err := r.Children.Run(&process.Command{
		Path: p.Binary, Args: []string{p.Binary, "-namespace", p.Namespace, "-id", p.ID, "-bundle", p.Bundle, verb},
		Env: r.Env, Dir: r.Bundle, Files: fds[:], Pdeathsig: syscall.SIGKILL, Group: true,
	}, callTimeout)
	if err != nil {
		return nil, fault.In(verb, err)
	}
	if exit.Code != 0 {
		class := fault.Code(exit.Code)
		if exit.Signaled || class == fault.Canceled { // 1 is any program's failure
			class = fault.Unknown
		}
		return nil, fault.New(class, strings.TrimSpace(string(tail(fds[2]))))
	}
	return tail(fds[1]), nil
}
