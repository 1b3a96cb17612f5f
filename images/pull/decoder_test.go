// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images/decryption"
	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/integration/crypt"
	"github.com/berthd/berth/integration/image"
)

// A33.
func TestEncryptedImage(t *testing.T) {
	r := open(t, nil)
	right, wrong := newKey(t), newKey(t)
	ref := parse(t, r.registry.Address+"/secret:1")
	img, err := image.PlainLayers(ref.Text())
	if err != nil {
		t.Fatal(err)
	}
	target, from, err := right.Encrypt(context.Background(), t.TempDir(), img, img.Manifest())
	if err == nil {
		err = r.registry.Push(context.Background(), ref.Text(), target, from)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.write(t, "wrong/key.pem", wrong.PEM())
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

	r.write(t, "keys/other/key.pem", wrong.PEM())
	r.write(t, "keys/key.pem", right.PEM())
	if _, err := r.Pull(r.context(t), pull.Request{Reference: ref, Keys: filepath.Join(r.dir, "keys")}, nil); err != nil {
		t.Fatal(err)
	}
	r.check(t, ref)
}

func newKey(t testing.TB) *crypt.Key {
	t.Helper()
	key, err := crypt.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
