// SPDX-License-Identifier: Apache-2.0

// Package usage owns the inventory of a namespace: which blobs and snapshots there
// are, which of them belong to an image, and how large they are. It learns this from
// the labels that containerd's garbage collector goes by, in a few requests for
// everything, and reads no blob. It refuses to know names.
package usage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Labels by which a blob keeps others and snapshots (docs/garbage-collection.md of
// containerd). Behind the first "." or "/" may stand anything; of a snapshot it is
// the snapshotter.
const (
	refContent  = "containerd.io/gc.ref.content"
	refSnapshot = "containerd.io/gc.ref.snapshot."
)

// Stores are what an inventory is taken of.
type Stores struct {
	Content     content.Store
	Snapshotter snapshots.Snapshotter
}

// Inventory is what there was when it was taken. Safe for concurrent use.
type Inventory struct {
	blobs       map[digest.Digest]content.Info
	snapshots   map[string]snapshots.Info
	snapshotter snapshots.Snapshotter

	mu    sync.Mutex       // guards sizes; not held while asking
	sizes map[string]int64 // of snapshots that were asked for
}

// Take makes the inventory of the namespace of ctx.
func Take(ctx context.Context, s Stores) (*Inventory, error) {
	inv := &Inventory{
		blobs:       map[digest.Digest]content.Info{},
		snapshots:   map[string]snapshots.Info{},
		snapshotter: s.Snapshotter,
		sizes:       map[string]int64{},
	}
	var wait sync.WaitGroup
	var errContent, errSnapshots error
	wait.Go(func() {
		errContent = s.Content.Walk(ctx, func(info content.Info) error {
			inv.blobs[info.Digest] = info
			return nil
		})
	})
	wait.Go(func() {
		errSnapshots = s.Snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			inv.snapshots[info.Name] = info
			return nil
		})
	})
	wait.Wait()
	if errContent != nil {
		errContent = fmt.Errorf("list content: %w", errContent)
	}
	if errSnapshots != nil {
		errSnapshots = fmt.Errorf("list snapshots: %w", errSnapshots)
	}
	return inv, errors.Join(errContent, errSnapshots)
}

// Has tells whether a blob is there.
func (inv *Inventory) Has(d digest.Digest) bool {
	_, ok := inv.blobs[d]
	return ok
}

// Blobs lists the blobs that a blob keeps, itself included, each once, as far as
// they are there.
func (inv *Inventory) Blobs(target digest.Digest) []digest.Digest {
	var all []digest.Digest
	seen := map[digest.Digest]bool{}
	var visit func(d digest.Digest)
	visit = func(d digest.Digest) {
		info, ok := inv.blobs[d]
		if !ok || seen[d] {
			return
		}
		seen[d] = true
		all = append(all, d)
		for key, value := range info.Labels {
			if rest, ok := strings.CutPrefix(key, refContent); ok && (rest == "" || rest[0] == '.' || rest[0] == '/') {
				visit(digest.Digest(value))
			}
		}
	}
	visit(target)
	return all
}

// BlobSize is the sum of blobs' sizes in bytes.
func (inv *Inventory) BlobSize(blobs []digest.Digest) (size int64) {
	for _, d := range blobs {
		size += inv.blobs[d].Size
	}
	return size
}

// Chains lists the top snapshots of the images that a target reaches, one for each
// variant that was ever unpacked by any snapshotter, sorted.
func (inv *Inventory) Chains(target digest.Digest) []string {
	chains := map[string]bool{}
	for _, d := range inv.Blobs(target) {
		for key, value := range inv.blobs[d].Labels {
			if strings.HasPrefix(key, refSnapshot) {
				chains[value] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(chains))
}

// Snapshots lists the snapshots that hold a target's layers, each once.
func (inv *Inventory) Snapshots(target digest.Digest) []string {
	seen := map[string]bool{}
	var all []string
	for _, chain := range inv.Chains(target) {
		for name := range inv.Ancestors(chain) {
			if !seen[name] {
				seen[name] = true
				all = append(all, name)
			}
		}
	}
	return all
}

// Ancestors yields a snapshot and those below it, from the top down.
func (inv *Inventory) Ancestors(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for name != "" {
			info, ok := inv.snapshots[name]
			if !ok || !yield(name) {
				return
			}
			name = info.Parent
		}
	}
}

// Snapshot returns what was known of a snapshot.
func (inv *Inventory) Snapshot(name string) (snapshots.Info, bool) {
	info, ok := inv.snapshots[name]
	return info, ok
}

// Active yields the snapshots that somebody mounts: those that are not layers.
func (inv *Inventory) Active(yield func(snapshots.Info) bool) {
	for _, info := range inv.snapshots {
		if info.Kind != snapshots.KindCommitted && !yield(info) {
			return
		}
	}
}

// SnapshotSize is the sum of snapshots' own sizes in bytes, without what is below
// them. A snapshot that has gone meanwhile counts nothing.
func (inv *Inventory) SnapshotSize(ctx context.Context, names []string) (size int64, err error) {
	for _, name := range names {
		one, err := inv.sizeOf(ctx, name)
		if err != nil {
			return 0, err
		}
		size += one
	}
	return size, nil
}

func (inv *Inventory) sizeOf(ctx context.Context, name string) (int64, error) {
	inv.mu.Lock()
	size, ok := inv.sizes[name]
	inv.mu.Unlock()
	if ok {
		return size, nil
	}
	used, err := inv.snapshotter.Usage(ctx, name)
	if err != nil && !errdefs.IsNotFound(err) {
		return 0, fmt.Errorf("size of snapshot %s: %w", name, err)
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	inv.sizes[name] = used.Size
	return used.Size, nil
}

// Freed is how many bytes blobs and snapshots had that are not in a later inventory
// any more.
func (inv *Inventory) Freed(later *Inventory) (size int64) {
	for d, info := range inv.blobs {
		if !later.Has(d) {
			size += info.Size
		}
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	for name := range inv.snapshots {
		if _, ok := later.snapshots[name]; !ok {
			size += inv.sizes[name] // 0 unless Measure came before
		}
	}
	return size
}

// Measure asks for the sizes of all layers, for Freed: they cannot be asked for once
// they are gone.
func (inv *Inventory) Measure(ctx context.Context) error {
	for name, info := range inv.snapshots {
		if info.Kind == snapshots.KindCommitted {
			if _, err := inv.sizeOf(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}
