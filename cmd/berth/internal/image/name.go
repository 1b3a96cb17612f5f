// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/pin"
)

func candidates(s *session.Session) *cobra.Command {
	format := report.Tables
	c := &cobra.Command{
		Use:   "candidates [flags] NAME",
		Short: "Show what a name may stand for",
		Long: `Show what a name may stand for: the ID of an image that is here and begins so, or names in
registries, in the order in which "berth pull" tries them. Nobody is asked over the
network.`,
		Example: `  berth image candidates nginx
  berth image candidates -o json 4f06b3`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: names(s, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				found, err := service.ResolveNames(ctx, args[0])
				if err != nil {
					return err
				}
				var list []string
				if found.ID != nil {
					list = []string{found.ID.Hex()}
				}
				for _, c := range found.Candidates {
					list = append(list, c.Text())
				}
				if format == report.AsJSON {
					return report.JSON(s.Out, list)
				}
				_, err = fmt.Fprintln(s.Out, strings.Join(list, "\n"))
				return err
			})
		},
	}
	c.Flags().VarP(&format, "output", "o", "table, or json for programs")
	return c
}

func pinned(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "pin [IMAGE|PATTERN...]",
		Short: "Keep images from garbage collection",
		Long: `Keep images that are here from being pruned, by berth and by the kubelet: by a name as
long as it is the image's, by an ID with all names. A pattern has a * at its end, or at
both ends. Without arguments the patterns of the configuration are applied to what is
here already.`,
		Example: `  berth -n k8s.io image pin registry.example/base:1
  berth image pin 'registry.example/tools/*'`,
		ValidArgsFunction: names(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				if len(args) == 0 {
					return service.SyncPins(ctx)
				}
				return eachMatch(ctx, service, args, service.Pin)
			})
		},
	}
}

func unpin(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "unpin IMAGE|PATTERN...",
		Short: "Let images be garbage collected again",
		Long: `Let images be pruned again that were pinned by name or ID. What the configuration pins is
refused: its patterns are in pinned_images of /etc/berth/berth.toml.`,
		Example:           `  berth image unpin registry.example/base:1`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: names(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				return eachMatch(ctx, service, args, service.Unpin)
			})
		},
	}
}

// eachMatch calls f for images, and for the names of records that patterns match.
func eachMatch(ctx context.Context, service *images.Service, args []string, f func(context.Context, string) error) error {
	return each(args, func(arg string) error {
		if !strings.HasSuffix(arg, "*") {
			return f(ctx, arg)
		}
		records, err := service.Store().Records(ctx)
		if err != nil {
			return err
		}
		pattern := pin.Compile([]string{arg})
		var matching []string
		for _, r := range records {
			if pattern.Match(r.Name) {
				matching = append(matching, r.Name)
			}
		}
		return each(matching, func(name string) error { return f(ctx, name) })
	})
}
