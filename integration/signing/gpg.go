// SPDX-License-Identifier: Apache-2.0

// Package signing signs images for tests, in the two ways that policies know: by
// GnuPG into a lookaside folder (simple signing), and by a sigstore key into the
// registry. It owns the keys; it refuses to judge signatures.
package signing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// GPG is an OpenPGP key in a GnuPG home of its own. Not safe for concurrent use.
type GPG struct{ home string }

// NewGPG makes a key without a passphrase, in a folder that exists. The path has
// to be short enough for a socket in it. The caller ends it with Close.
func NewGPG(ctx context.Context, home string) (*GPG, error) {
	if err := os.Chmod(home, 0o700); err != nil {
		return nil, err
	}
	g := &GPG{home}
	_, err := g.run(ctx, nil, "--passphrase", "", "--quick-generate-key", "signer@berth.test", "ed25519", "sign", "never")
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// PublicKey returns the key as policies take it.
func (g *GPG) PublicKey(ctx context.Context) ([]byte, error) { return g.run(ctx, nil, "--export") }

// Sign adds a signature that says: this digest is the image of that name. The
// name has a tag or a digest. dir is the lookaside of the image's registry.
func (g *GPG) Sign(ctx context.Context, dir, name string, d digest.Digest) error {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return err
	}
	statement, err := json.Marshal(claim("atomic container signature", named.String(), d))
	if err != nil {
		return err
	}
	signed, err := g.run(ctx, statement, "--sign")
	if err != nil {
		return err
	}
	dir = filepath.Join(dir, fmt.Sprintf("%s@%s=%s", reference.Path(named), d.Algorithm(), d.Encoded()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for n := 1; ; n++ {
		f, err := os.OpenFile(fmt.Sprintf("%s/signature-%d", dir, n), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = f.Write(signed)
		return errors.Join(err, f.Close())
	}
}

// claim is what a signature of either kind signs: containers-signature(5).
func claim(kind, name string, d digest.Digest) any {
	return map[string]any{
		"critical": map[string]any{
			"type":     kind,
			"image":    map[string]string{"docker-manifest-digest": d.String()},
			"identity": map[string]string{"docker-reference": name},
		},
		"optional": map[string]any{"creator": "berth.test", "timestamp": time.Now().Unix()},
	}
}

// Close ends GnuPG's agent, which gpg has started. The key stays.
func (g *GPG) Close() error {
	if err := exec.Command("gpgconf", "--homedir", g.home, "--kill", "gpg-agent").Run(); err != nil {
		return fmt.Errorf("gpgconf: %w", err)
	}
	// It ends a little later, and removes its socket then.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(g.home + "/S.gpg-agent"); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("gpg-agent of %s does not end", g.home)
		}
	}
}

func (g *GPG) run(ctx context.Context, in []byte, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "gpg", append([]string{"--homedir", g.home, "--batch", "--quiet", "--pinentry-mode", "loopback"}, args...)...)
	var out, problems bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &problems
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("gpg %v: %w: %s", args, err, problems.Bytes())
	}
	return out.Bytes(), nil
}
