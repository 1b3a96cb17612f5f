// SPDX-License-Identifier: Apache-2.0

// Package archive moves images between containerd's stores and streams: Save writes
// one archive of several images, Load reads such archives of every tool, Import
// makes an image of a tar stream of a root file system. It owns the form of
// archives, and the suspicion that what comes in was made to do harm. It refuses to
// know registries and files' names: a stream is all it is given.
//
// Load reads archives with containerd's importer, in front of which stands what it
// lacks: limits, and writes that do not meet those of another load. Save does not
// use containerd's exporter: when a variant is missing it describes blobs that are
// not in the archive, or fails, and an image whose blobs are gone it leaves out
// without an error.
package archive

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	protect "github.com/berthd/berth/images/lease"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/unpack"
)

// Config says what an Archiver works on. All but Now is required.
type Config struct {
	// Client is the connection to containerd; it stays the caller's.
	Client *client.Client
	// Store has the records, the namespace, and the host's platform.
	Store *store.Store
	// Unpacker unpacks what is loaded and imported.
	Unpacker *unpack.Unpacker
	// Now is the time of imported images; nil is time.Now.
	Now func() time.Time
}

// Archiver saves, loads and imports images of one namespace. It holds nothing that
// must be closed. Safe for concurrent use.
type Archiver struct{ Config }

// New returns an Archiver. It makes no request.
func New(c Config) *Archiver {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Archiver{c}
}

// Loaded is an image that has come out of a stream.
type Loaded struct {
	// Image is its record. If the image came without a name that is a dangling one,
	// or one that the image had here before.
	Image images.Image
	// Named tells whether the image came with Image's name.
	Named bool
	// Unpack is why the image could not be unpacked; it is stored nevertheless, and
	// whoever runs it will see the same error. Nil too if there was nothing to unpack
	// for this host.
	Unpack error
}

// leaseTime is how long an operation may take before its blobs are fair game for
// containerd's garbage collection: as long as containerd's own client allows.
const leaseTime = 24 * time.Hour

// cleanupTimeout bounds the requests that end an operation, cancelled or not.
const cleanupTimeout = 30 * time.Second

// lease protects what an operation reads and writes.
type lease struct {
	leases.Lease
	manager leases.Manager
	wasted  bool // something was unpacked that nothing will keep
}

// lease makes a lease and returns ctx with it, in the store's namespace.
func (a *Archiver) lease(ctx context.Context, purpose string) (context.Context, *lease, error) {
	ctx = a.Store.Context(ctx)
	manager := a.Client.LeasesService()
	made, err := protect.Create(ctx, manager, leases.WithRandomID(), leases.WithExpiration(leaseTime))
	if err != nil {
		return nil, nil, fmt.Errorf("lease to %s images: %w", purpose, err)
	}
	return leases.WithLease(ctx, made.ID), &lease{Lease: made, manager: manager}, nil
}

// end gives up the lease. When the operation has failed, as *err tells, nothing that
// it wrote is there any more once end returns, ingests included; when it was wasted,
// nothing that is not recorded.
func (l *lease) end(ctx context.Context, err *error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	var opts []leases.DeleteOpt
	if *err != nil || l.wasted {
		opts = append(opts, leases.SynchronousDelete)
	}
	if gone := l.manager.Delete(ctx, l.Lease, opts...); gone != nil && !errdefs.IsNotFound(gone) {
		*err = errors.Join(*err, fmt.Errorf("lease %s: %w", l.ID, gone))
	}
}

// hold adds a blob, and what its labels refer to, to the lease.
func (l *lease) hold(ctx context.Context, desc v1.Descriptor) error {
	err := l.manager.AddResource(ctx, l.Lease, leases.Resource{ID: desc.Digest.String(), Type: "content"})
	if err != nil {
		return fmt.Errorf("lease %s: blob %s: %w", l.ID, desc.Digest, err)
	}
	return nil
}

// record makes an image of what has come, under a name, or without one if it is empty.
func (a *Archiver) record(ctx context.Context, name string, target v1.Descriptor) (Loaded, error) {
	if name == "" {
		img, err := a.Store.CreateDangling(ctx, target, nil)
		return Loaded{Image: img}, err
	}
	img := images.Image{Name: name, Target: target}
	return Loaded{Image: img, Named: true}, a.Store.Replace(ctx, img)
}

// unpack unpacks one manifest for its platform.
func (a *Archiver) unpack(ctx context.Context, m *manifest.Manifest, record images.Image) error {
	platform, err := m.Platform(ctx)
	if err != nil {
		return err
	}
	if _, err := a.Unpacker.Unpack(ctx, m); err != nil {
		return fmt.Errorf("%s for %s: %w", record.Name, platforms.Format(platform), err)
	}
	return nil
}

// classed gives an error without a class one. Errors of containerd have theirs, if
// only ErrUnknown; what is left are those of the code that reads and writes streams.
// When ctx has ended that is the reason, whatever a connection made of it.
func classed(ctx context.Context, err, class error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", err, ctx.Err())
	case errdefs.IsUnknown(err) || !errdefs.IsUnknown(errdefs.Resolve(err)):
		return err
	}
	return fmt.Errorf("%w: %w", err, class)
}
