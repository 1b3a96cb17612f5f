// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/containerd/containerd/v2/client"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/exit"
	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/session"
	plugin "github.com/berthd/berth/plugin/runtime/doctor"
)

// lacking is the exit code when something is missing.
const lacking = 1

func doctor(s *session.Session) *cobra.Command {
	format := report.Tables
	c := &cobra.Command{
		Use:   "doctor [flags]",
		Short: "Find out what this machine lacks for which feature",
		Long: `Look at the kernel, cgroups, containerd, CNI and the programs that berth uses, and say
what is missing for which feature, and what to do. Nothing is changed. The exit code is
1 if pods and containers cannot be run as they should.`,
		Example: `  berth doctor
  berth doctor -o json | jq -r '.[] | select(.status != "ok") | .remedy'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := plugin.Doctor{ConfDir: s.ConfDir, BinDirs: filepath.SplitList(s.BinDir), Handlers: s.Config}
			var checks []plugin.Check
			err := s.Client(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				d.Client = c
				checks = d.Examine(ctx)
				return nil
			})
			if err != nil && d.Client == nil { // which is a finding
				checks = d.Examine(cmd.Context())
			}
			if err := write(s.Out, format, checks); err != nil {
				return err
			}
			if plugin.Worst(checks) == plugin.Missing {
				return exit.Code(lacking)
			}
			return nil
		},
	}
	c.Flags().VarP(&format, "output", "o", "table, or json for programs")
	return c
}

func write(out io.Writer, format report.Format, checks []plugin.Check) error {
	if format == report.AsJSON {
		return report.JSON(out, checks)
	}
	t := report.Table{Titles: []string{"STATUS", "CHECK", "FOUND"}}
	for _, c := range checks {
		t.Rows = append(t.Rows, []string{string(c.Status), c.Name, c.Found})
	}
	if err := t.Write(out); err != nil {
		return err
	}
	for _, c := range checks {
		if c.Status == plugin.OK {
			continue
		}
		if _, err := fmt.Fprintf(out, "\n%s (%s), needed for %s:\n  %s\n", c.Name, c.Status, c.NeededFor, c.Remedy); err != nil {
			return err
		}
	}
	return nil
}
