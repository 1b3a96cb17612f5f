// SPDX-License-Identifier: Apache-2.0

// Package command joins all commands to one program, with the global flags.
package command

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/container"
	"github.com/berthd/berth/cmd/berth/internal/image"
	"github.com/berthd/berth/cmd/berth/internal/install"
	"github.com/berthd/berth/cmd/berth/internal/pod"
	"github.com/berthd/berth/cmd/berth/internal/session"
)

// Groups of the first help.
const (
	things = "things"
	often  = "often"
)

// Root is the program.
func Root(s *session.Session, version string) *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Pods, containers and images on containerd",
		Long: `berth makes, runs and shows pods, containers and images of containerd. It has no daemon:
what it makes is containerd's, and goes on without it.

Before the command, -a and -n are short for --address and --namespace, as ctr has them.
Exit codes: 0, that of a process in a container, 125 when berth could not do it.`,
		Example: `  berth pod create -p 8080:80 web
  berth run -d --pod web --name app docker.io/library/nginx:latest
  berth images
  berth logs -f app
  berth pod rm -f web`,
		Version:          version,
		Args:             cobra.NoArgs,
		SilenceErrors:    true, // main writes them, in one line
		SilenceUsage:     true,
		TraverseChildren: true, // for the short global flags, which stand before the command as ctr's
	}
	s.Bind(root.PersistentFlags())
	// Their letters mean other things to commands: ps -a.
	root.Flags().StringVarP(&s.Address, "a", "a", s.Address, "")
	root.Flags().StringVarP(&s.Namespace, "n", "n", s.Namespace, "")
	for _, name := range []string{"a", "n"} {
		_ = root.Flags().MarkHidden(name) // there is the flag
	}
	root.RunE = help
	root.AddGroup(&cobra.Group{ID: things, Title: "Commands by what they are about:"}, &cobra.Group{ID: often, Title: "Often used, short for commands above:"})
	for _, c := range []*cobra.Command{pod.Command(s), container.Command(s), image.Command(s), shim(s), doctor(s), install.Command(s.Out), install.Uninstall(s.Out)} {
		c.GroupID = things
		if c.HasSubCommands() {
			c.RunE = help
		}
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{
		short(container.Run(s), "container"), short(container.Exec(s), "container"), short(container.Logs(s), "container"),
		renamed(container.List(s), "ps", "container ls"), renamed(pod.List(s), "pods", "pod ls"),
		short(image.Pull(s), "image"), short(image.Push(s), "image"),
		renamed(image.List(s), "images", "image ls"), renamed(image.Remove(s), "rmi", "image rm"),
	} {
		c.GroupID = often
		root.AddCommand(c)
	}
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	return root
}

// help is for a command that has only others below: without one it tells of them,
// and cobra.NoArgs refuses one that is not there.
func help(c *cobra.Command, _ []string) error { return c.Help() }

// short is a command at the top that is also below a group.
func short(c *cobra.Command, group string) *cobra.Command {
	return renamed(c, c.Name(), group+" "+c.Name())
}

func renamed(c *cobra.Command, name, is string) *cobra.Command {
	_, flags, _ := strings.Cut(c.Use, " ")
	c.Use = name + " " + flags
	c.Aliases = nil
	c.Short += " (berth " + is + ")"
	return c
}
