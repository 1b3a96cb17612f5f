// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Whiteouts, by which a layer says that something is gone (image-spec, layer.md).
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// writeDiff writes rootfs-diff.tar and deleted.files, which say what a layer says
// in one. A container without a snapshot has neither.
func (e *Engine) writeDiff(ctx context.Context, info *containers.Container, dir string) error {
	if info.SnapshotKey == "" {
		return nil
	}
	ctx, done, err := e.Client.WithLease(ctx) // for the layer
	if err != nil {
		return err
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }() // it expires by itself
	layer, err := rootfs.CreateDiff(ctx, info.SnapshotKey, e.Client.SnapshotService(info.Snapshotter), e.Client.DiffService(),
		diff.WithMediaType(ocispec.MediaTypeImageLayer), diff.WithReference("checkpoint-"+info.ID))
	if err != nil {
		return err
	}
	store := e.Client.ContentStore()
	r, err := store.ReaderAt(ctx, layer)
	if err != nil {
		return err
	}
	deleted, err := splitLayer(content.NewReader(r), filepath.Join(dir, diffFile))
	err = errors.Join(err, r.Close())
	if err == nil {
		err = writeJSON(filepath.Join(dir, deletedFile), deleted)
	}
	return err
}

// splitLayer copies a layer to a new file at path, but for what it says is gone,
// which is returned: paths relative to the root.
func splitLayer(layer io.Reader, path string) (deleted []string, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	deleted = []string{}
	in, out := tar.NewReader(layer), tar.NewWriter(f)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return deleted, out.Close()
		}
		if err != nil {
			return nil, err
		}
		if gone := goneBy(h.Name); gone != "" {
			deleted = append(deleted, gone)
			continue
		}
		if err := out.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
		if _, err := io.Copy(out, in); err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// goneBy returns what an entry of a layer says is gone, "" for other entries. A
// directory whose old content is gone counts as gone: deletions come before the
// rest, which makes it anew.
func goneBy(name string) string {
	dir, base := path.Split(path.Clean(name))
	switch rest, ok := strings.CutPrefix(base, whiteout); {
	case base == opaque:
		return path.Clean(dir)
	case ok:
		return path.Join(dir, rest)
	}
	return ""
}
