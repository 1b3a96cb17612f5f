// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// Size is how many bytes a container's files take on the disk.
type Size struct {
	Writable int64 // what the container itself has written
	Total    int64 // and what is below it
}

// ContainerSize measures a container. One that does not exist has nothing. Its class
// is ErrNotFound if its snapshot has gone; a snapshot below it that has gone is not
// counted.
func (l *Layers) ContainerSize(ctx context.Context, id string) (Size, error) {
	ctx = l.context(ctx)
	r, err := l.locate(ctx, id)
	if errdefs.IsNotFound(err) {
		return Size{}, nil
	}
	if err != nil {
		return Size{}, err
	}
	sn := l.client.SnapshotService(r.Snapshotter)
	own, err := sn.Usage(ctx, r.Key)
	if err != nil {
		return Size{}, fmt.Errorf("container %s: snapshot %s: %w", id, r.Key, err)
	}
	info, err := sn.Stat(ctx, r.Key)
	if err != nil {
		return Size{}, fmt.Errorf("container %s: snapshot %s: %w", id, r.Key, err)
	}
	below, err := sizeBelow(ctx, sn, info)
	if err != nil {
		return Size{}, fmt.Errorf("container %s: %w", id, err)
	}
	return Size{Writable: own.Size, Total: own.Size + below}, nil
}

func sizeBelow(ctx context.Context, sn snapshots.Snapshotter, info snapshots.Info) (total int64, err error) {
	for parent := info.Parent; parent != ""; parent = info.Parent {
		usage, err := sn.Usage(ctx, parent)
		if err == nil {
			info, err = sn.Stat(ctx, parent)
		}
		if errdefs.IsNotFound(err) {
			log.G(ctx).WithField("snapshot", parent).Warn("a snapshot below a container has gone")
			return total, nil
		}
		if err != nil {
			return 0, fmt.Errorf("snapshot %s: %w", parent, err)
		}
		total += usage.Size
	}
	return total, nil
}

// Usage measures the unpacked layers of an image, the lowest first, by the chain of
// their digests. One that is not unpacked is missing in the result.
func (l *Layers) Usage(ctx context.Context, diffIDs []digest.Digest) (map[digest.Digest]int64, error) {
	ctx = l.context(ctx)
	sizes := map[digest.Digest]int64{}
	for i := range diffIDs {
		chain := identity.ChainID(diffIDs[: i+1 : i+1])
		usage, err := l.snapshots().Usage(ctx, chain.String())
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", chain, err)
		}
		sizes[chain] = usage.Size
	}
	return sizes, nil
}
