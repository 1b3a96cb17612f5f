// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Publish stores a checkpoint as an image in containerd, in place of one that has
// the name. Its only layer is the archive; annotations of its manifest say what
// it is.
func (e *Engine) Publish(ctx context.Context, c *Checkpoint, name string) (_ ocispec.Descriptor, err error) {
	if name == "" {
		return ocispec.Descriptor{}, fmt.Errorf("publish checkpoint: no name of an image: %w", errdefs.ErrInvalidArgument)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("publish checkpoint as %s: %w", name, err)
		}
	}()
	ctx, done, err := e.Client.WithLease(ctx) // until the record refers to it
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }() // it expires by itself
	layer, err := e.putLayer(ctx, c)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	config, err := e.putJSON(ctx, ocispec.MediaTypeImageConfig, &ocispec.Image{
		Created:  &c.Config.CheckpointedAt,
		Platform: ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	}, nil)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	manifest, err := e.putJSON(ctx, ocispec.MediaTypeImageManifest, &ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{layer}, Annotations: e.annotations(c),
	}, map[string]string{
		// What the garbage collector goes by.
		"containerd.io/gc.ref.content.config": config.Digest.String(),
		"containerd.io/gc.ref.content.l.0":    layer.Digest.String(),
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	image := images.Image{Name: name, Target: manifest}
	service := e.Client.ImageService()
	if _, err = service.Create(ctx, image); errdefs.IsAlreadyExists(err) {
		_, err = service.Update(ctx, image, "target")
	}
	return manifest, err
}

// putLayer streams the archive into the store: its digest is known at the end.
func (e *Engine) putLayer(ctx context.Context, c *Checkpoint) (ocispec.Descriptor, error) {
	w, err := e.Client.ContentStore().Writer(ctx, content.WithRef("checkpoint-"+c.Config.ID+"-"+strconv.FormatInt(c.Config.CheckpointedAt.UnixNano(), 36)))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer w.Close()
	if err := w.Truncate(0); err != nil { // of a call that was cut off
		return ocispec.Descriptor{}, err
	}
	size := &counter{w: w}
	if err := pack(ctx, c.Dir, size); err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: w.Digest(), Size: size.bytes}
	if err := w.Commit(ctx, d.Size, d.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, err
	}
	return d, nil
}

type counter struct {
	w     io.Writer
	bytes int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.bytes += int64(n)
	return n, err
}

func (e *Engine) putJSON(ctx context.Context, mediaType string, v any, labels map[string]string) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return d, content.WriteBlob(ctx, e.Client.ContentStore(), d.Digest.String(), bytes.NewReader(b), d, content.WithLabels(labels))
}

// Fetch unpacks a checkpoint image that is in containerd's store into dir, as
// Import does an archive. An image of something else is InvalidArgument.
func (e *Engine) Fetch(ctx context.Context, name, dir string) (*Checkpoint, error) {
	manifest, err := e.manifest(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("fetch checkpoint image %s: %w", name, err)
	}
	if !isCheckpoint(manifest) {
		return nil, fmt.Errorf("fetch checkpoint image %s: it is of no checkpoint: %w", name, errdefs.ErrInvalidArgument)
	}
	c, err := receive(dir, func() error {
		for _, layer := range manifest.Layers {
			if err := e.unpackBlob(ctx, layer, dir); err != nil {
				return fmt.Errorf("layer %s: %w", layer.Digest, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("fetch checkpoint image %s: %w", name, err)
	}
	return c, nil
}

func isCheckpoint(m *ocispec.Manifest) bool {
	return m.Annotations[annotationName] != "" || m.Annotations[annotationCrioName] != ""
}

// IsImage tells whether an image in containerd's store is of a checkpoint.
func (e *Engine) IsImage(ctx context.Context, name string) (bool, error) {
	m, err := e.manifest(ctx, name)
	if err != nil {
		return false, fmt.Errorf("image %s: %w", name, err)
	}
	return isCheckpoint(m), nil
}

func (e *Engine) manifest(ctx context.Context, name string) (*ocispec.Manifest, error) {
	image, err := e.Client.ImageService().Get(ctx, name)
	if err != nil {
		return nil, err
	}
	store := e.Client.ContentStore()
	m, err := images.Manifest(ctx, store, image.Target, platforms.Default())
	if err != nil {
		return nil, err
	}
	return &m, nil
}

func (e *Engine) unpackBlob(ctx context.Context, layer ocispec.Descriptor, dir string) error {
	r, err := e.Client.ContentStore().ReaderAt(ctx, layer)
	if err != nil {
		return err
	}
	return errors.Join(unpack(ctx, content.NewReader(r), dir), r.Close())
}
