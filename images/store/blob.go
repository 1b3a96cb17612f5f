// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxLocalBytes bounds what is read at once: manifests and configurations.
const maxLocalBytes = 4 << 20

// local reads small blobs where containerd's content store has them on this host, in
// the layout that OCI gives an image on disk. A request to containerd for each
// manifest and configuration is what makes long listings slow. What is read is held
// against its digest, and what cannot be read so is asked of containerd, so that
// nothing depends on the place being right.
type local struct {
	content.Provider
	root string // empty: not known
}

// smallBlobs is where to read manifests and configurations. Containerd is asked once.
func (s *Store) smallBlobs(ctx context.Context) local {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blobs.root == "" {
		s.blobs = openLocal(ctx, s.client)
	}
	return s.blobs
}

// openLocal asks containerd where its blobs are.
func openLocal(ctx context.Context, c *client.Client) local {
	l := local{Provider: c.ContentStore()}
	answer, err := c.IntrospectionService().Plugins(ctx, "type=="+plugins.ContentPlugin.String())
	if err != nil {
		return l
	}
	for _, p := range answer.GetPlugins() {
		if root := p.GetExports()["root"]; root != "" {
			l.root = filepath.Join(root, "blobs")
		}
	}
	return l
}

// ReaderAt opens a blob.
func (l local) ReaderAt(ctx context.Context, desc v1.Descriptor) (content.ReaderAt, error) {
	if l.root == "" || desc.Size > maxLocalBytes || desc.Digest.Validate() != nil {
		return l.Provider.ReaderAt(ctx, desc)
	}
	data, err := os.ReadFile(filepath.Join(l.root, desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
	if err != nil || desc.Digest.Algorithm().FromBytes(data) != desc.Digest {
		return l.Provider.ReaderAt(ctx, desc)
	}
	return memory{bytes.NewReader(data)}, nil
}

type memory struct{ *bytes.Reader }

// Close does nothing.
func (memory) Close() error { return nil }
