// SPDX-License-Identifier: Apache-2.0

// Package push sends images to registries: it decides what of an image is sent,
// sends what the registry lacks, and notes where blobs have been sent to. It changes
// no image record.
package push

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/lease"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/transfer"
)

// Registry reaches registries.
type Registry interface {
	Resolver(context.Context, reference.Reference, registry.Access) (remotes.Resolver, error)
}

// Records knows image records.
type Records interface {
	// Context puts the namespace into a context.
	Context(context.Context) context.Context
	// Named returns the record of a name; its class is ErrNotFound if there is none.
	Named(context.Context, reference.Reference) (images.Image, error)
}

// Config says what a Pusher works with. All of it is required.
type Config struct {
	Client   *client.Client
	Records  Records
	Registry Registry
	// Platform orders the variants of which one must be chosen.
	Platform platforms.MatchComparer
	// Uploads bounds how many blobs are sent at a time, by all pushes.
	Uploads *transfer.Limiter
	// Now is the clock.
	Now func() time.Time
}

// Request says what to push.
type Request struct {
	// Reference is the image's name, here and in the registry.
	Reference reference.Reference
	Access    registry.Access
	// Platform selects a variant of a multi-platform image, as in "linux/arm64". It
	// alone is sent then, without its index. Empty: see Pusher.Push.
	Platform string
}

// Result says what was pushed.
type Result struct {
	// Reference is the repository with the digest of Target.
	Reference reference.Reference
	// Target is what the tag stands for in the registry now.
	Target v1.Descriptor
	// Instead is the index that the name stands for here, if a manifest of it was
	// sent in its stead.
	Instead *v1.Descriptor
	// Missing lists what the index lacks here, because of which it was not sent.
	Missing []v1.Descriptor
}

// Pusher pushes from one namespace. It holds nothing that must be closed. Safe for
// concurrent use.
type Pusher struct{ config Config }

// New returns a Pusher. It makes no request.
func New(c Config) *Pusher { return &Pusher{c} }

// expiry is how long the lease of a push that did not end by itself remains.
const expiry = time.Hour

// Push sends an image to the registry of its name, and nothing but its tag is
// written there. What is sent of a multi-platform image without a platform in the
// request:
//
//   - all of it, if all of it is here;
//   - else the one variant that is here, or the one of several that suits this host
//     best; the result tells.
//
// Layers that the registry has in another repository are taken from there; such a
// layer need not even be here. Layers that may not be distributed are not sent.
//
// tell is called with what has changed, every transfer.Interval; it may be nil. The
// class is ErrNotFound if there is no such image, variant, or blob: the error names
// it. Else the classes are those of package registry.
func (p *Pusher) Push(ctx context.Context, r Request, tell func(transfer.Progress)) (Result, error) {
	if r.Reference == (reference.Reference{}) {
		return Result{}, fmt.Errorf("push: no reference: %w", errdefs.ErrInvalidArgument)
	}
	table := transfer.NewTable(r.Reference.Text(), p.config.Now)
	done := make(chan struct{})
	var result Result
	var err error
	go func() {
		defer close(done)
		result, err = p.push(p.config.Records.Context(ctx), r, table)
	}()
	table.Follow(context.WithoutCancel(ctx), done, tell)
	if err != nil {
		return Result{}, fmt.Errorf("push %s: %w", r.Reference.Text(), err)
	}
	return result, nil
}

func (p *Pusher) push(ctx context.Context, r Request, table *transfer.Table) (_ Result, err error) {
	img, err := p.config.Records.Named(ctx, r.Reference)
	if err != nil {
		return Result{}, err
	}
	unlease, err := p.lease(ctx, img.Target)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, unlease()) }()
	s := &selection{content: p.config.Client.ContentStore(), platform: p.config.Platform, source: transfer.SourceLabel(r.Reference)}
	result, err := s.choose(ctx, img.Target, r.Platform)
	if err != nil {
		return Result{}, err
	}
	if result.Reference, err = r.Reference.WithDigest(result.Target.Digest); err != nil {
		return Result{}, err
	}
	if err := p.send(ctx, r, result.Target, table); err != nil {
		return Result{}, err
	}
	return result, p.note(ctx, s.content, r.Reference, result.Target)
}

// lease keeps the image, whatever becomes of its name meanwhile.
func (p *Pusher) lease(ctx context.Context, target v1.Descriptor) (func() error, error) {
	service := p.config.Client.LeasesService()
	lease, err := lease.Create(ctx, service, leases.WithRandomID(), leases.WithExpiration(expiry))
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	unlease := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if err := service.Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete lease %s: %w", lease.ID, err)
		}
		return nil
	}
	resource := leases.Resource{ID: target.Digest.String(), Type: "content"}
	if err := service.AddResource(ctx, lease, resource); err != nil {
		return nil, errors.Join(fmt.Errorf("lease of %s: %w", target.Digest, err), unlease())
	}
	return unlease, nil
}

// send sends what the registry lacks, children before their parents.
func (p *Pusher) send(ctx context.Context, r Request, target v1.Descriptor, table *transfer.Table) error {
	resolver, err := p.config.Registry.Resolver(ctx, r.Reference, r.Access)
	if err != nil {
		return err
	}
	// With tag and digest only this tag is written, at the end.
	name := r.Reference.Repository()
	if tag := r.Reference.Tag(); tag != "" {
		name += ":" + tag
	}
	pusher, err := resolver.Pusher(ctx, name+"@"+target.Digest.String())
	if err != nil {
		return err
	}
	status, _ := resolver.(statuses)
	watched := &watched{Pusher: pusher, status: status, table: table, turns: p.config.Uploads.Share()}
	wrap := func(h images.Handler) images.Handler {
		return remotes.SkipNonDistributableBlobs(once(h))
	}
	return registry.Classify(remotes.PushContent(ctx, watched, target, p.config.Client.ContentStore(), nil, platforms.All, wrap))
}

// once passes over what has been handled, or is being: an image may have a layer
// twice, and its variants have layers in common.
func once(h images.Handler) images.HandlerFunc {
	var mu sync.Mutex // guards seen
	seen := map[digest.Digest]bool{}
	return func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		mu.Lock()
		again := seen[desc.Digest]
		seen[desc.Digest] = true
		mu.Unlock()
		if again {
			return nil, images.ErrSkipDesc
		}
		return h.Handle(ctx, desc)
	}
}

// note notes at what was sent where it is now. What of it is not here was mounted.
func (p *Pusher) note(ctx context.Context, store content.Store, ref reference.Reference, target v1.Descriptor) error {
	return images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		if err := transfer.AddSource(ctx, store, desc.Digest, ref); errdefs.IsNotFound(err) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		return images.Children(ctx, store, desc)
	}), target)
}
