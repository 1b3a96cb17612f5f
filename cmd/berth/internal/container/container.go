// SPDX-License-Identifier: Apache-2.0

// Package container has the commands of `berth container`. What they do is the
// service's; here are their words, and the user's terminal.
package container

import (
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/session"
)

// Command is `berth container`.
func Command(s *session.Session) *cobra.Command {
	c := &cobra.Command{
		Use:     "container",
		Aliases: []string{"c"},
		Short:   "Make, run and look at containers",
		Long: `Containers: each is in a pod, one made by "berth pod create" or one of its own. Those of
others, as ctr, nerdctl and the kubelet, are shown too.`,
		Args: cobra.NoArgs,
	}
	c.AddCommand(
		create(s), Run(s), start(s), Exec(s), attach(s), Logs(s),
		stop(s), kill(s), pause(s), unpause(s), update(s), remove(s),
		List(s), inspect(s), top(s), statistics(s),
		checkpoint(s), restore(s), mount(s), unmount(s),
	)
	return c
}
