// SPDX-License-Identifier: Apache-2.0

// Package decryption owns the private keys with which encrypted layers are read. It
// refuses to make keys and to encrypt. containerd unpacks such layers with a stream
// processor (ctd-decoder of imgcrypt), which the administrator configures there; the
// keys go along with each layer that is to be unpacked.
package decryption

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/errdefs"
	"github.com/containerd/imgcrypt/v2"
	"github.com/containerd/imgcrypt/v2/images/encryption"
	"github.com/containers/ocicrypt/config"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrUndecryptable says that a layer is encrypted and none of the keys fits. Its
// class is ErrPermissionDenied.
var ErrUndecryptable = errdefs.ErrPermissionDenied.WithMessage("undecryptable layer")

// Keys are private keys. The zero value has none. Safe for concurrent use.
type Keys struct{ private [][]byte }

// Load reads the keys in a directory and those below it: every regular file is
// one, and links are not followed. An empty name and a directory that is missing
// mean no keys. A directory that is itself a link, and a file that cannot be read,
// are errors that name it, with class ErrInvalidArgument.
func Load(dir string) (Keys, error) {
	if dir == "" {
		return Keys{}, nil
	}
	keys := Keys{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case os.IsNotExist(err) && path == dir:
			return fs.SkipAll
		case err != nil:
			return err
		case path == dir && !entry.IsDir():
			return fmt.Errorf("%s is not a directory", path)
		case !entry.Type().IsRegular():
			return nil
		}
		key, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		keys.private = append(keys.private, key)
		return nil
	})
	if err != nil {
		return Keys{}, fmt.Errorf("decryption keys: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return keys, nil
}

// IsEncrypted tells whether a layer is encrypted.
func IsEncrypted(layer v1.Descriptor) bool {
	return encryption.IsEncryptedDiff(context.Background(), layer.MediaType)
}

// Check tells whether there is a key for a layer. The error is ErrUndecryptable.
func (k Keys) Check(layer v1.Descriptor) error {
	if !IsEncrypted(layer) {
		return nil
	}
	if _, _, _, err := encryption.DecryptLayer(k.config(), nil, layer, true); err != nil {
		// The library's text lists what each way of wrapping keys has to say. It has
		// no keys in it.
		return fmt.Errorf("layer %s: %w: %w", layer.Digest, ErrUndecryptable, err)
	}
	return nil
}

// ApplyOpts are what containerd needs to unpack a layer.
func (k Keys) ApplyOpts(layer v1.Descriptor) []diff.ApplyOpt {
	if !IsEncrypted(layer) {
		return nil
	}
	return []diff.ApplyOpt{encryption.WithDecryptedUnpack(&imgcrypt.Payload{DecryptConfig: *k.config()})}
}

func (k Keys) config() *config.DecryptConfig {
	return &config.DecryptConfig{Parameters: map[string][][]byte{
		"privkeys":           k.private,
		"privkeys-passwords": make([][]byte, len(k.private)), // one for each, by the library's rule
	}}
}
