// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"time"

	"github.com/containerd/platforms"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/images"
)

// item is an image of a list, as programs get it.
type item struct {
	ID        string     `json:"id"`
	Names     []string   `json:"names"`
	Digests   []string   `json:"digests"`
	Target    string     `json:"target"`
	Platform  string     `json:"platform,omitempty"`
	Size      *int64     `json:"size,omitempty"`
	CreatedAt *time.Time `json:"createdAt,omitempty"`
	Pinned    bool       `json:"pinned,omitempty"`
}

// List is `berth image ls`.
func List(s *session.Session) *cobra.Command {
	l := report.Listing{Out: s.Out}
	c := &cobra.Command{
		Use:     "ls [flags] [NAME]",
		Aliases: []string{"list"},
		Short:   "List images",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				return report.Show(ctx, &l, func(ctx context.Context) (*report.List[item], error) {
					all, err := service.List(ctx, images.ListOptions{Brief: true})
					if err != nil {
						return nil, err
					}
					t := &report.List[item]{Table: report.Table{Titles: []string{"REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"}}}
					for _, img := range all {
						t.Items = append(t.Items, item{ID: img.ID.Hex(), Names: img.RepoTags, Digests: img.RepoDigests, Target: img.Target.Digest.String(), Platform: platforms.Format(img.Platform), Size: img.Size})
						for _, n := range img.RepoTags {
							t.Table.Rows = append(t.Table.Rows, []string{n, "", l.ID(img.ID.Hex()), l.Time(img.Created), ""})
						}
					}
					return t, nil
				})
			})
		},
	}
	l.Bind(c.Flags())
	return c
}
