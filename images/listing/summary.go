// SPDX-License-Identifier: Apache-2.0

package listing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/consumer"
	"github.com/berthd/berth/images/filter"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/usage"
)

// Summary is an image as moby sees it: all records with the same target. An index is
// one image, whatever platforms it has.
type Summary struct {
	// Target is what the records point to; its digest is moby's ID.
	Target v1.Descriptor
	// Config is the digest of the configuration for this host, CRI's ID; empty if
	// it cannot be read.
	Config digest.Digest
	// Parent is the image that this one was made from, empty if not known.
	Parent digest.Digest
	// RepoTags and RepoDigests are sorted.
	RepoTags, RepoDigests []string
	// Dangling says that it has no name.
	Dangling bool
	Pinned   bool
	// Platform is the variant's that the rest is about, zero if there is none.
	Platform v1.Platform
	// Created is when it was made, by its own account; if it has none when its
	// first record was.
	Created time.Time
	// Content is what its blobs have that are here, Unpacked what its layers take
	// unpacked, in bytes; of all its platforms.
	Content, Unpacked int64
	// Shared is how much of both it shares with other images, -1 if not asked for.
	Shared int64
	// Containers is how many use it, -1 if not asked for.
	Containers int
	// Manifests are its variants, nil if not asked for.
	Manifests []Variant
	// Records are the names of its records, sorted.
	Records []string
}

// Size is the content and what it is unpacked to.
func (s Summary) Size() int64 { return s.Content + s.Unpacked }

// VariantKind says what a manifest of an index is.
type VariantKind string

// The kinds of manifests.
const (
	VariantImage       VariantKind = "image"
	VariantAttestation VariantKind = "attestation"
	VariantUnknown     VariantKind = "unknown"
)

// Variant is one manifest of an image.
type Variant struct {
	Descriptor v1.Descriptor
	Kind       VariantKind
	// Platform is zero for what is no image.
	Platform v1.Platform
	// Subject is the manifest that an attestation is about.
	Subject digest.Digest
	// Available says that all of its blobs are here.
	Available bool
	// Content and Unpacked are as in Summary.
	Content, Unpacked int64
	// Containers are the IDs of those that use it.
	Containers []string
}

// SummaryOptions say which images are listed, and with what.
type SummaryOptions struct {
	// Filters are those of filter.ForList.
	Filters map[string][]string
	// All lists images without a name, too, that others were made from.
	All bool
	// Manifests, SharedSize and ContainerCount ask for what costs more.
	Manifests, SharedSize, ContainerCount bool
}

// Summaries returns one Summary for each target that passes the filters, the newest
// first. Content that is missing fails nothing: what is known is listed. A filter
// that there is not is ErrInvalidArgument, one that names an unknown image is
// ErrNoSuchImage.
func (l *Lister) Summaries(ctx context.Context, o SummaryOptions) ([]Summary, error) {
	chosen, err := filter.Parse(o.Filters, filter.ForList, l.config.Now())
	if err != nil {
		return nil, err
	}
	ctx = l.store.Context(ctx)
	v, err := l.survey(ctx)
	if err != nil {
		return nil, err
	}
	if o.ContainerCount || o.Manifests {
		if v.consumers, err = consumer.Find(ctx, l.config.Client, v.records, v.inventory); err != nil {
			return nil, err
		}
	}
	picked, err := l.pick(ctx, v, chosen, o.All)
	if err != nil {
		return nil, err
	}
	list := make([]Summary, 0, len(picked))
	for _, target := range picked {
		one, err := l.summary(ctx, v, target, o)
		if err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	slices.SortStableFunc(list, func(a, b Summary) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.Records[0], b.Records[0]))
	})
	return list, nil
}

// view is what summaries are made from.
type view struct {
	records   []images.Image
	byTarget  map[digest.Digest][]images.Image
	facts     map[digest.Digest]store.Facts
	inventory *usage.Inventory
	consumers consumer.Consumers
	uses      map[digest.Digest]int // of a blob, by how many targets
	unpacked  map[string]int        // the same of a snapshot
}

// survey asks for records and inventory at a time.
func (l *Lister) survey(ctx context.Context) (*view, error) {
	v := &view{byTarget: map[digest.Digest][]images.Image{}}
	var wait sync.WaitGroup
	var errRecords, errInventory error
	wait.Go(func() {
		if v.records, errRecords = l.store.Records(ctx); errRecords == nil {
			v.facts, errRecords = l.facts(ctx, v.records)
		}
	})
	wait.Go(func() { v.inventory, errInventory = l.inventory(ctx) })
	wait.Wait()
	if err := errors.Join(errRecords, errInventory); err != nil {
		return nil, err
	}
	for _, r := range v.records {
		v.byTarget[r.Target.Digest] = append(v.byTarget[r.Target.Digest], r)
	}
	return v, nil
}

func (l *Lister) inventory(ctx context.Context) (*usage.Inventory, error) {
	return usage.Take(l.store.Context(ctx), usage.Stores{
		Content: l.config.Client.ContentStore(), Snapshotter: l.config.Client.SnapshotService(l.config.Snapshotter),
	})
}

// pick returns the targets to list.
func (l *Lister) pick(ctx context.Context, v *view, f filter.Filter, all bool) ([]digest.Digest, error) {
	before, err := l.came(ctx, v, f.Before)
	if err != nil {
		return nil, err
	}
	since, err := l.came(ctx, v, f.Since)
	if err != nil {
		return nil, err
	}
	parents := map[digest.Digest]bool{}
	for _, r := range v.records {
		parents[digest.Digest(r.Labels[store.LabelParent])] = true
	}
	var picked []digest.Digest
	for target, records := range v.byTarget {
		img := filter.Image{Came: store.Came(records), Before: before, Since: since}
		for _, r := range store.WithNames(records) {
			img.Names = append(img.Names, r.Name)
		}
		img.Labels = func() map[string]string { return l.store.Labels(ctx, records[0]) }
		if len(img.Names) == 0 && parents[target] && !all {
			continue
		}
		if f.Match(img) {
			picked = append(picked, target)
		}
	}
	return picked, nil
}

// came returns when images came here.
func (l *Lister) came(ctx context.Context, v *view, namesOrIDs []string) (times []time.Time, err error) {
	for _, input := range namesOrIDs {
		found, err := l.store.Resolve(ctx, input)
		if err != nil {
			return nil, err
		}
		records := v.byTarget[found.Target.Digest]
		if len(records) == 0 {
			records = []images.Image{found}
		}
		times = append(times, store.Came(records))
	}
	return times, nil
}

func (l *Lister) summary(ctx context.Context, v *view, target digest.Digest, o SummaryOptions) (Summary, error) {
	records, f := v.byTarget[target], v.facts[target]
	n := store.NamesOf(ctx, records)
	sum := Summary{
		Target: records[0].Target, Config: f.Config, Platform: f.Platform, Created: f.Created,
		RepoTags: n.Tags, RepoDigests: n.Digests(), Dangling: len(store.WithNames(records)) == 0,
		Shared: -1, Containers: -1,
	}
	if sum.Created.IsZero() {
		sum.Created = store.Came(records)
	}
	for _, r := range records {
		sum.Records = append(sum.Records, r.Name)
		sum.Pinned = sum.Pinned || l.store.IsPinned(r)
		if parent := digest.Digest(r.Labels[store.LabelParent]); parent.Validate() == nil {
			sum.Parent = parent
		}
	}
	blobs, layers := v.inventory.Blobs(target), v.inventory.Snapshots(target)
	sum.Content = v.inventory.BlobSize(blobs)
	var err error
	if sum.Unpacked, err = v.inventory.SnapshotSize(ctx, layers); err != nil {
		return sum, err
	}
	if o.ContainerCount {
		sum.Containers = len(v.consumers[target])
	}
	if o.SharedSize {
		if sum.Shared, err = v.shared(ctx, blobs, layers); err != nil {
			return sum, err
		}
	}
	if o.Manifests {
		sum.Manifests, err = l.variants(ctx, v, sum.Target)
	}
	return sum, err
}

// shared is the size of those blobs and snapshots that other targets have, too.
func (v *view) shared(ctx context.Context, blobs []digest.Digest, layers []string) (int64, error) {
	if v.uses == nil {
		v.uses, v.unpacked = map[digest.Digest]int{}, map[string]int{}
		for target := range v.byTarget {
			for _, d := range v.inventory.Blobs(target) {
				v.uses[d]++
			}
			for _, name := range v.inventory.Snapshots(target) {
				v.unpacked[name]++
			}
		}
	}
	blobs = slices.DeleteFunc(slices.Clone(blobs), func(d digest.Digest) bool { return v.uses[d] < 2 })
	layers = slices.DeleteFunc(slices.Clone(layers), func(name string) bool { return v.unpacked[name] < 2 })
	size, err := v.inventory.SnapshotSize(ctx, layers)
	return size + v.inventory.BlobSize(blobs), err
}

// Variants lists the manifests of a target, those that are not here, too.
func (l *Lister) Variants(ctx context.Context, target v1.Descriptor) ([]Variant, error) {
	ctx = l.store.Context(ctx)
	v, err := l.survey(ctx)
	if err != nil {
		return nil, err
	}
	if v.consumers, err = consumer.Find(ctx, l.config.Client, v.records, v.inventory); err != nil {
		return nil, err
	}
	return l.variants(ctx, v, target)
}

// variants lists the manifests of a target, those that are not here, too.
func (l *Lister) variants(ctx context.Context, v *view, target v1.Descriptor) (list []Variant, err error) {
	err = manifest.Walk(ctx, l.config.Client.ContentStore(), target, func(m *manifest.Manifest) error {
		one, err := l.variant(ctx, v, target.Digest, m)
		list = append(list, one)
		return err
	})
	if errdefs.IsNotFound(err) {
		return list, nil // an index that is not here
	}
	return list, err
}

func (l *Lister) variant(ctx context.Context, v *view, target digest.Digest, m *manifest.Manifest) (Variant, error) {
	desc := m.Descriptor()
	one := Variant{Descriptor: desc, Kind: VariantImage, Content: v.inventory.BlobSize(v.inventory.Blobs(desc.Digest))}
	if m.IsAttestation() {
		one.Kind, one.Subject = VariantAttestation, m.Subject()
	} else if pseudo, err := m.IsPseudo(ctx); err == nil && pseudo {
		one.Kind = VariantUnknown
	}
	var err error
	if one.Available, err = m.Available(ctx); err != nil {
		return one, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	if one.Kind != VariantImage {
		return one, nil
	}
	if p, err := m.Platform(ctx); err == nil {
		one.Platform = p
	} else if !errdefs.IsNotFound(err) {
		return one, err
	}
	if one.Unpacked, err = v.inventory.SnapshotSize(ctx, v.inventory.Snapshots(desc.Digest)); err != nil {
		return one, err
	}
	chains := v.inventory.Chains(desc.Digest)
	for _, use := range v.consumers[target] {
		if slices.Contains(chains, use.Chain) {
			one.Containers = append(one.Containers, use.Container)
		}
	}
	return one, nil
}
