// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/argument"
	"github.com/berthd/berth/cmd/berth/internal/exit"
	"github.com/berthd/berth/cmd/berth/internal/image"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/cmd/berth/internal/terminal"
	"github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/process/detach"
)

// asked are the flags of a new container, and of where its image comes from.
type asked struct {
	argument.Container
	source image.Source
	idFile string
}

// make makes the container, and writes its ID into a new file if that was asked for.
func (a *asked) make(ctx context.Context, service *runtime.Service, r runtime.ContainerRequest) (c runtime.Container, err error) {
	if a.idFile == "" {
		return service.CreateContainer(ctx, r)
	}
	f, err := os.OpenFile(a.idFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return c, fmt.Errorf("--cidfile: %w", err)
	}
	if c, err = service.CreateContainer(ctx, r); err == nil {
		if _, err = f.WriteString(string(c.ID)); err != nil {
			err = errors.Join(err, discard(ctx, service, c.ID))
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(err, os.Remove(a.idFile))
	}
	return c, err
}

// find finds the image of a request, and pulls it if need be.
func (a *asked) find(ctx context.Context, s *session.Session, r *runtime.ContainerRequest) (err error) {
	r.ImageRecord, err = a.source.Record(ctx, s, r.Image, r.Platform)
	return err
}

// newContainer is a command that makes a container.
func newContainer(s *session.Session, c *cobra.Command, flags *asked) *cobra.Command {
	c.Args = cobra.MinimumNArgs(1)
	c.ValidArgsFunction = image.Names(s, 1)
	flags.Bind(c.Flags())
	flags.source.Bind(c.Flags())
	c.Flags().StringVar(&flags.idFile, "cidfile", "", "new `FILE` for its ID")
	c.Flags().SetInterspersed(false)                   // what follows the image is the container's
	_ = c.RegisterFlagCompletionFunc("pod", s.Pods(0)) // there is the flag
	return c
}

func create(s *session.Session) *cobra.Command {
	var flags asked
	return newContainer(s, &cobra.Command{
		Use:   "create [flags] IMAGE [ARG...]",
		Short: "Make a container, ready to be started",
		Long: `Make a container of an image, which is pulled if it is not here, and write its ID. Without
--pod a pod is made for it, which is removed with it. "berth container start" starts it.`,
		Example: `  berth container create --pod web --name app docker.io/library/nginx:latest
  berth container create --memory 256m --cpus 0.5 -v /srv:/data:ro busybox httpd -f`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := flags.Request(args[0], args[1:])
			if err != nil {
				return err
			}
			if err := flags.find(cmd.Context(), s, &r); err != nil {
				return err
			}
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				c, err := flags.make(ctx, service, r)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(s.Out, c.ID)
				return err
			})
		},
	}, &flags)
}

// Run is `berth container run`.
func Run(s *session.Session) *cobra.Command {
	var flags asked
	var leave, remove bool
	keys := detach.Default
	c := newContainer(s, &cobra.Command{
		Use:   "run [flags] IMAGE [ARG...]",
		Short: "Make and start a container",
		Long: `Make a container of an image, which is pulled if it is not here, start it, and be its input
and output until it ends. The exit code is the container's; 125 tells that berth could not do it,
126 and 127 that the program cannot be executed or is not there.

Signals go to the container; the third SIGINT or SIGTERM ends berth alone. With a
terminal ctrl-p ctrl-q leaves the container alone.`,
		Example: `  berth run --rm -it docker.io/library/alpine:latest sh
  berth run -d --name db --pod web -e PASSWORD docker.io/library/postgres:17
  berth run --rm --network host -v "$PWD":/src -w /src golang:1.26 go test ./...`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := flags.Request(args[0], args[1:])
			if err != nil {
				return err
			}
			if leave && remove {
				return session.Usage("--rm with -d: nobody would be there to remove it, berth has no daemon; see `berth container rm`")
			}
			f := foreground{s: s, in: r.Stdin, remove: remove}
			if f.keys, err = detach.Parse(keys); err != nil {
				return err
			}
			if err := mustBeTerminal(s, r.TTY && r.Stdin && !leave); err != nil {
				return err
			}
			if err := flags.find(cmd.Context(), s, &r); err != nil {
				return err
			}
			if leave {
				r.StdinOnce = false // for whoever attaches, any number of times
				return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
					return background(ctx, s, service, &flags, r)
				})
			}
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				c, err := flags.make(ctx, service, r)
				if err != nil {
					return exit.Start(err)
				}
				f.service, f.c = service, &c
				return f.run(ctx)
			})
		},
	}, &flags)
	c.Flags().BoolVarP(&leave, "detach", "d", false, "start it, write its ID, and leave it alone")
	c.Flags().BoolVar(&remove, "rm", false, "remove it when it has ended")
	c.Flags().StringVar(&keys, "detach-keys", keys, "`KEYS` that leave the container alone")
	return c
}

func mustBeTerminal(s *session.Session, wanted bool) error {
	if wanted && !terminal.Is(s.In) {
		return session.Usage("-t with -i, and the input is no terminal: leave out -t")
	}
	return nil
}

// background starts a new container, of which nothing is left if that fails.
func background(ctx context.Context, s *session.Session, service *runtime.Service, flags *asked, r runtime.ContainerRequest) error {
	c, err := flags.make(ctx, service, r)
	if err != nil {
		return exit.Start(err)
	}
	if err := service.StartContainer(ctx, string(c.ID)); err != nil {
		return exit.Start(errors.Join(err, discard(ctx, service, c.ID)))
	}
	_, err = fmt.Fprintln(s.Out, c.ID)
	return err
}

// discard removes a container whatever it does, also if the user has gone.
func discard(ctx context.Context, service *runtime.Service, id runtime.ContainerID) error {
	return service.RemoveContainer(context.WithoutCancel(ctx), string(id), runtime.RemoveOptions{Force: true})
}

func start(s *session.Session) *cobra.Command {
	var attached, in bool
	keys := detach.Default
	c := &cobra.Command{
		Use:   "start [flags] CONTAINER...",
		Short: "Start containers that were created",
		Long: `Start containers that were created. One that has ended does not run again: make another,
with a higher attempt.`,
		Example: `  berth container start app
  berth container start -a -i shell`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.Containers(0, runtime.ContainerCreated),
		RunE: func(cmd *cobra.Command, refs []string) error {
			if !attached && !in {
				return s.Each(cmd.Context(), refs, func(ctx context.Context, service *runtime.Service, ref string) error {
					return exit.Start(service.StartContainer(ctx, ref))
				})
			}
			if len(refs) != 1 {
				return session.Usage("-a and -i are for one container")
			}
			f := foreground{s: s, in: in}
			var err error
			if f.keys, err = detach.Parse(keys); err != nil {
				return err
			}
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				c, err := service.Container(ctx, refs[0])
				if err != nil {
					return err
				}
				f.service, f.c, f.keep = service, &c, true
				return f.run(ctx)
			})
		},
	}
	c.Flags().BoolVarP(&attached, "attach", "a", false, "show its output, and exit as it does")
	c.Flags().BoolVarP(&in, "interactive", "i", false, "be its input too")
	c.Flags().StringVar(&keys, "detach-keys", keys, "`KEYS` that leave the container alone")
	return c
}
