// SPDX-License-Identifier: Apache-2.0

// Package build owns what a builder of images works with between two images: layers
// that are kept while it needs them, roots that it writes to, and a cache of the steps
// that were made before. It refuses to know instructions, and runs nothing.
package build

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	cmount "github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/berthd/berth/images/commit"
	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/lease"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/mount"
	"github.com/berthd/berth/images/store"
)

// leaseTime is how long what a killed builder holds outlives it: longer than a build
// takes.
const leaseTime = 24 * time.Hour

// releaseTimeout bounds the removal of what a failed call has made.
const releaseTimeout = 30 * time.Second

// Config says what a Builder works on. Everything is required.
type Config struct {
	Client *client.Client // stays the caller's
	Store  *store.Store
	Layers *layer.Layers // of the same namespace
	Mounts *mount.Mounts // those of Layers
	Maker  *commit.Maker
}

// Builder hands out layers and caches. Safe for concurrent use.
type Builder struct{ Config }

// New returns a Builder. It makes no request.
func New(c Config) *Builder { return &Builder{c} }

// Layer is the unpacked layers of an image, or of nothing, that are kept until it is
// released, even if the image is not. Safe for concurrent use.
type Layer struct {
	builder *Builder
	lease   string
	diffIDs []digest.Digest
	blob    digest.Digest
}

// Open keeps an image's layers, unpacked if need be; nil is an image without any. The
// caller must release it.
func (b *Builder) Open(ctx context.Context, m *manifest.Manifest) (*Layer, error) {
	ctx = b.Store.Context(ctx)
	y, ctx, err := b.lease(ctx)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return y, nil
	}
	config, err := m.Config(ctx)
	if err == nil {
		_, err = b.Layers.Unpack(ctx, m)
	}
	if err != nil {
		return nil, errors.Join(err, y.drop(ctx))
	}
	y.diffIDs = config.RootFS.DiffIDs
	return y, nil
}

func (b *Builder) lease(ctx context.Context) (*Layer, context.Context, error) {
	lease, err := lease.Create(ctx, b.Client.LeasesService(), leases.WithRandomID(), leases.WithExpiration(leaseTime))
	if err != nil {
		return nil, nil, fmt.Errorf("lease: %w", err)
	}
	return &Layer{builder: b, lease: lease.ID}, leases.WithLease(ctx, lease.ID), nil
}

// DiffID is the digest of the top layer, uncompressed; empty if there is no layer.
func (y *Layer) DiffID() digest.Digest {
	if len(y.diffIDs) == 0 {
		return ""
	}
	return y.diffIDs[len(y.diffIDs)-1]
}

// Blob is the digest of the layer that Writable.Commit has written, as it is in the
// content store; empty if it has not written any.
func (y *Layer) Blob() digest.Digest { return y.blob }

// Release gives the layers up. What nobody else needs of them is gone on return.
// Giving up what is given up already is no error.
func (y *Layer) Release(ctx context.Context) error {
	err := y.builder.Client.LeasesService().Delete(y.builder.Store.Context(ctx), leases.Lease{ID: y.lease}, leases.SynchronousDelete)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("lease %s: %w", y.lease, err)
	}
	return nil
}

func (y *Layer) drop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	return y.Release(ctx)
}

// Writable is a mounted root that a builder writes to.
type Writable struct {
	Root string // where it is mounted

	builder *Builder
	below   []digest.Digest
	key     string // of the snapshot, the mount and the lease
}

// Writable makes a root on top of the layers. The caller must release it; the layers
// may be released before.
func (y *Layer) Writable(ctx context.Context) (_ *Writable, err error) {
	b := y.builder
	ctx = b.Store.Context(ctx)
	held, ctx, err := b.lease(ctx)
	if err != nil {
		return nil, err
	}
	w := &Writable{builder: b, below: y.diffIDs, key: held.lease}
	sn := b.Client.SnapshotService(b.Layers.Snapshotter())
	w.Root, err = b.Mounts.Mount(ctx, w.mountKey(), func(ctx context.Context) ([]cmount.Mount, error) {
		return sn.Prepare(ctx, w.key, identity.ChainID(y.diffIDs).String(), snapshots.WithLabels(map[string]string{labelBuild: w.key}))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("root on layer %q: %w", y.DiffID(), err), held.drop(ctx))
	}
	return w, nil
}

// labelBuild tells a builder's snapshot from others'.
const labelBuild = "io.berth.build"

func (w *Writable) mountKey() string { return "build-" + w.key }

// Commit writes what has been changed as a layer and returns it with those below; the
// caller must release it. If nothing has been changed there is no layer more.
func (w *Writable) Commit(ctx context.Context) (*Layer, error) {
	y, ctx, err := w.builder.lease(w.builder.Store.Context(ctx))
	if err != nil {
		return nil, err
	}
	added, err := w.builder.Maker.Seal(ctx, w.key, w.below)
	if err != nil {
		return nil, errors.Join(err, y.drop(ctx))
	}
	y.diffIDs, y.blob = w.below, added.Blob.Digest
	if added.DiffID != "" {
		y.diffIDs = append(w.below[:len(w.below):len(w.below)], added.DiffID)
	}
	return y, nil
}

// Release unmounts and removes the root. Releasing it again is no error.
func (w *Writable) Release(ctx context.Context) error {
	b := w.builder
	ctx = b.Store.Context(ctx)
	return b.Mounts.Remove(ctx, w.mountKey(), func(ctx context.Context) error {
		if err := b.Client.SnapshotService(b.Layers.Snapshotter()).Remove(ctx, w.key); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("snapshot %s: %w", w.key, err)
		}
		return (&Layer{builder: b, lease: w.key}).Release(ctx)
	})
}
