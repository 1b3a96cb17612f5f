// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/lease"
)

// Delete removes records, as far as they still have the target that they are given
// with, and returns those that it has removed. When it returns nothing is left of
// content that nobody refers to any more. The caller holds the locks of the targets.
// On an error some records may be gone.
func (s *Store) Delete(ctx context.Context, records ...images.Image) (gone []images.Image, err error) {
	return s.delete(s.Context(ctx), records, images.SynchronousDelete())
}

// Unlink is Delete without waiting for the content to go: call Collect at the end of
// several.
func (s *Store) Unlink(ctx context.Context, records ...images.Image) (gone []images.Image, err error) {
	return s.delete(s.Context(ctx), records)
}

func (s *Store) delete(ctx context.Context, records []images.Image, last ...images.DeleteOpt) (gone []images.Image, err error) {
	for i, r := range records {
		opts := []images.DeleteOpt{images.DeleteTarget(&r.Target)}
		if i == len(records)-1 {
			opts = append(opts, last...)
		}
		switch err := s.records.Delete(ctx, r.Name, opts...); {
		case err == nil:
			gone = append(gone, r)
		case !errdefs.IsNotFound(err):
			return gone, fmt.Errorf("delete image %s: %w", r.Name, err)
		}
	}
	return gone, nil
}

// KeepDangling makes sure that the image of a record stays when the records of some
// names are removed; those names are its previous ones. The caller holds the lock of
// the target.
func (s *Store) KeepDangling(ctx context.Context, img images.Image, going []string) error {
	return s.keep(s.Context(ctx), img, going)
}

// DeleteBlobs removes blobs whatever refers to them, and has containerd collect what
// only they referred to.
func (s *Store) DeleteBlobs(ctx context.Context, blobs ...digest.Digest) error {
	ctx = s.Context(ctx)
	var errs []error
	for _, d := range blobs {
		if err := s.content.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete blob %s: %w", d, err))
		}
	}
	return errors.Join(append(errs, s.Collect(ctx))...)
}

// Collect returns when containerd has collected its garbage: when the end of a lease
// that protected nothing has been waited for.
func (s *Store) Collect(ctx context.Context) error {
	ctx = s.Context(ctx)
	manager := s.client.LeasesService()
	lease, err := lease.Create(ctx, manager, leases.WithRandomID(), leases.WithExpiration(collectTimeout))
	if err == nil {
		err = manager.Delete(ctx, lease, leases.SynchronousDelete)
	}
	if err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}

// collectTimeout ends the lease if the process dies between two requests.
const collectTimeout = time.Minute

// Labels of leases that only spare a repeated pull the transfer of what was here
// already, berth's and moby's: a prune ends them.
const (
	LabelPruneLease     = "io.berth.prune.images"
	labelMobyPruneLease = "moby/prune.images"
)

// DeletePruneLeases ends the leases that interrupted pulls have left, and those of
// processes that were killed whatever they were at. One whose owner still runs is that
// of an operation at work.
func (s *Store) DeletePruneLeases(ctx context.Context) error {
	ctx = s.Context(ctx)
	manager := s.client.LeasesService()
	all, err := manager.List(ctx, `labels."`+LabelPruneLease+`"`, `labels."`+labelMobyPruneLease+`"`, `labels."`+lease.LabelOwner+`"`)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	var errs []error
	for _, l := range all {
		if lease.InUse(l) {
			continue
		}
		if err := manager.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete lease %s: %w", l.ID, err))
		}
	}
	return errors.Join(errs...)
}
