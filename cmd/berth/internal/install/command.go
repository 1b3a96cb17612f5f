// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Command is `berth install`. It writes to out.
func Command(out io.Writer) *cobra.Command {
	s, r := session{out: out}, Request{}
	c := &cobra.Command{
		Use:   "install [flags]",
		Short: "Put the shim, the image verifier and containerd's configuration for them in place",
		Long: `Copy berth's programs to where containerd finds them, and add files to containerd's
configuration: a runtime handler for pods and, with --proxy, the snapshotter. The host is
looked at first, and containerd reads the new configuration before it is put in place.
Nothing that is there is edited; what is replaced "berth uninstall" puts back. Running it
again brings things up to date.`,
		Example: `  berth install --dry-run
  berth install --restart
  berth install --proxy
  berth install --shim=false         # only the image verifier
  berth install --root /mnt/image --containerd /mnt/image/usr/bin/containerd`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := absolute(&r.Root, &r.From); err != nil {
				return err
			}
			s.tree = tree(r.Root)
			return s.install(cmd.Context(), &r)
		},
	}
	flags := c.Flags()
	s.bind(flags, &r.Root)
	flags.BoolVar(&r.Shim, "shim", true, "the shim, and a handler of it")
	flags.BoolVar(&r.Verify, "verify", true, "the image verifier")
	flags.BoolVar(&r.Proxy, "proxy", false, "berthd proxy as a service of systemd, and the snapshotter in containerd and the handler")
	flags.StringVar(&r.From, "from", programs(), "`DIRECTORY` of berth's programs")
	flags.StringVar(&r.BinDir, "bin-dir", "/usr/local/bin", "`DIRECTORY` they are put in; containerd's PATH must have it")
	flags.StringVar(&r.Containerd, "containerd", "", "containerd's `PROGRAM`; default: in /usr or PATH")
	flags.StringVar(&r.Config, "containerd-config", "/etc/containerd/config.toml", "containerd's configuration `FILE`")
	flags.StringVar(&r.Handler, "handler", "berth", "`NAME` of the runtime handler")
	flags.BoolVar(&r.Edit, "edit-config", false, "add a line to containerd's configuration file if it does not import others")
	flags.BoolVar(&r.Force, "force", false, "even if the host lacks something, or files were changed since the last time")
	return c
}

// Uninstall is `berth uninstall`. It writes to out.
func Uninstall(out io.Writer) *cobra.Command {
	s := session{out: out}
	var root string
	var force bool
	c := &cobra.Command{
		Use:   "uninstall [flags]",
		Short: "Undo `berth install`",
		Long: `Take away what "berth install" has put in place, and put back what it has replaced. What
somebody has changed since, and programs that run, are reasons to do nothing. Images,
containers and layers stay.`,
		Example: `  berth uninstall --dry-run
  berth uninstall --restart`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := absolute(&root); err != nil {
				return err
			}
			s.tree = tree(root)
			return s.uninstall(cmd.Context(), force)
		},
	}
	s.bind(c.Flags(), &root)
	c.Flags().BoolVar(&force, "force", false, "even if files were changed, or programs run")
	return c
}

// bind declares the flags of both.
func (s *session) bind(flags *pflag.FlagSet, root *string) {
	// "--root" is a directory of the service's elsewhere; here it is a host's.
	flags.StringVar(root, "root", "/", "`DIRECTORY` that is, or is to become, a host's file system")
	flags.BoolVar(&s.dry, "dry-run", false, "say what would be done, and do nothing")
	flags.BoolVar(&s.restart, "restart", false, "have systemd restart containerd, so that it reads its configuration")
}

// programs is the folder of the running program.
func programs() string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	return filepath.Dir(self)
}

// absolute makes paths of the command line those of this machine.
func absolute(paths ...*string) error {
	var errs []error
	for _, path := range paths {
		full, err := filepath.Abs(*path)
		*path = full
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
