// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// ErrTooLarge says that an image unpacks to more than is allowed. Its class is
// ErrResourceExhausted.
var ErrTooLarge = errdefs.ErrResourceExhausted.WithMessage("image unpacks to more than is allowed")

// guard is a snapshotter that bounds what the layers of one image take together. It
// looks while they are unpacked: what they will take cannot be known before without
// unpacking them, which is most of the work of a pull.
type guard struct {
	snapshots.Snapshotter

	limit int64

	mu   sync.Mutex        // guards what is below
	keys map[string]string // of active snapshots, by the directory they are in
	used map[string]int64  // bytes, by key
}

func newGuard(s snapshots.Snapshotter, limit int64) *guard {
	return &guard{Snapshotter: s, limit: limit, keys: map[string]string{}, used: map[string]int64{}}
}

// Prepare implements snapshots.Snapshotter.
func (g *guard) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := g.Snapshotter.Prepare(ctx, key, parent, opts...)
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

// How often a snapshot is looked at that is being written: at first soon, and so
// that it takes no more than a twentieth of the time.
const (
	firstLook = 100 * time.Millisecond
	lookShare = 20
)

// watch returns a context that is cancelled when the limit is exceeded, for what
// writes to a snapshot. The caller calls done afterwards; its error is ErrTooLarge.
func (g *guard) watch(ctx context.Context, mounts []mount.Mount) (_ context.Context, done func() error) {
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
	return ctx, func() error {
		cancel(nil)
		<-ended
		return g.look(looking, key)
	}
}

// look asks what a snapshot takes. A snapshotter that cannot tell has no limit.
func (g *guard) look(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTime)
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

// leans tells whether a layer that was unpacked apart from those below it needs
// them: it has files in directories that it does not have itself. containerd makes
// such a directory with the owner and the mode of the one below, which it cannot
// see now. It also leaves it the time at which it was made, whereas a directory of
// the layer has its own: by this one is told from the other. A layer that was
// made in the future leans as well, to be on the safe side.
func leans(mounts []mount.Mount, start time.Time) bool {
	if kind := mounts[len(mounts)-1].Type; kind != "bind" && kind != "overlay" {
		return false // the snapshotter does not have directories, or sees to it
	}
	root := place(mounts)
	// Clocks of file systems go in ticks of up to 10 ms.
	start = start.Add(-time.Second)
	found := false
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() || path == root {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.ModTime().After(start) {
			found = true
			return fs.SkipAll
		}
		return err
	})
	return found || err != nil
}
