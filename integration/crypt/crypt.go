// SPDX-License-Identifier: Apache-2.0

// Package crypt encrypts images for tests, and decrypts their layers for containerd: a
// program that imports it is what ctd-decoder of imgcrypt is elsewhere.
package crypt

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/imgcrypt/v2"
	"github.com/containerd/imgcrypt/v2/images/encryption"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	"github.com/containers/ocicrypt/config"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Key is a private key with its public part.
type Key struct{ private *rsa.PrivateKey }

// NewKey makes a key.
func NewKey() (*Key, error) {
	const bits = 2048
	private, err := rsa.GenerateKey(rand.Reader, bits)
	return &Key{private}, err
}

// PEM is the private key as a file of it has it.
func (k *Key) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k.private)}))
}

// Encrypt makes an image whose layers are for the holder of the key, of one with a
// manifest for this host. dir is a folder for its blobs.
func (k *Key) Encrypt(ctx context.Context, dir string, from content.Provider, manifest v1.Descriptor) (v1.Descriptor, content.Provider, error) {
	store, err := local.NewStore(dir)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	err = images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		b, err := content.ReadBlob(ctx, from, desc)
		if err == nil {
			err = content.WriteBlob(ctx, store, desc.Digest.String(), bytes.NewReader(b), desc)
		}
		if err != nil {
			return nil, err
		}
		return images.Children(ctx, store, desc)
	}), manifest)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(&k.private.PublicKey)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	to, err := config.EncryptWithJwe([][]byte{pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})})
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	host := platforms.DefaultSpec()
	manifest.Platform = &host
	encrypted, changed, err := encryption.EncryptImage(ctx, store, manifest, &to, func(v1.Descriptor) bool { return true })
	if err == nil && !changed {
		err = fmt.Errorf("image %s: nothing was encrypted", manifest.Digest)
	}
	return encrypted, store, err
}

// envDecode tells the program that it is to decrypt a layer.
const envDecode = "BERTH_TEST_DECODE"

// TOML has containerd decrypt layers by this program.
func TOML() string {
	self, err := os.Executable()
	if err != nil {
		panic(err) // there is no /proc
	}
	var b strings.Builder
	for _, kind := range []string{"tar", "tar+gzip"} {
		layer := "application/vnd.oci.image.layer.v1." + kind
		fmt.Fprintf(&b, "[stream_processors.%q]\naccepts = [%q]\nreturns = %q\npath = %q\nenv = [%q]\n",
			"io.containerd.ocicrypt.decoder.v1."+strings.ReplaceAll(kind, "+", "."), layer+"+encrypted", layer, self, envDecode+"=1")
	}
	return b.String()
}

// Main decrypts a layer and ends the program, if containerd has executed it for that:
// a TestMain begins with it.
func Main() {
	if os.Getenv(envDecode) == "" {
		return
	}
	if err := decode(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// decode decrypts from standard input to standard output, with what containerd gives a
// stream processor as its fourth file.
func decode() error {
	text, err := io.ReadAll(os.NewFile(3, "payload"))
	if err != nil {
		return err
	}
	var message anypb.Any
	if err := proto.Unmarshal(text, &message); err != nil {
		return err
	}
	value, err := typeurl.UnmarshalAny(&message)
	if err != nil {
		return err
	}
	payload := value.(*imgcrypt.Payload)
	_, plain, _, err := encryption.DecryptLayer(&payload.DecryptConfig, os.Stdin, payload.Descriptor, false)
	if err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, plain)
	return err
}
