// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/argument"
	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/plugin/runtime"
)

// List is `berth pod ls`.
func List(s *session.Session) *cobra.Command {
	l := report.Listing{Out: s.Out}
	var pairs []string
	c := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list", "ps"},
		Short:   "List pods",
		Long: `List pods, newest first: berth's, and those of the kubelet (owner cri), which are in
the namespace k8s.io.`,
		Example: `  berth pod ls
  berth pod ls --watch
  berth -n k8s.io pod ls -f namespace=kube-system -o json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := argument.ParseFilter(pairs)
			if err != nil {
				return err
			}
			filter, err := f.Pods()
			if err != nil {
				return err
			}
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				return report.Show(ctx, &l, func(ctx context.Context) (*report.List[runtime.Pod], error) {
					pods, err := service.Pods(ctx, filter)
					if err != nil {
						return nil, err
					}
					return list(&l, pods, f.Owner), nil
				})
			})
		},
	}
	l.Bind(c.Flags())
	c.Flags().StringArrayVarP(&pairs, "filter", "f", nil, "`KEY=VALUE`: id, name, namespace, state, owner or label")
	return c
}

func list(l *report.Listing, pods []runtime.Pod, owner string) *report.List[runtime.Pod] {
	t := &report.List[runtime.Pod]{Table: report.Table{
		Titles: []string{"POD ID", "NAME", "NAMESPACE", "STATE", "CONTAINERS", "IP", "CREATED", "OWNER"},
	}}
	for _, p := range pods {
		if owner != "" && owner != p.Owner {
			continue
		}
		t.Items = append(t.Items, p)
		t.IDs = append(t.IDs, string(p.ID))
		t.Table.Rows = append(t.Table.Rows, []string{
			l.ID(string(p.ID)), p.Name, p.Namespace, string(p.State), running(p.Containers), addresses(&p), l.Time(p.CreatedAt), p.Owner,
		})
	}
	return t
}

// running tells how many of a pod's containers run, as kubectl does.
func running(all []runtime.Container) string {
	n := 0
	for _, c := range all {
		if c.State == runtime.ContainerRunning {
			n++
		}
	}
	return strconv.Itoa(n) + "/" + strconv.Itoa(len(all))
}

func addresses(p *runtime.Pod) string {
	if p.HostNetwork {
		return "host"
	}
	return join(p.IPs)
}

func join(ips []netip.Addr) string {
	var all []string
	for _, ip := range ips {
		all = append(all, ip.String())
	}
	return strings.Join(all, ",")
}

func inspect(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect POD...",
		Short: "Show all that is known of pods, as JSON",
		Example: `  berth pod inspect web
  berth pod inspect web | jq -r '.[0].ips[]'`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.Pods(0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				return session.Inspect(s, refs, func(ref string) (runtime.Pod, error) { return service.Pod(ctx, ref) })
			})
		},
	}
}
