// SPDX-License-Identifier: Apache-2.0

package container

import (
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/attach"
	"github.com/berthd/berth/shim/fault"
)

// Attach makes a socket through which one more client sees and feeds the process,
// and returns its path.
func (p *Process) Attach(want attach.Request) (string, error) {
	switch {
	case p.child != nil && p.streams != nil:
		return p.streams.Attach(p.c.h.Plan.Socket, want)
	case p.pid == 0 && p.state != Stopped:
		return "", fault.New(fault.FailedPrecondition, "cannot attach to a process that is not started")
	}
	return "", fault.New(fault.FailedPrecondition, "cannot attach to a process that has ended")
}

// errClosing refuses execs.
var errClosing = fault.New(fault.FailedPrecondition, "cannot exec in a container that is being stopped")

// StopExecs kills all execs. From then on none can be registered or started: one
// whose start is on its way is killed when it has come. A signal reaches one that
// is frozen when it is thawed.
func (c *Container) StopExecs() {
	c.closing = true
	for _, p := range c.execs {
		p.stopExec()
	}
}

// stopExec kills an exec that runs, while the container is closing.
func (p *Process) stopExec() {
	if p.c.closing && p.child != nil {
		// One that has ended in the meantime needs none.
		_ = p.child.Signal(int(unix.SIGKILL))
	}
}
