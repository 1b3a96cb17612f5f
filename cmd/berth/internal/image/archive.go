// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/cmd/berth/internal/terminal"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/reference"
)

func save(s *session.Session) *cobra.Command {
	var file string
	var platforms platformList
	c := &cobra.Command{
		Use:   "save [flags] IMAGE...",
		Short: "Write images to an archive",
		Long: `Write images to one archive, a file or the output, that docker, podman, nerdctl and ctr
can read: it is an OCI layout and docker's format at once. A name is saved with the
image, a name without a tag means all tags here, an ID saves the image alone. Of an image
for several platforms those are saved that are here, or the ones asked for.`,
		Example: `  berth image save -o images.tar app:1 db:1
  berth image save app:1 | ssh host berth image load
  berth image save --platform linux/arm64 -o arm.tar app:1`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: Names(s, 0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				return output(s, file, func(w io.Writer) error {
					return service.Save(ctx, images.SaveRequest{Images: refs, Platforms: platforms.list, Archive: w})
				})
			})
		},
	}
	c.Flags().StringVarP(&file, "output", "o", "", "`FILE` to write (default the output)")
	platforms.bind(c.Flags())
	return c
}

// output calls f with the user's file, which is there when f has succeeded and not
// before, or with the output.
func output(s *session.Session, path string, f func(io.Writer) error) (err error) {
	if path == "" || path == "-" {
		if terminal.Is(s.Out) {
			return session.Usage("an archive is not for a terminal: give a file with -o, or a pipe")
		}
		return f(s.Out)
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return device(path, f)
	}
	part, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, part.Close(), os.Remove(part.Name()))
		}
	}()
	if err := f(part); err != nil {
		return err
	}
	const readable = 0o644 // images are no secrets
	if err := part.Chmod(readable); err != nil {
		return err
	}
	if err := os.Rename(part.Name(), path); err != nil {
		return err
	}
	return part.Close()
}

// device is output for what cannot be replaced: a pipe, a tape.
func device(path string, f func(io.Writer) error) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f(file), file.Close())
}

// input opens the user's file, or the input if it is none, which ends with ctx.
func input(ctx context.Context, s *session.Session, path string) (io.ReadCloser, error) {
	if path != "" && path != "-" {
		return os.Open(path)
	}
	if terminal.Is(s.In) {
		return nil, session.Usage("an archive does not come from a terminal: give a file, or a pipe")
	}
	return until(ctx, s.In), nil
}

// until is a reader that ends with ctx, too: a read of a pipe that nobody writes to
// cannot be ended, and is left alone then.
func until(ctx context.Context, in io.Reader) io.ReadCloser {
	out, copied := io.Pipe()
	go func() {
		_, err := io.Copy(copied, in)
		_ = copied.CloseWithError(err) // never fails; nil is the end
	}()
	context.AfterFunc(ctx, func() { _ = copied.CloseWithError(context.Cause(ctx)) })
	return out
}

func load(s *session.Session) *cobra.Command {
	var file string
	var quiet bool
	var platforms platformList
	c := &cobra.Command{
		Use:   "load [flags]",
		Short: "Take images out of an archive",
		Long: `Take all images out of an archive, a file or the input, as docker, podman, skopeo, nerdctl
and ctr save them; compressed or not. A name that another image has here moves, and that
image stays without one. An image that cannot be unpacked here is stored nevertheless.`,
		Example: `  berth image load -i images.tar
  curl -s https://example.com/app.tar.zst | berth image load`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := input(cmd.Context(), s, file)
			if err != nil {
				return err
			}
			defer in.Close()
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				loaded, err := service.Load(ctx, images.LoadRequest{Archive: in, Platforms: platforms.list})
				for _, l := range loaded {
					tellLoaded(s, l, quiet)
				}
				return err
			})
		},
	}
	c.Flags().StringVarP(&file, "input", "i", "", "`FILE` to read (default the input)")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "write names and IDs alone")
	platforms.bind(c.Flags())
	return c
}

// tellLoaded writes what docker does. What could not be unpacked is no error.
func tellLoaded(s *session.Session, l images.Loaded, quiet bool) {
	what, name := "Loaded image: ", l.Image.Name
	if !l.Named {
		what, name = "Loaded image ID: ", l.Image.Target.Digest.String()
	}
	if quiet {
		what = ""
	}
	_, _ = fmt.Fprintln(s.Out, what+name) // the image is there, whether anybody reads this or not
	if l.Unpack != nil {
		_, _ = fmt.Fprintf(s.Err, "berth: warning: image %s is stored, and cannot be unpacked: %v\n", name, l.Unpack)
	}
}

func importRoot(s *session.Session) *cobra.Command {
	var r images.ImportRequest
	var platforms platformList
	c := &cobra.Command{
		Use:   "import [flags] FILE|- [NAME]",
		Short: "Make an image of a root file system",
		Long: `Make an image of one layer of a tar file or the input, compressed or not, and write its
ID. Changes are lines of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER,
VOLUME, WORKDIR and the like. Without a name the image is without one.`,
		Example: `  berth image import rootfs.tar.gz base:1
  debootstrap --variant=minbase trixie root && tar -C root -c . | berth image import - debian:trixie
  berth image import -c 'CMD ["/bin/app"]' -c 'ENV A=1' rootfs.tar app:1`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := input(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			r.Root = in
			if len(args) > 1 {
				if r.Name, err = reference.Parse(args[1]); err != nil {
					return err
				}
			}
			if r.Platform, err = platforms.one(); err != nil {
				return err
			}
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				made, err := service.Import(ctx, r)
				if err != nil {
					return err
				}
				return writeID(ctx, s, service, made.Image)
			})
		},
	}
	c.Flags().StringArrayVarP(&r.Changes, "change", "c", nil, "`LINE` of a Dockerfile to apply")
	c.Flags().StringVarP(&r.Message, "message", "m", "", "`TEXT` for the history")
	platforms.bind(c.Flags())
	return c
}
