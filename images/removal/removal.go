// SPDX-License-Identifier: Apache-2.0

// Package removal owns the rules by which images and their names are removed: what
// an image's users and further names forbid, what goes along with a name, and what
// nobody needs any more. It refuses to decide whom a container belongs to and how
// records are kept; packages consumer and store know.
package removal

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/consumer"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/usage"
)

// ErrConflict is what errors.Is finds when a removal is refused because of what uses
// the image. Its class is errdefs.ErrConflict.
var ErrConflict = errdefs.ErrConflict.WithMessage("image is in use")

// ErrImageMultiplyTagged is found besides if it is refused because the image has
// more names.
var ErrImageMultiplyTagged = errdefs.ErrConflict.WithMessage("image still has several names applied")

// ConflictError says why an image is not removed.
type ConflictError struct {
	Image string // as it was named
	// Container uses it; empty if the image has several Names.
	Container string
	Names     []string
	// Hard says that force does not help.
	Hard bool
}

// Error names the image and what is in the way.
func (e *ConflictError) Error() string {
	switch {
	case e.Container == "":
		return fmt.Sprintf("image %s: %s: it is referenced in multiple repositories (%s)", e.Image, ErrImageMultiplyTagged, strings.Join(e.Names, ", "))
	case e.Hard:
		return fmt.Sprintf("image %s: %s by the running container %s", e.Image, ErrConflict, e.Container)
	}
	return fmt.Sprintf("image %s: %s by container %s", e.Image, ErrConflict, e.Container)
}

// Unwrap returns the error's kinds.
func (e *ConflictError) Unwrap() []error {
	if e.Container == "" {
		return []error{ErrConflict, ErrImageMultiplyTagged}
	}
	return []error{ErrConflict}
}

// Removed is one thing that is gone: a name, or an image.
type Removed struct {
	Untagged string        `json:",omitempty"`
	Deleted  digest.Digest `json:",omitempty"`
}

// Remover removes images of one namespace. Safe for concurrent use.
type Remover struct {
	store       *store.Store
	client      *client.Client
	snapshotter string
	now         func() time.Time
	pruning     sync.Mutex // held by the one Prune at a time
}

// New returns a Remover for a store's namespace and a snapshotter. now is the clock.
func New(s *store.Store, c *client.Client, snapshotter string, now func() time.Time) *Remover {
	return &Remover{store: s, client: c, snapshotter: snapshotter, now: now}
}

// scene is what a removal is judged by.
type scene struct {
	records   []images.Image
	inventory *usage.Inventory
	consumers consumer.Consumers
}

func (r *Remover) look(ctx context.Context) (scene, error) {
	ctx = r.store.Context(ctx)
	records, err := r.store.Records(ctx)
	if err != nil {
		return scene{}, err
	}
	inv, err := usage.Take(ctx, usage.Stores{Content: r.client.ContentStore(), Snapshotter: r.client.SnapshotService(r.snapshotter)})
	if err != nil {
		return scene{}, err
	}
	users, err := consumer.Find(ctx, r.client, records, inv)
	if err != nil {
		return scene{}, err
	}
	return scene{records, inv, users}, nil
}

// of returns the records of a target.
func (s scene) of(target digest.Digest) (all []images.Image) {
	for _, r := range s.records {
		if r.Target.Digest == target {
			all = append(all, r)
		}
	}
	return all
}

// children are the targets that were made from a target.
func (s scene) children(target digest.Digest) (all []digest.Digest) {
	for _, r := range s.records {
		if r.Labels[store.LabelParent] == target.String() && !slices.Contains(all, r.Target.Digest) {
			all = append(all, r.Target.Digest)
		}
	}
	return all
}

// conflict returns the use that stands against removing a target: a running one
// first, and no other if only that counts.
func (s scene) conflict(image string, target digest.Digest, runningOnly bool) error {
	uses := s.consumers[target]
	i := slices.IndexFunc(uses, func(c consumer.Consumer) bool { return c.Running })
	if i < 0 && !runningOnly && len(uses) > 0 {
		i = 0
	}
	if i < 0 {
		return nil
	}
	return &ConflictError{Image: image, Container: uses[i].Container, Hard: uses[i].Running}
}

// companions returns the records that go with a name: the digests of its repository,
// if the name is the last tag of that. Records of the ID are nobody's name.
func companions(name images.Image, all []images.Image) []images.Image {
	same := []images.Image{name}
	kind, ref := store.ParseName(name.Name)
	if kind != store.KindTag {
		return same
	}
	var digests []images.Image
	for _, other := range all {
		otherKind, otherRef := store.ParseName(other.Name)
		if other.Name == name.Name || otherKind != store.KindTag && otherKind != store.KindDigest || otherRef.Repository() != ref.Repository() {
			continue
		}
		if otherKind == store.KindTag {
			return same
		}
		digests = append(digests, other)
	}
	return append(same, digests...)
}

// without returns the records that are not among others.
func without(all, others []images.Image) (rest []images.Image) {
	for _, r := range all {
		if !slices.ContainsFunc(others, func(o images.Image) bool { return o.Name == r.Name }) {
			rest = append(rest, r)
		}
	}
	return rest
}

// references are the names of which one is enough to find the image: tags, and
// digests of repositories without a tag.
func references(records []images.Image) (all []string) {
	tagged := map[string]bool{}
	var digested []reference.Reference
	for _, r := range records {
		switch kind, ref := store.ParseName(r.Name); kind {
		case store.KindTag:
			tagged[ref.Repository()] = true
			all = append(all, r.Name)
		case store.KindDigest:
			digested = append(digested, ref)
		case store.KindForeign:
			all = append(all, r.Name)
		}
	}
	for _, ref := range digested {
		if !tagged[ref.Repository()] {
			all = append(all, ref.Text())
		}
	}
	return all
}
