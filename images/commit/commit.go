// SPDX-License-Identifier: Apache-2.0

// Package commit owns the making of images out of what is on this machine: of a
// container's changes, of several layers merged into one, of a configuration. It
// writes their blobs, unpacks them and records them without a name. It refuses to
// know registries and archives; that nobody changes a container meanwhile is the
// caller's business.
package commit

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/store"
)

// Labels of records that moby's builder gives, beside store.LabelParent: that an image
// was made from nothing, and which blob says how the container ran.
const (
	LabelScratch         = "org.mobyproject.image.fromscratch"
	LabelContainerConfig = "containerd.io/gc.ref.content.moby/container.config"
)

// Config says what a Maker works on. Everything is required.
type Config struct {
	Client   *client.Client // stays the caller's
	Store    *store.Store
	Layers   *layer.Layers // of the same namespace
	Platform platforms.MatchComparer
	Now      func() time.Time
}

// Maker makes images. Safe for concurrent use.
type Maker struct{ Config }

// New returns a Maker. It makes no request.
func New(c Config) *Maker { return &Maker{c} }

// Image is an image that has been made.
type Image struct {
	Record images.Image  // without a name, if the image is new
	ID     digest.Digest // of the configuration
	// Layer is the digest of the layer that was added, uncompressed; empty if none
	// was.
	Layer digest.Digest
}

// Request says of which container an image is to be made.
type Request struct {
	// Container is the id of containerd's container, or of a layer that Prepare made.
	Container string
	// Parent is the image that the container was made from, by name or ID; empty:
	// the one whose layers it stands on.
	Parent string
	// Config is the configuration of the image's containers; nil keeps the parent's.
	Config *v1.ImageConfig
	// CreatedBy is what the history says of the layer; empty: the container's
	// command.
	CreatedBy string
	Author    string
	Comment   string
	// Step is a builder's: the record says what the image was made from, and with
	// which configuration the container ran. A Cache finds it by them.
	Step bool
	// ContainerConfig is that configuration as JSON; only with Step.
	ContainerConfig []byte
}

// Commit makes an image of a container: its parent's layers and one with what the
// container has changed, or none if it has changed nothing. The files have the owners
// that the container sees. The classes are ErrNotFound for a container or a parent
// that does not exist, and ErrFailedPrecondition if the container does not stand on
// the parent's layers.
func (m *Maker) Commit(ctx context.Context, r Request) (img Image, err error) {
	rootfs, err := m.Layers.Rootfs(ctx, r.Container)
	if err != nil {
		return Image{}, fmt.Errorf("commit: %w", err)
	}
	ctx, done, err := m.Layers.Lease(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("commit container %s: %w", r.Container, err)
	}
	defer done(&err)
	img, err = m.commit(ctx, r, rootfs)
	if err != nil {
		return Image{}, fmt.Errorf("commit container %s: %w", r.Container, err)
	}
	return img, nil
}

func (m *Maker) commit(ctx context.Context, r Request, rootfs layer.Rootfs) (Image, error) {
	base, err := m.baseOf(ctx, rootfs, r.Parent)
	if err != nil {
		return Image{}, err
	}
	added, err := m.changes(ctx, rootfs, base.types)
	if err != nil {
		return Image{}, err
	}
	draft := base.draft()
	if r.Config != nil {
		if err := draft.configure(*r.Config); err != nil {
			return Image{}, err
		}
	}
	createdBy := r.CreatedBy
	if createdBy == "" {
		if createdBy, err = command(rootfs.Container); err != nil {
			return Image{}, err
		}
	}
	now := m.Now().UTC()
	draft.created, draft.author = now, r.Author
	draft.add(added, v1.History{Created: &now, CreatedBy: createdBy, Author: r.Author, Comment: r.Comment})
	labels := base.parentLabel()
	if r.Step {
		if labels, err = m.stepLabels(ctx, base, r.ContainerConfig); err != nil {
			return Image{}, err
		}
	}
	return m.finish(ctx, base, draft, labels)
}

// changes writes the layer of what a container has changed.
func (m *Maker) changes(ctx context.Context, rootfs layer.Rootfs, types mediaTypes) (_ addition, err error) {
	lower, remove, err := m.Layers.View(ctx, rootfs.Snapshotter, rootfs.Parent())
	if err != nil {
		return addition{}, err
	}
	defer remove(&err)
	upper, err := m.Client.SnapshotService(rootfs.Snapshotter).Mounts(ctx, rootfs.Key)
	if err != nil {
		return addition{}, fmt.Errorf("snapshot %s: %w", rootfs.Key, err)
	}
	// The map is for an overlay's lower layers. Without it the files that the container
	// did not change are the same on both sides.
	return m.compare(ctx, difference{lower: lower, upper: mount.RemoveIDMapOption(upper), ids: rootfs.IDs, types: types})
}

// command is what a container runs, empty for a layer without one.
func command(record *containers.Container) (string, error) {
	if record == nil || record.Spec == nil {
		return "", nil
	}
	var spec specs.Spec
	if err := typeurl.UnmarshalTo(record.Spec, &spec); err != nil {
		return "", fmt.Errorf("specification: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	if spec.Process == nil {
		return "", nil
	}
	return strings.Join(spec.Process.Args, " "), nil
}

// finish unpacks a draft's new layer, writes its documents and records the image.
func (m *Maker) finish(ctx context.Context, base base, draft draft, labels map[string]string) (Image, error) {
	if err := m.unpack(ctx, base, draft.added); err != nil {
		return Image{}, err
	}
	target, config, err := m.write(ctx, draft)
	if err != nil {
		return Image{}, err
	}
	record, err := m.Store.CreateDangling(ctx, target, labels)
	if err != nil {
		return Image{}, err
	}
	return Image{Record: record, ID: config.Digest, Layer: draft.added.diffID}, nil
}

// errBase says that a container or an image does not stand on what it should.
var errBase = errdefs.ErrFailedPrecondition.WithMessage("not made from that image")
