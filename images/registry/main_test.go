// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
	server "github.com/berthd/berth/integration/registry"
)

// The tests ask a real registry, behind a proxy that misbehaves. Numbers in
// comments are acceptance statements of the specification of images.

// patience bounds every single call.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	// With a network and an /etc of their own.
	host.EnterOffline()
	os.Exit(m.Run())
}

func ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// open returns what works by a configuration whose empty paths lead to an empty
// folder, and not to what this machine has.
func open(t testing.TB, c registry.Config) *registry.Registry {
	t.Helper()
	dir := t.TempDir()
	for path, name := range map[*string]string{
		&c.HostsDir: "hosts", &c.CertsDir: "certs", &c.Aliases: "aliases.conf",
	} {
		if *path == "" {
			*path = filepath.Join(dir, name)
		}
	}
	if c.RegistriesConf == "" {
		c.RegistriesConf = write(t, filepath.Join(dir, "registries.conf"), "")
	}
	if c.AuthFile == "" && c.DockerConfigDir == "" {
		c.AuthFile = filepath.Join(dir, "auth.json")
	}
	r, err := registry.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// configured is open with a registries.conf.
func configured(t testing.TB, conf string, c registry.Config) *registry.Registry {
	t.Helper()
	c.RegistriesConf = write(t, filepath.Join(t.TempDir(), "registries.conf"), conf)
	return open(t, c)
}

func parse(t testing.TB, text string) reference.Reference {
	t.Helper()
	ref, err := reference.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// served is a registry with an image that has a layer of some size.
type served struct {
	*server.Registry
	ref      reference.Reference
	manifest v1.Descriptor
	layer    v1.Descriptor
	content  []byte // of the layer
	image    *image.Image
}

// layerBytes is the size of the layer: some writes of a server, and more than the
// kernel buffers.
const layerBytes = 1 << 20

func serve(t testing.TB, o server.Options) *served {
	t.Helper()
	return serveAs(t, o, "team/app:1")
}

func serveAs(t testing.TB, o server.Options, name string) *served {
	t.Helper()
	o.Dir = t.TempDir()
	r, err := server.Start(ctx(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	s := &served{Registry: r, ref: parse(t, r.Address+"/"+name)}
	img, err := image.Noise(1, layerBytes)(s.ref.Text())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Push(ctx(t), img.Ref, img.Manifest(), img); err != nil {
		t.Fatal(err)
	}
	s.image, s.manifest = img, img.Manifest()
	s.layer = layerOf(t, img)
	if s.content, err = readAll(img, s.layer); err != nil {
		t.Fatal(err)
	}
	return s
}

// resolve asks for ref and returns its descriptor.
func resolve(t testing.TB, r *registry.Registry, ref reference.Reference, a registry.Access) (v1.Descriptor, error) {
	t.Helper()
	resolver, err := r.Resolver(ctx(t), ref, a)
	if err != nil {
		return v1.Descriptor{}, err
	}
	name, desc, err := resolver.Resolve(ctx(t), ref.Text())
	if err == nil && name != ref.Text() {
		t.Errorf("resolved to the name %q, want %q", name, ref)
	}
	return desc, err
}

// fetch reads a blob of ref's repository.
func fetch(ctx context.Context, r *registry.Registry, ref reference.Reference, desc v1.Descriptor) ([]byte, error) {
	resolver, err := r.Resolver(ctx, ref, registry.Access{})
	if err != nil {
		return nil, err
	}
	return fetchBy(ctx, resolver, ref, desc)
}

func fetchBy(ctx context.Context, resolver remotes.Resolver, ref reference.Reference, desc v1.Descriptor) ([]byte, error) {
	fetcher, err := resolver.Fetcher(ctx, ref.Text())
	if err != nil {
		return nil, err
	}
	reader, err := fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	return io.ReadAll(reader)
}

// mentions fails unless the error's text has all the words.
func mentions(t testing.TB, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("error %v does not mention %q", err, word)
		}
	}
}

func sum(b []byte) digest.Digest { return digest.FromBytes(b) }

// layerOf finds the only layer of an image's only manifest.
func layerOf(t testing.TB, img *image.Image) v1.Descriptor {
	t.Helper()
	text, err := readAll(img, img.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(text, &m); err != nil || len(m.Layers) != 1 {
		t.Fatalf("%s: %v", text, err)
	}
	return m.Layers[0]
}

func readAll(img *image.Image, desc v1.Descriptor) ([]byte, error) {
	return content.ReadBlob(context.Background(), img, desc)
}

var imageConfig = v1.ImageConfig{Cmd: []string{"x"}}

func push(t testing.TB, to remotes.Pusher, img *image.Image) {
	t.Helper()
	if err := remotes.PushContent(ctx(t), to, img.Manifest(), img, nil, platforms.All, nil); err != nil {
		t.Fatal(err)
	}
}

// tag gives the manifest another tag.
func (s *served) tag(t testing.TB, tag string, manifest []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx(t), http.MethodPut, s.URL()+"/v2/"+s.ref.Path()+"/manifests/"+tag, bytes.NewReader(manifest))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", s.manifest.MediaType)
	request.Header.Set("Authorization", "Bearer "+s.issue(t, "repository:"+s.ref.Path()+":pull,push"))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusCreated {
		t.Fatalf("tag %s: %s", tag, response.Status)
	}
}

// issue gets a token from the registry's server of tokens.
func (s *served) issue(t testing.TB, scope string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx(t), http.MethodGet, s.URL()+"/token?scope="+scope, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth(server.Username, server.Password)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct{ Token string }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return answer.Token
}
