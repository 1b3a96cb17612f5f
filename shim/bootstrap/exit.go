// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// exitCommand becomes the command that the host wants to be executed when a
// container has ended. It outlives the shim, which may be told to end meanwhile, and
// has containerd's OOM score, not the shim's.
func exitCommand(inv *Invocation) error {
	p, err := readPlan(inv.Bundle) // which may be gone after the delay
	if err != nil {
		return err
	}
	if len(p.ExitCommand) == 0 {
		return fault.New(fault.InvalidArgument, "no exit command")
	}
	if err := os.Chdir("/"); err != nil {
		return fault.Wrap(fault.Unknown, "exit command", err)
	}
	time.Sleep(time.Duration(p.ExitDelay))
	// A machine that does not allow it has only a more likely victim.
	_ = os.WriteFile(ownOOMScore, strconv.AppendInt(nil, int64(p.OOMScore), 10), 0)
	env := append(os.Environ(), "CONTAINER_ID="+p.ID, "CONTAINER_NAMESPACE="+p.Namespace)
	return fault.Wrap(fault.FailedPrecondition, "exec "+p.ExitCommand[0], unix.Exec(p.ExitCommand[0], p.ExitCommand, env))
}
