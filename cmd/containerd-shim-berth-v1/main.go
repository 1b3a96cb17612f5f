// SPDX-License-Identifier: Apache-2.0

// Go's runtime would keep two descriptors and a timer for the CPU limit of the
// cgroup. The resident has one P whatever the limit is.
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command containerd-shim-berth-v1 is berth's shim, as containerd looks for it
// under the runtime name io.containerd.berth.v1 or by path. Without a command it
// is the resident process of one container; with one it is transient.
package main

import (
	"os"

	"github.com/berthd/berth/shim"
	"github.com/berthd/berth/shim/bootstrap"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/handover"
	"github.com/berthd/berth/shim/task"
	"github.com/berthd/berth/shim/upgrade"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(run(os.Args[1:])) }

// run returns the exit status: 0, or the class of the error that it has written
// to stderr, by which the resident half tells what became of a transient one.
func run(args []string) int {
	err := dispatch(args)
	if err == nil {
		return 0
	}
	os.Stderr.WriteString(err.Error() + "\n")
	return int(fault.CodeOf(err))
}

func dispatch(args []string) error {
	inv, err := bootstrap.Parse(args)
	if err != nil {
		return err
	}
	task.Version = version
	switch {
	case inv.Serves():
		return shim.Serve()
	case inv.Verb == handover.VerbCheck:
		return shim.CheckState()
	}
	host, err := bootstrap.System(version)
	if err != nil {
		return err
	}
	if inv.Verb == "upgrade" {
		return upgrade.Run(upgrade.Request{
			State: state(inv.Args), Namespace: inv.Namespace, ID: inv.ID, Binary: host.Binary,
		}, os.Stdout)
	}
	return host.Run(inv)
}

// state returns containerd's state directory, the only argument of upgrade.
func state(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return upgrade.DefaultState
}
