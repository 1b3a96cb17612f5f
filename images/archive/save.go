// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	distribution "github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
)

// SaveRequest says what to save.
type SaveRequest struct {
	// Images are names and IDs. A name with a tag is saved under that name; one without
	// means all tags of the repository; a digest or an ID saves the image without a
	// name.
	Images []string
	// Platforms are the variants to save, which every image must have. None: those
	// that are here.
	Platforms []v1.Platform
	// Archive takes a tar stream, not compressed, that is an OCI layout and Docker's
	// format at once. It is not closed.
	Archive io.Writer
}

func (r SaveRequest) validate() error {
	switch {
	case len(r.Images) == 0:
		return fmt.Errorf("no image given: %w", errdefs.ErrInvalidArgument)
	case r.Archive == nil:
		return fmt.Errorf("no archive: %w", errdefs.ErrInvalidArgument)
	}
	return validate(r.Platforms...)
}

// Save writes images as one archive. Variants that are not here completely are left
// out, unless they are asked for, and so are layers that may not be distributed. If one
// platform is asked for the image is that variant alone.
//
// The class is ErrNotFound for an image that does not exist, that has no complete
// variant, or not the one asked for; the error names a blob that is missing. All images
// are looked at before the first byte is written. When the archive cannot be written
// any more Save stops; the class is ErrAborted.
func (a *Archiver) Save(ctx context.Context, r SaveRequest) (err error) {
	if err := r.validate(); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	ctx, lease, err := a.lease(ctx, "save")
	if err != nil {
		return err
	}
	defer lease.end(ctx, &err)
	s := &saving{finder: newFinder(a.Client.ContentStore()), lease: lease, platforms: r.Platforms, prefer: a.Store.Platform()}
	for _, name := range r.Images {
		found, err := a.find(ctx, name)
		if err != nil {
			return err
		}
		for _, img := range found {
			s.want(img)
		}
	}
	for _, img := range s.images {
		if err := s.plan(ctx, img); err != nil {
			return fmt.Errorf("save %s: %w", img.input, err)
		}
	}
	if err := s.write(ctx, r.Archive); err != nil {
		return fmt.Errorf("save: %w", classed(ctx, err, errdefs.ErrAborted))
	}
	for _, img := range s.images {
		for _, name := range img.orUnnamed() {
			labels := a.Store.Labels(ctx, images.Image{Name: name, Target: img.target})
			a.Store.Emit(store.ActionSave, img.target.Digest, name, labels)
		}
	}
	return nil
}

// saved is an image to save, and under which names.
type saved struct {
	input  string // what the caller called it
	target v1.Descriptor
	names  []string
}

func (s *saved) orUnnamed() []string {
	if len(s.names) == 0 {
		return []string{""}
	}
	return s.names
}

// find returns the images that an input means.
func (a *Archiver) find(ctx context.Context, input string) ([]saved, error) {
	if tags, err := a.tags(ctx, input); err != nil || len(tags) > 0 {
		return tags, err
	}
	found, err := a.Store.ResolveAll(ctx, input)
	if err != nil {
		return nil, fmt.Errorf("save %s: %w", input, err)
	}
	one := saved{input: input, target: found.All[0].Target}
	if ref, err := reference.Parse(input); err == nil && ref.Digest() != "" {
		return []saved{one}, nil // by a digest, whatever record that was found by
	}
	if found.Named != nil {
		switch kind, _ := store.ParseName(found.Named.Name); kind {
		case store.KindTag, store.KindForeign:
			one.names = []string{found.Named.Name}
		}
	}
	return []saved{one}, nil
}

// tags returns the images with a tag in a repository, if that is all that the input
// names.
func (a *Archiver) tags(ctx context.Context, input string) ([]saved, error) {
	named, err := distribution.ParseNormalizedNamed(input)
	if err != nil || !distribution.IsNameOnly(named) {
		return nil, nil // it may be an ID
	}
	records, err := a.Store.Records(ctx)
	if err != nil {
		return nil, fmt.Errorf("save %s: %w", input, err)
	}
	var all []saved
	for _, record := range records {
		if kind, ref := store.ParseName(record.Name); kind == store.KindTag && ref.Repository() == named.Name() {
			all = append(all, saved{input, record.Target, []string{record.Name}})
		}
	}
	return all, nil
}

// saving is an archive on its way out.
type saving struct {
	finder
	lease     *lease
	platforms []v1.Platform
	prefer    platforms.MatchComparer // for Docker's list, where an image has one variant

	images []*saved
	index  []v1.Descriptor
	docker []dockerImage
	blobs  []v1.Descriptor
	buffer []byte
}

// bufferBytes is how much is asked of containerd at a time: each read is a request.
// Measured with ten layers of 20 MiB: 32 KiB takes 2.4 s, 1 MiB 0.5 s.
const bufferBytes = 1 << 20

// dockerImage is an entry of Docker's manifest.json (moby, image specification 1.2).
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// want adds an image, or a name to one.
func (s *saving) want(img saved) {
	i := slices.IndexFunc(s.images, func(other *saved) bool { return other.target.Digest == img.target.Digest })
	if i < 0 {
		s.images = append(s.images, &img)
		return
	}
	for _, name := range img.names {
		if !slices.Contains(s.images[i].names, name) {
			s.images[i].names = append(s.images[i].names, name)
		}
	}
}

// plan decides what of an image goes into the archive.
func (s *saving) plan(ctx context.Context, img *saved) error {
	if err := s.lease.hold(ctx, img.target); err != nil {
		return err
	}
	image, err := s.look(ctx, img.target)
	if err != nil {
		return err
	}
	if err := image.pick(s.platforms); err != nil {
		return classed(ctx, err, errdefs.ErrNotFound)
	}
	top := img.target
	if len(s.platforms) == 1 {
		i := slices.IndexFunc(image.variants, func(v variant) bool { return !v.pseudo })
		image.indexes, image.variants = nil, image.variants[i:i+1]
		top = image.variants[0].Descriptor()
	}
	s.add(image.indexes...)
	for _, v := range image.variants {
		// A manifest that a filter of platforms left out when it was labelled hangs on
		// nothing else.
		if err := s.lease.hold(ctx, v.Descriptor()); err != nil {
			return err
		}
		s.add(v.Descriptor(), v.doc.Config)
		s.add(v.doc.Layers...)
	}
	s.describe(top, img.names)
	s.describeToDocker(image.variants, img.names)
	return nil
}

// add has blobs written, each once, but for layers that may not be distributed.
func (s *saving) add(blobs ...v1.Descriptor) {
	for _, blob := range blobs {
		same := func(other v1.Descriptor) bool { return other.Digest == blob.Digest }
		if !images.IsNonDistributable(blob.MediaType) && !slices.ContainsFunc(s.blobs, same) {
			s.blobs = append(s.blobs, blob)
		}
	}
}

// describe adds an image to the index, once for each name.
func (s *saving) describe(top v1.Descriptor, names []string) {
	// Annotations of a record's target tell where this host has the image from.
	entry := v1.Descriptor{MediaType: top.MediaType, Digest: top.Digest, Size: top.Size, Platform: top.Platform}
	if len(names) == 0 {
		s.index = append(s.index, entry)
	}
	for _, name := range names {
		entry.Annotations = map[string]string{images.AnnotationImageName: name}
		if kind, ref := store.ParseName(name); kind == store.KindTag {
			entry.Annotations[v1.AnnotationRefName] = ref.Tag()
		}
		s.index = append(s.index, entry)
	}
}

// describeToDocker adds the variant that suits this host best to Docker's list, if
// there is one with all its layers: Docker takes no other.
func (s *saving) describeToDocker(variants []variant, names []string) {
	variants = slices.DeleteFunc(slices.Clone(variants), func(v variant) bool {
		foreign := func(d v1.Descriptor) bool { return images.IsNonDistributable(d.MediaType) }
		return v.pseudo || slices.ContainsFunc(v.doc.Layers, foreign)
	})
	if len(variants) == 0 {
		return
	}
	order := manifest.Prefer(s.prefer)
	best := slices.MinFunc(variants, func(a, b variant) int {
		switch {
		case order.Less(a.platform, b.platform):
			return -1
		case order.Less(b.platform, a.platform):
			return 1
		}
		return 0
	})
	entry := dockerImage{Config: blobPath(best.doc.Config.Digest), RepoTags: []string{}, Layers: []string{}}
	for _, layer := range best.doc.Layers {
		entry.Layers = append(entry.Layers, blobPath(layer.Digest))
	}
	for _, name := range names {
		if kind, ref := store.ParseName(name); kind == store.KindTag {
			entry.RepoTags = append(entry.RepoTags, ref.Familiar())
		}
	}
	s.docker = append(s.docker, entry)
}

func blobPath(d digest.Digest) string {
	return path.Join(v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// write writes the archive: what describes it first, so that a reader of the stream
// knows what is to come.
func (s *saving) write(ctx context.Context, w io.Writer) error {
	s.buffer = make([]byte, bufferBytes)
	out := tar.NewWriter(w)
	documents := []struct {
		name  string
		value any
	}{
		{v1.ImageLayoutFile, v1.ImageLayout{Version: v1.ImageLayoutVersion}},
		{v1.ImageIndexFile, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: s.index}},
		{dockerManifest, s.docker},
	}
	if len(s.docker) == 0 {
		documents = documents[:2]
	}
	for _, doc := range documents {
		if err := writeDocument(out, doc.name, doc.value); err != nil {
			return fmt.Errorf("%s: %w", doc.name, err)
		}
	}
	if err := s.writeFolders(out); err != nil {
		return err
	}
	for _, blob := range s.blobs {
		if err := s.writeBlob(ctx, out, blob); err != nil {
			return fmt.Errorf("blob %s: %w", blob.Digest, err)
		}
	}
	return out.Close()
}

func writeDocument(out *tar.Writer, name string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}

func (s *saving) writeFolders(out *tar.Writer) error {
	folders := []string{v1.ImageBlobsDir + "/"}
	for _, blob := range s.blobs {
		if folder := path.Dir(blobPath(blob.Digest)) + "/"; !slices.Contains(folders, folder) {
			folders = append(folders, folder)
		}
	}
	for _, folder := range folders {
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder, Mode: 0o755}); err != nil {
			return err
		}
	}
	return nil
}

// writeBlob writes a blob and makes sure that it is what its digest says: what has
// rotted on this disk shall not spread.
func (s *saving) writeBlob(ctx context.Context, out *tar.Writer, desc v1.Descriptor) error {
	blob, err := s.provider.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer blob.Close()
	// The true size: a descriptor may say anything.
	header := &tar.Header{Typeflag: tar.TypeReg, Name: blobPath(desc.Digest), Mode: 0o444, Size: blob.Size()}
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	sum := desc.Digest.Verifier()
	if _, err := io.CopyBuffer(io.MultiWriter(out, sum), content.NewReader(blob), s.buffer); err != nil {
		return err
	}
	if !sum.Verified() {
		return fmt.Errorf("content is not what the digest says: %w", errdefs.ErrDataLoss)
	}
	return nil
}
