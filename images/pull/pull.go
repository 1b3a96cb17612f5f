// SPDX-License-Identifier: Apache-2.0

// Package pull brings images from registries into containerd's stores: it holds
// them against the signature policy, fetches what is missing, has layers unpacked as
// they arrive, and records the name in the end. It refuses to choose among names,
// and to know how registries are reached and what becomes of an image that has lost
// its name: see packages registry and store.
package pull

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	coreregistry "github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"

	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/transfer"
	"github.com/berthd/berth/images/unpack"
)

// Registry reaches registries.
type Registry interface {
	Resolver(context.Context, reference.Reference, registry.Access) (remotes.Resolver, error)
	SystemFor(context.Context, reference.Reference, registry.Access) *types.SystemContext
	// Delegate is how containerd reaches a registry by itself; nil: it cannot.
	Delegate(context.Context, reference.Reference, registry.Access) (*coreregistry.OCIRegistry, error)
}

// Records keeps image records.
type Records interface {
	// Context puts the namespace into a context.
	Context(context.Context) context.Context
	// Named returns the record of a name; its class is ErrNotFound if there is none.
	Named(context.Context, reference.Reference) (images.Image, error)
	// Replace makes a name stand for an image. A lease in the context protects the
	// image's content until it returns.
	Replace(context.Context, images.Image) error
}

// Config says what a Puller works with. All of it is required, but for what has a
// default.
type Config struct {
	Client    *client.Client
	Namespace string
	Unpacker  *unpack.Unpacker
	Records   Records
	Registry  Registry
	Policy    policy.Config
	Platform  platforms.MatchComparer
	// Keys is a directory of keys for encrypted layers, see decryption.Load. It is
	// read at each pull.
	Keys string
	// Downloads bounds how many layers are fetched at a time, by all pulls.
	Downloads *transfer.Limiter
	// DelegateBytes is from which size on the layers of an image are left to containerd
	// to fetch; 0 is DefaultDelegateBytes.
	DelegateBytes int64
	// Isolate does a pull for which a slice is given, in another process; nil: there
	// is no such way. It tells the progress of blobs to the function.
	Isolate func(context.Context, Request, func(transfer.Progress)) (Result, error)
	// Now is the clock.
	Now func() time.Time
}

// Request says what to pull. Requests that are equal, but for Timeout, are pulled
// once when they meet.
type Request struct {
	Reference reference.Reference
	Access    registry.Access
	// Platform selects the variant of a multi-platform image, as in "linux/arm64";
	// empty is the host's.
	Platform string
	// PolicyNamespace is whose signature policy decides: that of the pod. Empty is
	// the policy of all.
	PolicyNamespace string
	// Policy replaces the configured file of the policy, for all namespaces.
	Policy string
	// Keys replaces the configured directory of keys.
	Keys string
	// Timeout is how long a registry may send nothing once the first byte of a layer
	// has come; 0 waits forever.
	Timeout time.Duration
	// Slice has the pull done in another process, in a systemd scope below it.
	Slice string
	// Direct has this process fetch everything itself. Otherwise containerd fetches
	// large layers where it can reach the registry in the same way.
	Direct bool
}

func (r Request) validate() error {
	var errs []error
	if r.Reference == (reference.Reference{}) {
		errs = append(errs, errors.New("no reference"))
	}
	if r.Timeout < 0 {
		errs = append(errs, fmt.Errorf("progress timeout %v is negative", r.Timeout))
	}
	if r.Platform != "" {
		if _, err := platforms.Parse(r.Platform); err != nil {
			errs = append(errs, fmt.Errorf("platform %q: %w", r.Platform, err))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	return nil
}

// Result is what a pull has brought.
type Result struct {
	// Reference is the repository with the digest of Target.
	Reference reference.Reference
	// Target is what the name was resolved to: a manifest or an index.
	Target v1.Descriptor
	// Config is the digest of the configuration of the variant that was pulled.
	Config digest.Digest
	// Updated says that the name was not known, or stood for something else.
	Updated bool
	// Skipped counts the layers that were there already.
	Skipped int
	// Bytes is what was fetched, by media type.
	Bytes map[string]int64
}

// Puller pulls into one namespace. Safe for concurrent use.
type Puller struct {
	config Config

	mu      sync.Mutex // guards what is below
	flights map[key]*flight
	metrics Metrics
}

// New returns a Puller. It makes no request.
func New(c Config) *Puller {
	return &Puller{
		config:  c,
		flights: map[key]*flight{},
		metrics: Metrics{Bytes: map[string]int64{}, Failures: map[string]int64{}},
	}
}

// Pull pulls an image and records its name. Without an error the image is complete
// and unpacked; with one the records are as before.
//
// The layers of a pull that ctx or the progress timeout has ended stay for
// leaseTime or until the next prune, so that the same pull goes on where it
// stopped; so it does after a crash. What another failure leaves is removed.
//
// tell is called with what has changed, every transfer.Interval, by the calling
// goroutine; it may be nil. The classes of errors are those of the packages policy,
// registry, unpack and decryption, and of this one.
func (p *Puller) Pull(ctx context.Context, r Request, tell func(transfer.Progress)) (Result, error) {
	if err := r.validate(); err != nil {
		return Result{}, fmt.Errorf("pull: %w", err)
	}
	result, err := p.share(ctx, r, tell)
	if err != nil {
		return Result{}, fmt.Errorf("pull %s: %w", r.Reference.Text(), err)
	}
	return result, nil
}

// run is one pull from beginning to end.
func (p *Puller) run(ctx context.Context, r Request, table *transfer.Table) (Result, error) {
	if r.Slice != "" {
		if p.config.Isolate == nil {
			return Result{}, fmt.Errorf("no pulls in a slice of their own here: %w", errdefs.ErrNotImplemented)
		}
		r.Direct = true // what containerd fetches by itself is not in the slice
		return p.config.Isolate(ctx, r, table.Put)
	}
	ctx = p.config.Records.Context(ctx)
	ctx, watch := newWatch(ctx, r.Timeout)
	defer watch.stop()
	j, err := p.prepare(ctx, r, table)
	if err == nil {
		j.watch = watch
		err = j.pull(ctx)
	}
	if err != nil {
		// What was cut off says so in many words; why it was is what counts.
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return Result{}, err
	}
	j.result.Bytes = table.Bytes()
	return j.result, nil
}
