// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// stage is the content store while something comes in that cannot be trusted yet.
type stage struct {
	content.Store
	// prefix goes before the names of ingests. containerd's importer calls them after
	// the archive's files: a load would wait for another that has such a file, or go on
	// with what a broken one has left there, whatever that was.
	prefix string
}

// Writer opens an ingest of the stage's own.
func (s *stage) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	w, err := s.Store.Writer(ctx, content.WithRef(s.prefix+o.Ref), content.WithDescriptor(o.Desc))
	if err != nil {
		return nil, err
	}
	return ingest{w}, nil
}

// ingest is a writer whose errors tell that it is not the archive that is broken: when
// containerd goes away the stream to it just ends.
type ingest struct{ content.Writer }

func (i ingest) Write(p []byte) (int, error) {
	n, err := i.Writer.Write(p)
	if err != nil && errdefs.IsUnknown(errdefs.Resolve(err)) {
		err = fmt.Errorf("content store: %w: %w", err, errdefs.ErrUnavailable)
	}
	return n, err
}

// Abort gives up one of the stage's ingests.
func (s *stage) Abort(ctx context.Context, ref string) error {
	return s.Store.Abort(ctx, s.prefix+ref)
}

// ReaderAt opens a blob, if it is what its descriptor says as far as this can be seen
// without reading: the class is ErrInvalidArgument if not. Everything that is read
// whole passes here, containerd's own reading included.
func (s *stage) ReaderAt(ctx context.Context, desc v1.Descriptor) (content.ReaderAt, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("blob %q: %w: %w", shortened(string(desc.Digest)), err, errdefs.ErrInvalidArgument)
	}
	blob, err := s.Store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	if err := plausible(desc, blob.Size()); err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	return blob, nil
}

func plausible(desc v1.Descriptor, size int64) error {
	document := images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType) || images.IsConfigType(desc.MediaType)
	switch {
	case desc.Size != size:
		return fmt.Errorf("blob %s: %d bytes, described as %d: %w", desc.Digest, size, desc.Size, errdefs.ErrInvalidArgument)
	case document && size > maxDocumentBytes:
		return fmt.Errorf("%s %s: %d bytes are more than %d: %w", desc.MediaType, desc.Digest, size, maxDocumentBytes, errdefs.ErrInvalidArgument)
	}
	return nil
}
