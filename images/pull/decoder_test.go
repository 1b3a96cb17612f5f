// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/imgcrypt/v2"
	"github.com/containerd/imgcrypt/v2/images/encryption"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	encryptconfig "github.com/containers/ocicrypt/config"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/images/decryption"
	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/integration/image"
)

// envAct says what the program does in place of tests.
const envAct = "BERTH_PULL_ACT"

// act is what the program does as another process.
func act() int {
	what := map[string]func() error{"pull": actPull, "decode": actDecode}[os.Getenv(envAct)]
	if err := what(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// decoderTOML has containerd decrypt layers by this program, as ctd-decoder would.
func decoderTOML() string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	var b strings.Builder
	for _, p := range []struct{ id, accepts, returns string }{
		{"io.containerd.ocicrypt.decoder.v1.tar", "application/vnd.oci.image.layer.v1.tar+encrypted", "application/vnd.oci.image.layer.v1.tar"},
		{"io.containerd.ocicrypt.decoder.v1.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/vnd.oci.image.layer.v1.tar+gzip"},
	} {
		fmt.Fprintf(&b, "[stream_processors.%q]\naccepts = [%q]\nreturns = %q\npath = %q\nenv = [%q]\n", p.id, p.accepts, p.returns, self, envAct+"=decode")
	}
	return b.String()
}

// actDecode decrypts a layer from standard input to standard output, with what
// containerd gives a stream processor as its fourth file.
func actDecode() error {
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

// A33.
func TestEncryptedImage(t *testing.T) {
	r := open(t, nil)
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ref := parse(t, r.registry.Address+"/secret:1")
	target, from := encrypt(t, ref.Text(), &private.PublicKey)
	if err := r.registry.Push(context.Background(), ref.Text(), target, from); err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	r.write(t, "wrong/key.pem", pemOf(other))
	for name, dir := range map[string]string{"no directory": "", "missing directory": filepath.Join(r.dir, "none"), "wrong key": filepath.Join(r.dir, "wrong")} {
		_, err := r.Pull(r.context(t), pull.Request{Reference: ref, Keys: dir}, nil)
		if !errors.Is(err, decryption.ErrUndecryptable) {
			t.Errorf("%s: error %v, want ErrUndecryptable", name, err)
		}
	}
	r.clean(t)

	if err := os.Symlink(filepath.Join(r.dir, "wrong"), filepath.Join(r.dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Pull(r.context(t), pull.Request{Reference: ref, Keys: filepath.Join(r.dir, "link")}, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("directory is a link: %v, want InvalidArgument", err)
	}

	r.write(t, "keys/other/key.pem", pemOf(other))
	r.write(t, "keys/key.pem", pemOf(private))
	if _, err := r.Pull(r.context(t), pull.Request{Reference: ref, Keys: filepath.Join(r.dir, "keys")}, nil); err != nil {
		t.Fatal(err)
	}
	r.check(t, ref)
}

func pemOf(key *rsa.PrivateKey) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}

// encrypt makes an image whose layers are for the holder of a key.
func encrypt(t testing.TB, ref string, key *rsa.PublicKey) (v1.Descriptor, content.Provider) {
	t.Helper()
	img, err := image.PlainLayers(ref)
	if err != nil {
		t.Fatal(err)
	}
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	err = images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		b, err := content.ReadBlob(ctx, img, desc)
		if err == nil {
			err = content.WriteBlob(ctx, store, desc.Digest.String(), bytes.NewReader(b), desc)
		}
		if err != nil {
			return nil, err
		}
		return images.Children(ctx, store, desc)
	}), img.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	crypt, err := encryptconfig.EncryptWithJwe([][]byte{pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})})
	if err != nil {
		t.Fatal(err)
	}
	target := img.Manifest()
	host := platforms.DefaultSpec()
	target.Platform = &host
	encrypted, changed, err := encryption.EncryptImage(ctx, store, target, &crypt, func(v1.Descriptor) bool { return true })
	if err != nil || !changed {
		t.Fatal(err, changed)
	}
	return encrypted, store
}
