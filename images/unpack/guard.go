// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// guard is a snapshotter, and what writes to it, that bounds what the layers of one
// image take together. It looks while they are unpacked: what they will take cannot be
// known before without unpacking them, which is most of the work of a pull.
type guard struct {
	snapshots.Snapshotter
	applier diff.Applier

	limit int64

	mu   sync.Mutex        // guards what is below
	keys map[string]string // of active snapshots, by the directory they are in
	used map[string]int64  // bytes, by key
}

func newGuard(s snapshots.Snapshotter, a diff.Applier, limit int64) *guard {
	return &guard{Snapshotter: s, applier: a, limit: limit, keys: map[string]string{}, used: map[string]int64{}}
}

// Prepare implements snapshots.Snapshotter. It asks twice: a containerd that is killed
// may leave a directory in the way of its next snapshot, which overlayfs's snapshotter
// removes as it fails.
func (g *guard) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := g.Snapshotter.Prepare(ctx, key, parent, opts...)
	if errdefs.IsUnknown(err) {
		mounts, err = g.Snapshotter.Prepare(ctx, key, parent, opts...)
	}
	if err == nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.keys[place(mounts)] = key
	}
	return mounts, err
}

// Remove implements snapshots.Snapshotter. What is not there counts as removed:
// containerd's unpacker cleans up twice after a layer that has failed, and would
// complain.
func (g *guard) Remove(ctx context.Context, key string) error {
	if err := g.Snapshotter.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.used, key)
	return nil
}

// Apply implements diff.Applier. Its error is ErrTooLarge when the limit is exceeded.
func (g *guard) Apply(ctx context.Context, desc v1.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (v1.Descriptor, error) {
	ctx, done := g.watch(ctx, mounts)
	applied, err := g.applier.Apply(ctx, desc, mounts, opts...)
	if over := done(err); over != nil {
		return v1.Descriptor{}, over
	}
	return applied, err
}

// How often a snapshot is looked at that is being written: at first soon, and so
// that it takes no more than a twentieth of the time.
const (
	firstLook = 100 * time.Millisecond
	lookShare = 20
)

// watch returns a context that is cancelled when the limit is exceeded, for what
// writes to a snapshot. The caller calls done afterwards, with what came of it; its
// error is ErrTooLarge.
func (g *guard) watch(ctx context.Context, mounts []mount.Mount) (_ context.Context, done func(error) error) {
	g.mu.Lock()
	key := g.keys[place(mounts)]
	g.mu.Unlock()
	// The last look comes after an error, too.
	looking := context.WithoutCancel(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pause := firstLook
		for {
			timer := time.NewTimer(pause)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			start := time.Now()
			if over := g.look(looking, key); over != nil {
				cancel(over)
				return
			}
			pause = max(firstLook, lookShare*time.Since(start))
		}
	}()
	return ctx, func(written error) error {
		cancel(nil)
		<-ended
		if errdefs.IsUnavailable(written) { // containerd is gone, and would be waited for
			return nil
		}
		return g.look(looking, key)
	}
}

// lookTime bounds the wait for an answer.
const lookTime = 30 * time.Second

// look asks what a snapshot takes. A snapshotter that cannot tell has no limit.
func (g *guard) look(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	usage, err := g.Usage(ctx, key)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used[key] = usage.Size
	var sum int64
	for _, n := range g.used {
		sum += n
	}
	if sum > g.limit {
		return fmt.Errorf("%w: the limit is %d bytes", ErrTooLarge, g.limit)
	}
	return nil
}

// place is the directory that is written to through the mounts of a snapshot, or
// what else tells them from others.
func place(mounts []mount.Mount) string {
	if len(mounts) == 0 {
		return ""
	}
	last := mounts[len(mounts)-1]
	for _, option := range last.Options {
		if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
			return dir
		}
	}
	return last.Source
}
