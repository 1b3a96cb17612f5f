// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Archive writes the image as an OCI archive, the form that `ctr images import`
// takes. The image arrives under its full reference.
func (i *Image) Archive(w io.Writer) error { return Archive(w, i) }

// Archive writes images as one OCI archive.
func Archive(w io.Writer, imgs ...*Image) error {
	files, err := layout(imgs)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, f := range files {
		if err := f.write(t); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
	}
	return t.Close()
}

// Layout writes images as an OCI layout in dir, which is made.
func Layout(dir string, imgs ...*Image) error {
	files, err := layout(imgs)
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// layout is the files of an OCI layout.
func layout(imgs []*Image) ([]File, error) {
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	var blobs []File
	written := map[string]bool{}
	for _, i := range imgs {
		index.Manifests = append(index.Manifests, i.named())
		for _, b := range i.blobs {
			path := v1.ImageBlobsDir + "/" + b.desc.Digest.Algorithm().String() + "/" + b.desc.Digest.Encoded()
			if !written[path] {
				blobs = append(blobs, File{Path: path, Mode: 0o644, Data: b.data})
			}
			written[path] = true
		}
	}
	top, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	version, err := json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	return append([]File{
		{Path: v1.ImageLayoutFile, Mode: 0o644, Data: version},
		{Path: v1.ImageIndexFile, Mode: 0o644, Data: top},
	}, blobs...), nil
}

// named is the root with the image's name, as an index of a layout has it.
func (i *Image) named() v1.Descriptor {
	top := i.root
	if images.IsManifestType(top.MediaType) {
		top.Platform = &amd64
	}
	top.Annotations = map[string]string{
		images.AnnotationImageName: i.Ref,
		v1.AnnotationRefName:       i.Ref[strings.LastIndexByte(i.Ref, ':')+1:],
	}
	return top
}

// Push uploads the image to the registry that its reference names, over plain HTTP
// when that is on loopback, with containerd's own client.
func (i *Image) Push(ctx context.Context) error {
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	pusher, err := docker.NewResolver(docker.ResolverOptions{Hosts: hosts}).Pusher(ctx, i.Ref)
	if err != nil {
		return fmt.Errorf("push %s: %w", i.Ref, err)
	}
	if err := remotes.PushContent(ctx, pusher, i.root, i, nil, platforms.All, withoutForeign); err != nil {
		return fmt.Errorf("push %s: %w", i.Ref, err)
	}
	return nil
}

// withoutForeign leaves out what an image describes and does not contain.
func withoutForeign(h images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		if images.IsNonDistributable(desc.MediaType) {
			return nil, images.ErrSkipDesc
		}
		return h.Handle(ctx, desc)
	})
}
