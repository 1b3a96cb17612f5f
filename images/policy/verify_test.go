// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"

	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/registry"
	"github.com/berthd/berth/integration/signing"
)

// patience bounds a single verification.
const patience = 30 * time.Second

// world is a registry and two keys, one of which is the right one.
type world struct {
	*registry.Registry
	dir            string // policies, registries.d, keys
	gpg, wrongGPG  *signing.GPG
	sig, wrongSig  *signing.Sigstore
	image, another ocispec.Descriptor // app:1 and app:2
	index          ocispec.Descriptor // multi:1
	platform       digest.Digest      // a manifest of it
}

func newWorld(t *testing.T, o registry.Options) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	var err error
	o.Dir = t.TempDir()
	if w.Registry, err = registry.Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	w.gpg, w.wrongGPG = w.newGPG(t, "gpg.key"), w.newGPG(t, "wrong.key")
	w.sig, w.wrongSig = w.newSigstore(t, "sig.pub"), w.newSigstore(t, "wrong.pub")
	w.image = w.push(t, "app:1", image.Noise(1, 1))
	w.another = w.push(t, "app:2", image.Noise(1, 2))
	w.index = w.push(t, "multi:1", func(name string) (*image.Image, error) {
		i, err := image.MultiPlatform(name)
		if err == nil {
			w.platform, err = firstOf(t.Context(), i)
		}
		return i, err
	})
	w.lookaside(t, w.dir+"/lookaside")
	return w
}

// lookaside says where signatures are.
func (w *world) lookaside(t *testing.T, url string) {
	if !strings.Contains(url, "://") {
		url = "file://" + url
	}
	write(t, w.dir+"/registries.d/test.yaml", fmt.Sprintf("docker:\n  %s:\n    lookaside: %s\n    use-sigstore-attachments: true\n", w.Address, url))
}

func (w *world) newGPG(t *testing.T, file string) *signing.GPG {
	t.Helper()
	g, err := signing.NewGPG(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	key, err := g.PublicKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	write(t, w.dir+"/"+file, string(key))
	return g
}

func (w *world) newSigstore(t *testing.T, file string) *signing.Sigstore {
	t.Helper()
	s, err := signing.NewSigstore()
	if err != nil {
		t.Fatal(err)
	}
	key, err := s.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	write(t, w.dir+"/"+file, string(key))
	return s
}

func (w *world) push(t *testing.T, name string, build image.Builder) ocispec.Descriptor {
	t.Helper()
	img, err := build(w.Address + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Push(t.Context(), img.Ref, img.Manifest(), img); err != nil {
		t.Fatal(err)
	}
	return img.Manifest()
}

func firstOf(ctx context.Context, i *image.Image) (digest.Digest, error) {
	r, err := i.ReaderAt(ctx, i.Manifest())
	if err != nil {
		return "", err
	}
	defer r.Close()
	data := make([]byte, r.Size())
	if _, err := r.ReadAt(data, 0); err != nil {
		return "", err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return "", err
	}
	return index.Manifests[0].Digest, nil
}

// signGPG signs with the right key, name being as in a pull.
func (w *world) signGPG(t *testing.T, g *signing.GPG, name string, d digest.Digest) {
	t.Helper()
	if err := g.Sign(t.Context(), w.dir+"/lookaside", w.Address+"/"+name, d); err != nil {
		t.Fatal(err)
	}
}

func (w *world) signSigstore(t *testing.T, s *signing.Sigstore, name string, d digest.Digest) {
	t.Helper()
	if err := s.Sign(t.Context(), w.Registry, w.Address+"/"+name, d); err != nil {
		t.Fatal(err)
	}
}

// system reaches the registry and knows nothing of this machine's files.
func (w *world) system() *types.SystemContext {
	return &types.SystemContext{
		SystemRegistriesConfPath:    os.DevNull,
		SystemRegistriesConfDirPath: w.dir + "/none",
		AuthFilePath:                w.dir + "/auth.json",
		DockerInsecureSkipTLSVerify: types.OptionalBoolTrue,
	}
}

// verify judges an image of the registry by a policy; %s in it is the folder with
// the keys.
func (w *world) verify(ctx context.Context, t *testing.T, rules, name string, d digest.Digest) error {
	t.Helper()
	w.Forget()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	path := write(t, t.TempDir()+"/policy.json", strings.ReplaceAll(strings.ReplaceAll(rules, "%s", w.dir), "%r", w.Address))
	p, err := policy.Load(policy.Config{Path: path, RegistriesDir: w.dir + "/registries.d"}, "")
	if err != nil {
		t.Fatal(err)
	}
	return p.Verify(ctx, policy.Subject{Reference: ref(t, w.Address+"/"+name), Digest: d, System: w.system()})
}

// check wants an error that is want, or none.
func check(t *testing.T, got, want error, texts ...string) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("got %v, want %v", got, want)
		return
	}
	if got == nil {
		return
	}
	for _, text := range texts {
		if !strings.Contains(got.Error(), text) {
			t.Errorf("%q is not in: %v", text, got)
		}
	}
}

const (
	byGPG      = `{"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "%s/gpg.key"}]}`
	bySigstore = `{"default": [{"type": "sigstoreSigned", "keyPath": "%s/sig.pub", "signedIdentity": {"type": "matchRepoDigestOrExact"}}]}`
	scoped     = `{"default": [{"type": "reject"}], "transports": {"docker": {"%r/app": [{"type": "insecureAcceptAnything"}]}}}`
)

func TestRules(t *testing.T) {
	w := newWorld(t, registry.Options{})
	for _, c := range []struct {
		name, rules, image string
		asks               bool // the registry
		want               error
		reason             string
	}{
		{"accept", accept, "app:1", false, nil, ""},
		{"reject", reject, "app:1", false, policy.ErrRejected, "is rejected by policy"},
		{"scope that accepts", scoped, "app:1", false, nil, ""},
		{"scope that rejects", scoped, "multi:1", false, policy.ErrRejected, "is rejected by policy"},
		{"unsigned GPG", byGPG, "app:1", true, policy.ErrRejected, "no signature exists"},
		{"unsigned sigstore", bySigstore, "app:1", true, policy.ErrRejected, "no signature exists"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := w.verify(t.Context(), t, c.rules, c.image, w.image.Digest)
			check(t, err, c.want, c.reason)
			if asked := len(w.Log()) > 0; c.want == nil && asked != c.asks || c.want != nil && asked && !c.asks {
				t.Errorf("requests: %v", w.Log())
			}
			if err == nil {
				return
			}
			if !errdefs.IsPermissionDenied(err) || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: signature rejected: "+w.Address+"/"+c.image) {
				t.Errorf("the kubelet would not know it, or the image: %v", err)
			}
		})
	}
}

func TestGPG(t *testing.T) {
	w := newWorld(t, registry.Options{})
	rejected := func(name string, d digest.Digest, reason string) {
		t.Helper()
		check(t, w.verify(t.Context(), t, byGPG, name, d), policy.ErrRejected, reason)
	}
	w.signGPG(t, w.wrongGPG, "app:1", w.image.Digest)
	rejected("app:1", w.image.Digest, "")
	w.signGPG(t, w.gpg, "app:other", w.image.Digest)
	rejected("app:1", w.image.Digest, "None of the signatures were accepted")
	rejected("app:1", w.image.Digest, "app:other")
	w.signGPG(t, w.gpg, "app:1", w.image.Digest)
	check(t, w.verify(t.Context(), t, byGPG, "app:1", w.image.Digest), nil)
	check(t, w.verify(t.Context(), t, byGPG, "app@"+w.image.Digest.String(), w.image.Digest), nil)
	// The name is signed, but for another content.
	rejected("app:2", w.another.Digest, "no signature exists")
	if err := os.Rename(w.lookasideOf("app", w.image.Digest), w.lookasideOf("app", w.another.Digest)); err != nil {
		t.Fatal(err)
	}
	rejected("app:1", w.another.Digest, "does not match")
	for _, q := range w.Log() {
		if strings.Contains(q.Path, "/blobs/") {
			t.Errorf("more than the manifest was read: %s", q.Path)
		}
	}
}

func (w *world) lookasideOf(repository string, d digest.Digest) string {
	return fmt.Sprintf("%s/lookaside/%s@%s=%s", w.dir, repository, d.Algorithm(), d.Encoded())
}

func TestSigstore(t *testing.T) {
	w := newWorld(t, registry.Options{})
	w.signSigstore(t, w.wrongSig, "app:1", w.image.Digest)
	check(t, w.verify(t.Context(), t, bySigstore, "app:1", w.image.Digest), policy.ErrRejected, "signature")
	w.signSigstore(t, w.sig, "app:1", w.image.Digest)
	check(t, w.verify(t.Context(), t, bySigstore, "app:1", w.image.Digest), nil)
	check(t, w.verify(t.Context(), t, bySigstore, "app:2", w.another.Digest), policy.ErrRejected, "no signature exists")
	w.signSigstore(t, w.sig, "app:1", w.another.Digest)
	check(t, w.verify(t.Context(), t, bySigstore, "app:2", w.another.Digest), policy.ErrRejected, "app:1")
}

// The index is what is judged; its signature covers all platforms.
func TestIndex(t *testing.T) {
	w := newWorld(t, registry.Options{})
	w.signGPG(t, w.gpg, "multi:1", w.platform)
	check(t, w.verify(t.Context(), t, byGPG, "multi:1", w.index.Digest), policy.ErrRejected, "no signature exists")
	check(t, w.verify(t.Context(), t, byGPG, "multi@"+w.platform.String(), w.platform), nil)
	w.signGPG(t, w.gpg, "multi:1", w.index.Digest)
	check(t, w.verify(t.Context(), t, byGPG, "multi:1", w.index.Digest), nil)
}

// What cannot be found out is neither accepted nor called a rejection.
func TestUndecided(t *testing.T) {
	w := newWorld(t, registry.Options{})
	w.signGPG(t, w.gpg, "app:1", w.image.Digest)
	undecided := func(name string, ctx context.Context, rules string, want error) {
		t.Helper()
		err := w.verify(ctx, t, rules, "app:1", w.image.Digest)
		if check(t, err, want); errors.Is(err, policy.ErrRejected) {
			t.Errorf("%s: taken for a rejection: %v", name, err)
		}
	}
	undecided("no key", t.Context(), strings.ReplaceAll(byGPG, "gpg.key", "none.key"), policy.ErrInvalid)

	remove := w.Inject(registry.Fault{Path: "/manifests/", Do: registry.Corrupt})
	err := w.verify(t.Context(), t, byGPG, "app:1", w.image.Digest)
	if err == nil {
		t.Error("a manifest that is not the digest's was accepted")
	}
	remove()

	remove = w.Inject(registry.Fault{Path: "/manifests/", Do: registry.Answer(http.StatusInternalServerError, "UNKNOWN")})
	undecided("error", t.Context(), byGPG, errdefs.ErrUnavailable)
	remove()

	remove = w.Inject(registry.Fault{Path: "/manifests/", Do: registry.Stall})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	undecided("stall", ctx, byGPG, context.DeadlineExceeded)
	cancel()
	remove()

	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	w.lookaside(t, broken.URL)
	undecided("lookaside", t.Context(), byGPG, errdefs.ErrUnavailable)
	broken.Close()
	undecided("lookaside gone", t.Context(), byGPG, errdefs.ErrUnavailable)

	w.Close()
	undecided("registry gone", t.Context(), byGPG, errdefs.ErrUnavailable)
}

func TestCredentials(t *testing.T) {
	w := newWorld(t, registry.Options{Auth: registry.Basic})
	w.signSigstore(t, w.sig, "app:1", w.image.Digest)
	err := w.verify(t.Context(), t, bySigstore, "app:1", w.image.Digest)
	if check(t, err, errdefs.ErrUnavailable, "authentication required"); errors.Is(err, policy.ErrRejected) {
		t.Errorf("taken for a rejection: %v", err)
	}
	auth, err := json.Marshal(map[string]any{"auths": map[string]any{w.Address: map[string][]byte{
		"auth": []byte(registry.Username + ":" + registry.Password), // in base64, as JSON has bytes
	}}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, w.dir+"/auth.json", string(auth))
	check(t, w.verify(t.Context(), t, bySigstore, "app:1", w.image.Digest), nil)
}

func TestBadSubject(t *testing.T) {
	w := newWorld(t, registry.Options{})
	check(t, w.verify(t.Context(), t, accept, "app:1", "sha256:short"), errdefs.ErrInvalidArgument)
	check(t, w.verify(t.Context(), t, accept, "app:1", ""), errdefs.ErrInvalidArgument)
	check(t, w.verify(t.Context(), t, accept, "app@"+w.another.Digest.String(), w.image.Digest), errdefs.ErrInvalidArgument, "was resolved to")
}

// One policy serves all pulls at the same time.
func TestConcurrent(t *testing.T) {
	w := newWorld(t, registry.Options{})
	w.signGPG(t, w.gpg, "app:1", w.image.Digest)
	path := write(t, w.dir+"/policy.json", strings.ReplaceAll(byGPG, "%s", w.dir))
	p, err := policy.Load(policy.Config{Path: path, RegistriesDir: w.dir + "/registries.d"}, "")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for n := range 8 {
		name, d, want := "app:1", w.image.Digest, error(nil)
		if n%2 == 1 {
			name, d, want = "app:2", w.another.Digest, policy.ErrRejected
		}
		subject := policy.Subject{Reference: ref(t, w.Address+"/"+name), Digest: d, System: w.system()}
		all.Go(func() { check(t, p.Verify(t.Context(), subject), want) })
	}
	all.Wait()
}
