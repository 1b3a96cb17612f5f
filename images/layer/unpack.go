// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

	"github.com/berthd/berth/images/manifest"
)

// Unpack makes sure that an image is unpacked and returns the key of its top snapshot,
// empty for an image without layers. Whoever uses the snapshot needs a lease in ctx;
// it then keeps the snapshot. The layers' blobs are not needed if the snapshot is
// there; else a missing one is of the class ErrNotFound.
func (l *Layers) Unpack(ctx context.Context, m *manifest.Manifest) (string, error) {
	ctx = l.context(ctx)
	name := m.Descriptor().Digest.String()
	chain, err := m.ChainID(ctx)
	if err != nil || chain == "" {
		return "", err
	}
	// Before it is looked for: so it cannot go away in between.
	if err := l.protect(ctx, chain.String()); err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	_, err = l.snapshots().Stat(ctx, chain.String())
	if err == nil {
		return chain.String(), nil
	}
	if !errdefs.IsNotFound(err) {
		return "", fmt.Errorf("unpack %s: snapshot %s: %w", name, chain, err)
	}
	image := client.NewImageWithPlatform(l.client, m.Record(images.Image{Name: name}), platforms.All)
	if err := image.Unpack(ctx, l.config.Snapshotter); err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	return chain.String(), nil
}

// protect adds a snapshot to the lease of ctx, whether it exists yet or not. Without
// a lease it does nothing.
func (l *Layers) protect(ctx context.Context, snapshot string) error {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	resource := leases.Resource{ID: snapshot, Type: "snapshots/" + l.config.Snapshotter}
	if err := l.client.LeasesService().AddResource(ctx, leases.Lease{ID: id}, resource); err != nil {
		return fmt.Errorf("lease %s: snapshot %s: %w", id, snapshot, err)
	}
	return nil
}
