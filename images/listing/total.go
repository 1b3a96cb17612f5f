// SPDX-License-Identifier: Apache-2.0

package listing

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/consumer"
	"github.com/berthd/berth/images/store"
)

// Count returns the number of images, by target; 0 if they cannot be listed. It is
// CountImages of the ImageService.
func (l *Lister) Count(ctx context.Context) int {
	records, err := l.store.Records(ctx)
	if err != nil {
		return 0
	}
	targets := map[digest.Digest]bool{}
	for _, r := range records {
		targets[r.Target.Digest] = true
	}
	return len(targets)
}

// Children returns the targets of the images that were made from an image, sorted. The
// error is ErrNoSuchImage.
func (l *Lister) Children(ctx context.Context, nameOrID string) ([]digest.Digest, error) {
	parent, err := l.store.Resolve(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	records, err := l.store.Records(ctx, fmt.Sprintf("labels.%q==%q", store.LabelParent, parent.Target.Digest.String()))
	if err != nil {
		return nil, err
	}
	var children []digest.Digest
	for _, r := range records {
		children = append(children, r.Target.Digest)
	}
	slices.Sort(children)
	return slices.Compact(children), nil
}

// DiskUsage is what all images take together, each blob and each layer counted once, in
// bytes.
type DiskUsage struct {
	Images  int
	Content int64 // of blobs
	Layers  int64 // of unpacked layers
	// Reclaimable is how much of both a prune of all unused images would free.
	Reclaimable int64
}

// DiskUsage returns it. Layers is LayerDiskUsage of the ImageService, both are
// ImageDiskUsage.
func (l *Lister) DiskUsage(ctx context.Context) (DiskUsage, error) {
	ctx = l.store.Context(ctx)
	v, err := l.survey(ctx)
	if err != nil {
		return DiskUsage{}, err
	}
	if v.consumers, err = consumer.Find(ctx, l.config.Client, v.records, v.inventory); err != nil {
		return DiskUsage{}, err
	}
	var all, used []digest.Digest
	for target, records := range v.byTarget {
		all = append(all, target)
		if len(v.consumers[target]) > 0 || slices.ContainsFunc(records, l.store.IsPinned) {
			used = append(used, target)
		}
	}
	content, layers, err := v.total(ctx, all)
	if err != nil {
		return DiskUsage{}, err
	}
	usedContent, usedLayers, err := v.total(ctx, used)
	if err != nil {
		return DiskUsage{}, err
	}
	return DiskUsage{
		Images: len(all), Content: content, Layers: layers,
		Reclaimable: content + layers - usedContent - usedLayers,
	}, nil
}

// total is the size of what targets have together.
func (v *view) total(ctx context.Context, targets []digest.Digest) (content, layers int64, err error) {
	blobs, snapshots := map[digest.Digest]bool{}, map[string]bool{}
	for _, target := range targets {
		for _, d := range v.inventory.Blobs(target) {
			blobs[d] = true
		}
		for _, name := range v.inventory.Snapshots(target) {
			snapshots[name] = true
		}
	}
	content = v.inventory.BlobSize(slices.Collect(maps.Keys(blobs)))
	layers, err = v.inventory.SnapshotSize(ctx, slices.Collect(maps.Keys(snapshots)))
	return content, layers, err
}

// Users returns the containers that use the image with a target.
func (l *Lister) Users(ctx context.Context, target digest.Digest) ([]consumer.Consumer, error) {
	ctx = l.store.Context(ctx)
	v, err := l.survey(ctx)
	if err != nil {
		return nil, err
	}
	all, err := consumer.Find(ctx, l.config.Client, v.records, v.inventory)
	if err != nil {
		return nil, err
	}
	return all[target], nil
}
