// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"

	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/manifest"
)

// Unpack makes sure that an image is unpacked, as unpack.Unpacker's Unpack does.
func (l *Layers) Unpack(ctx context.Context, m *manifest.Manifest) (string, error) {
	return l.config.Unpacker.Unpack(l.context(ctx), m)
}

// Add unpacks a layer onto those below, as unpack.Unpacker's Add does.
func (l *Layers) Add(ctx context.Context, layer rootfs.Layer, below []digest.Digest) error {
	return l.config.Unpacker.Add(l.context(ctx), layer, below)
}
