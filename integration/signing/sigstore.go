// SPDX-License-Identifier: Apache-2.0

package signing

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/integration/registry"
)

// Names of cosign's format: SIGNATURE_SPEC.md of cosign.
const (
	sigstoreClaim      = "cosign container image signature"
	sigstoreMediaType  = "application/vnd.dev.cosign.simplesigning.v1+json"
	sigstoreAnnotation = "dev.cosignproject.cosign/signature"
)

// Sigstore is a key pair of the kind that cosign makes. Safe for concurrent use.
type Sigstore struct{ key *ecdsa.PrivateKey }

// NewSigstore makes a key.
func NewSigstore() (*Sigstore, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &Sigstore{key}, nil
}

// PublicKey returns the key as policies take it.
func (s *Sigstore) PublicKey() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(&s.key.PublicKey)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// Sign attaches a signature to an image of a registry, which says: this digest is
// the image of that name. The name has a tag or a digest. A signature that was
// there before is replaced.
func (s *Sigstore) Sign(ctx context.Context, in *registry.Registry, name string, d digest.Digest) error {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return err
	}
	statement, err := json.Marshal(claim(sigstoreClaim, named.String(), d))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(statement)
	signed, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		return err
	}
	all := blobs{}
	layer := all.add(sigstoreMediaType, statement)
	layer.Annotations = map[string]string{sigstoreAnnotation: base64.StdEncoding.EncodeToString(signed)}
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    all.add(v1.MediaTypeImageConfig, []byte("{}")),
		Layers:    []v1.Descriptor{layer},
	})
	if err != nil {
		return err
	}
	target := fmt.Sprintf("%s:%s-%s.sig", named.Name(), d.Algorithm(), d.Encoded())
	return in.Push(ctx, target, all.add(v1.MediaTypeImageManifest, manifest), all)
}

// blobs are what a signature consists of, to be pushed.
type blobs map[digest.Digest][]byte

var _ content.Provider = blobs{}

func (b blobs) add(mediaType string, data []byte) v1.Descriptor {
	d := digest.FromBytes(data)
	b[d] = data
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (b blobs) ReaderAt(_ context.Context, desc v1.Descriptor) (content.ReaderAt, error) {
	data, ok := b[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	return memory{bytes.NewReader(data)}, nil
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }
