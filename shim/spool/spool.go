// SPDX-License-Identifier: Apache-2.0

// Package spool keeps output that its reader has not taken yet: a bounded file
// that is filled at its end and replayed from its beginning. It never drops
// anything; when it is full, or the disk is, it takes no more.
//
// Its calls block on the disk and belong in a job. A File is not safe for
// concurrent use. The package does not decide when to spool.
package spool

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/wire"
)

// fileMode: output may hold secrets.
const fileMode = 0o600

// spliceBytes is what one splice moves at most: a pipe's usual capacity.
const spliceBytes = 64 << 10

// File is a spool with content between head and tail.
type File struct {
	path string
	fd   int
	head int64 // replayed up to here
	tail int64 // filled up to here
	max  int64
	full bool // the limit, or the disk's, was met
}

// Create makes an empty spool of at most maxBytes and replaces what is left at
// path of an earlier one.
func Create(path string, maxBytes int64) (*File, error) {
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return nil, pathError("unlink", path, err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, fileMode)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	return &File{path: path, fd: fd, max: maxBytes}, nil
}

// Len returns how many bytes wait to be replayed.
func (f *File) Len() int64 { return f.tail - f.head }

// Full tells that the spool takes no more until it has been replayed.
func (f *File) Full() bool { return f.full }

// Fill moves what the pipe src, which does not block, holds into the spool. It
// returns 0 and no error at the end of src, EAGAIN when src is empty, ENOSPC when
// the spool is full. What it does not take stays in the pipe.
func (f *File) Fill(src int) (int, error) {
	room := f.room()
	if room == 0 {
		return 0, unix.ENOSPC
	}
	for {
		offset := f.tail
		n, err := unix.Splice(src, nil, f.fd, &offset, min(room, spliceBytes), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, f.refused(err)
		}
		f.tail += n
		return int(n), nil
	}
}

// Write appends as much of p as there is room for. The error, if less, is ENOSPC
// or what the disk says.
func (f *File) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		room := f.room()
		if room == 0 {
			return written, unix.ENOSPC
		}
		n, err := unix.Pwrite(f.fd, p[written:min(len(p), written+room)], f.tail)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return written, f.refused(err)
		}
		f.tail += int64(n)
		written += n
	}
	return written, nil
}

func (f *File) room() int {
	if f.full || f.tail >= f.max {
		f.full = true
		return 0
	}
	return int(f.max - f.tail)
}

// refused notes errors that more trying would only repeat.
func (f *File) refused(err error) error {
	if err != unix.EAGAIN {
		f.full = true
	}
	return err
}

// Replay writes what is in the spool to dst, which does not block, until dst
// takes no more or the spool is empty, and returns how much it wrote. buf is
// scratch. Splicing from the file would be cheaper, but would lend dst pages of a
// file that is about to go.
func (f *File) Replay(dst int, buf []byte) (int64, error) {
	total := int64(0)
	for f.head < f.tail {
		n, err := unix.Pread(f.fd, buf[:min(int64(len(buf)), f.tail-f.head)], f.head)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EIO // somebody has cut the file
		}
		if err != nil {
			return total, pathError("read", f.path, err)
		}
		n, err = unix.Write(dst, buf[:n])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return total, err
		}
		f.head += int64(n)
		total += int64(n)
	}
	return total, nil
}

// Remove gives the spool up, with what is in it.
func (f *File) Remove() {
	// Left behind it is only a file; the persistent directory is removed as a whole.
	_ = unix.Unlink(f.path)
	_ = unix.Close(f.fd)
}

// Append writes the spool's state for Restore, in another program of this
// process. keep is called with the descriptor that must stay open.
func (f *File) Append(b []byte, keep func(fd int)) []byte {
	keep(f.fd)
	b = wire.AppendBytes(b, 1, []byte(f.path))
	b = wire.AppendVarint(b, 2, uint64(f.fd))
	b = wire.AppendVarint(b, 3, uint64(f.head))
	b = wire.AppendVarint(b, 4, uint64(f.tail))
	b = wire.AppendVarint(b, 5, uint64(f.max))
	return wire.AppendBool(b, 6, f.full)
}

// Restore returns the spool that Append wrote.
func Restore(b []byte) (*File, error) {
	f := &File{}
	s := wire.Scan(b)
	for v := (wire.Field{}); s.Next(&v); {
		switch v.Num {
		case 1:
			f.path = string(v.Bytes)
		case 2:
			f.fd = int(v.Value)
		case 3:
			f.head = int64(v.Value)
		case 4:
			f.tail = int64(v.Value)
		case 5:
			f.max = int64(v.Value)
		case 6:
			f.full = v.Value != 0
		}
	}
	if err := s.Err(); err != nil {
		return nil, fault.In("spool", err)
	}
	unix.CloseOnExec(f.fd)
	return f, nil
}

func pathError(op, path string, err error) error {
	class := fault.Unknown
	if err == unix.ENOSPC || err == unix.EDQUOT {
		class = fault.ResourceExhausted
	}
	return fault.Wrap(class, "spool", &os.PathError{Op: op, Path: path, Err: err})
}
