// SPDX-License-Identifier: Apache-2.0

package manifest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/manifest"
)

var (
	amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = v1.Platform{OS: "linux", Architecture: "arm64"}
)

// box is a content store and what a test puts into it.
type box struct {
	content.Store
	t *testing.T
}

func newBox(t *testing.T) box {
	t.Helper()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return box{store, t}
}

func (b box) put(mediaType string, data []byte) v1.Descriptor {
	b.t.Helper()
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := content.WriteBlob(b.t.Context(), b.Store, desc.Digest.String(), bytes.NewReader(data), desc); err != nil {
		b.t.Fatal(err)
	}
	return desc
}

func (b box) putJSON(mediaType string, value any) v1.Descriptor {
	b.t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.put(mediaType, data)
}

// image is an image for a platform with layers of the given types.
func (b box) image(p v1.Platform, layers ...string) v1.Descriptor {
	b.t.Helper()
	config := v1.Image{Platform: p}
	doc := v1.Manifest{MediaType: v1.MediaTypeImageManifest}
	doc.SchemaVersion = 2
	for i, kind := range layers {
		layer := b.put(kind, []byte(platforms.Format(p)+string(rune('a'+i))))
		doc.Layers = append(doc.Layers, layer)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.Digest)
	}
	doc.Config = b.putJSON(v1.MediaTypeImageConfig, config)
	return b.putJSON(v1.MediaTypeImageManifest, doc)
}

func (b box) index(entries ...v1.Descriptor) v1.Descriptor {
	b.t.Helper()
	doc := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: entries}
	doc.SchemaVersion = 2
	return b.putJSON(v1.MediaTypeImageIndex, doc)
}

func (b box) remove(dgst digest.Digest) {
	b.t.Helper()
	if err := b.Delete(b.t.Context(), dgst); err != nil {
		b.t.Fatal(err)
	}
}

func (b box) manifest(desc v1.Descriptor) *manifest.Manifest {
	b.t.Helper()
	m, err := manifest.New(b, desc)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

func on(desc v1.Descriptor, p v1.Platform) v1.Descriptor {
	desc.Platform = &p
	return desc
}

// A69
func TestNewRefusesOtherTypes(t *testing.T) {
	b := newBox(t)
	for _, kind := range []string{v1.MediaTypeImageIndex, images.MediaTypeDockerSchema2ManifestList, v1.MediaTypeImageConfig, images.MediaTypeDockerSchema1Manifest, ""} {
		_, err := manifest.New(b, v1.Descriptor{MediaType: kind, Digest: digest.FromString("x")})
		if !errors.Is(err, manifest.ErrNotManifest) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %v, want ErrNotManifest", kind, err)
		}
	}
}

// A67
func TestIsPseudo(t *testing.T) {
	b := newBox(t)
	image := b.image(amd64, v1.MediaTypeImageLayerGzip)
	attestation := on(b.image(v1.Platform{OS: "unknown", Architecture: "unknown"}, images.MediaTypeInToto), v1.Platform{OS: "unknown", Architecture: "unknown"})
	attestation.Annotations = map[string]string{
		"vnd.docker.reference.type":   "attestation-manifest",
		"vnd.docker.reference.digest": image.Digest.String(),
	}
	for _, c := range []struct {
		name        string
		desc        v1.Descriptor
		pseudo      bool
		attestation bool
	}{
		{"an image", image, false, false},
		{"no layers", b.image(arm64), false, false},
		{"an attestation", attestation, true, true},
		{"unknown platform", on(image, v1.Platform{OS: "unknown", Architecture: "unknown"}), true, false},
		{"other layers only", b.image(amd64, images.MediaTypeInToto, "application/vnd.cncf.helm.chart.content.v1.tar+gzip"), true, false},
		{"one real layer among others", b.image(amd64, images.MediaTypeInToto, images.MediaTypeDockerSchema2LayerGzip), false, false},
		{"a real layer, encrypted", b.image(amd64, images.MediaTypeImageLayerGzipEncrypted), false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := b.manifest(c.desc)
			got, err := m.IsPseudo(t.Context())
			if err != nil || got != c.pseudo {
				t.Errorf("IsPseudo: got %v, %v, want %v", got, err, c.pseudo)
			}
			if got := m.IsAttestation(); got != c.attestation {
				t.Errorf("IsAttestation: got %v, want %v", got, c.attestation)
			}
		})
	}
	if got := b.manifest(attestation).Subject(); got != image.Digest {
		t.Errorf("Subject: got %s, want %s", got, image.Digest)
	}
	b.remove(image.Digest)
	if _, err := b.manifest(image).IsPseudo(t.Context()); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), image.Digest.String()) {
		t.Errorf("without its manifest: got %v, want NotFound naming %s", err, image.Digest)
	}
}

// A68
func TestAvailable(t *testing.T) {
	for _, c := range []struct {
		name   string
		remove func(v1.Descriptor, v1.Manifest) []digest.Digest
	}{
		{"complete", func(v1.Descriptor, v1.Manifest) []digest.Digest { return nil }},
		{"no layer", func(_ v1.Descriptor, doc v1.Manifest) []digest.Digest { return []digest.Digest{doc.Layers[1].Digest} }},
		{"no configuration", func(_ v1.Descriptor, doc v1.Manifest) []digest.Digest { return []digest.Digest{doc.Config.Digest} }},
		{"no manifest", func(desc v1.Descriptor, _ v1.Manifest) []digest.Digest { return []digest.Digest{desc.Digest} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			desc := b.image(amd64, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerZstd)
			doc, err := b.manifest(desc).Manifest(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := c.remove(desc, doc)
			for _, dgst := range want {
				b.remove(dgst)
			}
			ok, err := b.manifest(desc).Available(t.Context())
			if err != nil || ok != (len(want) == 0) {
				t.Errorf("got %v, %v", ok, err)
			}
			missing, err := b.manifest(desc).Missing(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, digests(missing)); diff != "" {
				t.Errorf("missing (-want +got):\n%s", diff)
			}
		})
	}
}

func digests(descs []v1.Descriptor) (all []digest.Digest) {
	for _, desc := range descs {
		all = append(all, desc.Digest)
	}
	return all
}

func TestContents(t *testing.T) {
	b := newBox(t)
	desc := b.image(v1.Platform{OS: "linux", Architecture: "aarch64"}, v1.MediaTypeImageLayerGzip)
	m := b.manifest(desc)
	p, err := m.Platform(t.Context())
	if err != nil || platforms.Format(p) != "linux/arm64" {
		t.Errorf("platform of the configuration: got %v, %v", p, err)
	}
	p, err = b.manifest(on(desc, amd64)).Platform(t.Context())
	if err != nil || platforms.Format(p) != "linux/amd64" {
		t.Errorf("platform of the index: got %v, %v", p, err)
	}
	doc, err := m.Manifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if dgst, err := m.ConfigDigest(t.Context()); err != nil || dgst != doc.Config.Digest {
		t.Errorf("ConfigDigest: got %s, %v", dgst, err)
	}
	if chain, err := m.ChainID(t.Context()); err != nil || chain != doc.Layers[0].Digest {
		t.Errorf("ChainID: got %s, %v", chain, err)
	}
	want := desc.Size + doc.Config.Size + doc.Layers[0].Size
	if size, err := m.Size(t.Context()); err != nil || size != want {
		t.Errorf("Size: got %d, %v, want %d", size, err, want)
	}
	if record := m.Record(images.Image{Name: "a", Target: b.index(desc)}); record.Name != "a" || record.Target.Digest != desc.Digest {
		t.Errorf("Record: got %+v", record)
	}
	// What has been read is kept.
	b.remove(desc.Digest)
	if _, err := m.Manifest(t.Context()); err != nil {
		t.Errorf("second read: %v", err)
	}
}

func TestUnreadable(t *testing.T) {
	b := newBox(t)
	large := b.image(amd64)
	large.Size = 17 << 20
	for _, c := range []struct {
		name string
		desc v1.Descriptor
		is   func(error) bool
	}{
		{"not JSON", b.put(v1.MediaTypeImageManifest, []byte("{")), errdefs.IsInvalidArgument},
		{"schema 1", b.put(images.MediaTypeDockerSchema2Manifest, []byte(`{"schemaVersion":1,"fsLayers":[{}]}`)), errdefs.IsInvalidArgument},
		{"an index", b.put(v1.MediaTypeImageManifest, []byte(`{"manifests":[{}]}`)), errdefs.IsInvalidArgument},
		{"missing", v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("none")}, errdefs.IsNotFound},
		{"too large", large, errdefs.IsResourceExhausted},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := b.manifest(c.desc).Manifest(t.Context())
			if !c.is(err) || !strings.Contains(err.Error(), c.desc.Digest.String()) {
				t.Errorf("got %v", err)
			}
		})
	}
	doc := v1.Manifest{Config: b.put(v1.MediaTypeImageConfig, []byte("[]"))}
	if _, err := b.manifest(b.putJSON(v1.MediaTypeImageManifest, doc)).Config(t.Context()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("configuration: got %v", err)
	}
}

// A44, and the walkers' rule for what is missing
func TestWalk(t *testing.T) {
	b := newBox(t)
	one := on(b.image(amd64, v1.MediaTypeImageLayerGzip), amd64)
	two := on(b.image(arm64, v1.MediaTypeImageLayerGzip), arm64)
	three := b.image(v1.Platform{OS: "linux", Architecture: "s390x"})
	nested := b.index(two)
	chart := v1.Descriptor{MediaType: "application/vnd.example", Digest: digest.FromString("chart")}
	top := b.index(one, nested, chart, three)

	all := func(ctx context.Context) ([]digest.Digest, error) {
		var found []digest.Digest
		err := manifest.Walk(ctx, b, top, func(m *manifest.Manifest) error {
			found = append(found, m.Descriptor().Digest)
			return nil
		})
		return found, err
	}
	present := func() []digest.Digest {
		list, err := manifest.Present(t.Context(), b, top)
		if err != nil {
			t.Fatal(err)
		}
		var found []digest.Digest
		for _, m := range list {
			found = append(found, m.Descriptor().Digest)
		}
		return found
	}
	every := []digest.Digest{one.Digest, two.Digest, three.Digest}
	if found, err := all(t.Context()); err != nil || !slices.Equal(found, every) {
		t.Errorf("all: got %v, %v, want %v", found, err, every)
	}
	if found := present(); !slices.Equal(found, every) {
		t.Errorf("present: got %v, want %v", found, every)
	}

	b.remove(three.Digest)
	if found := present(); !slices.Equal(found, every[:2]) {
		t.Errorf("present without a manifest: got %v, want %v", found, every[:2])
	}
	b.remove(nested.Digest)
	if found := present(); !slices.Equal(found, every[:1]) {
		t.Errorf("present without an index: got %v, want %v", found, every[:1])
	}
	if _, err := all(t.Context()); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), nested.Digest.String()) {
		t.Errorf("all without an index: got %v, want NotFound naming %s", err, nested.Digest)
	}
	stop := errors.New("stop")
	if err := manifest.WalkPresent(t.Context(), b, top, func(*manifest.Manifest) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want the callback's error", err)
	}
	// A record may point to anything.
	if list, err := manifest.Present(t.Context(), b, chart); err != nil || len(list) != 0 {
		t.Errorf("of a chart: got %v, %v", list, err)
	}
}

func TestBest(t *testing.T) {
	b := newBox(t)
	intel := on(b.image(amd64, v1.MediaTypeImageLayerGzip), amd64)
	arm := on(b.image(arm64, v1.MediaTypeImageLayerGzip), arm64)
	fake := on(b.image(amd64, images.MediaTypeInToto), amd64)
	top := b.index(fake, arm, intel)
	find := func(target v1.Descriptor, p platforms.MatchComparer) (digest.Digest, error) {
		m, err := manifest.Best(t.Context(), b, target, p)
		if err != nil {
			return "", err
		}
		return m.Descriptor().Digest, nil
	}
	check := func(name string, target v1.Descriptor, p platforms.MatchComparer, want digest.Digest) {
		t.Helper()
		if got, err := find(target, p); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", name, got, err, want)
		}
	}
	check("amd64", top, platforms.OnlyStrict(amd64), intel.Digest)
	check("arm64", top, platforms.OnlyStrict(arm64), arm.Digest)
	check("amd64 preferred", top, manifest.Prefer(platforms.Only(amd64)), intel.Digest)
	check("s390x preferred", top, manifest.Prefer(platforms.Only(v1.Platform{OS: "linux", Architecture: "s390x"})), arm.Digest)
	check("a manifest alone", arm, manifest.Prefer(platforms.Only(amd64)), arm.Digest)
	_, err := find(top, platforms.OnlyStrict(v1.Platform{OS: "linux", Architecture: "s390x"}))
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("s390x: got %v, want NotFound listing what is present", err)
	}
	doc, err := b.manifest(intel).Manifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.remove(doc.Layers[0].Digest)
	check("a complete one first", top, manifest.Prefer(platforms.Only(amd64)), arm.Digest)
	check("without layers if need be", top, platforms.OnlyStrict(amd64), intel.Digest)
	b.remove(doc.Config.Digest)
	if _, err := find(top, platforms.OnlyStrict(amd64)); !errdefs.IsNotFound(err) {
		t.Errorf("without a configuration: got %v, want NotFound", err)
	}
}
