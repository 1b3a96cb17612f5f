// SPDX-License-Identifier: Apache-2.0

// Package unpack owns the way of layers into a snapshotter, and how much of it images
// may take: nobody else has containerd unpack anything. It refuses to know where
// blobs come from, and image records.
package unpack

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/decryption"
	"github.com/berthd/berth/images/manifest"
)

// DefaultMax is what an image may unpack to unless the configuration says: far more
// than images have, and less than a disk.
const DefaultMax = 128 << 30

// ErrTooLarge says that an image unpacks to more than is allowed. Its class is
// ErrResourceExhausted.
var ErrTooLarge = errdefs.ErrResourceExhausted.WithMessage("image unpacks to more than is allowed")

// errNoImage says that containerd has found nothing to unpack in a manifest.
var errNoImage = errdefs.ErrInvalidArgument.WithMessage("not the layers of an image")

// Config says what an Unpacker works with. Client and Snapshotter are required.
type Config struct {
	Client      *client.Client // stays the caller's
	Snapshotter string
	// Max is what the layers of an image may take together when they are unpacked, in
	// bytes; 0 is DefaultMax. Layers that are unpacked already do not count. It is
	// looked at ten times a second, so that a layer may take as much more as
	// containerd writes in this time.
	Max int64
	// Keys is a directory of keys for encrypted layers of images that are here, see
	// decryption.Load; who fetches an image brings its own.
	Keys string
}

// Unpacker unpacks into one snapshotter, in the namespace of each call's context. A
// lease must be in the context too: it keeps what is unpacked, and whoever made it
// deletes it with what a failed call has left. Safe for concurrent use.
type Unpacker struct{ Config }

// New returns an Unpacker. It makes no request.
func New(c Config) *Unpacker {
	if c.Max == 0 {
		c.Max = DefaultMax
	}
	return &Unpacker{c}
}

// Unpack makes sure that an image is unpacked, and kept while its configuration is. It
// returns the key of the top snapshot, empty for an image without layers. The layers'
// blobs are not needed if the snapshot is there; else a missing one is of the class
// ErrNotFound. An image that takes too much is ErrTooLarge.
func (u *Unpacker) Unpack(ctx context.Context, m *manifest.Manifest) (string, error) {
	name := m.Descriptor().Digest
	chain, err := m.ChainID(ctx)
	if err != nil || chain == "" {
		return "", err
	}
	key := chain.String()
	// Before it is looked for: so it cannot go away in between.
	if err := u.Hold(ctx, key); err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	switch _, err = u.snapshots().Stat(ctx, key); {
	case err == nil:
		err = u.refer(ctx, m, key)
	case errdefs.IsNotFound(err):
		err = u.present(ctx, m)
	}
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	return key, nil
}

// present unpacks an image that is in the content store.
func (u *Unpacker) present(ctx context.Context, m *manifest.Manifest) error {
	keys, err := u.keys(ctx, m)
	if err != nil {
		return err
	}
	store := u.Client.ContentStore()
	found, err := u.run(ctx, Job{Target: m.Descriptor(), Content: store, Handler: images.ChildrenHandler(store), Options: keys.ApplyOpts})
	if err == nil && !found {
		err = errNoImage
	}
	return err
}

// keys are those for an image's layers: none unless there are encrypted ones.
func (u *Unpacker) keys(ctx context.Context, m *manifest.Manifest) (decryption.Keys, error) {
	doc, err := m.Manifest(ctx)
	if err != nil || !slices.ContainsFunc(doc.Layers, decryption.IsEncrypted) {
		return decryption.Keys{}, err
	}
	keys, err := decryption.Load(u.Keys)
	for _, layer := range doc.Layers {
		err = cmp.Or(err, keys.Check(layer))
	}
	return keys, err
}

// refer makes an image's configuration keep a snapshot, as it does when containerd has
// made that of it: another image with the same layers may have come first.
func (u *Unpacker) refer(ctx context.Context, m *manifest.Manifest, key string) error {
	config, err := m.ConfigDigest(ctx)
	if err != nil {
		return err
	}
	store := u.Client.ContentStore()
	info, err := store.Info(ctx, config)
	label := "containerd.io/gc.ref.snapshot." + u.Snapshotter
	if err != nil || info.Labels[label] == key {
		return err
	}
	_, err = store.Update(ctx, content.Info{Digest: config, Labels: map[string]string{label: key}}, "labels."+label)
	return err
}

// Add unpacks one layer onto those below, which must be unpacked. It is as large as an
// image may be at most, else the error is ErrTooLarge.
func (u *Unpacker) Add(ctx context.Context, layer rootfs.Layer, below []digest.Digest) error {
	g := u.guard()
	if _, err := rootfs.ApplyLayer(ctx, layer, below, g, g); err != nil {
		return fmt.Errorf("unpack layer %s: %w", layer.Blob.Digest, err)
	}
	return nil
}

func (u *Unpacker) snapshots() snapshots.Snapshotter { return u.Client.SnapshotService(u.Snapshotter) }

func (u *Unpacker) guard() *guard { return newGuard(u.snapshots(), u.Client.DiffService(), u.Max) }

// Hold adds a snapshot to the lease of ctx, whether it exists yet or not. Without a
// lease it does nothing.
func (u *Unpacker) Hold(ctx context.Context, snapshot string) error {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	resource := leases.Resource{ID: snapshot, Type: "snapshots/" + u.Snapshotter}
	if err := u.Client.LeasesService().AddResource(ctx, leases.Lease{ID: id}, resource); err != nil {
		return fmt.Errorf("lease %s: snapshot %s: %w", id, snapshot, err)
	}
	return nil
}
