// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/plugin/proxy"
)

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Aliases: []string{"c"}, Value: proxy.DefaultPath, Usage: "Path to berth's configuration"}
}

func proxyCommand() *cli.Command {
	return &cli.Command{
		Name:  "proxy",
		Usage: "Serve berth's snapshotter and image policy to a containerd built without them",
		Description: `Serves the snapshotter on a unix socket and, where pinned images are configured,
keeps containerd's records of images by them. "berthd config proxy" prints what
containerd's configuration needs.

SIGHUP reads the configuration again and starts the program on the disk in place:
calls that run are finished first, and those that come meanwhile wait. SIGTERM
finishes calls and ends.`,
		Flags: []cli.Flag{configFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			config, err := proxy.Load(cmd.String("config"))
			if err != nil {
				return err
			}
			return proxy.Run(ctx, config)
		},
	}
}

func configProxyCommand() *cli.Command {
	return &cli.Command{
		Name:  "proxy",
		Usage: "See what containerd's configuration needs to use \"berthd proxy\"",
		Flags: []cli.Flag{configFlag()},
		Action: func(_ context.Context, cmd *cli.Command) error {
			config, err := proxy.Load(cmd.String("config"))
			if err != nil {
				return err
			}
			text, err := config.Section()
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.Root().Writer, text)
			return err
		},
	}
}
