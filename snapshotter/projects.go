// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/snapshotter/quota"
)

// Each root has a block of project numbers, so that several roots can share a file
// system. A snapshot's project is the block's first plus its ID, which storage
// counts up and never uses again: there is no list of numbers that could be lost.
const (
	blockSize = quota.Project(1) << 24

	// What is below is left to others: the kubelet's start at 1,048,577.
	firstBlock = 16 * blockSize
	lastBlock  = 255 * blockSize
)

// projects are the project quotas of a root. A nil one counts and limits nothing.
type projects struct {
	fs    *quota.FileSystem
	first quota.Project
}

// openProjects finds the root's block of numbers, or takes the first that is free.
// It returns ErrNotImplemented where the file system has no project quotas.
func openProjects(root string) (_ *projects, err error) {
	fs, err := quota.Open(root)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, fs.Close())
		}
	}()
	// The directory is the record, and what keeps others away: it is counted.
	mark := filepath.Join(root, "project")
	if err := os.Mkdir(mark, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	p := &projects{fs: fs}
	if p.first, err = fs.Of(mark); err != nil || p.first >= firstBlock && p.first%blockSize == 0 {
		return p, err
	}
	return p, exclusively(root, func() error {
		p.first, err = freeBlock(fs)
		if err != nil {
			return err
		}
		return fs.Assign(mark, p.first)
	})
}

// freeBlock is the first number of a block of which none is in use.
func freeBlock(fs *quota.FileSystem) (quota.Project, error) {
	for block := firstBlock; block <= lastBlock; block += blockSize {
		next, found, err := fs.Next(block)
		if err != nil {
			return 0, err
		}
		if !found || next >= block+blockSize {
			return block, nil
		}
	}
	return 0, fmt.Errorf("project numbers from %d on are all in use: %w", firstBlock, errdefs.ErrResourceExhausted)
}

// exclusively calls f while nobody else does with a root on the same file system: the
// topmost directory of it is locked.
func exclusively(root string, f func() error) error {
	top, err := topmost(root)
	if err != nil {
		return err
	}
	dir, err := os.Open(top)
	if err != nil {
		return err
	}
	defer dir.Close() // unlocks
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", top, err)
	}
	return f()
}

// topmost is the directory that a path's file system is mounted on.
func topmost(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", path, err)
	}
	for above := filepath.Dir(path); above != path; path, above = above, filepath.Dir(above) {
		var other unix.Stat_t
		if err := unix.Stat(above, &other); err != nil || other.Dev != st.Dev {
			break
		}
	}
	return path, nil
}

func (p *projects) close() error {
	if p == nil {
		return nil
	}
	if err := p.fs.Close(); !errors.Is(err, os.ErrClosed) { // Close may be called twice
		return err
	}
	return nil
}

// enforce tells whether limits hold.
func (p *projects) enforce() bool { return p != nil && p.fs.Enforces }

// project is a snapshot's number.
func (p *projects) project(id string) (quota.Project, error) {
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("snapshot number %q: %w", id, err)
	}
	// 16 million snapshots later a number is used again; by then its first is gone.
	return p.first + 1 + quota.Project((n-1)%uint64(blockSize-1)), nil
}

// assign counts an empty layer under its project, with a limit if it is to have one.
func (p *projects) assign(l layer, limit int64, enforce bool) error {
	project, err := p.project(l.id)
	if err != nil {
		return err
	}
	used, _, err := p.fs.State(project)
	if err != nil {
		return err
	}
	if used.Inodes > 0 {
		return fmt.Errorf("project %d of snapshot %s is in use: %w", project, l.info.Name, errdefs.ErrUnavailable)
	}
	if limit > 0 && enforce && p.enforce() {
		if err := p.fs.Limit(project, limit); err != nil {
			return err
		}
	}
	// Both: overlayfs makes files in one and moves them to the other.
	return errors.Join(p.fs.Assign(l.upper(), project), p.fs.Assign(l.work(), project))
}

// limit changes or, with 0, ends a snapshot's limit.
func (p *projects) limit(id string, bytes int64) error {
	if !p.enforce() {
		return nil
	}
	project, err := p.project(id)
	if err != nil {
		return err
	}
	return p.fs.Limit(project, bytes)
}

// counts tells whether a layer is counted: one from before the file system had
// quotas is not.
func (p *projects) counts(l layer) bool {
	if p == nil {
		return false
	}
	is, err := p.fs.Of(l.upper())
	should, err2 := p.project(l.id)
	return err == nil && err2 == nil && is == should
}

func (p *projects) usage(id string) (quota.Usage, error) {
	project, err := p.project(id)
	if err != nil {
		return quota.Usage{}, err
	}
	used, _, err := p.fs.State(project)
	return used, err
}

// clear ends the limits of snapshots that are not among ids.
func (p *projects) clear(ids map[string]string) error {
	if !p.enforce() {
		return nil
	}
	known := make(map[quota.Project]bool, len(ids))
	for id := range ids {
		project, err := p.project(id)
		if err != nil {
			return err
		}
		known[project] = true
	}
	for next := p.first + 1; ; next++ {
		project, found, err := p.fs.Next(next)
		if err != nil || !found || project >= p.first+blockSize {
			return err
		}
		if !known[project] {
			if err := p.fs.Limit(project, 0); err != nil {
				return err
			}
		}
		next = project
	}
}
