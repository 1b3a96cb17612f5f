// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/core/leases"
	cmount "github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"

	"github.com/berthd/berth/images/idmap"
)

// Kind says what became of a file.
type Kind uint8

// The kinds of changes.
const (
	Added Kind = iota + 1
	Modified
	Deleted
)

// String is the word for it.
func (k Kind) String() string {
	return map[Kind]string{Added: "added", Modified: "modified", Deleted: "deleted"}[k]
}

// Change is one file that a container has changed.
type Change struct {
	Kind Kind
	Path string // from the container's root, with a slash in front
}

// Changes lists in the order of their paths the files that a container has changed
// since it was made. A folder is modified when its owner, mode or attributes are; what
// is in a removed folder is not listed. A running container may change more meanwhile.
func (l *Layers) Changes(ctx context.Context, id string) ([]Change, error) {
	ctx = l.context(ctx)
	r, err := l.Rootfs(ctx, id)
	if err != nil {
		return nil, err
	}
	var all []Change
	err = l.compare(ctx, r, func(lower, upper string) error {
		all, err = changes(ctx, roots{lower, upper, r.IDs})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("changes of container %s: %w", id, err)
	}
	return all, nil
}

// roots are two folders of which one has become the other.
type roots struct {
	lower, upper string
	ids          idmap.Map
}

func changes(ctx context.Context, r roots) (all []Change, err error) {
	kinds := map[fs.ChangeKind]Kind{fs.ChangeKindAdd: Added, fs.ChangeKindModify: Modified, fs.ChangeKindDelete: Deleted}
	err = fs.Changes(ctx, r.lower, r.upper, func(kind fs.ChangeKind, path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		k, ok := kinds[kind]
		if !ok || k == Modified && info.IsDir() && r.copied(path, info) {
			return nil
		}
		all = append(all, Change{k, path})
		return nil
	})
	return all, err
}

// copied tells whether a folder differs by nothing but the map of owners: an overlay
// copies the folders above a changed file, with the owners that the map gives them.
func (r roots) copied(path string, upper os.FileInfo) bool {
	lower, err := os.Lstat(filepath.Join(r.lower, path))
	if err != nil || r.ids.Empty() || lower.Mode() != upper.Mode() {
		return false
	}
	before, after := lower.Sys().(*syscall.Stat_t), upper.Sys().(*syscall.Stat_t)
	uid, gid, err := r.ids.ToHost(int(before.Uid), int(before.Gid))
	return err == nil && uid == int(after.Uid) && gid == int(after.Gid)
}

// compare mounts a container's root and what it stands on beside each other, both
// read-only, with the owners that are on the disk.
func (l *Layers) compare(ctx context.Context, r Rootfs, fn func(lower, upper string) error) (err error) {
	ctx, done, err := l.Lease(ctx)
	if err != nil {
		return err
	}
	defer done(&err)
	lower, remove, err := l.View(ctx, r.Snapshotter, r.Parent())
	if err != nil {
		return err
	}
	defer remove(&err)
	upper, err := l.client.SnapshotService(r.Snapshotter).Mounts(ctx, r.Key)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", r.Key, err)
	}
	name, _ := leases.FromContext(ctx)
	return l.mounts.View(ctx, name+"-lower", lower, func(below string) error {
		return l.mounts.View(ctx, name+"-upper", cmount.RemoveIDMapOption(upper), func(root string) error {
			return fn(below, root)
		})
	})
}
