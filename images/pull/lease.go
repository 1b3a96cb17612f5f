// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/berthd/berth/images/lease"
	"github.com/berthd/berth/images/store"
)

// labelImage is the label with the name that is pulled.
const labelImage = "io.berth.pull.image"

// leaseTime is how long what has arrived waits for the next attempt: as long as
// moby keeps it. A pull that takes longer fails.
const leaseTime = 8 * time.Hour

// cleanupTime bounds what is to be undone when a pull has ended.
const cleanupTime = 30 * time.Second

// lease creates the lease that protects what the pull of an image brings until it
// is recorded. While this process runs nobody else takes it for abandoned.
func (p *Puller) lease(ctx context.Context, image string) (leases.Lease, error) {
	l, err := lease.Create(ctx, p.config.Client.LeasesService(), options(image)...)
	if err != nil {
		return leases.Lease{}, fmt.Errorf("lease: %w", err)
	}
	return l, nil
}

func options(image string) []leases.Opt {
	return []leases.Opt{
		leases.WithRandomID(), leases.WithExpiration(leaseTime),
		leases.WithLabels(map[string]string{store.LabelPruneLease: "pull", labelImage: image}),
	}
}

// keep leaves what a pull has brought to the next attempt, or to a prune: it gets a
// lease without an owner. When that fails the lease remains this process's.
func (p *Puller) keep(ctx context.Context, image string, l leases.Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if err := p.disown(ctx, image, l); err != nil {
		log.G(ctx).WithError(err).WithField("image", image).Warn("lease of a pull is left to expire")
	}
}

func (p *Puller) disown(ctx context.Context, image string, l leases.Lease) error {
	service := p.config.Client.LeasesService()
	resources, err := service.ListResources(ctx, l)
	if err != nil {
		return err
	}
	heir, err := service.Create(ctx, options(image)...)
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	for _, r := range resources {
		if err := service.AddResource(ctx, heir, r); err != nil {
			return errors.Join(fmt.Errorf("keep %s %s: %w", r.Type, r.ID, err), service.Delete(ctx, heir))
		}
	}
	return service.Delete(ctx, l)
}

// drop deletes the lease of a pull that has failed for good, and waits until what
// it brought is gone.
func (p *Puller) drop(ctx context.Context, l leases.Lease) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if err := p.config.Client.LeasesService().Delete(ctx, l, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease %s: %w", l.ID, err)
	}
	return nil
}

// release deletes the lease of a pull that has succeeded, and those that earlier
// attempts have left. The image is recorded, so that a failure is not one of the
// pull: what is left expires.
func (p *Puller) release(ctx context.Context, image string, done leases.Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	service := p.config.Client.LeasesService()
	left, err := service.List(ctx, fmt.Sprintf("labels.%q==%q", labelImage, image))
	if err != nil {
		log.G(ctx).WithError(err).WithField("image", image).Warn("cannot look for leases of earlier pulls")
		left = []leases.Lease{done}
	}
	for _, l := range left {
		if l.ID != done.ID && lease.InUse(l) {
			continue
		}
		if err := service.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).WithField("image", image).Warn("lease of a pull is left to expire")
		}
	}
}
