// SPDX-License-Identifier: Apache-2.0

package command

import (
	"errors"
	"fmt"
	"os/exec"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/exit"
	"github.com/berthd/berth/cmd/berth/internal/session"
)

// shimProgram is where containerd looks for it too: in PATH.
const shimProgram = "containerd-shim-berth-v1"

func shim(s *session.Session) *cobra.Command {
	c := &cobra.Command{
		Use:   "shim",
		Short: "Look after berth's shims",
		Long:  "berth's shim stands between containerd and each container.",
		Args:  cobra.NoArgs,
	}
	c.AddCommand(upgrade(s))
	return c
}

func upgrade(s *session.Session) *cobra.Command {
	var state, id, program string
	var all bool
	c := &cobra.Command{
		Use:   "upgrade [flags]",
		Short: "Let running shims go on as the installed program",
		Long: `Let the shims that run go on as the program that is installed. Containers do not notice.
It is "containerd-shim-berth-v1 upgrade".`,
		Example: `  berth shim upgrade
  berth shim upgrade --all --containerd-state /run/containerd`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := exec.LookPath(program)
			if err != nil {
				return fmt.Errorf("%s: %w: %w", program, errdefs.ErrNotFound, err)
			}
			var args []string
			if !all {
				args = append(args, "-namespace", s.Namespace)
			}
			if id != "" {
				args = append(args, "-id", id)
			}
			run := exec.CommandContext(cmd.Context(), path, append(args, "upgrade", state)...)
			run.Stdout, run.Stderr = s.Out, s.Err
			err = run.Run()
			if ended := (*exec.ExitError)(nil); errors.As(err, &ended) {
				return exit.Code(exit.Failed) // it has said why
			}
			return err
		},
	}
	c.Flags().StringVar(&state, "containerd-state", "/run/containerd", "containerd's state directory")
	c.Flags().StringVar(&id, "id", "", "only that of one container or pod")
	c.Flags().StringVar(&program, "program", shimProgram, "the shim to go on as")
	c.Flags().BoolVarP(&all, "all", "A", false, "of all namespaces")
	return c
}
