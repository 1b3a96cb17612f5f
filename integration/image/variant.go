// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Variant is an image for one platform.
type Variant struct {
	Platform    v1.Platform // without an OS: linux/amd64
	Layers      []Layer     // the lowest first
	Config      v1.ImageConfig
	Annotations map[string]string // of the manifest
	Docker      bool              // media types of Docker's schema 2
	Attested    bool              // an attestation manifest goes with it
}

var amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}

// Build makes an image of one manifest, or an index when there are several variants
// or an attested one.
func Build(ref string, variants ...Variant) (*Image, error) {
	img := &Image{Ref: ref}
	var made []v1.Descriptor
	for _, v := range variants {
		manifests, err := img.variant(v)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", ref, err)
		}
		made = append(made, manifests...)
	}
	if len(made) == 1 {
		img.root = made[0]
		img.root.Platform = nil
		return img, nil
	}
	types := typesOf(len(variants) > 0 && variants[0].Docker)
	var err error
	img.root, err = img.addJSON(types.index, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: types.index,
		Manifests: made,
	})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}

// mediaTypes are what OCI and Docker call the same things.
type mediaTypes struct{ index, manifest, config string }

func typesOf(docker bool) mediaTypes {
	if docker {
		return mediaTypes{images.MediaTypeDockerSchema2ManifestList, images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2Config}
	}
	return mediaTypes{v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, v1.MediaTypeImageConfig}
}

// dockerLayers are Docker's names of the layers' media types.
var dockerLayers = map[string]string{
	v1.MediaTypeImageLayer:     images.MediaTypeDockerSchema2Layer,
	v1.MediaTypeImageLayerGzip: images.MediaTypeDockerSchema2LayerGzip,
	foreignGzip:                images.MediaTypeDockerSchema2LayerForeignGzip,
}

// variant adds a variant's blobs and describes its manifests.
func (i *Image) variant(v Variant) ([]v1.Descriptor, error) {
	if v.Platform.OS == "" {
		v.Platform = amd64
	}
	if len(v.Config.Env) == 0 {
		v.Config.Env = []string{"PATH=/bin:/sbin:/usr/bin"}
	}
	types := typesOf(v.Docker)
	layers, diffs := []v1.Descriptor{}, []digest.Digest{}
	for _, layer := range v.Layers {
		desc := layer.desc
		if name := dockerLayers[desc.MediaType]; v.Docker && name != "" {
			desc.MediaType = name
		}
		if layer.data != nil {
			i.add(desc, layer.data)
		}
		layers, diffs = append(layers, desc), append(diffs, layer.diff)
	}
	config, err := i.addJSON(types.config, v1.Image{
		Platform: v.Platform,
		Config:   v.Config,
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: diffs},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := i.addJSON(types.manifest, v1.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   types.manifest,
		Config:      config,
		Layers:      layers,
		Annotations: v.Annotations,
	})
	if err != nil {
		return nil, err
	}
	manifest.Platform = &v.Platform
	if !v.Attested {
		return []v1.Descriptor{manifest}, nil
	}
	attestation, err := i.attest(manifest.Digest)
	return []v1.Descriptor{manifest, attestation}, err
}

// attest adds an attestation of a manifest, as BuildKit makes them.
func (i *Image) attest(subject digest.Digest) (v1.Descriptor, error) {
	const inToto = "application/vnd.in-toto+json"
	statement, err := i.addJSON(inToto, map[string]any{
		"_type":   "https://in-toto.io/Statement/v0.1",
		"subject": []any{map[string]any{"digest": map[string]string{"sha256": subject.Encoded()}}},
	})
	if err != nil {
		return v1.Descriptor{}, err
	}
	unknown := v1.Platform{OS: "unknown", Architecture: "unknown"}
	config, err := i.addJSON(v1.MediaTypeImageConfig, v1.Image{
		Platform: unknown,
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{statement.Digest}},
	})
	if err != nil {
		return v1.Descriptor{}, err
	}
	manifest, err := i.addJSON(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    config,
		Layers:    []v1.Descriptor{statement},
	})
	manifest.Platform = &unknown
	manifest.Annotations = map[string]string{
		"vnd.docker.reference.type":   "attestation-manifest",
		"vnd.docker.reference.digest": subject.String(),
	}
	return manifest, err
}
