// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/reference"
)

// Remove is `berth image rm`.
func Remove(s *session.Session) *cobra.Command {
	var o images.RemoveOptions
	var keepParents bool
	var platforms platformList
	c := &cobra.Command{
		Use:     "rm [flags] IMAGE...",
		Aliases: []string{"remove"},
		Short:   "Remove images, or names of them",
		Long: `Remove names, and images with their last name; by an ID the image with all names. An image
with several names is refused by its ID, and one that a container uses; with -f the names
go, and the image of a container that runs stays without one. With -f an image that is
not here is no error. With --platform only that part of an image's content goes, which
needs -f: other images may share it.`,
		Example: `  berth image rm app:1 app:2
  berth image rm -f 4f06b3e2c5a1
  berth rmi $(berth images -q -f dangling=true)`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: names(s, 0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			o.Parents, o.Platforms = !keepParents, platforms.list
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				return each(refs, func(ref string) error {
					removed, err := service.Remove(ctx, ref, o)
					if o.Force && errors.Is(err, images.ErrNoSuchImage) {
						err = nil
					}
					return errors.Join(tellRemoved(s, removed), err)
				})
			})
		},
	}
	c.Flags().BoolVarP(&o.Force, "force", "f", false, "in spite of further names, and of containers that use it")
	c.Flags().BoolVar(&keepParents, "no-prune", false, "keep what the images were made from, even without names")
	platforms.bind(c.Flags())
	return c
}

// tellRemoved writes what is gone, as docker does.
func tellRemoved(s *session.Session, removed []images.Removed) error {
	var faults []error
	for _, r := range removed {
		text := "Deleted: " + r.Deleted.String()
		if r.Untagged != "" {
			text = "Untagged: " + r.Untagged
		}
		_, err := fmt.Fprintln(s.Out, text)
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

func untag(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "untag NAME...",
		Short: "Remove names of images",
		Long: `Remove exactly these names, and an image with its last one, whoever uses it: containers
keep the layers they stand on.`,
		Example:           `  berth image untag registry.example/app:old`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: names(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				return each(args, func(name string) error {
					ref, err := reference.Parse(name)
					if err != nil {
						return err
					}
					removed, err := service.Untag(ctx, ref)
					return errors.Join(tellRemoved(s, removed), err)
				})
			})
		},
	}
}

func prune(s *session.Session) *cobra.Command {
	var all, force bool
	var pairs []string
	format := report.Tables
	c := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove images that nobody needs",
		Long: `Remove images without a name that no container uses, and what interrupted pulls have left;
with -a all images that no container uses. Pinned images stay. Filters are label, label!
and until: a time, or how long ago.`,
		Example: `  berth image prune -f
  berth image prune -a --filter until=720h
  berth image prune -a -f --filter 'label!=keep'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filters, err := filterMap(pairs)
			if err != nil {
				return err
			}
			warning := "All images without a name that no container uses will be removed."
			if all {
				filters["dangling"] = []string{"false"}
				warning = "All images that no container uses will be removed."
			}
			if !force {
				if yes, err := sure(s, warning); err != nil || !yes {
					return err
				}
			}
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				pruned, err := service.Prune(ctx, filters)
				return errors.Join(tellPruned(s, pruned, format), err)
			})
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "also images with names")
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.Flags().StringArrayVar(&pairs, "filter", nil, "`KEY=VALUE`: until, label or label!")
	c.Flags().VarP(&format, "output", "o", "table, or json for programs")
	return c
}

// pruned is what a prune has done, as programs get it.
type pruned struct {
	Untagged  []string `json:"untagged"`
	Deleted   []string `json:"deleted"`
	Reclaimed int64    `json:"reclaimed"`
}

func tellPruned(s *session.Session, r images.PruneReport, format report.Format) error {
	if format != report.AsJSON {
		err := tellRemoved(s, r.Removed)
		_, last := fmt.Fprintln(s.Out, "Total reclaimed space: "+report.Bytes(uint64(max(0, r.Reclaimed))))
		return errors.Join(err, last)
	}
	p := pruned{Untagged: []string{}, Deleted: []string{}, Reclaimed: r.Reclaimed}
	for _, one := range r.Removed {
		if one.Untagged != "" {
			p.Untagged = append(p.Untagged, one.Untagged)
		} else {
			p.Deleted = append(p.Deleted, one.Deleted.String())
		}
	}
	return report.JSON(s.Out, p)
}

// filterMap reads KEY=VALUE pairs. Which keys there are is the service's.
func filterMap(pairs []string) (map[string][]string, error) {
	filters := map[string][]string{}
	for _, pair := range pairs {
		key, value, found := strings.Cut(pair, "=")
		if !found || key == "" {
			return nil, session.Usage("--filter %q, want KEY=VALUE", pair)
		}
		filters[key] = append(filters[key], value)
	}
	return filters, nil
}
