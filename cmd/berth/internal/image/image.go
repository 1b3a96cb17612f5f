// SPDX-License-Identifier: Apache-2.0

// Package image has the commands of `berth image`. What they do is the image
// service's; here are their words, and what is shown of it.
package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	records "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/store"
	config "github.com/berthd/berth/plugin/image"
)

// Command is `berth image`.
func Command(s *session.Session) *cobra.Command {
	c := &cobra.Command{
		Use:     "image",
		Aliases: []string{"i"},
		Short:   "Pull, push and manage images",
		Long: `Images: those of containerd in one namespace, whoever has pulled them. An image is named
by its name, as docker and podman have it, by its ID, or by the beginning of that.
Registries, signature policies and pins are those of the host's files; see the table
[images] of /etc/berth/berth.toml.`,
		Args: cobra.NoArgs,
	}
	c.AddCommand(
		Pull(s), Push(s), servePull(s),
		List(s), inspect(s), history(s), candidates(s), usage(s), checkAll(s), verify(s),
		tag(s), untag(s), Remove(s), prune(s), pinned(s), unpin(s),
		save(s), load(s), importRoot(s),
		commit(s), squash(s), diff(s), mount(s), unmount(s),
	)
	return c
}

// do calls f with the image service. change, if not nil, puts flags over the
// configuration.
func do(ctx context.Context, s *session.Session, change func(*config.Config), f func(context.Context, *images.Service) error) error {
	settings, err := config.Load(s.Config)
	if err != nil {
		return err
	}
	if change != nil {
		change(settings)
	}
	return s.Client(ctx, func(ctx context.Context, c *client.Client) error {
		service, err := settings.Service(config.Host{
			Client: c, Namespace: s.Namespace, Snapshotter: s.Snapshotter,
			Mounts: filepath.Join(s.State, "images"),
			Choose: chooser(ctx, s), PullCommand: again(s, "image", pullCommand),
		})
		if err != nil {
			return err
		}
		return f(ctx, service)
	})
}

// again is a call of this program that works on the same things.
func again(s *session.Session, args ...string) []string {
	program, err := os.Executable()
	if err != nil {
		return nil // there is no /proc, and nothing else that needs it
	}
	return append([]string{
		program, "--address", s.Address, "--namespace", s.Namespace, "--snapshotter", s.Snapshotter,
		"--root", s.Root, "--state", s.State, "--config", s.Config,
	}, args...)
}

// completionLimit is how long a shell is kept waiting.
const completionLimit = 2 * time.Second

// Names completes names of images, up to most of them; 0: any number.
func Names(s *session.Session, most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begin string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveDefault
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionLimit)
		defer cancel()
		var found []cobra.Completion
		err := do(ctx, s, nil, func(ctx context.Context, service *images.Service) error {
			records, err := service.Store().Records(ctx)
			for _, r := range records {
				found = append(found, spellings(r.Name, begin)...)
			}
			return err
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return slices.DeleteFunc(found, func(name string) bool { return slices.Contains(args, name) }), cobra.ShellCompDirectiveNoFileComp
	}
}

// spellings are the ways to write the name of a record that go on from begin: as
// people have it, else in full.
func spellings(record, begin string) []cobra.Completion {
	kind, ref := store.ParseName(record)
	if kind != store.KindTag && kind != store.KindForeign {
		return nil // nobody types those
	}
	if kind == store.KindTag && strings.HasPrefix(ref.Familiar(), begin) {
		return []cobra.Completion{ref.Familiar()}
	}
	if strings.HasPrefix(record, begin) {
		return []cobra.Completion{record}
	}
	return nil
}

// platformList are the flags that say which variants of an image are meant.
type platformList struct {
	texts []string
	all   bool
	list  []v1.Platform
}

func (p *platformList) bind(flags *pflag.FlagSet) {
	flags.Var(p, "platform", "`PLATFORM`, as linux/arm64; several with commas between, or the flag again")
}

// bindAll declares --all-platforms too.
func (p *platformList) bindAll(flags *pflag.FlagSet) {
	p.bind(flags)
	flags.BoolVar(&p.all, "all-platforms", false, "all platforms")
}

// String, Set and Type make it a flag.
func (p *platformList) String() string { return strings.Join(p.texts, ",") }

// Set adds platforms.
func (p *platformList) Set(text string) error {
	for one := range strings.SplitSeq(text, ",") {
		platform, err := platforms.Parse(one)
		if err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		p.texts, p.list = append(p.texts, one), append(p.list, platform)
	}
	return nil
}

// Type names it in a usage.
func (p *platformList) Type() string { return "platform" }

// one is the platform of what has only one; zero if none is given.
func (p *platformList) one() (v1.Platform, error) {
	switch {
	case len(p.list) > 1 || p.all:
		return v1.Platform{}, session.Usage("--platform, want one")
	case len(p.list) == 0:
		return v1.Platform{}, nil
	}
	return p.list[0], nil
}

// writeID writes the ID of an image that was made.
func writeID(ctx context.Context, s *session.Session, service *images.Service, img records.Image) error {
	all, err := service.Store().Facts(ctx, []records.Image{img})
	if err != nil {
		return err
	}
	facts := all[img.Target.Digest]
	if facts.Err != nil {
		return facts.Err
	}
	_, err = fmt.Fprintln(s.Out, facts.Config.Encoded())
	return err
}

// each calls f for all, whatever becomes of some. The errors come back joined.
func each(args []string, f func(string) error) error {
	var faults []error
	for _, arg := range args {
		faults = append(faults, f(arg))
	}
	return errors.Join(faults...)
}
