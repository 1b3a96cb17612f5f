// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/archive/instruction"
	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/plugin/runtime"
)

func commit(s *session.Session) *cobra.Command {
	var r images.CommitRequest
	var changes []string
	pause := true
	c := &cobra.Command{
		Use:   "commit [flags] CONTAINER [NAME]",
		Short: "Make an image of what a container has changed",
		Long: `Make an image of a container's files, and write its ID. A container that runs is frozen
meanwhile, unless --pause=false. Changes are lines of a Dockerfile: CMD, ENTRYPOINT, ENV,
EXPOSE, LABEL, USER, VOLUME, WORKDIR and the like. Without a name the image is without
one.`,
		Example: `  berth image commit worker worker:saved
  berth image commit -m 'with tools' -c 'CMD ["/bin/tool"]' worker tools:1`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: s.Containers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := optionalName(args[1:])
			if err != nil {
				return err
			}
			return s.Do(cmd.Context(), func(ctx context.Context, containers *runtime.Service) (err error) {
				c, err := containers.Container(ctx, args[0])
				if err != nil {
					return err
				}
				if pause && c.State == runtime.ContainerRunning {
					if err := containers.Pause(ctx, string(c.ID)); err != nil {
						return err
					}
					defer func() { err = errors.Join(err, containers.Unpause(context.WithoutCancel(ctx), string(c.ID))) }()
				}
				r.Container = string(c.ID)
				return do(ctx, s, nil, func(ctx context.Context, service *images.Service) error {
					if r.Config, err = changed(ctx, service, c.ImageID, changes); err != nil {
						return err
					}
					made, err := service.Commit(ctx, r)
					if err != nil {
						return err
					}
					return finish(ctx, s, service, made, name)
				})
			})
		},
	}
	c.Flags().StringVarP(&r.Author, "author", "a", "", "`WHO` has made it")
	c.Flags().StringArrayVarP(&changes, "change", "c", nil, "`LINE` of a Dockerfile to apply")
	c.Flags().StringVarP(&r.Comment, "message", "m", "", "`TEXT` for the history")
	c.Flags().BoolVarP(&pause, "pause", "p", true, "freeze the container meanwhile")
	return c
}

// changed is an image's configuration with changes, nil if there are none.
func changed(ctx context.Context, service *images.Service, imageID string, changes []string) (*v1.ImageConfig, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	id, err := reference.ParseID(strings.TrimPrefix(imageID, digest.SHA256.String()+":"))
	if err != nil {
		return nil, err
	}
	parent, err := service.StatusByID(ctx, id)
	if err != nil {
		return nil, err
	}
	if parent.OCIConfig == nil {
		return nil, fmt.Errorf("configuration of image %s: %w", id.Hex(), errdefs.ErrNotFound)
	}
	c := instruction.Config{ImageConfig: parent.OCIConfig.Config}
	if err := instruction.Apply(&c, changes); err != nil {
		return nil, err
	}
	if c.Healthcheck != nil || len(c.OnBuild) > 0 {
		return nil, session.Usage("--change HEALTHCHECK or ONBUILD: an image of a container has neither")
	}
	return &c.ImageConfig, nil
}

// finish gives a new image the name that the user wants, if any, and writes its ID.
func finish(ctx context.Context, s *session.Session, service *images.Service, made images.Made, name reference.Reference) error {
	if name != (reference.Reference{}) {
		if err := service.Tag(ctx, made.ID.Encoded(), name); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(s.Out, made.ID.Encoded())
	return err
}

// optionalName reads the argument that may name a new image.
func optionalName(args []string) (reference.Reference, error) {
	if len(args) == 0 || args[0] == "" {
		return reference.Reference{}, nil
	}
	return newName(args[0])
}

// newName reads a name for an image, which cannot be a digest.
func newName(text string) (reference.Reference, error) {
	name, err := reference.Parse(text)
	if err == nil && name.Digest() != "" {
		err = session.Usage("name %q: what an image's digest is nobody chooses", text)
	}
	return name, err
}

func squash(s *session.Session) *cobra.Command {
	var r images.SquashRequest
	var tag string
	c := &cobra.Command{
		Use:   "squash [flags] IMAGE",
		Short: "Make an image with fewer layers",
		Long: `Make an image with the same files and one layer, or with --from the layers of another
image, of which it was made, and one more; and write its ID. The older one stays.`,
		Example: `  berth image squash -t small:1 app:1
  berth image squash --from debian:trixie -t app:squashed app:1`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: Names(s, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := optionalName([]string{tag})
			if err != nil {
				return err
			}
			r.Image = args[0]
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				made, err := service.Squash(ctx, r)
				if err != nil {
					return err
				}
				return finish(ctx, s, service, made, name)
			})
		},
	}
	c.Flags().StringVar(&r.Base, "from", "", "`IMAGE` whose layers stay")
	c.Flags().StringVarP(&tag, "tag", "t", "", "`NAME` of the new image")
	c.Flags().StringVarP(&r.Comment, "message", "m", "", "`TEXT` for the history")
	c.Flags().StringVar(&r.Platform, "platform", "", "`PLATFORM` of the image, as linux/arm64")
	return c
}

// change is a file that a container has changed, as programs get it.
type change struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
}

func diff(s *session.Session) *cobra.Command {
	format := report.Tables
	c := &cobra.Command{
		Use:   "diff [flags] CONTAINER",
		Short: "Show what a container has changed of its image",
		Long: `Show the files that a container has added (A), changed (C) and deleted (D) since it was
made.`,
		Example:           `  berth image diff worker`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: s.Containers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.Do(cmd.Context(), func(ctx context.Context, containers *runtime.Service) error {
				c, err := containers.Container(ctx, args[0])
				if err != nil {
					return err
				}
				return do(ctx, s, nil, func(ctx context.Context, service *images.Service) error {
					changes, err := service.Changes(ctx, string(c.ID))
					if err != nil {
						return err
					}
					return tellChanges(s, changes, format)
				})
			})
		},
	}
	c.Flags().VarP(&format, "output", "o", "table, or json for programs")
	return c
}

// letters are docker's.
var letters = map[layer.Kind]string{layer.Added: "A", layer.Modified: "C", layer.Deleted: "D"}

func tellChanges(s *session.Session, changes []images.Change, format report.Format) error {
	if format == report.AsJSON {
		list := []change{}
		for _, c := range changes {
			list = append(list, change{Kind: c.Kind.String(), Path: c.Path})
		}
		return report.JSON(s.Out, list)
	}
	for _, c := range changes {
		if _, err := fmt.Fprintln(s.Out, letters[c.Kind]+" "+c.Path); err != nil {
			return err
		}
	}
	return nil
}

func mount(s *session.Session) *cobra.Command {
	var platform string
	format := report.Tables
	c := &cobra.Command{
		Use:   "mount [flags] [IMAGE...]",
		Short: "Mount images to be read, and write where",
		Long: `Mount the files of images to be read, and write where. They stay mounted, and the images
are kept, until "berth image unmount". Without an image it is shown what is mounted.`,
		Example: `  ls "$(berth image mount nginx)"/etc
  berth image mount`,
		ValidArgsFunction: Names(s, 0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				if len(refs) == 0 {
					return showMounts(s, service, format)
				}
				return each(refs, func(ref string) error {
					m, err := service.MountImage(ctx, images.MountRequest{Image: ref, Platform: platform})
					if err != nil {
						return err
					}
					_, err = fmt.Fprintln(s.Out, m.Root)
					return err
				})
			})
		},
	}
	c.Flags().StringVar(&platform, "platform", "", "`PLATFORM` of the images, as linux/arm64")
	c.Flags().VarP(&format, "output", "o", "table, or json for programs")
	return c
}

// mounted is an image that is mounted, as programs get it.
type mounted struct {
	Manifest string `json:"manifest"`
	Root     string `json:"root"`
}

func showMounts(s *session.Session, service *images.Service, format report.Format) error {
	all, err := service.ImageMounts()
	if err != nil {
		return err
	}
	list := []mounted{}
	t := report.Table{Titles: []string{"MANIFEST", "ROOT"}}
	for _, m := range all {
		list = append(list, mounted{m.Manifest.String(), m.Root})
		t.Rows = append(t.Rows, []string{report.ID(m.Manifest.Encoded()), m.Root})
	}
	if format == report.AsJSON {
		return report.JSON(s.Out, list)
	}
	return t.Write(s.Out)
}

func unmount(s *session.Session) *cobra.Command {
	var platform string
	c := &cobra.Command{
		Use:     "unmount [flags] IMAGE...",
		Aliases: []string{"umount"},
		Short:   "Take off what mount has mounted",
		Long: `Take off one mount of each image: one that was mounted twice stays mounted once. The image
may be named by where it is mounted, too, if its name is gone.`,
		Example:           `  berth image unmount nginx`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: Names(s, 0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				return each(refs, func(ref string) error {
					if _, err := service.UnmountImage(ctx, images.MountRequest{Image: ref, Platform: platform}); err != nil {
						return err
					}
					_, err := fmt.Fprintln(s.Out, ref)
					return err
				})
			})
		},
	}
	c.Flags().StringVar(&platform, "platform", "", "`PLATFORM` of the images, as linux/arm64")
	return c
}
