// SPDX-License-Identifier: Apache-2.0

// Package quota has the project quotas of ext4 and xfs: a number given to a
// directory, under which the kernel counts what lies below it and, where the file
// system was mounted so, refuses more than a limit. It owns no directory and no
// numbers; who uses it does.
//
// Sources: quotactl(2), quotactl_fd in Linux 5.14, linux/quota.h,
// linux/dqblk_xfs.h, and FS_IOC_FSSETXATTR in linux/fs.h.
package quota

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Project is a project's number. 0 is what belongs to none.
type Project uint32

// Usage is what a project holds.
type Usage struct {
	Bytes  int64 // of blocks, not of lengths
	Inodes int64
}

// FileSystem has the project quotas of a mounted file system. It is safe for
// concurrent use.
type FileSystem struct {
	dir *os.File

	// Enforces tells whether limits hold. Where it is false the kernel counts
	// only: the file system was mounted without prjquota.
	Enforces bool
}

// Open opens the quotas of the file system that dir is in. It returns
// ErrNotImplemented, with the reason, where projects are not counted there. Close
// releases what it holds: one descriptor.
func Open(dir string) (*FileSystem, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	fsys := &FileSystem{dir: f}
	flags, err := fsys.state()
	if err == nil && flags&accounts == 0 {
		err = errors.New("projects are not counted")
	}
	if err == nil {
		err = fsys.try()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("project quotas of %s: %w: %w", dir, err, errdefs.ErrNotImplemented)
	}
	fsys.Enforces = flags&enforces != 0
	return fsys, nil
}

// Close closes the descriptor.
func (f *FileSystem) Close() error { return f.dir.Close() }

// try gives a directory a project and takes it away again: a file system may count
// projects and have inodes without room for their number.
func (f *FileSystem) try() error {
	dir, err := os.MkdirTemp(f.dir.Name(), "quota-")
	if err != nil {
		return err
	}
	return errors.Join(f.Assign(dir, 1), os.Remove(dir))
}

// Assign gives dir, and what will be made in it, to project p. What is in it
// already keeps its project.
func (f *FileSystem) Assign(dir string, p Project) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	var attr fsxattr
	if err := ioctl(d, getAttr, unsafe.Pointer(&attr)); err != nil {
		return fmt.Errorf("project of %s: %w", dir, err)
	}
	attr.project = p
	attr.flags |= inherit
	if err := ioctl(d, setAttr, unsafe.Pointer(&attr)); err != nil {
		return fmt.Errorf("give %s to project %d: %w", dir, p, err)
	}
	return nil
}

// Of returns the project of a file or directory.
func (f *FileSystem) Of(path string) (Project, error) {
	d, err := os.Open(filepath.Clean(path))
	if err != nil {
		return 0, err
	}
	defer d.Close()
	var attr fsxattr
	if err := ioctl(d, getAttr, unsafe.Pointer(&attr)); err != nil {
		return 0, fmt.Errorf("project of %s: %w", path, err)
	}
	return attr.project, nil
}

// Limit lets project p hold at most so many bytes; 0 is no limit. The kernel rounds
// up to 1 KiB. It returns ErrFailedPrecondition where limits do not hold.
func (f *FileSystem) Limit(p Project, bytes int64) error {
	if bytes > 0 && !f.Enforces {
		return fmt.Errorf("limit of project %d: %s is mounted without prjquota: %w", p, f.dir.Name(), errdefs.ErrFailedPrecondition)
	}
	q := dqblk{hardBlocks: uint64(bytes+blockSize-1) / blockSize, valid: validBlockLimits}
	q.softBlocks = q.hardBlocks
	if err := f.control(setQuota, p, unsafe.Pointer(&q)); err != nil {
		return fmt.Errorf("limit of project %d: %w", p, err)
	}
	return nil
}

// State returns what project p holds and may hold, 0 for no limit. It does not
// read the directories: it takes the same time whatever they hold.
func (f *FileSystem) State(p Project) (used Usage, limit int64, err error) {
	var q dqblk
	err = f.control(getQuota, p, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return Usage{}, 0, nil // xfs has no entry before there is something to count
	}
	if err != nil {
		return Usage{}, 0, fmt.Errorf("quota of project %d: %w", p, err)
	}
	return Usage{Bytes: int64(q.space), Inodes: int64(q.inodes)}, int64(q.hardBlocks) * blockSize, nil
}

// Next returns the first project from p on that holds something or has a limit,
// and whether there is one.
func (f *FileSystem) Next(p Project) (Project, bool, error) {
	var q nextdqblk
	err := f.control(getNextQuota, p, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("projects from %d on: %w", p, err)
	}
	return q.project, true, nil
}

// blockSize is the unit of limits, QIF_DQBLKSIZE.
const blockSize = 1 << 10

// Commands of quotactl; XQM_CMD(n) is 'X'<<8 + n.
const (
	getQuota     = 0x800007
	setQuota     = 0x800008
	getNextQuota = 0x800009
	getStates    = 'X'<<8 + 8 // Q_XGETQSTATV, which every file system answers

	ofProjects = 2 // PRJQUOTA

	validBlockLimits = 1 // QIF_BLIMITS

	accounts = 1 << 4 // FS_QUOTA_PDQ_ACCT
	enforces = 1 << 5 // FS_QUOTA_PDQ_ENFD
)

// dqblk is struct if_dqblk.
type dqblk struct {
	hardBlocks, softBlocks, space  uint64
	hardInodes, softInodes, inodes uint64
	blockTime, inodeTime           uint64
	valid                          uint32
	_                              uint32
}

// nextdqblk is struct if_nextdqblk.
type nextdqblk struct {
	_       [8]uint64
	valid   uint32
	project Project
}

// states is struct fs_quota_statv.
type states struct {
	version uint8
	_       uint8
	flags   uint16
	_       [20]uint64
}

func (f *FileSystem) state() (flags uint16, err error) {
	s := states{version: 1}
	err = f.control(getStates, 0, unsafe.Pointer(&s))
	return s.flags, err
}

func (f *FileSystem) control(command uint32, p Project, data unsafe.Pointer) error {
	const typeBits = 8 // SUBCMDSHIFT
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.dir.Fd(), uintptr(command<<typeBits|ofProjects), uintptr(p), uintptr(data), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// fsxattr is struct fsxattr.
type fsxattr struct {
	flags, extentSize, extents uint32
	project                    Project
	_                          [3]uint32
}

const (
	getAttr = 0x801c581f // FS_IOC_FSGETXATTR
	setAttr = 0x401c5820 // FS_IOC_FSSETXATTR

	inherit = 0x200 // FS_XFLAG_PROJINHERIT
)

func ioctl(f *os.File, request uintptr, data unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(data))
	if errno != 0 {
		return errno
	}
	return nil
}
