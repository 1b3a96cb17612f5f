// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/exit"
	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/check"
)

// broken is the exit code when an image lacks something, as doctor's.
const broken = 1

// health is how whole an image is, as programs get it.
type health struct {
	Name     string   `json:"name"`
	Target   string   `json:"target"`
	Complete bool     `json:"complete"`
	Unpacked bool     `json:"unpacked"`
	Missing  []string `json:"missing,omitempty"`
	Problem  string   `json:"problem,omitempty"`
}

func checkAll(s *session.Session) *cobra.Command {
	var repair bool
	format := report.Tables
	c := &cobra.Command{
		Use:   "check [flags] [IMAGE...]",
		Short: "Find out whether images are whole",
		Long: `Look whether all that belongs to images is here, and unpacked: the variant for this host of
each. With --repair what can be is put in order without a registry: what is complete is
unpacked, records that the kubelet needs are written, and those of nothing are removed.
The exit code is 1 if something is missing nevertheless; "berth pull" fetches it.`,
		Example: `  berth image check
  berth -n k8s.io image check --repair
  berth image check -o json | jq -r '.[] | select(.complete | not) | .name'`,
		ValidArgsFunction: names(s, 0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				if repair {
					return repairAll(ctx, s, service, refs, format)
				}
				found, err := service.Check(ctx, refs...)
				if err != nil {
					return err
				}
				return tellChecked(s, found, format)
			})
		},
	}
	c.Flags().BoolVar(&repair, "repair", false, "put in order what can be")
	c.Flags().VarP(&format, "output", "o", "table, or json for programs")
	return c
}

// tellChecked writes what was found. An image that lacks something is an exit code.
func tellChecked(s *session.Session, found []check.Status, format report.Format) error {
	list := []health{}
	t := report.Table{Titles: []string{"NAME", "STATUS", "UNPACKED", "MISSING"}}
	var lacking error
	for _, f := range found {
		h := health{Name: f.Name, Target: f.Target.String(), Complete: f.Complete, Unpacked: f.Unpacked}
		for _, blob := range f.Missing {
			h.Missing = append(h.Missing, blob.Digest.String())
		}
		if f.Problem != nil {
			h.Problem = f.Problem.Error()
		}
		if !f.Complete {
			lacking = exit.Code(broken)
		}
		list = append(list, h)
		t.Rows = append(t.Rows, []string{f.Name, statusOf(f), strconv.FormatBool(f.Unpacked), missing(f)})
	}
	if format == report.AsJSON {
		return cmp.Or(report.JSON(s.Out, list), lacking)
	}
	return cmp.Or(t.Write(s.Out), lacking)
}

func statusOf(f check.Status) string {
	switch {
	case f.Complete:
		return "complete"
	case f.Gone:
		return "gone"
	case f.Problem != nil:
		return "unreadable"
	}
	return "incomplete"
}

func missing(f check.Status) string {
	if len(f.Missing) == 0 {
		return ""
	}
	return strconv.Itoa(len(f.Missing)) + " blobs, " + report.Bytes(uint64(max(0, f.Size)))
}

// repairAll puts images in order, and says what it has done.
func repairAll(ctx context.Context, s *session.Session, service *images.Service, refs []string, format report.Format) error {
	type repaired struct {
		Name   string `json:"name"`
		Action string `json:"action"`
		Error  string `json:"error,omitempty"`
	}
	done, err := service.Repair(ctx, refs...)
	if err != nil {
		return err
	}
	list := []repaired{}
	t := report.Table{Titles: []string{"NAME", "ACTION", "ERROR"}}
	var lacking error
	for _, d := range done {
		r := repaired{Name: d.Name, Action: string(d.Action)}
		if d.Err != nil {
			r.Error = d.Err.Error()
		}
		if d.Err != nil || d.Action == check.NeedPull {
			lacking = exit.Code(broken)
		}
		list = append(list, r)
		t.Rows = append(t.Rows, []string{r.Name, r.Action, r.Error})
	}
	if format == report.AsJSON {
		return cmp.Or(report.JSON(s.Out, list), lacking)
	}
	return cmp.Or(t.Write(s.Out), lacking)
}
