// SPDX-License-Identifier: Apache-2.0

package commit

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/store"
)

// sourcePrefix begins the labels of a blob that tell the registries that have it
// (containerd, core/remotes/docker).
const sourcePrefix = "containerd.io/distribution.source."

// mediaTypes are those of one family: an image's documents are not mixed.
type mediaTypes struct{ manifest, config, layer string }

var (
	typesOCI    = mediaTypes{v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, v1.MediaTypeImageLayerGzip}
	typesDocker = mediaTypes{images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2Config, images.MediaTypeDockerSchema2LayerGzip}
)

// base is what a new image is made from: an image, or nothing.
type base struct {
	types    mediaTypes
	target   digest.Digest      // of the record; empty for nothing
	manifest *manifest.Manifest // nil for nothing
	document v1.Manifest
	image    v1.Image
	fields   map[string]json.RawMessage // all members of the configuration
	sources  map[string]string          // labels that tell where its blobs came from
}

// scratch is nothing, on the machine's platform.
func scratch() base {
	p := platforms.DefaultSpec()
	return base{types: typesOCI, image: v1.Image{Platform: p}, fields: map[string]json.RawMessage{}}
}

// load reads an image, and makes sure that its layers can be part of another.
func (m *Maker) load(ctx context.Context, target digest.Digest, found *manifest.Manifest) (base, error) {
	b := base{types: typesOCI, target: target, manifest: found}
	if images.IsDockerType(found.Descriptor().MediaType) {
		b.types = typesDocker
	}
	var err error
	if b.document, err = found.Manifest(ctx); err != nil {
		return base{}, err
	}
	if b.image, err = found.Config(ctx); err != nil {
		return base{}, err
	}
	raw, err := found.RawConfig(ctx)
	if err != nil {
		return base{}, err
	}
	if err := json.Unmarshal(raw, &b.fields); err != nil {
		return base{}, fmt.Errorf("configuration of image %s: %w: %w", target, errdefs.ErrInvalidArgument, err)
	}
	if len(b.image.RootFS.DiffIDs) != len(b.document.Layers) {
		return base{}, fmt.Errorf("image %s: %d layers and %d in its configuration: %w", target, len(b.document.Layers), len(b.image.RootFS.DiffIDs), errdefs.ErrInvalidArgument)
	}
	return b, m.keep(ctx, &b)
}

// keep holds the image's layers in the lease of ctx. A layer's blob may be missing if
// a registry is known to have it: whoever pushes the new image can have it mounted.
func (m *Maker) keep(ctx context.Context, b *base) error {
	info, err := m.Client.ContentStore().Info(ctx, b.manifest.Descriptor().Digest)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	b.sources = maps.Clone(info.Labels)
	maps.DeleteFunc(b.sources, func(key, _ string) bool { return !strings.HasPrefix(key, sourcePrefix) })
	for _, desc := range b.document.Layers {
		if err := m.hold(ctx, desc.Digest); err != nil {
			return err
		}
		_, err := m.Client.ContentStore().Info(ctx, desc.Digest)
		if errdefs.IsNotFound(err) && len(b.sources) > 0 {
			log.G(ctx).WithField("digest", desc.Digest).Warn("a layer of the parent is not here, only in a registry")
			continue
		}
		if err != nil {
			return fmt.Errorf("layer %s of the parent: %w", desc.Digest, err)
		}
	}
	return nil
}

// hold keeps a blob in the lease of ctx, whether it is there or not.
func (m *Maker) hold(ctx context.Context, blob digest.Digest) error {
	id, _ := leases.FromContext(ctx)
	if err := m.Client.LeasesService().AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: blob.String(), Type: "content"}); err != nil {
		return fmt.Errorf("lease %s: blob %s: %w", id, blob, err)
	}
	return nil
}

// find reads the image that a name or an ID stands for, of a platform.
func (m *Maker) find(ctx context.Context, nameOrID string, platform platforms.MatchComparer) (base, error) {
	record, err := m.Store.Resolve(ctx, nameOrID)
	if err != nil {
		return base{}, err
	}
	if platform == nil {
		platform = manifest.Prefer(m.Platform)
	}
	best, err := manifest.Best(ctx, m.Client.ContentStore(), record.Target, platform)
	if err != nil {
		return base{}, fmt.Errorf("image %s: %w", nameOrID, err)
	}
	return m.load(ctx, record.Target.Digest, best)
}

// baseOf finds the image that a container stands on: the one that is named, else the
// one of the container's record if it still is that, else any. A tag may have been
// moved since, so the layers decide.
func (m *Maker) baseOf(ctx context.Context, rootfs layer.Rootfs, named string) (base, error) {
	if named != "" {
		record, err := m.Store.Resolve(ctx, named)
		if err != nil {
			return base{}, err
		}
		b, found, err := m.standsOn(ctx, rootfs, record)
		if err == nil && !found {
			err = fmt.Errorf("image %s: %w", named, errBase)
		}
		return b, err
	}
	if len(snapshotsOfImages(rootfs)) == 0 && (rootfs.Container == nil || rootfs.Container.Image == "") {
		return scratch(), nil
	}
	records, err := m.Store.Records(ctx)
	if err != nil {
		return base{}, err
	}
	if rootfs.Container != nil {
		first := rootfs.Container.Image
		slices.SortStableFunc(records, func(a, b images.Image) int {
			switch {
			case a.Name == first && b.Name != first:
				return -1
			case b.Name == first && a.Name != first:
				return 1
			}
			return 0
		})
	}
	for _, record := range records {
		if b, found, err := m.standsOn(ctx, rootfs, record); err != nil || found {
			return b, err
		}
	}
	return base{}, fmt.Errorf("the image that the container was made from is not here any more: %w", errdefs.ErrFailedPrecondition)
}

// standsOn reads the variant of an image that a container stands on, if one is.
func (m *Maker) standsOn(ctx context.Context, rootfs layer.Rootfs, record images.Image) (base, bool, error) {
	all, err := manifest.Present(ctx, m.Client.ContentStore(), record.Target)
	if err != nil {
		return base{}, false, passOver(ctx, record, err)
	}
	for _, variant := range all {
		chain, ok, err := chainOf(ctx, variant)
		if err != nil {
			if err := passOver(ctx, record, err); err != nil {
				return base{}, false, err
			}
			continue
		}
		if !ok || !isTop(rootfs, chain) {
			continue
		}
		b, err := m.load(ctx, record.Target.Digest, variant)
		return b, err == nil, err
	}
	return base{}, false, nil
}

// chainOf is the key of an image's top snapshot, false for what is no image.
func chainOf(ctx context.Context, variant *manifest.Manifest) (string, bool, error) {
	pseudo, err := variant.IsPseudo(ctx)
	if err != nil || pseudo {
		return "", false, err
	}
	chain, err := variant.ChainID(ctx)
	return chain.String(), err == nil, err
}

// passOver is an error for what keeps an image from being read but its own content: an
// image that nobody can read is nobody's parent.
func passOver(ctx context.Context, record images.Image, err error) error {
	if ctx.Err() == nil && (errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err)) {
		log.G(ctx).WithField("image", record.Name).WithError(err).Debug("an image cannot be read")
		return nil
	}
	return fmt.Errorf("image %s: %w", record.Name, err)
}

// isTop tells whether a snapshot is the top one of the image that a container stands
// on. Between the two there may be a layer of the caller's and a copy with other
// owners, but no layer of an image: else an older image would be taken for the one.
func isTop(rootfs layer.Rootfs, chain string) bool {
	of := snapshotsOfImages(rootfs)
	switch {
	case len(of) == 0 || chain == "":
		return len(of) == 0 && chain == ""
	case of[0] == chain:
		return true
	}
	// containerd's client names the copy like a layer.
	return !rootfs.IDs.Empty() && len(of) > 1 && of[1] == chain
}

func snapshotsOfImages(rootfs layer.Rootfs) (all []string) {
	for _, key := range rootfs.Ancestors {
		if digest.Digest(key).Validate() == nil {
			all = append(all, key)
		}
	}
	return all
}

// parentLabel says on a record what its image was made from.
func (b base) parentLabel() map[string]string {
	if b.target == "" {
		return nil
	}
	return map[string]string{store.LabelParent: b.target.String()}
}
