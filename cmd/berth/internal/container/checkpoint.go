// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/argument"
	"github.com/berthd/berth/cmd/berth/internal/image"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/plugin/runtime"
)

func checkpoint(s *session.Session) *cobra.Command {
	var r runtime.CheckpointRequest
	c := &cobra.Command{
		Use:   "checkpoint [flags] CONTAINER",
		Short: "Keep the state of a running container",
		Long: `Keep the state of a running container, by criu: to a file, which podman, CRI-O and the
kubelet know, or to an image. Without -R the container is stopped.`,
		Example: `  berth container checkpoint -e /tmp/app.tar app
  berth container checkpoint -R --create-image example.com/app:saved app`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: s.Containers(1, runtime.ContainerRunning),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if (r.Archive == "") == (r.Image == "") {
				return session.Usage("checkpoint: where to? Give --export or --create-image")
			}
			if r.Archive != "" {
				if r.Archive, err = filepath.Abs(r.Archive); err != nil {
					return err
				}
			}
			return s.Each(cmd.Context(), args, func(ctx context.Context, service *runtime.Service, ref string) error {
				return service.Checkpoint(ctx, ref, r)
			})
		},
	}
	c.Flags().StringVarP(&r.Archive, "export", "e", "", "`FILE` to write")
	c.Flags().StringVar(&r.Image, "create-image", "", "`NAME` of an image to make")
	c.Flags().BoolVarP(&r.LeaveRunning, "leave-running", "R", false, "let the container go on")
	c.Flags().BoolVar(&r.TCP, "tcp-established", false, "keep open connections")
	return c
}

func restore(s *session.Session) *cobra.Command {
	var archive, pod, name string
	c := &cobra.Command{
		Use:   "restore [flags] [IMAGE]",
		Short: "Make a container of a checkpoint, and let it go on",
		Long: `Make a container of a checkpoint, a file or an image, let it go on where it was, and
write its ID. Without --pod a pod is made for it, which is removed with it.`,
		Example: `  berth container restore -i /tmp/app.tar --name app2
  berth container restore --pod web example.com/app:saved`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: image.Names(s, 1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if (archive == "") == (len(args) == 0) {
				return session.Usage("restore: of what? Give a file, with --import, or an image")
			}
			var r runtime.RestoreRequest
			r.Pod, r.Name = pod, name
			if archive != "" {
				if r.Archive, err = filepath.Abs(archive); err != nil {
					return err
				}
			} else {
				r.Image = args[0]
			}
			if r.Name == "" {
				r.Name = argument.MadeUp("restored")
			}
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				c, err := service.Restore(ctx, r)
				if err != nil {
					return err
				}
				if err := service.StartContainer(ctx, string(c.ID)); err != nil {
					return errors.Join(err, discard(ctx, service, c.ID))
				}
				_, err = fmt.Fprintln(s.Out, c.ID)
				return err
			})
		},
	}
	c.Flags().StringVarP(&archive, "import", "i", "", "`FILE` of the checkpoint")
	c.Flags().StringVar(&pod, "pod", "", "`POD` that it belongs to (default one made for it)")
	c.Flags().StringVar(&name, "name", "", "its `NAME` (default made up)")
	_ = c.RegisterFlagCompletionFunc("pod", s.Pods(0)) // there is the flag
	return c
}

func mount(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "mount CONTAINER...",
		Short: "Mount the root file systems of containers, and write where",
		Long: `Mount the root file systems of containers, and write where. They stay mounted until
"berth container unmount", also when the containers end.`,
		Example:           `  ls "$(berth container mount app)"/etc`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.Containers(0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				var faults []error
				for _, ref := range refs {
					path, err := service.Mount(ctx, ref)
					if err == nil {
						_, err = fmt.Fprintln(s.Out, path)
					}
					faults = append(faults, err)
				}
				return errors.Join(faults...)
			})
		},
	}
}

func unmount(s *session.Session) *cobra.Command {
	return each(s, &cobra.Command{
		Use:     "unmount CONTAINER...",
		Aliases: []string{"umount"},
		Short:   "Take off what mount has mounted",
		Long:    "Unmount the root file systems of containers, whoever else uses them.",
		Example: `  berth container unmount app`,
	}, nil, func(ctx context.Context, service *runtime.Service, ref string) error {
		found, err := service.Container(ctx, ref) // one that is not there would be a success
		if err != nil {
			return err
		}
		return service.Unmount(ctx, string(found.ID))
	})
}
