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
	"github.com/berthd/berth/images/pin"
	"github.com/berthd/berth/images/reference"
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
		ValidArgsFunction: Names(s, 1),
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
		ValidArgsFunction: Names(s, 0),
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
		ValidArgsFunction: Names(s, 0),
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

func tag(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "tag IMAGE NAME...",
		Short: "Give an image more names",
		Long: `Give an image more names. A name that another image has moves; that image stays without
it.`,
		Example: `  berth image tag app:1 registry.example/app:1
  berth image tag 4f06b3e2c5a1 app:1 app:latest`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: Names(s, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				return each(args[1:], func(name string) error {
					ref, err := newName(name)
					if err != nil {
						return err
					}
					return service.Tag(ctx, args[0], ref)
				})
			})
		},
	}
}

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
		ValidArgsFunction: Names(s, 0),
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
		ValidArgsFunction: Names(s, 0),
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
		Long: `Remove images without a name that no container uses; with -a all images that no container
uses. Pinned images stay. What commands that were killed, and mounts before a reboot,
have left goes as well. Filters are label, label! and until: a time, or how long ago.`,
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
				if yes, err := sure(cmd.Context(), s, warning); err != nil || !yes {
					return err
				}
			}
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				swept := service.Cleanup(ctx)
				pruned, err := service.Prune(ctx, filters)
				if err != nil && len(pruned.Removed) == 0 {
					return errors.Join(swept, err)
				}
				return errors.Join(swept, tellPruned(s, pruned, format), err)
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
