// SPDX-License-Identifier: Apache-2.0

package removal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/filter"
	"github.com/berthd/berth/images/store"
)

// ErrPruning says that another prune is at work. Its class is errdefs.ErrConflict.
var ErrPruning = errdefs.ErrConflict.WithMessage("a prune operation is already running")

// Report is what a prune has done.
type Report struct {
	Removed []Removed
	// Reclaimed is how many bytes of blobs and of unpacked layers are gone.
	Reclaimed int64
}

// Prune removes the images that nobody uses: those without a name or, with the filter
// "dangling=false", all. It ends the leases that interrupted pulls have left. Images
// that a container uses stay, by the name that the container was made from if there
// is one; pinned images stay, and those from which images that stay were made.
//
// Filters are those of filter.ForPrune. When some image cannot be removed the others
// are nonetheless; the report is valid with an error, too. The error is ErrPruning
// while another one is at work.
func (r *Remover) Prune(ctx context.Context, filters map[string][]string) (Report, error) {
	chosen, err := filter.Parse(filters, filter.ForPrune, r.now())
	if err != nil {
		return Report{}, err
	}
	if !r.pruning.TryLock() {
		return Report{}, ErrPruning
	}
	defer r.pruning.Unlock()
	before, err := r.look(ctx)
	if err != nil {
		return Report{}, err
	}
	ctx = r.store.Context(ctx)
	if err := before.inventory.Measure(ctx); err != nil {
		return Report{}, err
	}
	p := pruner{Remover: r, scene: before, filter: chosen, all: chosen.Dangling != nil && !*chosen.Dangling}
	p.filter.Dangling = nil // it says what is considered, not what an image must be like
	errs := []error{p.run(ctx), r.store.DeletePruneLeases(ctx), r.store.Collect(ctx)}
	after, err := r.look(ctx)
	if err != nil {
		errs, after = append(errs, err), before // more than names cannot be told
	}
	report := Report{Removed: p.told(after.records), Reclaimed: before.inventory.Freed(after.inventory)}
	r.store.Send(store.Event{
		Action:     store.ActionPrune,
		Attributes: map[string]string{"reclaimed": strconv.FormatInt(report.Reclaimed, 10)},
	})
	return report, errors.Join(errs...)
}

// pruner is one prune.
type pruner struct {
	*Remover
	scene  scene
	filter filter.Filter
	all    bool // images with names are considered, too
	pruned []pruned
}

// pruned is an image some of whose records are gone, and which names it has lost so.
type pruned struct {
	job
	names []Removed
}

// run removes children before their parents.
func (p *pruner) run(ctx context.Context) error {
	var errs []error
	left := map[digest.Digest]bool{}
	for _, r := range p.scene.records {
		left[r.Target.Digest] = true
	}
	for progress := true; progress; {
		progress = false
		for _, target := range slices.Sorted(maps.Keys(left)) {
			if ctx.Err() != nil {
				return errors.Join(append(errs, ctx.Err())...)
			}
			if slices.ContainsFunc(p.scene.children(target), func(child digest.Digest) bool { return left[child] }) {
				continue
			}
			going, whole := p.going(ctx, target)
			if len(going) == 0 {
				continue
			}
			if err := p.remove(ctx, target, going); err != nil {
				errs = append(errs, err)
			} else if whole {
				delete(left, target)
				progress = true
				continue
			}
			// What is left of it stays.
			p.scene.records = without(p.scene.records, going)
		}
	}
	return errors.Join(errs...)
}

// going are the records of a target that nobody needs, and whether they are all.
func (p *pruner) going(ctx context.Context, target digest.Digest) (going []images.Image, whole bool) {
	all := p.scene.of(target)
	if len(all) == 0 || slices.ContainsFunc(all, p.store.IsPinned) || !p.passes(ctx, all) {
		return nil, false
	}
	uses := p.scene.consumers[target]
	named := store.WithNames(all)
	switch {
	case len(named) > 0 && !p.all:
		return nil, false
	case len(uses) == 0:
		return all, true
	case len(named) == 0 || p.store.Namespace() == store.KubernetesNamespace:
		// There the kubelet knows an image in use by all of its records.
		return nil, false
	}
	used := map[string]bool{}
	for _, use := range uses {
		used[use.Record] = true
	}
	going = slices.DeleteFunc(named, func(r images.Image) bool { return used[r.Name] })
	if len(going) == len(all) || used[""] && len(without(named, going)) == 0 {
		going = going[:len(going)-1] // some record must keep the image
	}
	return going, false
}

// passes tells whether the filter lets an image pass.
func (p *pruner) passes(ctx context.Context, all []images.Image) bool {
	return p.filter.Match(filter.Image{
		Came:   store.Came(all),
		Labels: func() map[string]string { return p.store.Labels(ctx, all[0]) },
	})
}

func (p *pruner) remove(ctx context.Context, target digest.Digest, records []images.Image) error {
	unlock, err := p.store.Lock(ctx, target)
	if err != nil {
		return err
	}
	defer unlock()
	j := job{Remover: p.Remover, target: target, labels: p.store.Labels(ctx, records[0])}
	deleted, err := p.store.Unlink(ctx, records...)
	if len(deleted) > 0 {
		p.pruned = append(p.pruned, pruned{j, j.untagged(deleted)})
	}
	if err != nil {
		return fmt.Errorf("prune image %s: %w", records[0].Name, err)
	}
	return nil
}

// told are the names that are gone, and the images that no record is left of. This is
// not asked for each: an answer takes containerd a look at all records.
func (p *pruner) told(left []images.Image) (removed []Removed) {
	stays := map[digest.Digest]bool{}
	for _, r := range left {
		stays[r.Target.Digest] = true
	}
	for _, one := range p.pruned {
		removed = append(removed, one.names...)
		if !stays[one.target] {
			removed = append(removed, one.deleted())
		}
	}
	return removed
}
