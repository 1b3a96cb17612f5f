// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/snapshotter/image"
)

// layer is a snapshot's directory and record.
type layer struct {
	id    string
	dir   string
	info  snapshots.Info
	image image.Layer
}

func (l layer) upper() string { return filepath.Join(l.dir, "fs") }

func (l layer) work() string { return filepath.Join(l.dir, "work") }

func (l layer) writable() bool { return l.info.Kind == snapshots.KindActive }

// makeImage gives an empty layer its image. The upper directory's owner and mode,
// which overlayfs's snapshotter took from the parent or the id mapping, go along.
func (l layer) makeImage(ctx context.Context, limit int64) error {
	content, err := os.MkdirTemp(l.dir, "content-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(content)
	if err := errors.Join(
		likeness(l.upper(), filepath.Join(content, "upper")),
		likeness(l.work(), filepath.Join(content, "work")),
	); err != nil {
		return err
	}
	return l.image.Create(ctx, limit, content)
}

// likeness makes a directory with the owner and mode of another.
func likeness(of, dir string) error {
	st, err := os.Stat(of)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	owner := st.Sys().(*syscall.Stat_t)
	return errors.Join(os.Chown(dir, int(owner.Uid), int(owner.Gid)), os.Chmod(dir, st.Mode()))
}

// moveUpper makes mounts of the layer's directories ones of its image's.
func (l layer) moveUpper(mounts []mount.Mount) {
	moved := strings.NewReplacer("upperdir="+l.upper(), "upperdir="+l.image.Upper(), "workdir="+l.work(), "workdir="+l.image.Work())
	for i := range mounts {
		if mounts[i].Source == l.upper() {
			mounts[i].Source = l.image.Upper()
		}
		for j, option := range mounts[i].Options {
			mounts[i].Options[j] = moved.Replace(option)
		}
	}
}

// leaveImage moves the content of the image to the layer's directory.
func (l layer) leaveImage() error {
	if err := l.image.Mount(); err != nil {
		return err
	}
	copied := filepath.Join(l.dir, "copy")
	if err := os.RemoveAll(copied); err != nil { // of a commit that a crash cut off
		return err
	}
	if err := fs.CopyDir(copied, l.image.Upper()); err != nil {
		return err
	}
	if err := l.image.Unmount(); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, copied, unix.AT_FDCWD, l.upper(), unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("rename %s: %w", copied, err)
	}
	return errors.Join(l.image.Remove(), os.RemoveAll(copied))
}

// sync writes the layer's file system to the disk.
func (l layer) sync() error {
	dir, err := os.Open(l.upper())
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir.Name(), err)
	}
	return nil
}

// forgive lets a layer that was mounted volatile be mounted so again. The kernel
// refuses by the directory incompat/volatile, which stays, until somebody says that
// nothing was lost (Documentation/filesystems/overlayfs.rst): nothing was while the
// machine ran on.
func (l layer) forgive() error {
	work := l.work()
	if l.image.Exists() {
		work = l.image.Work()
	}
	mark := filepath.Join(work, "work", "incompat", "volatile")
	st, err := os.Stat(mark)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	booted, err := bootTime()
	if err != nil {
		return err
	}
	if st.ModTime().Before(booted) {
		return fmt.Errorf("snapshot %s was written without syncing before the machine last started, and may lack what was written: %w", l.info.Name, errdefs.ErrFailedPrecondition)
	}
	return os.RemoveAll(mark)
}

func bootTime() (time.Time, error) {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(-time.Duration(up.Nano())), nil
}

// layerLocks are held while an image is mounted, left or unmounted.
type layerLocks struct {
	mu   sync.Mutex // guards held
	held map[string]*held
}

type held struct {
	sync.Mutex
	users int // who holds it and who waits; under layerLocks.mu
}

// lock locks one layer and returns what unlocks it.
func (l *layerLocks) lock(id string) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*held{}
	}
	h := l.held[id]
	if h == nil {
		h = &held{}
		l.held[id] = h
	}
	h.users++
	l.mu.Unlock()
	h.Lock()
	return func() {
		h.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(l.held, id)
		}
	}
}
