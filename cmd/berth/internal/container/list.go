// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/argument"
	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/plugin/runtime"
)

// List is `berth container ls`.
func List(s *session.Session) *cobra.Command {
	l := report.Listing{Out: s.Out}
	var all, everybody bool
	var pod string
	var pairs []string
	c := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list", "ps"},
		Short:   "List containers",
		Long: `List containers that run, newest first, with -a all. Those of the kubelet (owner cri) are
shown too, and with --all-owners those in no pod, as ctr's and nerdctl's (owner other).`,
		Example: `  berth ps
  berth ps -a --pod web
  berth ps -a -f state=exited -q
  berth ps -o json | jq -r '.[].image'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := argument.ParseFilter(pairs)
			if err != nil {
				return err
			}
			filter, err := f.Containers()
			if err != nil {
				return err
			}
			if pod != "" {
				filter.Pod = pod
			}
			all = all || filter.State != ""
			filter.AllOwners = everybody || f.Owner != ""
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				return report.Show(ctx, &l, func(ctx context.Context) (*report.List[runtime.Container], error) {
					containers, err := service.Containers(ctx, filter)
					if err != nil {
						return nil, err
					}
					return list(&l, containers, func(c *runtime.Container) bool {
						return (all || c.State == runtime.ContainerRunning || c.State == runtime.ContainerPaused) && (f.Owner == "" || f.Owner == c.Owner)
					}), nil
				})
			})
		},
	}
	l.Bind(c.Flags())
	c.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run")
	c.Flags().BoolVar(&everybody, "all-owners", false, "also those in no pod, as ctr's and nerdctl's")
	c.Flags().StringVar(&pod, "pod", "", "only those of a `POD`")
	c.Flags().StringArrayVarP(&pairs, "filter", "f", nil, "`KEY=VALUE`: id, name, pod, state, owner or label")
	_ = c.RegisterFlagCompletionFunc("pod", s.Pods(0)) // there is the flag
	return c
}

func list(l *report.Listing, containers []runtime.Container, wanted func(*runtime.Container) bool) *report.List[runtime.Container] {
	t := &report.List[runtime.Container]{Table: report.Table{
		Titles: []string{"CONTAINER ID", "NAME", "POD", "IMAGE", "STATE", "ATTEMPT", "CREATED", "OWNER"},
	}}
	for _, c := range containers {
		if !wanted(&c) {
			continue
		}
		pod := c.PodName
		if pod == "" {
			pod = l.ID(string(c.PodID))
		}
		t.Items = append(t.Items, c)
		t.IDs = append(t.IDs, string(c.ID))
		t.Table.Rows = append(t.Table.Rows, []string{
			l.ID(string(c.ID)), l.ID(c.Name), pod, c.Image, state(&c), c.Attempt.String(), l.Time(c.CreatedAt), c.Owner,
		})
	}
	return t
}

func state(c *runtime.Container) string {
	if c.State == runtime.ContainerExited && c.ExitCode != nil {
		return fmt.Sprintf("%s (%d)", c.State, *c.ExitCode)
	}
	return string(c.State)
}

func inspect(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect CONTAINER...",
		Short: "Show all that is known of containers, as JSON",
		Example: `  berth container inspect app
  berth container inspect app | jq '.[0].exitCode'`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.Containers(0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				return session.Inspect(s, refs, func(ref string) (runtime.Container, error) { return service.Container(ctx, ref) })
			})
		},
	}
}

func top(s *session.Session) *cobra.Command {
	format := report.Tables
	c := &cobra.Command{
		Use:   "top [flags] CONTAINER",
		Short: "List the processes of a container",
		Long:  "List the processes of a container, with the numbers that the host has for them.",
		Example: `  berth container top app
  berth container top -o json app`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: s.Containers(1, living...),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				all, err := service.Top(ctx, args[0])
				if err != nil {
					return err
				}
				if format == report.AsJSON {
					return report.JSON(s.Out, all)
				}
				t := report.Table{Titles: []string{"PID", "PPID", "USER", "STATE", "EXEC", "COMMAND"}}
				for _, p := range all {
					t.Rows = append(t.Rows, []string{strconv.Itoa(p.PID), strconv.Itoa(p.PPID), p.User, p.State, p.Exec, p.Command})
				}
				return t.Write(s.Out)
			})
		},
	}
	c.Flags().VarP(&format, "output", "o", "table, or json for programs")
	return c
}
