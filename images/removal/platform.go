// SPDX-License-Identifier: Apache-2.0

package removal

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/consumer"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/store"
)

// removePlatforms removes the content of some variants; the records stay. What
// another variant or another image needs stays as well (moby loses that).
func (r *Remover) removePlatforms(ctx context.Context, q Request, target v1.Descriptor) ([]Removed, error) {
	if !q.Force {
		return nil, fmt.Errorf("remove platforms of image %s without force: other images may share their content: %w", q.Image, errdefs.ErrInvalidArgument)
	}
	ctx = r.store.Context(ctx)
	s, err := r.look(ctx)
	if err != nil {
		return nil, err
	}
	present, err := manifest.Present(ctx, r.client.ContentStore(), target)
	if err != nil {
		return nil, err
	}
	var going, staying []digest.Digest
	unmet := slices.Clone(q.Platforms)
	for _, m := range present {
		d := m.Descriptor().Digest
		asked, err := matched(ctx, m, q.Platforms)
		if err != nil {
			return nil, err
		}
		if asked == nil {
			staying = append(staying, d)
			continue
		}
		going = append(going, d)
		unmet = slices.DeleteFunc(unmet, func(p v1.Platform) bool { return platforms.OnlyStrict(p).Match(*asked) })
		if err := s.runs(ctx, q.Image, target.Digest, m); err != nil {
			return nil, err
		}
	}
	if len(unmet) > 0 {
		return nil, fmt.Errorf("image %s: no content for platform %s: %w", q.Image, platforms.Format(unmet[0]), errdefs.ErrNotFound)
	}
	return r.deleteVariants(ctx, s, target, going, staying)
}

// matched returns the manifest's platform if it is among those asked for.
func matched(ctx context.Context, m *manifest.Manifest, asked []v1.Platform) (*v1.Platform, error) {
	if pseudo, err := m.IsPseudo(ctx); err != nil || pseudo {
		return nil, err
	}
	p, err := m.Platform(ctx)
	if errdefs.IsNotFound(err) {
		return nil, nil // its configuration is gone: it is for no platform we can tell
	}
	if err != nil {
		return nil, err
	}
	for _, want := range asked {
		if platforms.OnlyStrict(want).Match(p) {
			return &p, nil
		}
	}
	return nil, nil
}

// runs is a conflict if a running container uses just this variant.
func (s scene) runs(ctx context.Context, image string, target digest.Digest, m *manifest.Manifest) error {
	chain, err := m.ChainID(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(s.consumers[target], func(c consumer.Consumer) bool {
		return c.Running && (c.Chain == "" || c.Chain == chain.String())
	})
	if i < 0 {
		return nil
	}
	return &ConflictError{Image: image, Container: s.consumers[target][i].Container, Hard: true}
}

func (r *Remover) deleteVariants(ctx context.Context, s scene, target v1.Descriptor, going, staying []digest.Digest) ([]Removed, error) {
	needed := map[digest.Digest]bool{}
	need := func(root digest.Digest) {
		for _, d := range s.inventory.Blobs(root) {
			needed[d] = true
		}
	}
	for _, d := range staying {
		need(d)
	}
	for _, other := range s.records {
		if other.Target.Digest != target.Digest {
			need(other.Target.Digest)
		}
	}
	var gone []Removed
	var blobs []digest.Digest
	for _, root := range going {
		for _, d := range s.inventory.Blobs(root) {
			if !needed[d] && !slices.Contains(blobs, d) {
				blobs = append(blobs, d)
			}
		}
		gone = append(gone, Removed{Deleted: root})
	}
	labels := r.store.Labels(ctx, s.of(target.Digest)[0])
	if err := r.store.DeleteBlobs(ctx, blobs...); err != nil {
		return nil, err
	}
	for _, g := range gone {
		r.store.Emit(store.ActionDelete, g.Deleted, "", labels)
	}
	return gone, nil
}
