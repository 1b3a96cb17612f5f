// SPDX-License-Identifier: Apache-2.0

// Package check owns the question whether an image is whole: whether all that its
// record promises is in the content store and unpacked, and what of the rest can be
// put in order on the spot. It refuses to fetch anything.
package check

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/consumer"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/usage"
)

// Status says how whole the image of a record is: the variant for this host.
type Status struct {
	Name   string
	Target digest.Digest
	// Manifest is the variant's, empty if none can be found.
	Manifest digest.Digest
	// Complete says that nothing is missing but layers whose blobs were discarded
	// after they had been unpacked.
	Complete bool
	// Unpacked says that the snapshotter has the layers.
	Unpacked bool
	// Gone says that not even the record's target is here.
	Gone bool
	// Missing are the blobs that are not here, and Size how many bytes they have.
	Missing []v1.Descriptor
	Size    int64
	// Problem is why the image cannot be looked at, nil if it can.
	Problem error
}

// Config says what a Checker works on. Everything is required.
type Config struct {
	Store       *store.Store
	Client      *client.Client
	Snapshotter string
	// Unpack unpacks a variant whose blobs are here.
	Unpack func(ctx context.Context, m *manifest.Manifest) error
}

// Checker looks at the images of one namespace. Safe for concurrent use.
type Checker struct{ Config }

// New returns a Checker.
func New(c Config) *Checker { return &Checker{c} }

// Check tells how whole the images of records are, in their order. What one image
// lacks is no error.
func (c *Checker) Check(ctx context.Context, records []images.Image) ([]Status, error) {
	ctx = c.Store.Context(ctx)
	known := map[digest.Digest]Status{} // records share targets
	list := make([]Status, 0, len(records))
	for _, r := range records {
		s, ok := known[r.Target.Digest]
		if !ok {
			var err error
			if s, _, err = c.look(ctx, r.Target); err != nil {
				return nil, fmt.Errorf("check image %s: %w", r.Name, err)
			}
			known[r.Target.Digest] = s
		}
		s.Name = r.Name
		list = append(list, s)
	}
	return list, nil
}

// look returns an error only for what says nothing about the image.
func (c *Checker) look(ctx context.Context, target v1.Descriptor) (Status, *manifest.Manifest, error) {
	s := Status{Target: target.Digest}
	if _, err := c.Client.ContentStore().Info(ctx, target.Digest); errdefs.IsNotFound(err) {
		s.Gone, s.Missing, s.Size = true, []v1.Descriptor{target}, target.Size
		return s, nil, nil
	} else if err != nil {
		return s, nil, err
	}
	m, err := c.Store.Best(ctx, target)
	if err != nil {
		return s, nil, s.problem(ctx, err)
	}
	s.Manifest = m.Descriptor().Digest
	if s.Unpacked, err = c.unpacked(ctx, m); err != nil {
		return s, nil, s.problem(ctx, err)
	}
	if s.Missing, err = m.Missing(ctx); err != nil {
		return s, nil, s.problem(ctx, err)
	}
	s.Complete = true
	for _, desc := range s.Missing {
		s.Size += desc.Size
		s.Complete = s.Complete && s.Unpacked && images.IsLayerType(desc.MediaType)
	}
	return s, m, nil
}

// problem notes an error about the image, and returns one about everything.
func (s *Status) problem(ctx context.Context, err error) error {
	if ctx.Err() != nil || errdefs.IsUnavailable(err) {
		return err
	}
	s.Problem = err
	return nil
}

func (c *Checker) unpacked(ctx context.Context, m *manifest.Manifest) (bool, error) {
	chain, err := m.ChainID(ctx)
	if err != nil {
		return false, err
	}
	if chain == "" {
		return true, nil // there is nothing to unpack
	}
	_, err = c.Client.SnapshotService(c.Snapshotter).Stat(ctx, chain.String())
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// Action is what was done about an image.
type Action string

// What Repair does.
const (
	Unpacked Action = "unpacked" // its layers
	Recorded Action = "recorded" // what CRI expects
	Removed  Action = "removed"  // a record of nothing
	NeedPull Action = "needs a pull"
)

// Repair is what was done about the image of a record.
type Repair struct {
	Name   string
	Action Action
	Err    error // why it did not work; nil if it did
}

// Repair puts in order what can be: it unpacks what is complete, completes the records
// of Kubernetes' namespace, and removes records whose target is gone and that no
// container uses. For what else is missing it says that a pull is needed. It goes on
// after what does not work.
func (c *Checker) Repair(ctx context.Context, records []images.Image) ([]Repair, error) {
	ctx = c.Store.Context(ctx)
	users, err := c.users(ctx)
	if err != nil {
		return nil, err
	}
	var done []Repair
	for _, r := range records {
		s, m, err := c.look(ctx, r.Target)
		if err != nil {
			return done, fmt.Errorf("repair image %s: %w", r.Name, err)
		}
		switch {
		case s.Gone && len(users[r.Target.Digest]) == 0:
			done = append(done, Repair{r.Name, Removed, c.remove(ctx, r)})
			continue
		case !s.Complete:
			done = append(done, Repair{r.Name, NeedPull, s.Problem})
			continue
		case !s.Unpacked:
			done = append(done, Repair{r.Name, Unpacked, c.Unpack(ctx, m)})
		}
		if added, err := c.Store.Complete(ctx, r); added || err != nil {
			done = append(done, Repair{r.Name, Recorded, err})
		}
	}
	return done, nil
}

func (c *Checker) users(ctx context.Context) (consumer.Consumers, error) {
	all, err := c.Store.Records(ctx)
	if err != nil {
		return nil, err
	}
	inv, err := usage.Take(ctx, usage.Stores{Content: c.Client.ContentStore(), Snapshotter: c.Client.SnapshotService(c.Snapshotter)})
	if err != nil {
		return nil, err
	}
	return consumer.Find(ctx, c.Client, all, inv)
}

func (c *Checker) remove(ctx context.Context, r images.Image) error {
	unlock, err := c.Store.Lock(ctx, r.Target.Digest)
	if err != nil {
		return err
	}
	defer unlock()
	gone, err := c.Store.Delete(ctx, r)
	if err == nil && len(gone) == 0 {
		err = errors.New("the record has changed")
	}
	return err
}
