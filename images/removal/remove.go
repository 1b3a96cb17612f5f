// SPDX-License-Identifier: Apache-2.0

package removal

import (
	"context"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/store"
)

// Request says what to remove.
type Request struct {
	// Image is a name or an ID.
	Image string
	// Force removes in spite of stopped containers and of further names, and takes
	// the name from an image that runs.
	Force bool
	// Parents removes, too, what the image was made from, as far up as it has no
	// name and no use.
	Parents bool
	// Platforms, if any, removes the content of these variants only, and needs
	// Force: other images may share it.
	Platforms []v1.Platform
}

// Remove removes a name, and the image with its last one; or an image by its ID with
// all its names. By a name
//
//   - that is not the last, it only untags;
//   - that is the last of an image in use, it refuses; with Force the name goes and
//     the image stays without one;
//   - that is the last of an image from which others were made, the image stays
//     without a name, unless Force is given.
//
// By an ID it refuses if the image has several names or is used by a stopped
// container, unless Force is given, and in any case if it is used by a running one.
//
// It returns what is gone: names, then the image, then the parents. The error is
// store.ErrImageDoesNotExist, or a ConflictError, or ErrInvalidArgument.
func (r *Remover) Remove(ctx context.Context, q Request) ([]Removed, error) {
	found, err := r.store.ResolveAll(ctx, q.Image)
	if err != nil {
		return nil, err
	}
	unlock, err := r.store.Lock(ctx, found.Target())
	if err != nil {
		return nil, err
	}
	gone, parent, err := r.removeLocked(ctx, q)
	unlock()
	if err == nil && q.Parents && slices.ContainsFunc(gone, func(g Removed) bool { return g.Deleted != "" }) {
		gone = append(gone, r.removeParents(ctx, parent)...)
	}
	return gone, err
}

// removeLocked looks again, now that nobody else in this process changes the image.
func (r *Remover) removeLocked(ctx context.Context, q Request) (gone []Removed, parent digest.Digest, err error) {
	found, err := r.store.ResolveAll(ctx, q.Image)
	if err != nil {
		return nil, "", err
	}
	if len(q.Platforms) > 0 {
		gone, err = r.removePlatforms(ctx, q, found.All[0].Target)
		return gone, "", err
	}
	s, err := r.look(ctx)
	if err != nil {
		return nil, "", err
	}
	target := found.Target()
	parent = parentOf(found.All)
	j := job{Remover: r, request: q, scene: s, all: s.of(target), target: target}
	j.labels = r.store.Labels(ctx, found.All[0])
	if found.Named != nil {
		if kind, _ := store.ParseName(found.Named.Name); kind.User() {
			gone, err = j.name(ctx, *found.Named)
			return gone, parent, err
		}
	}
	gone, err = j.image(ctx)
	return gone, parent, err
}

// job is the removal of one image or name, with the target locked.
type job struct {
	*Remover
	request Request
	scene   scene
	all     []images.Image // of the target
	target  digest.Digest
	labels  map[string]string // of the image's configuration, for events
}

// name removes one name.
func (j job) name(ctx context.Context, name images.Image) ([]Removed, error) {
	going := companions(name, j.all)
	if len(without(store.WithNames(j.all), going)) > 0 {
		return j.delete(ctx, going)
	}
	keep := len(j.scene.children(j.target)) > 0 && !j.request.Force
	if err := j.scene.conflict(j.request.Image, j.target, false); err != nil {
		if !j.request.Force {
			return nil, err
		}
		keep = true
	}
	if !keep {
		return j.delete(ctx, j.all)
	}
	var names []string
	for _, r := range going {
		names = append(names, r.Name)
	}
	if err := j.store.KeepDangling(ctx, name, names); err != nil {
		return nil, err
	}
	return j.delete(ctx, going)
}

// image removes all that there is of an image.
func (j job) image(ctx context.Context) ([]Removed, error) {
	if names := references(j.all); len(names) > 1 && !j.request.Force {
		return nil, &ConflictError{Image: j.request.Image, Names: names}
	}
	if err := j.scene.conflict(j.request.Image, j.target, j.request.Force); err != nil {
		return nil, err
	}
	return j.delete(ctx, j.all)
}

// delete removes records, and tells what is gone by that.
func (j job) delete(ctx context.Context, records []images.Image) ([]Removed, error) {
	deleted, err := j.store.Delete(ctx, records...)
	gone := j.untagged(deleted)
	if err != nil || len(deleted) == 0 {
		return gone, err
	}
	left, err := j.store.ByTarget(ctx, j.target)
	if err == nil && len(left) == 0 {
		gone = append(gone, j.deleted())
	}
	return gone, err
}

// untagged tells of the names among records that are gone.
func (j job) untagged(records []images.Image) (gone []Removed) {
	for _, r := range records {
		if kind, _ := store.ParseName(r.Name); kind.User() {
			gone = append(gone, Removed{Untagged: r.Name})
			j.store.Emit(store.ActionUntag, j.target, r.Name, j.labels)
		}
	}
	return gone
}

// deleted tells of the image, which is gone.
func (j job) deleted() Removed {
	j.store.Emit(store.ActionDelete, j.target, "", j.labels)
	return Removed{Deleted: j.target}
}

func parentOf(records []images.Image) digest.Digest {
	for _, r := range records {
		if parent := digest.Digest(r.Labels[store.LabelParent]); parent.Validate() == nil {
			return parent
		}
	}
	return ""
}

// removeParents removes an image and what it was made from, until one has a name or
// is needed. What stands in the way is not an error: nobody asked for these.
func (r *Remover) removeParents(ctx context.Context, target digest.Digest) (gone []Removed) {
	for target != "" {
		removed, next, err := r.removeParent(ctx, target)
		if err != nil {
			log.G(ctx).WithError(err).WithField("image", target).Warn("parent of a removed image stays")
		}
		if len(removed) == 0 {
			return gone
		}
		gone = append(gone, removed...)
		target = next
	}
	return gone
}

func (r *Remover) removeParent(ctx context.Context, target digest.Digest) (gone []Removed, parent digest.Digest, err error) {
	unlock, err := r.store.Lock(ctx, target)
	if err != nil {
		return nil, "", err
	}
	defer unlock()
	s, err := r.look(ctx)
	if err != nil {
		return nil, "", err
	}
	all := s.of(target)
	if len(all) == 0 || len(store.WithNames(all)) > 0 || len(s.children(target)) > 0 || len(s.consumers[target]) > 0 {
		return nil, "", nil
	}
	j := job{Remover: r, scene: s, all: all, target: target, labels: r.store.Labels(ctx, all[0])}
	gone, err = j.delete(ctx, all)
	return gone, parentOf(all), err
}

// Untag removes exactly one name, and with the last one the image, whoever uses it:
// containers keep the layers they stand on. It is UntagImage of the ImageServer.
func (r *Remover) Untag(ctx context.Context, name images.Image) ([]Removed, error) {
	unlock, err := r.store.Lock(ctx, name.Target.Digest)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := r.store.ByTarget(ctx, name.Target.Digest)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(other images.Image) bool { return other.Name == name.Name })
	if i < 0 {
		return nil, &store.DoesNotExistError{Reference: name.Name}
	}
	going := companions(all[i], all)
	if len(without(store.WithNames(all), going)) == 0 {
		going = all
	}
	j := job{Remover: r, all: all, target: name.Target.Digest, labels: r.store.Labels(ctx, name)}
	return j.delete(ctx, going)
}

// Delete removes all the records given, which are those of one image, whoever uses
// it. Those of other targets with the same configuration may be among them.
func (r *Remover) Delete(ctx context.Context, records []images.Image) ([]Removed, error) {
	var gone []Removed
	for len(records) > 0 {
		target := records[0].Target.Digest
		one := slices.DeleteFunc(slices.Clone(records), func(o images.Image) bool { return o.Target.Digest != target })
		records = without(records, one)
		removed, err := r.deleteTarget(ctx, one)
		gone = append(gone, removed...)
		if err != nil {
			return gone, err
		}
	}
	return gone, nil
}

func (r *Remover) deleteTarget(ctx context.Context, records []images.Image) ([]Removed, error) {
	unlock, err := r.store.Lock(ctx, records[0].Target.Digest)
	if err != nil {
		return nil, err
	}
	defer unlock()
	j := job{Remover: r, target: records[0].Target.Digest, labels: r.store.Labels(ctx, records[0])}
	return j.delete(ctx, records)
}
