// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/plugin/runtime"
)

func statistics(s *session.Session) *cobra.Command {
	l := report.Listing{Out: s.Out}
	var once bool
	c := &cobra.Command{
		Use:   "stats [flags] [CONTAINER...]",
		Short: "Show what containers use, live",
		Long: `Show what containers use of the host, again and again: all that run, or those named. CPU
is in percent of one processor. Memory is the working set, as the kubelet counts it;
disk is the writable layer.`,
		Example: `  berth container stats
  berth container stats --no-stream app
  berth container stats --no-stream -o json | jq '.[].memory.workingSet'`,
		ValidArgsFunction: s.Containers(0, living...),
		RunE: func(cmd *cobra.Command, refs []string) error {
			l.Watch = !once
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				var load report.Load
				return report.ShowUsage(ctx, &l, func(ctx context.Context) (*report.List[runtime.ContainerStats], error) {
					all, err := service.Stats(ctx, refs...)
					if err != nil {
						return nil, err
					}
					return measured(&l, &load, all), nil
				})
			})
		},
	}
	l.BindStats(c.Flags(), &once)
	return c
}

func measured(l *report.Listing, load *report.Load, all []runtime.ContainerStats) *report.List[runtime.ContainerStats] {
	t := &report.List[runtime.ContainerStats]{Items: all, Table: report.Table{
		Titles: []string{"CONTAINER ID", "NAME", "POD", "CPU", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN", "DISK"},
	}}
	for _, c := range all {
		var read, written uint64
		for _, d := range c.Disks {
			read, written = read+d.ReadBytes, written+d.WrittenBytes
		}
		memory, limit := report.Memory(c.Memory)
		t.IDs = append(t.IDs, string(c.ID))
		t.Table.Rows = append(t.Table.Rows, []string{
			l.ID(string(c.ID)), l.ID(c.Name), c.PodName, load.Percent(string(c.ID), c.At, c.CPU), memory, limit,
			strconv.FormatUint(c.Pids.Current, 10), report.Bytes(read), report.Bytes(written), report.Bytes(c.Layer),
		})
	}
	return t
}
