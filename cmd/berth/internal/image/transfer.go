// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berthd/berth/cmd/berth/internal/argument"
	"github.com/berthd/berth/cmd/berth/internal/progress"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/listing"
	"github.com/berthd/berth/images/transfer"
	config "github.com/berthd/berth/plugin/image"
)

// shown are the flags of what is shown of a transfer.
type shown struct {
	quiet bool
	mode  progress.Mode
}

func (o *shown) bind(flags *pflag.FlagSet) {
	o.bindProgress(flags)
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress, write the result alone")
}

func (o *shown) bindProgress(flags *pflag.FlagSet) {
	o.mode = progress.Auto
	flags.Var(&o.mode, "progress", "how it is shown what moves")
}

// follow calls f with what shows progress on stderr, which ends with it.
func (o *shown) follow(s *session.Session, f func(func(transfer.Progress)) error) error {
	mode := o.mode
	if o.quiet {
		mode = progress.None
	}
	display := progress.New(s.Err, mode)
	defer display.Close()
	return f(func(p transfer.Progress) { display.Show(part(p)) })
}

// part is what is shown of a blob.
func part(p transfer.Progress) progress.Part {
	const short = 12 // digits, as of IDs
	status := string(p.Status)
	if p.From != "" {
		status += " from " + p.From
	}
	return progress.Part{
		Name: p.Digest.Encoded()[:short], Status: status, Done: p.Offset, Total: p.Total,
		// What was there already may have to be unpacked yet.
		Ended: p.Status.Ended() && p.Status != transfer.Exists,
	}
}

// pulls are the flags of a pull, as `pull` and `run` have them.
type pulls struct {
	access
	acceptance
	shown

	keys, timeout, cgroup string
	settings              *config.Config
}

func (p *pulls) bind(flags *pflag.FlagSet) {
	p.access.bind(flags)
	p.acceptance.bind(flags)
	p.shown.bind(flags)
}

// bindRest declares what is for `pull` alone.
func (p *pulls) bindRest(flags *pflag.FlagSet) {
	flags.StringVar(&p.keys, "decryption-keys", "", "`DIRECTORY` of private keys for encrypted images")
	flags.StringVar(&p.timeout, "timeout", "", "`SECONDS` without progress after which to give up; 0: never")
	flags.StringVar(&p.cgroup, "cgroup", "", "systemd's `SLICE` in which to pull, in a scope of its own")
}

// configure takes the configuration, over which it puts the flags.
func (p *pulls) configure(c *config.Config) {
	p.acceptance.configure(c)
	p.settings = c
}

// request is what flags and configuration say, but for the name.
func (p *pulls) request(ctx context.Context, s *session.Session) (r images.PullRequest, err error) {
	r = images.PullRequest{
		PolicyNamespace: p.namespace, DecryptionKeys: p.keys,
		Cgroup: cmp.Or(p.cgroup, p.settings.SeparatePullCgroup), ProgressTimeout: p.settings.PullProgressTimeout.Duration,
	}
	if r.Access, err = p.access.access(ctx, s); err != nil {
		return r, err
	}
	if p.timeout != "" {
		r.ProgressTimeout, err = argument.Timeout(p.timeout)
	}
	return r, err
}

// Pull is `berth image pull`.
func Pull(s *session.Session) *cobra.Command {
	var flags pulls
	var platforms platformList
	var tags bool
	c := &cobra.Command{
		Use:   "pull [flags] NAME...",
		Short: "Fetch images from registries",
		Long: `Fetch images from registries, unpack them, and write their names with the digests that
were found. The signature policy is asked before any layer is fetched. A short name is
looked for where registries.conf says. What is here already is not fetched again, and
what an interrupted pull has fetched is used by the next one.`,
		Example: `  berth pull docker.io/library/nginx:latest
  berth pull --platform linux/arm64 alpine:3
  berth pull -a registry.example/app
  berth pull --creds me --authfile ./auth.json registry.example/private:1`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: Names(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return do(cmd.Context(), s, flags.configure, func(ctx context.Context, service *images.Service) error {
				r, err := flags.request(ctx, s)
				if err != nil {
					return err
				}
				p := puller{service: service, request: r, shown: flags.shown}
				return each(args, func(name string) error {
					p.request.Name = name
					switch {
					case tags:
						return p.tags(ctx, s, platforms)
					case platforms.all || len(platforms.texts) > 0:
						return p.platforms(ctx, s, platforms)
					}
					return p.pull(ctx, s)
				})
			})
		},
	}
	flags.bind(c.Flags())
	flags.bindRest(c.Flags())
	platforms.bindAll(c.Flags())
	c.Flags().BoolVarP(&tags, "all-tags", "a", false, "all tags of the repositories")
	return c
}

// servePull does a pull for another berth, in a cgroup of its own; see
// images.Config.PullCommand.
func servePull(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:    pullCommand,
		Short:  "Do one pull for another berth",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				return service.ServePull(ctx, s.In, s.Out, s.Err)
			})
		},
	}
}

// pullCommand is the name of servePull.
const pullCommand = "serve-pull"

// puller pulls what a request names.
type puller struct {
	service *images.Service
	request images.PullRequest
	shown   shown
}

// pull pulls one image and writes what it is.
func (p *puller) pull(ctx context.Context, s *session.Session) error {
	result, err := p.get(ctx, s)
	if err != nil {
		return err
	}
	return p.told(s, result)
}

// platforms pulls several variants of an image, one after the other.
func (p *puller) platforms(ctx context.Context, s *session.Session, wanted platformList) error {
	list := wanted.texts
	if wanted.all {
		// By the rules of a pull: nothing is asked before the policy was read.
		first, err := p.get(ctx, s)
		switch {
		case err == nil:
			list, err = variants(ctx, p.service, first)
		case errdefs.IsNotFound(err):
			list, err = p.elsewhere(ctx, err)
		}
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return p.told(s, first)
		}
	}
	var result images.PullResult
	for _, platform := range list {
		p.request.Platforms = []string{platform}
		var err error
		if result, err = p.get(ctx, s); err != nil {
			return fmt.Errorf("platform %s: %w", platform, err)
		}
	}
	return p.told(s, result)
}

// variants are the platforms of an image that was pulled, whether they are here or
// not.
func variants(ctx context.Context, service *images.Service, pulled images.PullResult) (list []string, err error) {
	all, err := service.Manifests(ctx, pulled.Reference.Text())
	for _, v := range all {
		if v.Kind == listing.VariantImage && v.Descriptor.Platform != nil {
			list = append(list, platforms.Format(*v.Descriptor.Platform))
		}
	}
	return list, err
}

// elsewhere are the platforms of an image that has none for this host; the error says
// so.
func (p *puller) elsewhere(ctx context.Context, none error) (list []string, err error) {
	all, err := p.service.Platforms(ctx, images.PrepareRequest{Name: p.request.Name, Access: p.request.Access})
	for _, platform := range all {
		list = append(list, platforms.Format(platform))
	}
	if len(list) == 0 {
		return nil, none // and asking has failed in the same way
	}
	return list, err
}

// get pulls one image and shows how.
func (p *puller) get(ctx context.Context, s *session.Session) (result images.PullResult, err error) {
	err = p.shown.follow(s, func(tell func(transfer.Progress)) error {
		r := p.request
		r.Progress = tell
		result, err = p.service.Pull(ctx, r)
		return err
	})
	return result, err
}

func (p *puller) told(s *session.Session, result images.PullResult) error {
	if !p.shown.quiet {
		what := "is up to date"
		if result.Updated {
			what = "is new"
		}
		_, _ = fmt.Fprintf(s.Err, "%s: %s\n", p.request.Name, what) // beside the result
	}
	_, err := fmt.Fprintln(s.Out, result.Reference.Text())
	return err
}

// tags pulls all tags of a repository.
func (p *puller) tags(ctx context.Context, s *session.Session, wanted platformList) (err error) {
	r := p.request
	r.Platforms = wanted.texts
	if wanted.all {
		return session.Usage("--all-tags with --all-platforms")
	}
	var results []images.PullResult
	err = p.shown.follow(s, func(tell func(transfer.Progress)) error {
		r.Progress = tell
		results, err = p.service.PullAll(ctx, r)
		return err
	})
	for _, result := range results {
		err = errors.Join(err, p.told(s, result))
	}
	return err
}

// Push is `berth image push`.
func Push(s *session.Session) *cobra.Command {
	var a access
	var o shown
	var platforms platformList
	var tags bool
	c := &cobra.Command{
		Use:   "push [flags] NAME...",
		Short: "Send images to their registries",
		Long: `Send images to the registries that their names say, and write the names with the digests
that they have there. Layers that a registry has under another name are not sent again.
Of an image for several platforms all is sent if all is here, else what suits this host
best, or --platform.`,
		Example: `  berth image tag app:1 registry.example/app:1 && berth push registry.example/app:1
  berth push -a --creds me registry.example/app`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: Names(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			access, err := a.access(cmd.Context(), s)
			if err != nil {
				return err
			}
			if _, err := platforms.one(); err != nil {
				return err
			}
			r := images.PushRequest{Access: access, Platform: platforms.String()}
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				return each(args, func(name string) error {
					r.Name = name
					return push(ctx, s, service, r, tags, o)
				})
			})
		},
	}
	a.bind(c.Flags())
	o.bind(c.Flags())
	platforms.bind(c.Flags())
	c.Flags().BoolVarP(&tags, "all-tags", "a", false, "all tags of the repositories that are here")
	return c
}

// push sends an image, or all tags of a repository, and writes what they are there.
func push(ctx context.Context, s *session.Session, service *images.Service, r images.PushRequest, tags bool, o shown) error {
	var results []images.PushResult
	err := o.follow(s, func(tell func(transfer.Progress)) (err error) {
		r.Progress = tell
		if tags {
			results, err = service.PushAll(ctx, r)
			return err
		}
		result, err := service.Push(ctx, r)
		if err == nil {
			results = append(results, result)
		}
		return err
	})
	for _, result := range results {
		if result.Instead != nil {
			// It is not what the name stands for here: somebody should know.
			_, _ = fmt.Fprintf(s.Err, "berth: warning: %s: the index %s is not all here (%d blobs are missing), its manifest %s was pushed alone\n",
				r.Name, result.Instead.Digest, len(result.Missing), result.Target.Digest)
		}
		_, wrong := fmt.Fprintln(s.Out, result.Reference.Text())
		err = errors.Join(err, wrong)
	}
	return err
}

// When says when the image of a new container is pulled: a flag.
type When string

// Times of pulling.
const (
	Missing When = "missing" // if it is not here
	Always  When = "always"  // the registry may have a newer one
	Never   When = "never"
)

// String returns it as the flag has it.
func (w *When) String() string { return string(*w) }

// Set refuses what is no time.
func (w *When) Set(text string) error {
	switch When(text) {
	case Missing, Always, Never:
		*w = When(text)
		return nil
	}
	return fmt.Errorf("missing, always or never: %w", errdefs.ErrInvalidArgument)
}

// Type names it in a usage.
func (w *When) Type() string { return "missing|always|never" }

// Source are the flags of where a new container's image comes from.
type Source struct {
	when  When
	flags pulls
}

// Bind declares the flags.
func (o *Source) Bind(flags *pflag.FlagSet) {
	o.when = Missing
	flags.Var(&o.when, "pull", "when to pull the image")
	o.flags.access.bind(flags)
	o.flags.acceptance.bind(flags)
	o.flags.shown.bindProgress(flags)
}

// Record returns the name of the record of an image, which is pulled if the flags
// say so.
func (o *Source) Record(ctx context.Context, s *session.Session, name, platform string) (record string, err error) {
	err = do(ctx, s, o.flags.configure, func(ctx context.Context, service *images.Service) error {
		if o.when != Always {
			record, err = stored(ctx, service, name)
			if o.when == Never || !errors.Is(err, images.ErrNoSuchImage) {
				return err
			}
		}
		p := puller{service: service, shown: o.flags.shown}
		if p.request, err = o.flags.request(ctx, s); err != nil {
			return err
		}
		p.request.Name = name
		if platform != "" {
			p.request.Platforms = []string{platform}
		}
		result, err := p.get(ctx, s)
		if err != nil {
			return err
		}
		record, err = pulled(service, name, result)
		return err
	})
	return record, err
}

// pulled is the record that a pull by a name, perhaps a short one, has made.
func pulled(service *images.Service, name string, result images.PullResult) (string, error) {
	candidates, err := service.Search(name)
	if err != nil {
		return "", err
	}
	for _, c := range candidates {
		if c.Repository() == result.Reference.Repository() {
			return c.Text(), nil
		}
	}
	return "", fmt.Errorf("image %s: pulled as %s: %w", name, result.Reference.Text(), errdefs.ErrInternal)
}

// stored finds an image that is here: by its name, its ID, or by one of the names
// that a short one may stand for.
func stored(ctx context.Context, service *images.Service, name string) (string, error) {
	found, err := service.Store().Resolve(ctx, name)
	if err == nil || !errors.Is(err, images.ErrNoSuchImage) {
		return found.Name, err
	}
	candidates, wrong := service.Search(name)
	if wrong != nil {
		return "", err // it may be an ID
	}
	for _, c := range candidates {
		if found, err := service.Store().Resolve(ctx, c.Text()); err == nil {
			return found.Name, nil
		}
	}
	return "", err
}
