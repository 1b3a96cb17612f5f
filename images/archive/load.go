// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
)

// LoadRequest says what to load.
type LoadRequest struct {
	// Archive is an OCI layout or what Docker, Podman and Skopeo save, as a tar
	// stream; compressed by gzip, zstd, xz, bzip2, or not. It is read to its end.
	Archive io.Reader
	// Platforms are those that each image must have; nothing else of it is kept, and
	// it is unpacked for them. None: what there is is kept, and unpacked if it suits
	// this host.
	Platforms []v1.Platform
}

func (r LoadRequest) validate() error {
	if r.Archive == nil {
		return fmt.Errorf("no archive: %w", errdefs.ErrInvalidArgument)
	}
	return validate(r.Platforms...)
}

// Load stores the images of an archive and unpacks them. An image without a name gets
// a dangling record; a name that another image has here moves, as store.Replace says.
// Variants that an index describes and the archive lacks are no error.
//
// The class is ErrInvalidArgument for an archive that is empty, broken, or made to do
// harm, and ErrNotFound if an image lacks a platform that was asked for; the error
// lists those it has. Nothing is left behind then. When the records cannot be written
// the images that have theirs are returned with the error. What cannot be unpacked is
// no error: see Loaded.
func (a *Archiver) Load(ctx context.Context, r LoadRequest) (loaded []Loaded, err error) {
	if err := r.validate(); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	ctx, lease, err := a.lease(ctx, "load")
	if err != nil {
		return nil, err
	}
	defer lease.end(ctx, &err)
	in := &stage{Store: a.Client.ContentStore(), prefix: lease.ID + "-"}
	l := &loading{stage: in, finder: newFinder(in), wanted: r.Platforms}
	index, err := l.receive(ctx, r.Archive)
	if err != nil {
		return nil, err
	}
	arrivals, err := l.examine(ctx, index)
	if err != nil {
		return nil, err
	}
	for _, arrived := range arrivals {
		one, err := a.record(ctx, arrived.name, arrived.target)
		if err != nil {
			return loaded, err
		}
		loaded = append(loaded, one)
	}
	for i := range loaded {
		loaded[i].Unpack = a.unpackFor(ctx, loaded[i].Image, r.Platforms)
		lease.wasted = lease.wasted || loaded[i].Unpack != nil
		a.told(ctx, store.ActionLoad, loaded[i])
	}
	return loaded, nil
}

// told sends the event about an image that has come.
func (a *Archiver) told(ctx context.Context, action store.Action, one Loaded) {
	name := ""
	if one.Named {
		name = one.Image.Name
	}
	a.Store.Emit(action, one.Image.Target.Digest, name, a.Store.Labels(ctx, one.Image))
}

// unpackFor unpacks an image for the platforms, or for the host if it can.
func (a *Archiver) unpackFor(ctx context.Context, img images.Image, wanted []v1.Platform) error {
	provider := a.Client.ContentStore()
	if len(wanted) == 0 {
		m, err := manifest.Best(ctx, provider, img.Target, a.Store.Platform())
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return a.unpack(ctx, m, img)
	}
	var errs []error
	for _, platform := range wanted {
		m, err := manifest.Best(ctx, provider, img.Target, platforms.OnlyStrict(platform))
		if err == nil {
			err = a.unpack(ctx, m, img)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// loading is an archive on its way in.
type loading struct {
	*stage
	finder
	wanted []v1.Platform
}

// arrival is an image that has arrived, and is not recorded yet.
type arrival struct {
	name   string // empty: it has none
	target v1.Descriptor
}

// receive writes an archive's files to the content store, and returns the index.
func (l *loading) receive(ctx context.Context, r io.Reader) (v1.Descriptor, error) {
	raw, format, empty, err := peek(r)
	if err == nil && empty {
		err = errors.New("nothing in it")
	}
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("archive: %w", classed(ctx, err, errdefs.ErrInvalidArgument))
	}
	stream, err := decompress(raw, format)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("archive: %w", classed(ctx, err, errdefs.ErrInvalidArgument))
	}
	defer stream.Close()
	index, err := archive.ImportIndex(ctx, l.stage, newEntries(stream))
	if err == nil {
		err = drain(stream)
	}
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("archive: %w", classed(ctx, err, errdefs.ErrInvalidArgument))
	}
	return index, nil
}

// drain reads what comes after the end of a tar stream: padding, for which who writes
// it would otherwise get a broken pipe, and the checksum of a compressed stream.
func drain(stream io.Reader) error {
	const enough = 1 << 20 // tar pads to 10 KiB
	n, err := io.CopyN(io.Discard, stream, enough)
	if n == enough {
		return errors.New("goes on after its end")
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// examine returns the images of an index, those with names first, once it is sure
// that each is what it should be, and has its content refer to its parts.
func (l *loading) examine(ctx context.Context, index v1.Descriptor) ([]arrival, error) {
	tops, err := images.Children(ctx, l.stage, index)
	if err != nil {
		return nil, fmt.Errorf("archive: index: %w", classed(ctx, err, errdefs.ErrInvalidArgument))
	}
	var named, unnamed []arrival
	for _, top := range tops {
		if !isImage(top) {
			continue
		}
		name, err := nameOf(top)
		if err == nil {
			err = l.verify(ctx, top)
		}
		if err != nil {
			return nil, fmt.Errorf("archive: image %s: %w", shortened(cmp.Or(name, top.Digest.String())), err)
		}
		// Names, platforms and other annotations were for the archive's readers.
		one := arrival{name, v1.Descriptor{MediaType: top.MediaType, Digest: top.Digest, Size: top.Size}}
		if name == "" {
			unnamed = append(unnamed, one)
		} else {
			named = append(named, one)
		}
	}
	all := slices.Concat(named, slices.DeleteFunc(unnamed, func(u arrival) bool {
		return slices.ContainsFunc(named, func(n arrival) bool { return n.target.Digest == u.target.Digest })
	}))
	if len(all) == 0 {
		return nil, fmt.Errorf("archive: no image in it: %w", errdefs.ErrInvalidArgument)
	}
	return all, nil
}

// isImage tells entries of an archive's index from what goes with another entry.
func isImage(top v1.Descriptor) bool {
	_, referrer := top.Annotations[images.AnnotationManifestSubject]
	return !referrer && (images.IsManifestType(top.MediaType) || images.IsIndexType(top.MediaType))
}

// nameOf returns the name an archive gives an image, normalized, or nothing. BuildKit,
// containerd and Docker write it as containerd's annotation; others use OCI's for it,
// which may also be a tag alone, of nothing known.
func nameOf(top v1.Descriptor) (string, error) {
	text := top.Annotations[images.AnnotationImageName]
	if text == "" {
		text = top.Annotations[v1.AnnotationRefName]
		if !slices.ContainsFunc([]byte(text), func(c byte) bool { return c == ':' || c == '/' }) {
			return "", nil
		}
	}
	switch kind, _ := store.ParseName(text); kind {
	case store.KindID, store.KindDangling:
		return "", nil
	}
	ref, err := reference.Parse(text)
	if err != nil {
		return "", nil // free text, which others allow: no name that could be asked for
	}
	if d := ref.Digest(); d != "" && d != top.Digest {
		return "", fmt.Errorf("is not what its name %s says: %w", ref, errdefs.ErrInvalidArgument)
	}
	return ref.Text(), nil
}

// verify reads an image's documents, makes sure that at least one variant is whole and
// that the wanted ones are, and labels content so that it stays as long as the image.
func (l *loading) verify(ctx context.Context, top v1.Descriptor) error {
	image, err := l.look(ctx, top)
	if err != nil {
		return classed(ctx, err, errdefs.ErrInvalidArgument)
	}
	if err := image.pick(l.wanted); err != nil {
		return classed(ctx, err, errdefs.ErrInvalidArgument)
	}
	return l.label(ctx, image)
}

// label has indexes refer to the image's manifests and these to their parts.
func (l *loading) label(ctx context.Context, image *found) error {
	kept := map[digest.Digest]bool{}
	nodes := slices.Clone(image.indexes)
	for _, v := range image.variants {
		if desc := v.Descriptor(); !kept[desc.Digest] {
			kept[desc.Digest] = true
			nodes = append(nodes, desc)
		}
	}
	children := func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		list, err := images.Children(ctx, l.stage, desc)
		return slices.DeleteFunc(list, func(child v1.Descriptor) bool {
			return len(l.wanted) > 0 && images.IsManifestType(child.MediaType) && !kept[child.Digest]
		}), err
	}
	label := images.SetChildrenMappedLabels(l.stage, children, nil)
	for _, node := range nodes {
		if _, err := label(ctx, node); err != nil {
			return fmt.Errorf("label %s: %w", node.Digest, err)
		}
	}
	return nil
}
