// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/argument"
	"github.com/berthd/berth/cmd/berth/internal/exit"
	"github.com/berthd/berth/cmd/berth/internal/kubelog"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/cmd/berth/internal/terminal"
	"github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/process"
	"github.com/berthd/berth/plugin/runtime/process/detach"
)

// Exec is `berth container exec`.
func Exec(s *session.Session) *cobra.Command {
	var r runtime.ExecRequest
	var in bool
	var env []string
	keys := detach.Default
	c := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long: `Run a command in a running container, beside its own process. The exit code is the
command's; 125 tells that berth could not do it, 126 and 127 that the command cannot be
executed or is not there.`,
		Example: `  berth exec app cat /etc/hosts
  berth exec -it app sh
  berth exec -i -u nobody -e LEVEL=3 app tee /tmp/file < file`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: s.Containers(1, runtime.ContainerRunning),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r.Command, r.Env = args[1:], argument.Environment(env)
			if r.DetachKeys, err = detach.Parse(keys); err != nil {
				return err
			}
			if err := mustBeTerminal(s, r.TTY && in && !r.Detach); err != nil {
				return err
			}
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				if r.Detach {
					_, err := service.Exec(ctx, args[0], r)
					return exit.Start(err)
				}
				return execute(ctx, s, service, execution{ref: args[0], in: in, ExecRequest: r})
			})
		},
	}
	f := c.Flags()
	f.SetInterspersed(false) // what follows the container is the command's
	f.BoolVarP(&r.TTY, "tty", "t", false, "give it a terminal")
	f.BoolVarP(&in, "interactive", "i", false, "be its input")
	f.BoolVarP(&r.Detach, "detach", "d", false, "start it, and leave it alone, without input and output")
	f.StringArrayVarP(&env, "env", "e", nil, "`KEY=VALUE` of the environment, or KEY for the value here")
	f.StringVarP(&r.WorkDir, "workdir", "w", "", "working `DIRECTORY`")
	f.StringVarP(&r.User, "user", "u", "", "`USER[:GROUP]`, names or numbers")
	f.StringVar(&keys, "detach-keys", keys, "`KEYS` that leave the command alone")
	return c
}

// execution is a command whose input and output the user is.
type execution struct {
	ref string
	in  bool
	runtime.ExecRequest
}

func execute(ctx context.Context, s *session.Session, service *runtime.Service, x execution) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x.Stdout, x.Stderr = s.Out, s.Err
	if x.in {
		x.Stdin = s.In
	}
	if !terminal.Is(s.In) {
		x.DetachKeys = nil // what comes is no user's typing
	}
	if x.TTY {
		x.Size, x.Resize = terminal.SizeOf(s.Out), terminal.Sizes(ctx, s.Out)
	}
	if x.TTY && x.in {
		restore, err := terminal.Raw(s.In)
		if err != nil {
			return err
		}
		defer restore()
	}
	code, err := service.Exec(ctx, x.ref, x.ExecRequest)
	if errors.Is(err, process.ErrDetached) {
		_, _ = fmt.Fprintln(s.Err, "\nleft the command, which goes on") // the user is gone
		return nil
	}
	if err != nil {
		return exit.Start(err)
	}
	return exit.Process(code)
}

func attach(s *session.Session) *cobra.Command {
	var noInput bool
	keys := detach.Default
	c := &cobra.Command{
		Use:   "attach [flags] CONTAINER",
		Short: "Be the input and output of a running container",
		Long: `Be the input and output of a container's own process, beside any number of others, until
it ends. Output from before is not shown, "berth container logs" has it. A user who
does not read is cut off after 16 MiB: the container does not wait. Signals go to the
container; the third SIGINT or SIGTERM ends berth alone. The exit code is the
container's.`,
		Example: `  berth container attach app
  berth container attach --detach-keys ctrl-x shell`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: s.Containers(1, runtime.ContainerRunning),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			f := foreground{s: s, keep: true}
			if f.keys, err = detach.Parse(keys); err != nil {
				return err
			}
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				c, err := service.Container(ctx, args[0])
				if err != nil {
					return err
				}
				if c.State != runtime.ContainerRunning && c.State != runtime.ContainerPaused {
					return fmt.Errorf("attach to container %s: it is %s: %w", c.Name, c.State, errdefs.ErrFailedPrecondition)
				}
				f.service, f.c, f.in = service, &c, c.Stdin && !noInput
				f.live = true
				return f.run(ctx)
			})
		},
	}
	c.Flags().BoolVar(&noInput, "no-stdin", false, "only watch")
	c.Flags().StringVar(&keys, "detach-keys", keys, "`KEYS` that leave the container alone")
	return c
}

// Logs is `berth container logs`.
func Logs(s *session.Session) *cobra.Command {
	var flags session.Logs
	c := &cobra.Command{
		Use:   "logs [flags] CONTAINER",
		Short: "Show what a container has written",
		Long: `Show what a container has written to its output, also after its end. Containers of the
kubelet have logs too, those of ctr and nerdctl none that berth knows of.`,
		Example: `  berth logs app
  berth logs -f --tail 20 --timestamps app
  berth logs --since 10m app`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: s.Containers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				c, err := service.Container(ctx, args[0])
				if err != nil {
					return err
				}
				printer := kubelog.Printer{Out: s.Out, Err: s.Err, Timestamps: flags.Timestamps}
				return flags.Read(ctx, service, &c, printer.Log(""))
			})
		},
	}
	flags.Bind(c.Flags())
	return c
}
