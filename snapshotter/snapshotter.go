// SPDX-License-Identifier: Apache-2.0

// Package snapshotter is containerd's overlayfs snapshotter with limits: each
// writable layer may have a size, enforced by a project quota or by a file system
// of its own, and tells what it holds without walking it. Layers, records and
// mounts are the overlayfs snapshotter's; this package gives a layer its limit
// after that has made it, and takes it back. It knows nothing of images and
// containers.
//
// A root has the overlayfs snapshotter's form: snapshots/ID/{fs,work}, metadata.db.
// Beside it is the directory project, whose own project number is the first of those
// of the root's snapshots.
package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/snapshotter/image"
)

// Snapshotter is an overlayfs snapshotter with limits. It is safe for concurrent
// use. Its root must not be another's at the same time; the lock of metadata.db
// sees to that.
type Snapshotter struct {
	snapshots.Snapshotter // the overlayfs one: whatever is not below

	config   Config
	store    *storage.MetaStore
	projects *projects // nil where the file system does not count them
	layers   layerLocks
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshotter of a root, and clears what a crash left there: limits
// and mounts of snapshots that are gone. It returns ErrInvalidArgument for a bad
// configuration and ErrFailedPrecondition for a limit that cannot be held on this
// machine; nothing is made then.
func New(ctx context.Context, c Config) (_ *Snapshotter, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(c.Root, "snapshots"), 0o700); err != nil {
		return nil, err
	}
	s := &Snapshotter{config: c}
	if s.projects, err = openProjects(c.Root); err != nil && !errdefs.IsNotImplemented(err) {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.projects.close())
		}
	}()
	if c.Size > 0 || c.Enforcement == Quota {
		if err := s.enforceable(); err != nil {
			return nil, err
		}
	}
	if s.store, err = storage.NewMetaStore(filepath.Join(c.Root, "metadata.db")); err != nil {
		return nil, err
	}
	if s.Snapshotter, err = overlay.NewSnapshotter(c.Root, s.options()...); err != nil {
		return nil, errors.Join(err, s.store.Close())
	}
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(err, s.Snapshotter.Close())
	}
	return s, nil
}

func (s *Snapshotter) options() []overlay.Opt {
	o := []overlay.Opt{overlay.WithMetaStore(s.store), overlay.WithMountOptions(s.config.MountOptions)}
	if !s.config.SyncRemove {
		o = append(o, overlay.AsynchronousRemove)
	}
	if s.config.RemapIDs {
		o = append(o, overlay.WithRemapIDs)
	}
	return o
}

// enforceable returns ErrFailedPrecondition with the reason where limits cannot be
// held.
func (s *Snapshotter) enforceable() error {
	if s.config.Enforcement != Image && s.projects.enforce() {
		return nil
	}
	if s.config.Enforcement == Quota {
		return fmt.Errorf("limit of layers in %s: no project quota is enforced there (ext4 or xfs, mounted with prjquota): %w", s.config.Root, errdefs.ErrFailedPrecondition)
	}
	if err := image.Supported(); err != nil {
		return fmt.Errorf("limit of layers in %s: neither a project quota nor an image: %w: %w", s.config.Root, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Prepare makes an active snapshot. Its limit is what LabelSize says, else the
// configured one.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var asked snapshots.Info
	for _, opt := range opts {
		if err := opt(&asked); err != nil {
			return nil, err
		}
	}
	limit, err := s.config.limit(key, asked.Labels)
	if err != nil {
		return nil, err
	}
	if limit > 0 {
		if err := s.enforceable(); err != nil {
			return nil, err
		}
		opts = append(opts, snapshots.WithLabels(map[string]string{LabelSize: strconv.FormatInt(limit, 10)}))
	}
	if _, err := s.Snapshotter.Prepare(ctx, key, parent, opts...); err != nil {
		return nil, err
	}
	mounts, err := s.limited(ctx, key, limit)
	if err != nil {
		return nil, errors.Join(err, s.Remove(context.WithoutCancel(ctx), key))
	}
	return mounts, nil
}

// limited gives a new snapshot its limit, and returns its mounts.
func (s *Snapshotter) limited(ctx context.Context, key string, limit int64) ([]mount.Mount, error) {
	l, err := s.layer(ctx, key)
	if err != nil {
		return nil, err
	}
	if s.projects != nil {
		if err := s.projects.assign(l, limit, s.config.Enforcement != Image); err != nil {
			return nil, err
		}
	}
	if limit > 0 && (s.config.Enforcement == Image || !s.projects.enforce()) {
		if err := l.makeImage(ctx, limit); err != nil {
			return nil, err
		}
	}
	return s.Mounts(ctx, key)
}

// Mounts returns the mounts of an active snapshot or view. Where the layer is an
// image it is mounted from here on, until the snapshot is committed or removed.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := s.Snapshotter.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	l, err := s.layer(ctx, key)
	if err != nil {
		return nil, err
	}
	if l.image.Exists() {
		defer s.layers.lock(l.id)()
		if err := l.image.Mount(); err != nil {
			return nil, err
		}
		l.moveUpper(mounts)
	}
	if s.config.Volatile && l.writable() {
		if err := l.forgive(); err != nil {
			return nil, err
		}
	}
	return s.dress(mounts, l), nil
}

// dress adds what overlayfs's own snapshotter does not know of.
func (s *Snapshotter) dress(mounts []mount.Mount, l layer) []mount.Mount {
	label := l.info.Labels[LabelMount]
	for i := range mounts {
		if mounts[i].Type != "overlay" {
			continue
		}
		if s.config.Volatile && l.writable() {
			mounts[i].Options = append(mounts[i].Options, "volatile")
		}
		if label != "" {
			mounts[i].Options = append(mounts[i].Options, "context="+strconv.Quote(label))
		}
	}
	return mounts
}

// View makes a read-only snapshot of parent.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if _, err := s.Snapshotter.View(ctx, key, parent, opts...); err != nil {
		return nil, err
	}
	return s.Mounts(ctx, key)
}

// Update changes labels. A new size is a new limit, at once; that of an image
// cannot change. Removing the label changes nothing.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	l, err := s.layer(ctx, info.Name)
	if err != nil {
		return snapshots.Info{}, err
	}
	if l.writable() && resizes(l.info, info, fields) {
		if err := s.resize(l, info.Labels); err != nil {
			return snapshots.Info{}, fmt.Errorf("update %s: %w", info.Name, err)
		}
	}
	return s.Snapshotter.Update(ctx, info, fields...)
}

// resizes tells whether an update names another size.
func resizes(was, will snapshots.Info, fields []string) bool {
	reached := len(fields) == 0 || slices.Contains(fields, "labels") || slices.Contains(fields, "labels."+LabelSize)
	size, named := will.Labels[LabelSize]
	return reached && named && size != was.Labels[LabelSize]
}

func (s *Snapshotter) resize(l layer, labels map[string]string) error {
	limit, err := s.config.limit(l.info.Name, labels)
	if err != nil {
		return err
	}
	if l.image.Exists() || !s.projects.enforce() {
		return fmt.Errorf("the limit of a layer without a project quota cannot change: %w", errdefs.ErrFailedPrecondition)
	}
	return s.projects.limit(l.id, limit)
}

// Usage is what a snapshot holds itself. That of an active one takes the same time
// whatever it holds, where the file system counts projects or the layer is an
// image; overlayfs's working directory is counted with it there.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	l, err := s.layer(ctx, key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	switch {
	case !l.writable():
	case l.image.Exists():
		bytes, inodes, err := l.image.Usage()
		if !errdefs.IsFailedPrecondition(err) { // not mounted since the machine started
			return snapshots.Usage{Size: bytes, Inodes: inodes}, err
		}
	case s.projects.counts(l):
		used, err := s.projects.usage(l.id)
		return snapshots.Usage{Size: used.Bytes, Inodes: used.Inodes}, err
	}
	return s.Snapshotter.Usage(ctx, key)
}

// Commit makes an active snapshot a parent of others, once what is in it is on the
// disk: a power loss does not leave a record of a layer without its content. Its limit
// ends; the content of an image is copied out of it, for a parent is a directory.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	l, err := s.layer(ctx, key)
	if err != nil {
		return err
	}
	if l.image.Exists() {
		defer s.layers.lock(l.id)()
		if err := l.leaveImage(); err != nil {
			return fmt.Errorf("commit %s: %w", key, err)
		}
	}
	if err := l.sync(); err != nil {
		return fmt.Errorf("commit %s: %w", key, err)
	}
	if err := s.Snapshotter.Commit(ctx, name, key, append(opts, withoutSize)...); err != nil {
		return err
	}
	return s.projects.limit(l.id, 0)
}

// withoutSize removes the label of the limit, which ends.
func withoutSize(info *snapshots.Info) error {
	delete(info.Labels, LabelSize)
	return nil
}

// Remove removes a snapshot, its limit and its mounts.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	l, err := s.layer(ctx, key)
	if err != nil {
		return err
	}
	if l.image.Exists() {
		defer s.layers.lock(l.id)()
		// First: a mounted image outlives the deletion of its file.
		if err := l.image.Unmount(); err != nil {
			return fmt.Errorf("remove %s: %w", key, err)
		}
	}
	if err := s.Snapshotter.Remove(ctx, key); err != nil {
		return err
	}
	return s.projects.limit(l.id, 0)
}

// Walk calls fn for each snapshot that passes the filters. Where none was ever made it
// calls it for none.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	walking := false
	err := s.Snapshotter.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		walking = true
		return fn(ctx, info)
	}, filters...)
	if errdefs.IsNotFound(err) && !walking { // the records' bucket comes with the first
		return nil
	}
	return err
}

// Cleanup deletes the files of removed snapshots.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	err := s.Snapshotter.(snapshots.Cleaner).Cleanup(ctx)
	if errdefs.IsNotFound(err) { // no snapshot was ever made here
		return nil
	}
	return err
}

// Close closes the records. Mounts stay, for containers that run on.
func (s *Snapshotter) Close() error {
	return errors.Join(s.Snapshotter.Close(), s.projects.close())
}

// layer looks a snapshot up.
func (s *Snapshotter) layer(ctx context.Context, key string) (l layer, err error) {
	err = s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		l.id, l.info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	l.dir = filepath.Join(s.config.Root, "snapshots", l.id)
	l.image = image.Layer(l.dir)
	return l, err
}
