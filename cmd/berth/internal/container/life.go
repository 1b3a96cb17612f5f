// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/argument"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/plugin/runtime"
)

// each is a command that does something with each of its containers.
func each(s *session.Session, c *cobra.Command, states []runtime.ContainerState, do func(context.Context, *runtime.Service, string) error) *cobra.Command {
	c.Args = cobra.MinimumNArgs(1)
	c.ValidArgsFunction = s.Containers(0, states...)
	c.RunE = func(cmd *cobra.Command, refs []string) error {
		return s.Each(cmd.Context(), refs, do)
	}
	return c
}

var (
	living  = []runtime.ContainerState{runtime.ContainerRunning, runtime.ContainerPaused}
	running = []runtime.ContainerState{runtime.ContainerRunning}
	paused  = []runtime.ContainerState{runtime.ContainerPaused}
)

// duration is a flag of seconds, or a duration.
type duration struct{ text string }

func (d *duration) bind(c *cobra.Command, initial string) {
	c.Flags().StringVarP(&d.text, "time", "t", initial, "`SECONDS` that it gets to end by itself")
}

func stop(s *session.Session) *cobra.Command {
	var timeout duration
	c := each(s, &cobra.Command{
		Use:   "stop [flags] CONTAINER...",
		Short: "Ask containers to end, then kill them",
		Long: `Send each container its stop signal (SIGTERM, unless the image says another one), and
kill it if it has not ended after the time. One that has ended already is a success.`,
		Example: `  berth container stop app
  berth container stop -t 60 app worker`,
	}, living, func(ctx context.Context, service *runtime.Service, ref string) error {
		d, err := argument.Timeout(timeout.text)
		if err != nil {
			return err
		}
		found, err := service.Container(ctx, ref) // one that is not there would be a success
		if err != nil {
			return err
		}
		return service.StopContainer(ctx, string(found.ID), d)
	})
	timeout.bind(c, "10")
	return c
}

func kill(s *session.Session) *cobra.Command {
	var all bool
	signal := "KILL"
	c := each(s, &cobra.Command{
		Use:   "kill [flags] CONTAINER...",
		Short: "Send containers a signal",
		Example: `  berth container kill app
  berth container kill -s HUP app
  berth container kill --all -s 15 app`,
	}, living, func(ctx context.Context, service *runtime.Service, ref string) error {
		return service.Kill(ctx, ref, signal, all)
	})
	c.Flags().StringVarP(&signal, "signal", "s", signal, "`SIGNAL`, name or number")
	c.Flags().BoolVar(&all, "all", false, "to all its processes, not the first alone")
	return c
}

func pause(s *session.Session) *cobra.Command {
	return each(s, &cobra.Command{
		Use:     "pause CONTAINER...",
		Short:   "Freeze containers",
		Long:    "Freeze all processes of containers, until they are unpaused.",
		Example: `  berth container pause app`,
	}, running, func(ctx context.Context, service *runtime.Service, ref string) error { return service.Pause(ctx, ref) })
}

func unpause(s *session.Session) *cobra.Command {
	return each(s, &cobra.Command{
		Use:     "unpause CONTAINER...",
		Aliases: []string{"resume"},
		Short:   "Let frozen containers go on",
		Example: `  berth container unpause app`,
	}, paused, func(ctx context.Context, service *runtime.Service, ref string) error {
		return service.Unpause(ctx, ref)
	})
}

func update(s *session.Session) *cobra.Command {
	var limits argument.Resources
	c := each(s, &cobra.Command{
		Use:   "update FLAG... CONTAINER...",
		Short: "Change limits of containers",
		Long:  "Change the limits that flags name, of containers that run or are yet to be started.",
		Example: `  berth container update --memory 1g app
  berth container update --cpus 2 --pids-limit 500 app worker`,
	}, nil, func(ctx context.Context, service *runtime.Service, ref string) error {
		r, err := limits.Request()
		if err != nil {
			return err
		}
		return service.Update(ctx, ref, r)
	})
	limits.Bind(c.Flags())
	c.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if !limits.Given() {
			return fmt.Errorf("update: no limit is given, as with --memory: %w", errdefs.ErrInvalidArgument)
		}
		return nil
	}
	return c
}

func remove(s *session.Session) *cobra.Command {
	var o runtime.RemoveOptions
	var timeout duration
	c := each(s, &cobra.Command{
		Use:     "rm [flags] CONTAINER...",
		Aliases: []string{"remove"},
		Short:   "Remove containers",
		Long: `Remove containers with their file systems and records, and with their pods where those
were made for them alone; logs go with the pods. Containers that run are refused, unless
-f or -t tells what is to become of them; those that berth has not made, unless -f. With
-f a container that is not there is no error.`,
		Example: `  berth container rm app
  berth container rm -t 10 app      # stops it first
  berth container rm -f app`,
	}, nil, func(ctx context.Context, service *runtime.Service, ref string) (err error) {
		options := o // each has its own
		if options.Timeout, err = argument.Timeout(timeout.text); err != nil {
			return err
		}
		if !options.Force {
			found, err := service.Container(ctx, ref) // one that is not there would be a success
			if err != nil {
				return err
			}
			ref = string(found.ID)
		}
		return service.RemoveContainer(ctx, ref, options)
	})
	c.Flags().BoolVarP(&o.Force, "force", "f", false, "kill what runs, and remove what berth has not made")
	timeout.bind(c, "0")
	return c
}
