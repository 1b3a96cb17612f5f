// SPDX-License-Identifier: Apache-2.0

package push

import (
	"context"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/transfer"
)

// statuses tells what has become of a blob that was pushed.
type statuses interface {
	GetStatus(blob string) (docker.Status, error)
}

// watched is a pusher that sends so many blobs at a time, and tells how far each is.
type watched struct {
	remotes.Pusher

	status statuses // nil if the resolver does not tell
	table  *transfer.Table
	turns  *semaphore.Weighted
}

// Push implements remotes.Pusher. The turn ends with the writer.
func (w *watched) Push(ctx context.Context, desc v1.Descriptor) (content.Writer, error) {
	w.table.Set(desc, transfer.Waiting)
	release, err := transfer.Acquire(ctx, w.turns)
	if err != nil {
		return nil, err
	}
	w.table.Set(desc, transfer.Preparing)
	writer, err := w.Pusher.Push(ctx, desc)
	if err != nil {
		release()
		if errdefs.IsAlreadyExists(err) {
			w.exists(ctx, desc)
			return nil, err
		}
		return nil, registry.Classify(err)
	}
	w.table.Set(desc, transfer.Pushing)
	w.table.Seek(desc, 0)
	return &counted{Writer: writer, desc: desc, table: w.table, release: sync.OnceFunc(release)}, nil
}

func (w *watched) exists(ctx context.Context, desc v1.Descriptor) {
	if w.status != nil {
		if s, err := w.status.GetStatus(remotes.MakeRefKey(ctx, desc)); err == nil && s.MountedFrom != "" {
			w.table.SetMounted(desc, s.MountedFrom)
			return
		}
	}
	w.table.Set(desc, transfer.LayerExists)
}

// counted is a blob that is sent.
type counted struct {
	content.Writer

	desc    v1.Descriptor
	table   *transfer.Table
	release func()
}

// Write implements content.Writer.
func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.table.Add(c.desc, n)
	return n, err
}

// Commit implements content.Writer.
func (c *counted) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := c.Writer.Commit(ctx, size, expected, opts...)
	if err == nil || errdefs.IsAlreadyExists(err) {
		c.table.Set(c.desc, transfer.Pushed)
	}
	return err
}

// Close implements content.Writer.
func (c *counted) Close() error {
	defer c.release()
	return c.Writer.Close()
}
