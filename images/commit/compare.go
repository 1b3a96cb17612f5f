// SPDX-License-Identifier: Apache-2.0

package commit

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/idmap"
	"github.com/berthd/berth/images/layer"
)

// emptyArchive is the digest of a tar archive without entries: two blocks of zeros.
var emptyArchive = digest.FromBytes(make([]byte, 1024))

// addition is a layer that has been written; the zero value is none.
type addition struct {
	blob   v1.Descriptor
	diffID digest.Digest // uncompressed
}

func (a addition) empty() bool { return a.diffID == "" }

// difference is what a layer is to be made of.
type difference struct {
	lower, upper []mount.Mount
	ids          idmap.Map // upper's owners; the layer has those in the namespace
	types        mediaTypes
}

// compare writes the layer that makes lower into upper, compressed, and none if they
// are the same.
func (m *Maker) compare(ctx context.Context, d difference) (addition, error) {
	write := m.diff
	if !d.ids.Empty() {
		write = m.diffShifted
	}
	blob, diffID, err := write(ctx, d)
	if err != nil || diffID == emptyArchive {
		return addition{}, err
	}
	blob.MediaType = d.types.layer
	return addition{blob, diffID}, m.hold(ctx, blob.Digest)
}

func (m *Maker) diff(ctx context.Context, d difference) (v1.Descriptor, digest.Digest, error) {
	blob, err := m.Client.DiffService().Compare(ctx, d.lower, d.upper, diff.WithMediaType(v1.MediaTypeImageLayerGzip))
	if err != nil {
		return blob, "", fmt.Errorf("compare: %w", err)
	}
	info, err := m.Client.ContentStore().Info(ctx, blob.Digest)
	if err != nil {
		return blob, "", fmt.Errorf("layer: %w", err)
	}
	diffID, err := digest.Parse(info.Labels[labels.LabelUncompressed])
	if err != nil {
		return blob, "", fmt.Errorf("layer %s: its uncompressed digest is not known: %w: %w", blob.Digest, errdefs.ErrDataLoss, err)
	}
	return blob, diffID, nil
}

// diffShifted is diff with other owners. What containerd writes, with the host's
// owners, is left to the end of the lease.
func (m *Maker) diffShifted(ctx context.Context, d difference) (v1.Descriptor, digest.Digest, error) {
	raw, err := m.Client.DiffService().Compare(ctx, d.lower, d.upper, diff.WithMediaType(v1.MediaTypeImageLayer))
	if err != nil {
		return raw, "", fmt.Errorf("compare: %w", err)
	}
	if raw.Digest == emptyArchive {
		return raw, emptyArchive, nil
	}
	in, err := m.Client.ContentStore().ReaderAt(ctx, raw)
	if err != nil {
		return raw, "", fmt.Errorf("layer: %w", err)
	}
	defer in.Close()
	return m.store(ctx, func(w io.Writer) error { return idmap.Unshift(w, content.NewReader(in), d.ids) })
}

// store writes a layer whose archive produce writes, compressed.
func (m *Maker) store(ctx context.Context, produce func(io.Writer) error) (_ v1.Descriptor, _ digest.Digest, err error) {
	lease, _ := leases.FromContext(ctx)
	ref := "berth-commit-" + lease
	cs := m.Client.ContentStore()
	out, err := content.OpenWriter(ctx, cs, content.WithRef(ref), content.WithDescriptor(v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip}))
	if err != nil {
		return v1.Descriptor{}, "", fmt.Errorf("layer: %w", err)
	}
	diffID, size, err := compress(out, produce)
	if err == nil {
		err = out.Commit(ctx, size, out.Digest(), content.WithLabels(map[string]string{labels.LabelUncompressed: diffID.String()}))
	}
	if errdefs.IsAlreadyExists(err) {
		err = nil
	}
	desc := v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: out.Digest(), Size: size}
	if err != nil {
		return v1.Descriptor{}, "", errors.Join(fmt.Errorf("layer: %w", err), out.Close(), cs.Abort(context.WithoutCancel(ctx), ref))
	}
	return desc, diffID, out.Close()
}

// compress returns the digest of what is written and the size of what it becomes.
func compress(out io.Writer, produce func(io.Writer) error) (digest.Digest, int64, error) {
	counted := &counter{to: out}
	zipped, err := compression.CompressStream(counted, compression.Gzip)
	if err != nil {
		return "", 0, err
	}
	plain := digest.Canonical.Digester()
	if err := errors.Join(produce(io.MultiWriter(zipped, plain.Hash())), zipped.Close()); err != nil {
		return "", 0, err
	}
	return plain.Digest(), counted.n, nil
}

type counter struct {
	to io.Writer
	n  int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.n += int64(n)
	return n, err
}

// Sealed is a layer that Seal has written; the zero value is none.
type Sealed struct {
	Blob   v1.Descriptor
	DiffID digest.Digest // uncompressed
}

// Seal writes the layer of what has been changed in a snapshot that is still written
// to, and unpacks it onto the layers below, which diffIDs lists and which must be
// unpacked. The lease of ctx keeps both. Nothing changed is no layer.
func (m *Maker) Seal(ctx context.Context, snapshot string, diffIDs []digest.Digest) (_ Sealed, err error) {
	if _, ok := leases.FromContext(ctx); !ok {
		return Sealed{}, fmt.Errorf("seal snapshot %s without a lease: %w", snapshot, errdefs.ErrFailedPrecondition)
	}
	on := layer.Rootfs{Snapshotter: m.Layers.Snapshotter(), Key: snapshot}
	if len(diffIDs) > 0 {
		on.Ancestors = []string{identity.ChainID(diffIDs).String()}
	}
	added, err := m.changes(ctx, on, typesOCI)
	if err != nil {
		return Sealed{}, fmt.Errorf("seal snapshot %s: %w", snapshot, err)
	}
	below := base{image: v1.Image{RootFS: v1.RootFS{DiffIDs: diffIDs}}}
	if err := m.unpack(ctx, below, added); err != nil {
		return Sealed{}, fmt.Errorf("seal snapshot %s: %w", snapshot, err)
	}
	return Sealed{added.blob, added.diffID}, nil
}

// unpack puts an added layer onto the base's snapshot.
func (m *Maker) unpack(ctx context.Context, b base, a addition) error {
	if b.manifest != nil {
		if _, err := m.Layers.Unpack(ctx, b.manifest); err != nil {
			return err
		}
	}
	if a.empty() {
		return nil
	}
	added := rootfs.Layer{Diff: v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: a.diffID}, Blob: a.blob}
	return m.Layers.Add(ctx, added, b.image.RootFS.DiffIDs)
}
