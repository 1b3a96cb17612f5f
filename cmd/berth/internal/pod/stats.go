// SPDX-License-Identifier: Apache-2.0

package pod

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
		Use:   "stats [flags] [POD...]",
		Short: "Show what pods use, live",
		Long: `Show what pods use of the host, again and again: all that run, or those named. CPU is
in percent of one processor. Memory is the working set, as the kubelet counts it.`,
		Example: `  berth pod stats
  berth pod stats --no-stream -o json web`,
		ValidArgsFunction: s.Pods(0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			l.Watch = !once
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				var load report.Load
				return report.ShowUsage(ctx, &l, func(ctx context.Context) (*report.List[runtime.PodStats], error) {
					all, err := service.PodStats(ctx, refs...)
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

func measured(l *report.Listing, load *report.Load, all []runtime.PodStats) *report.List[runtime.PodStats] {
	t := &report.List[runtime.PodStats]{Items: all, Table: report.Table{
		Titles: []string{"POD ID", "NAME", "CPU", "MEMORY", "LIMIT", "PIDS", "NET IN", "NET OUT", "CONTAINERS"},
	}}
	for _, p := range all {
		var in, out uint64
		for _, n := range p.Network {
			in, out = in+n.ReceivedBytes, out+n.SentBytes
		}
		memory, limit := report.Memory(p.Memory)
		t.IDs = append(t.IDs, string(p.ID))
		t.Table.Rows = append(t.Table.Rows, []string{
			l.ID(string(p.ID)), p.Name, load.Percent(string(p.ID), p.At, p.CPU), memory, limit,
			strconv.FormatUint(p.Pids, 10), report.Bytes(in), report.Bytes(out), strconv.Itoa(len(p.Containers)),
		})
	}
	return t
}
