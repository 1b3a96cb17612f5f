// SPDX-License-Identifier: Apache-2.0

// Package pod has the commands of `berth pod`. What they do is the service's; here
// are their words.
package pod

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/argument"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime"
)

// Command is `berth pod`.
func Command(s *session.Session) *cobra.Command {
	c := &cobra.Command{
		Use:   "pod",
		Short: "Make and look at pods",
		Long: `Pods: containers that share a network, a host name and what else they are told to.
A pod has no container and no process of its own. Those of the kubelet are shown too.`,
		Args: cobra.NoArgs,
	}
	c.AddCommand(create(s), List(s), inspect(s), statistics(s), stop(s), remove(s), logs(s), forward(s))
	return c
}

func create(s *session.Session) *cobra.Command {
	var r runtime.PodRequest
	var flags argument.Pod
	var attempt uint32
	var id string
	var pairs, annotations []string
	c := &cobra.Command{
		Use:   "create [flags] [NAME]",
		Short: "Make a pod, ready for containers",
		Long: `Make a pod with a network by CNI, or the host's, and write its ID. Containers are put
into it by "berth container run --pod NAME". After an error nothing is left.`,
		Example: `  berth pod create web
  berth pod create -p 8080:80 --hostname web web
  berth pod create --network host --label tier=front web`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Attempt, r.ID = labels.Attempt(attempt), runtime.PodID(id)
			switch {
			case len(args) == 1 && r.Name != "" && r.Name != args[0]:
				return session.Usage("two names, %s and %s", args[0], r.Name)
			case len(args) == 1:
				r.Name = args[0]
			case r.Name == "":
				r.Name = argument.MadeUp("pod")
			}
			var err error
			if err := flags.Request(&r); err != nil {
				return err
			}
			if r.Labels, err = argument.Map("--label", pairs); err != nil {
				return err
			}
			if r.Annotations, err = argument.Map("--annotation", annotations); err != nil {
				return err
			}
			return s.Do(cmd.Context(), func(ctx context.Context, service *runtime.Service) error {
				p, err := service.CreatePod(ctx, r)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(s.Out, p.ID)
				return err
			})
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := c.Flags()
	f.StringVar(&r.Name, "name", "", "`NAME`, as the argument (default made up)")
	f.StringVar(&id, "id", "", "its `ID` (default made up)")
	f.StringVar(&r.Namespace, "pod-namespace", "", "Kubernetes' `NAMESPACE` of the pod")
	f.StringVar(&r.UID, "uid", "", "Kubernetes' `UID` of the pod")
	f.Uint32Var(&attempt, "attempt", 0, "`NUMBER` of times that it was made before")
	f.StringVar(&r.LogDirectory, "log-directory", "", "`DIRECTORY` of the containers' logs (default in berth's)")
	f.StringArrayVarP(&pairs, "label", "l", nil, "`KEY=VALUE` to find it by")
	f.StringArrayVar(&annotations, "annotation", nil, "`KEY=VALUE` for the runtime and others")
	flags.Bind(f)
	return c
}

func stop(s *session.Session) *cobra.Command {
	timeout := "10"
	c := &cobra.Command{
		Use:   "stop [flags] POD...",
		Short: "End pods: their containers, then their networks",
		Long: `Ask all containers of each pod to end, kill those that have not after the time, then
take the pod's network and namespaces away. Records and file systems stay. A pod that
has been stopped does not run again.`,
		Example: `  berth pod stop web
  berth pod stop -t 60 web db`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.Pods(0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			d, err := argument.Timeout(timeout)
			if err != nil {
				return err
			}
			return s.Each(cmd.Context(), refs, func(ctx context.Context, service *runtime.Service, ref string) error {
				p, err := service.Pod(ctx, ref) // one that is not there would be a success
				if err != nil {
					return err
				}
				return service.StopPod(ctx, string(p.ID), d)
			})
		},
	}
	c.Flags().StringVarP(&timeout, "time", "t", timeout, "`SECONDS` that containers get to end by themselves")
	return c
}

func remove(s *session.Session) *cobra.Command {
	var o runtime.RemoveOptions
	timeout := "0"
	c := &cobra.Command{
		Use:     "rm [flags] POD...",
		Aliases: []string{"remove"},
		Short:   "Remove pods with their containers",
		Long: `Remove pods with all their containers: processes, networks, file systems, logs and
records, also of a creation or removal that was cut short. Pods whose containers run
are refused, unless -f or -t tells what is to become of those; pods that berth has not
made, unless -f. With -f a pod that is not there is no error.`,
		Example: `  berth pod rm web
  berth pod rm -t 10 web        # stops it first
  berth pod rm -f $(berth pod ls -q)`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.Pods(0),
		RunE: func(cmd *cobra.Command, refs []string) (err error) {
			if o.Timeout, err = argument.Timeout(timeout); err != nil {
				return err
			}
			return s.Each(cmd.Context(), refs, func(ctx context.Context, service *runtime.Service, ref string) error {
				return removePod(ctx, service, ref, o)
			})
		},
	}
	c.Flags().BoolVarP(&o.Force, "force", "f", false, "kill what runs, and remove what berth has not made")
	c.Flags().StringVarP(&timeout, "time", "t", timeout, "`SECONDS` that containers get to end by themselves")
	return c
}

// removePod tells of a pod that is not there, unless that is what is wanted.
func removePod(ctx context.Context, service *runtime.Service, ref string, o runtime.RemoveOptions) error {
	if !o.Force {
		p, err := service.Pod(ctx, ref)
		if err != nil {
			return err
		}
		ref = string(p.ID)
	}
	return service.RemovePod(ctx, ref, o)
}
