// SPDX-License-Identifier: Apache-2.0

// Package manifest reads one image manifest out of a content store, and finds the
// manifests that an image record's target reaches. It owns what a manifest says of
// itself: configuration, platform, layers, and whether it is an image at all. It
// writes nothing and refuses to know image records, snapshots and registries.
package manifest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrNotManifest is the error of New for a descriptor of something else, such as an
// index. Its class is ErrInvalidArgument.
var ErrNotManifest = errdefs.ErrInvalidArgument.WithMessage("not an image manifest")

// Annotations by which BuildKit marks the entries of an index that only speak about
// another entry (docs.docker.com, "Image attestation storage").
const (
	annotationKind    = "vnd.docker.reference.type"
	annotationSubject = "vnd.docker.reference.digest"
	kindAttestation   = "attestation-manifest"
)

// maxDocumentBytes bounds a manifest and a configuration, which are read whole.
// Registries refuse manifests above 4 MiB (distribution specification); the rest is
// for configurations.
const maxDocumentBytes = 16 << 20

// Manifest is one image manifest, of an index or alone. What it has read it keeps:
// its content cannot change. Safe for concurrent use.
type Manifest struct {
	provider content.Provider
	desc     v1.Descriptor

	mu     sync.Mutex   // guards what follows; not held while reading
	parsed *v1.Manifest // nil until read
	config []byte       // nil until read
	image  *v1.Image    // config, parsed; nil until asked for
}

// New returns the manifest that a descriptor describes, without reading anything.
// The error is ErrNotManifest if the descriptor's media type is not a manifest's.
func New(provider content.Provider, desc v1.Descriptor) (*Manifest, error) {
	if !images.IsManifestType(desc.MediaType) {
		return nil, fmt.Errorf("%s (%s): %w", desc.Digest, desc.MediaType, ErrNotManifest)
	}
	return &Manifest{provider: provider, desc: desc}, nil
}

// Descriptor describes the manifest as it was found: in an index, with the platform
// and the annotations given there.
func (m *Manifest) Descriptor() v1.Descriptor { return m.desc }

// Record is an image record with the manifest as its target: what containerd's own
// functions need to work on this manifest instead of its index.
func (m *Manifest) Record(record images.Image) images.Image {
	record.Target = m.desc
	return record
}

// Manifest returns the parsed document. Its class is ErrNotFound if the content
// store lacks it and ErrInvalidArgument if it is not what its media type says, as a
// manifest of schema 1 is not. The caller must not change it.
func (m *Manifest) Manifest(ctx context.Context) (v1.Manifest, error) {
	m.mu.Lock()
	parsed := m.parsed
	m.mu.Unlock()
	if parsed != nil {
		return *parsed, nil
	}
	if err := bounded(m.desc); err != nil {
		return v1.Manifest{}, err
	}
	doc, err := images.Manifest(ctx, m.provider, m.desc, nil)
	if err != nil {
		return v1.Manifest{}, unreadable("manifest", m.desc.Digest, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.parsed = &doc
	return doc, nil
}

func bounded(desc v1.Descriptor) error {
	if desc.Size > maxDocumentBytes {
		return fmt.Errorf("%s (%s): %d bytes are more than %d: %w", desc.Digest, desc.MediaType, desc.Size, maxDocumentBytes, errdefs.ErrResourceExhausted)
	}
	return nil
}

// unreadable names what could not be read. Errors of the content store have a class;
// without one it is the document's text that is wrong.
func unreadable(what string, dgst digest.Digest, err error) error {
	if errdefs.IsUnknown(errdefs.Resolve(err)) {
		return fmt.Errorf("%s %s: %w: %w", what, dgst, errdefs.ErrInvalidArgument, err)
	}
	return fmt.Errorf("%s %s: %w", what, dgst, err)
}

// RawConfig returns the configuration's bytes, with the members that the OCI form
// does not know. The classes are those of Manifest. The caller must not change them.
func (m *Manifest) RawConfig(ctx context.Context) ([]byte, error) {
	doc, err := m.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	config := m.config
	m.mu.Unlock()
	if config != nil {
		return config, nil
	}
	if err := bounded(doc.Config); err != nil {
		return nil, err
	}
	config, err = content.ReadBlob(ctx, m.provider, doc.Config)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: configuration %s: %w", m.desc.Digest, doc.Config.Digest, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.config = config
	return config, nil
}

// Config returns the image's configuration. The classes are those of Manifest. The
// caller must not change it.
func (m *Manifest) Config(ctx context.Context) (v1.Image, error) {
	m.mu.Lock()
	parsed := m.image
	m.mu.Unlock()
	if parsed != nil {
		return *parsed, nil
	}
	raw, err := m.RawConfig(ctx)
	if err != nil {
		return v1.Image{}, err
	}
	var config v1.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return v1.Image{}, unreadable("configuration of manifest", m.desc.Digest, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.image = &config
	return config, nil
}

// ConfigDigest is the digest of the configuration: the image's ID to CRI. The
// classes are those of Manifest.
func (m *Manifest) ConfigDigest(ctx context.Context) (digest.Digest, error) {
	doc, err := m.Manifest(ctx)
	if err != nil {
		return "", err
	}
	return doc.Config.Digest, nil
}

// ChainID is the key of the unpacked image's top snapshot, empty for an image without
// layers. The classes are those of Manifest.
func (m *Manifest) ChainID(ctx context.Context) (digest.Digest, error) {
	config, err := m.Config(ctx)
	if err != nil {
		return "", err
	}
	return identity.ChainID(config.RootFS.DiffIDs), nil
}

// Size is how many bytes the manifest, its configuration and its layers have as
// blobs, each counted once, whether they are in the content store or not. The
// classes are those of Manifest.
func (m *Manifest) Size(ctx context.Context) (int64, error) {
	doc, err := m.Manifest(ctx)
	if err != nil {
		return 0, err
	}
	size, seen := m.desc.Size, map[digest.Digest]bool{}
	for _, desc := range append([]v1.Descriptor{doc.Config}, doc.Layers...) {
		if !seen[desc.Digest] {
			seen[desc.Digest] = true
			size += desc.Size
		}
	}
	return size, nil
}

// IsAttestation tells whether the entry of the index says that the manifest holds
// statements about another manifest.
func (m *Manifest) IsAttestation() bool { return m.desc.Annotations[annotationKind] == kindAttestation }

// Subject is the manifest that an attestation is about, empty if it does not say.
func (m *Manifest) Subject() digest.Digest {
	return digest.Digest(m.desc.Annotations[annotationSubject])
}

// IsPseudo tells whether the manifest only has the form of an image: attestations,
// entries for the platform unknown/unknown, and manifests with layers none of which
// is a file system's. Without any layer it is a real image. The classes are those of
// Manifest.
func (m *Manifest) IsPseudo(ctx context.Context) (bool, error) {
	if m.IsAttestation() {
		return true, nil
	}
	if p := m.desc.Platform; p != nil && p.OS == "unknown" && p.Architecture == "unknown" {
		return true, nil
	}
	doc, err := m.Manifest(ctx)
	if err != nil {
		return false, err
	}
	isLayer := func(desc v1.Descriptor) bool { return images.IsLayerType(desc.MediaType) }
	return len(doc.Layers) > 0 && !slices.ContainsFunc(doc.Layers, isLayer), nil
}

// Platform is what the image is for: what the index says, else what the
// configuration does, normalized. The classes are those of Manifest.
func (m *Manifest) Platform(ctx context.Context) (v1.Platform, error) {
	if p := m.desc.Platform; p != nil && p.OS != "" && p.Architecture != "" {
		return platforms.Normalize(*p), nil
	}
	config, err := m.Config(ctx)
	if err != nil {
		return v1.Platform{}, err
	}
	return platforms.Normalize(config.Platform), nil
}

// Missing lists what the content store lacks of the manifest, its configuration and
// its layers; nothing of the manifest but itself if it is lacking. A layer of an
// unpacked image may be missing on purpose: that is the caller's to know.
func (m *Manifest) Missing(ctx context.Context) ([]v1.Descriptor, error) {
	doc, err := m.Manifest(ctx)
	if errdefs.IsNotFound(err) {
		return []v1.Descriptor{m.desc}, nil
	}
	if err != nil {
		return nil, err
	}
	var missing []v1.Descriptor
	// The manifest may have been read before it was removed.
	for _, desc := range append([]v1.Descriptor{m.desc, doc.Config}, doc.Layers...) {
		blob, err := m.provider.ReaderAt(ctx, desc)
		switch {
		case errdefs.IsNotFound(err):
			missing = append(missing, desc)
		case err != nil:
			return nil, fmt.Errorf("manifest %s: blob %s: %w", m.desc.Digest, desc.Digest, err)
		default:
			if err := blob.Close(); err != nil {
				return nil, fmt.Errorf("manifest %s: blob %s: %w", m.desc.Digest, desc.Digest, err)
			}
		}
	}
	return missing, nil
}

// Available tells whether all blobs of the image are in the content store.
func (m *Manifest) Available(ctx context.Context) (bool, error) {
	missing, err := m.Missing(ctx)
	return err == nil && len(missing) == 0, err
}
