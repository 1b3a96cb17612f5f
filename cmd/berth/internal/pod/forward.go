// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/argument"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/plugin/runtime"
)

func forward(s *session.Session) *cobra.Command {
	address := "127.0.0.1"
	c := &cobra.Command{
		Use:   "port-forward [flags] POD [LOCAL:]REMOTE...",
		Short: "Reach ports of a pod through ports of this machine",
		Long: `Listen on ports of this machine and connect whoever comes to ports in the pod, until
interrupted. What listens in the pod may do so on loopback. Without LOCAL the port is
the same; an empty one (":80") is a free one, which is written.`,
		Example: `  berth pod port-forward web 8080:80
  berth pod port-forward --bind 0.0.0.0 db :5432`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: s.Pods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var ports []argument.Forward
			for _, text := range args[1:] {
				p, err := argument.ParseForward(text)
				if err != nil {
					return err
				}
				ports = append(ports, p)
			}
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				p, err := service.Pod(ctx, args[0])
				if err == nil && p.State != runtime.PodReady {
					err = fmt.Errorf("forward ports of pod %s: it is %s: %w", p.Name, p.State, errdefs.ErrFailedPrecondition)
				}
				if err != nil {
					return err
				}
				f := forwarder{s: s, service: service, pod: string(p.ID)}
				return f.run(ctx, address, ports)
			})
		},
	}
	c.Flags().StringVar(&address, "bind", address, "`ADDRESS` of this machine to listen on")
	return c
}

// forwarder connects ports of this machine with those of a pod.
type forwarder struct {
	s       *session.Session
	service *runtime.Service
	pod     string
}

// run listens until ctx ends, which is no error. Connections end with it.
func (f *forwarder) run(ctx context.Context, address string, ports []argument.Forward) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	faults := make(chan error, len(ports)) // one from each
	for _, p := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(int(p.Local))))
		if err != nil {
			return fmt.Errorf("forward to port %d of pod %s: %w", p.Remote, f.pod, err)
		}
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		defer stop()
		defer l.Close()
		if _, err := fmt.Fprintf(f.s.Out, "%s -> %d\n", l.Addr(), p.Remote); err != nil {
			return err
		}
		all.Go(func() { faults <- f.accept(ctx, l, p.Remote) })
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-faults:
		return err
	}
}

func (f *forwarder) accept(ctx context.Context, l net.Listener, port uint16) error {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil //nolint:nilerr // it is the end that was asked for
		}
		if err != nil {
			return err
		}
		all.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			if err := f.service.PortForward(ctx, f.pod, port, conn); err != nil && ctx.Err() == nil {
				// Others go on: a port may be closed today and open tomorrow.
				_, _ = fmt.Fprintf(f.s.Err, "berth: %v\n", err)
			}
		})
	}
}
