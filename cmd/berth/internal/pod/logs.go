// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/kubelog"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/plugin/runtime"
)

func logs(s *session.Session) *cobra.Command {
	var flags session.Logs
	c := &cobra.Command{
		Use:   "logs [flags] POD",
		Short: "Show the logs of all containers of a pod",
		Long: `Show the logs of all containers of a pod, each line after the container's name. One
container's are shown by "berth container logs".`,
		Example: `  berth pod logs web
  berth pod logs -f --tail 10 --timestamps web`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: s.Pods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				p, err := service.Pod(ctx, args[0])
				if err != nil {
					return err
				}
				return show(ctx, s, service, &p, &flags)
			})
		},
	}
	flags.Bind(c.Flags())
	return c
}

// show writes the logs of all members at the same time.
func show(ctx context.Context, s *session.Session, service *runtime.Service, p *runtime.Pod, flags *session.Logs) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	printer := kubelog.Printer{Out: s.Out, Err: s.Err, Timestamps: flags.Timestamps}
	faults := make([]error, len(p.Containers))
	var all sync.WaitGroup
	for i := range p.Containers {
		c := &p.Containers[i]
		all.Go(func() {
			if err := flags.Read(ctx, service, c, printer.Log("["+c.Name+"] ")); err != nil {
				faults[i] = fmt.Errorf("container %s: %w", c.Name, err)
			}
		})
	}
	all.Wait()
	for i, err := range faults {
		if errdefs.IsNotFound(err) && p.Containers[i].State == runtime.ContainerCreated {
			faults[i] = nil // it has none yet
		}
	}
	return errors.Join(faults...)
}
