// SPDX-License-Identifier: Apache-2.0

// Command berthd is containerd with berth's parts in it: the same flags, the same
// configuration, and berth's sections beside the others. `berthd proxy` serves the
// parts to a containerd that was built without them.
package main

import (
	"context"
	"fmt"
	"os"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
	"github.com/containerd/containerd/v2/cmd/containerd/command"
	"github.com/urfave/cli/v3"

	_ "github.com/berthd/berth/plugin"
)

// version is the linker's.
var version = "unknown"

func main() {
	if err := app().Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "berthd:", err)
		os.Exit(1)
	}
}

// app is containerd's, with berth's commands added.
func app() *cli.Command {
	app := command.App()
	app.Name = "berthd"
	app.Usage = "containerd with berth's snapshotter, image verifier and image policy; berth " + version
	app.Commands = append(app.Commands, proxyCommand())
	for _, c := range app.Commands {
		if c.Name == "config" {
			c.Commands = append(c.Commands, configProxyCommand())
		}
	}
	return app
}
