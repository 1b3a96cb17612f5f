// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/store"
)

// Request says which image is meant.
type Request struct {
	Image    string // by name or ID
	Platform string // of the variant, as in "linux/arm64"; empty: the one for this host
}

// Details are all there is to know of an image, and of the variant that was chosen.
type Details struct {
	// Target is what the records point to; its digest is moby's ID.
	Target v1.Descriptor
	// Manifest is the variant's, with its platform.
	Manifest v1.Descriptor
	// ConfigDigest is that of the configuration: CRI's ID.
	ConfigDigest digest.Digest
	// Config is the configuration, RawConfig its document with what the OCI form
	// does not know.
	Config    v1.Image
	RawConfig []byte
	// Annotations are the manifest's.
	Annotations map[string]string
	// RepoTags and RepoDigests are sorted; see listing.Image.
	RepoTags, RepoDigests []string
	// Parent is the image that this one was made from, empty if not known.
	Parent digest.Digest
	// Updated is when a record of the image was last changed.
	Updated time.Time
	Pinned  bool
	// Size is that of the variant's blobs, in bytes, whether they are here or not.
	Size int64
	// Snapshot is the variant's top one, empty for an image without layers; Unpacked
	// says that it is there.
	Snapshot digest.Digest
	Unpacked bool
	// Records are the names of its records, sorted.
	Records []string
}

// Inspect tells all about an image. Its class is ErrNotFound if there is no such image,
// or no such variant of it here.
func (i *Inspector) Inspect(ctx context.Context, r Request) (Details, error) {
	ctx = i.Store.Context(ctx)
	found, err := i.Store.ResolveAll(ctx, r.Image)
	if err != nil {
		return Details{}, err
	}
	d, err := i.inspect(ctx, found, r)
	if err != nil {
		return Details{}, fmt.Errorf("image %s: %w", r.Image, err)
	}
	return d, nil
}

func (i *Inspector) inspect(ctx context.Context, found store.Resolved, r Request) (Details, error) {
	d := i.recorded(ctx, found.All)
	m, err := i.best(ctx, d.Target, r.Platform)
	if err != nil {
		return d, err
	}
	return d, i.read(ctx, &d, m)
}

// recorded is what the records of an image say.
func (i *Inspector) recorded(ctx context.Context, records []images.Image) Details {
	n := store.NamesOf(ctx, records)
	d := Details{Target: records[0].Target, RepoTags: n.Tags, RepoDigests: n.Digests(), Parent: parentOf(records)}
	for _, r := range records {
		d.Records = append(d.Records, r.Name)
		d.Pinned = d.Pinned || i.Store.IsPinned(r)
		if r.UpdatedAt.After(d.Updated) {
			d.Updated = r.UpdatedAt
		}
		if other := parentOf([]images.Image{r}); other != "" && other != d.Parent {
			log.G(ctx).WithField("image", r.Name).Warn("records of an image name different parents")
		}
	}
	return d
}

// read adds what a manifest says.
func (i *Inspector) read(ctx context.Context, d *Details, m *manifest.Manifest) error {
	doc, err := m.Manifest(ctx)
	if err != nil {
		return err
	}
	if d.Config, err = m.Config(ctx); err != nil {
		return err
	}
	if d.RawConfig, err = m.RawConfig(ctx); err != nil {
		return err
	}
	if d.Manifest, err = described(ctx, m); err != nil {
		return err
	}
	if d.Size, err = m.Size(ctx); err != nil {
		return err
	}
	d.ConfigDigest, d.Annotations = doc.Config.Digest, doc.Annotations
	if d.Snapshot, err = m.ChainID(ctx); err != nil || d.Snapshot == "" {
		return err
	}
	_, err = i.Client.SnapshotService(i.Layers.Snapshotter()).Stat(ctx, d.Snapshot.String())
	d.Unpacked = err == nil
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("snapshot %s: %w", d.Snapshot, err)
	}
	return nil
}

// Manifest describes the manifest of an image's variant, with its platform. Its class
// is as that of Inspect.
func (i *Inspector) Manifest(ctx context.Context, r Request) (v1.Descriptor, error) {
	m, err := i.Choose(ctx, r.Image, r.Platform)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return described(i.Store.Context(ctx), m)
}

func described(ctx context.Context, m *manifest.Manifest) (v1.Descriptor, error) {
	desc := m.Descriptor()
	p, err := m.Platform(ctx)
	if err != nil {
		return desc, err
	}
	desc.Platform = &p
	return desc, nil
}
