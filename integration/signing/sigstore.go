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
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
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

// Sign attaches a signature to an image in a registry on loopback, which says:
// this digest is the image of that name. The name has a tag or a digest. A
// signature that was there before is replaced.
func (s *Sigstore) Sign(ctx context.Context, name string, d digest.Digest) error {
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
	target := fmt.Sprintf("%s:%s-%s.sig", named.Name(), d.Algorithm(), d.Encoded())
	pusher, err := docker.NewResolver(docker.ResolverOptions{}).Pusher(ctx, target)
	if err != nil {
		return err
	}
	layer, err := push(ctx, pusher, sigstoreMediaType, statement)
	if err != nil {
		return err
	}
	layer.Annotations = map[string]string{sigstoreAnnotation: base64.StdEncoding.EncodeToString(signed)}
	config, err := push(ctx, pusher, v1.MediaTypeImageConfig, []byte("{}"))
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    config,
		Layers:    []v1.Descriptor{layer},
	})
	if err != nil {
		return err
	}
	_, err = push(ctx, pusher, v1.MediaTypeImageManifest, manifest)
	return err
}

func push(ctx context.Context, to remotes.Pusher, mediaType string, data []byte) (v1.Descriptor, error) {
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	w, err := to.Push(ctx, desc)
	if errdefs.IsAlreadyExists(err) {
		return desc, nil
	}
	if err != nil {
		return desc, err
	}
	defer w.Close()
	return desc, content.Copy(ctx, w, bytes.NewReader(data), desc.Size, desc.Digest)
}
