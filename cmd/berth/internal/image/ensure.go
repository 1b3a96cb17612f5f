// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"

	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/images"
)

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
		if p.request, err = o.flags.request(s); err != nil {
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
	candidates, err := service.Candidates(name)
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
	candidates, wrong := service.Candidates(name)
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
