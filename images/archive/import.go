// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/archive/instruction"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
)

// ImportRequest says what to make an image of.
type ImportRequest struct {
	// Root is a tar stream of a root file system; compressed by gzip, zstd, xz, bzip2,
	// or not. Nothing at all is a root without files. It is read to its end.
	Root io.Reader
	// Name is what the image is to be called, with a tag; the zero value makes an image
	// without a name.
	Name reference.Reference
	// Platform is what the root is for. The zero value is this host's.
	Platform v1.Platform
	// Message is kept in the image's history.
	Message string
	// Changes are lines of a Dockerfile that make the configuration; see
	// instruction.Apply.
	Changes []string
}

// Import makes an image of one layer and unpacks it. A stream compressed by gzip or
// zstd becomes the layer as it is, any other is compressed by gzip. The name moves, as
// store.Replace says.
//
// The class is ErrInvalidArgument for changes that cannot be, of which Root is not read,
// and for a stream that is broken or no tar stream; nothing is left behind then. What
// cannot be unpacked is no error: see Loaded.
func (a *Archiver) Import(ctx context.Context, r ImportRequest) (_ Loaded, err error) {
	config, err := r.config(a.Now().UTC())
	if err != nil {
		return Loaded{}, fmt.Errorf("import: %w", err)
	}
	ctx, lease, err := a.lease(ctx, "import")
	if err != nil {
		return Loaded{}, err
	}
	defer lease.end(ctx, &err)
	i := &importing{stage: &stage{Store: a.Client.ContentStore(), prefix: lease.ID + "-"}}
	if err := i.receive(ctx, r.Root); err != nil {
		return Loaded{}, fmt.Errorf("import: root: %w", err)
	}
	target, err := i.describe(ctx, config.of(i.diff))
	if err != nil {
		return Loaded{}, fmt.Errorf("import: %w", err)
	}
	name := ""
	if r.Name != (reference.Reference{}) {
		name = r.Name.Text()
	}
	one, err := a.record(ctx, name, target)
	if err != nil {
		return Loaded{}, fmt.Errorf("import: %w", err)
	}
	m, err := manifest.New(i.stage, target)
	if err == nil {
		err = a.unpack(ctx, m, one.Image)
	}
	one.Unpack, lease.wasted = err, err != nil
	a.told(ctx, store.ActionImport, one)
	return one, nil
}

// imageConfig is v1.Image with all that changes can say.
type imageConfig struct {
	v1.Image
	Config instruction.Config `json:"config"`
}

// config validates the request and returns what it makes of the image.
func (r *ImportRequest) config(now time.Time) (imageConfig, error) {
	c := imageConfig{Image: v1.Image{
		Created:  &now,
		Platform: r.Platform,
		History:  []v1.History{{Created: &now, Comment: r.Message}},
	}}
	if c.OS == "" && c.Architecture == "" {
		c.Platform = platforms.DefaultSpec()
	}
	if err := validate(c.Platform); err != nil {
		return c, err
	}
	switch {
	case r.Root == nil:
		return c, fmt.Errorf("no root: %w", errdefs.ErrInvalidArgument)
	case r.Name != (reference.Reference{}) && r.Name.Tag() == "":
		return c, fmt.Errorf("name %s: an image cannot be given a digest: %w", r.Name, errdefs.ErrInvalidArgument)
	}
	c.Platform = platforms.Normalize(c.Platform)
	return c, instruction.Apply(&c.Config, r.Changes)
}

// of is the configuration of an image that is one layer.
func (c imageConfig) of(diff digest.Digest) imageConfig {
	c.RootFS = v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{diff}}
	return c
}

// importing is a root on its way in.
type importing struct {
	*stage
	layer v1.Descriptor
	diff  digest.Digest
}

// receive writes the layer.
func (i *importing) receive(ctx context.Context, r io.Reader) error {
	w, err := content.OpenWriter(ctx, i.stage, content.WithRef("layer"))
	if err != nil {
		return err
	}
	defer w.Close()
	if err := i.write(w, r); err != nil {
		return classed(ctx, err, errdefs.ErrInvalidArgument)
	}
	return i.commit(ctx, w)
}

// write writes a root as a layer.
func (i *importing) write(w io.Writer, r io.Reader) error {
	raw, format, _, err := peek(r)
	if err != nil {
		return err
	}
	i.layer.MediaType = v1.MediaTypeImageLayerGzip
	switch format {
	case zstandard:
		i.layer.MediaType = v1.MediaTypeImageLayerZstd
		return i.keep(w, raw, format)
	case gzipped:
		return i.keep(w, raw, format)
	default:
		return i.compress(w, raw, format)
	}
}

// keep writes a root as it is.
func (i *importing) keep(w io.Writer, raw io.Reader, f format) error {
	copied := io.TeeReader(raw, w)
	root, err := decompress(copied, f)
	if err != nil {
		return err
	}
	defer root.Close()
	if i.diff, err = readRoot(root); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, copied)
	return err
}

// compress writes a root in the form of a layer.
func (i *importing) compress(w io.Writer, raw io.Reader, f format) error {
	root, err := decompress(raw, f)
	if err != nil {
		return err
	}
	defer root.Close()
	zipped := gzip.NewWriter(w)
	if i.diff, err = readRoot(io.TeeReader(root, zipped)); err != nil {
		return err
	}
	return zipped.Close()
}

// readRoot reads a tar stream to its end and beyond, makes sure that it is one, and
// returns the digest of all of it.
func readRoot(r io.Reader) (digest.Digest, error) {
	diff := digest.Canonical.Digester()
	r = io.TeeReader(r, diff.Hash())
	entries := tar.NewReader(r)
	for {
		if _, err := entries.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", err
		}
	}
	_, err := io.Copy(io.Discard, r)
	return diff.Digest(), err
}

// commit makes a blob of what has been written.
func (i *importing) commit(ctx context.Context, w content.Writer) error {
	status, err := w.Status()
	if err != nil {
		return err
	}
	i.layer.Size, i.layer.Digest = status.Offset, w.Digest()
	uncompressed := map[string]string{labels.LabelUncompressed: i.diff.String()}
	err = w.Commit(ctx, i.layer.Size, i.layer.Digest, content.WithLabels(uncompressed))
	if !errdefs.IsAlreadyExists(err) {
		return err
	}
	// Who wrote it before may not have said what it holds.
	_, err = i.Update(ctx, content.Info{Digest: i.layer.Digest, Labels: uncompressed}, "labels."+labels.LabelUncompressed)
	return err
}

// describe writes the configuration and the manifest.
func (i *importing) describe(ctx context.Context, c imageConfig) (v1.Descriptor, error) {
	config, err := i.writeDocument(ctx, v1.MediaTypeImageConfig, c)
	if err != nil {
		return v1.Descriptor{}, err
	}
	target, err := i.writeDocument(ctx, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    config,
		Layers:    []v1.Descriptor{i.layer},
	})
	if err != nil {
		return v1.Descriptor{}, err
	}
	label := images.SetChildrenMappedLabels(i.stage, images.ChildrenHandler(i.stage), nil)
	if _, err := label(ctx, target); err != nil {
		return v1.Descriptor{}, fmt.Errorf("label %s: %w", target.Digest, err)
	}
	return target, nil
}

func (i *importing) writeDocument(ctx context.Context, mediaType string, value any) (v1.Descriptor, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return v1.Descriptor{}, err
	}
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	if err := content.WriteBlob(ctx, i.stage, mediaType, bytes.NewReader(text), desc); err != nil {
		return v1.Descriptor{}, fmt.Errorf("write %s: %w", mediaType, err)
	}
	return desc, nil
}
