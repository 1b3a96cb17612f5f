// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"

	"github.com/containerd/containerd/v2/core/images"

	"github.com/berthd/berth/images/check"
	"github.com/berthd/berth/images/manifest"
)

// Check tells for each record what is missing of its image, in the order of names; or
// for those of some images only. It is what `ctr images check` does.
func (s *Service) Check(ctx context.Context, namesOrIDs ...string) ([]check.Status, error) {
	records, err := s.some(ctx, namesOrIDs)
	if err != nil {
		return nil, err
	}
	return s.checker().Check(ctx, records)
}

// Repair puts in order what can be without a registry: it unpacks images whose layers
// are here and not unpacked, writes the records and labels of Kubernetes' namespace
// that are missing, and removes records of whose image nothing is left. What is still
// missing then needs a pull; it is in the answer.
func (s *Service) Repair(ctx context.Context, namesOrIDs ...string) ([]check.Repair, error) {
	records, err := s.some(ctx, namesOrIDs)
	if err != nil {
		return nil, err
	}
	return s.checker().Repair(ctx, records)
}

// some returns the records of some images, or all of them.
func (s *Service) some(ctx context.Context, namesOrIDs []string) ([]images.Image, error) {
	if len(namesOrIDs) == 0 {
		return s.store.Records(ctx)
	}
	var records []images.Image
	for _, input := range namesOrIDs {
		found, err := s.store.ResolveAll(ctx, input)
		if err != nil {
			return nil, err
		}
		if found.Named != nil {
			found.All = []images.Image{*found.Named}
		}
		records = append(records, found.All...)
	}
	return records, nil
}

func (s *Service) checker() *check.Checker {
	return check.New(check.Config{Store: s.store, Client: s.client, Snapshotter: s.config.Snapshotter, Unpack: s.unpack})
}

// unpack unpacks a variant whose blobs are here.
func (s *Service) unpack(ctx context.Context, m *manifest.Manifest) (err error) {
	layers := s.layers()
	ctx, done, err := layers.Lease(ctx)
	if err != nil {
		return err
	}
	defer done(&err)
	_, err = layers.Unpack(ctx, m)
	return err
}
