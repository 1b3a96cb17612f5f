// SPDX-License-Identifier: Apache-2.0

package crilog

import (
	"bytes"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// fileMode is conmon's: the group may read the log.
const fileMode = 0o640

// Options describes a log file.
type Options struct {
	Path        string            // absolute
	MaxSize     int64             // bytes; before a line would pass it the file is rotated. 0: no limit
	MaxFiles    int               // rotated files kept as Path.1 (newest) ...; 0 and 1: none, the file starts afresh
	GlobalMax   int64             // bytes written in all; further output is discarded. 0: no limit
	NoSync      bool              // Close does not fsync
	AllowedDirs []string          // rotation only below one of these; empty: anywhere that is safe
	Warn        func(text string) // reports trouble with the file; nil: not reported
}

// Writer owns a log file. It is not safe for concurrent use.
type Writer struct {
	o       Options
	fd      int
	size    int64 // bytes in the file
	total   int64 // bytes counted for GlobalMax
	retryAt int64 // after a failed rotation: the size at which to try again
	dropped bool  // a write failed before: reported already
	prefix  prefixes
}

// Open opens the log for appending and creates it if need be; its directory must
// exist. What is in the file already counts for its limits.
func Open(o Options) (*Writer, error) {
	w := &Writer{o: o, fd: -1}
	fd, size, err := open(o.Path)
	if err != nil {
		return nil, err
	}
	w.fd, w.size, w.total = fd, size, size
	return w, nil
}

func open(path string) (fd int, size int64, err error) {
	// O_NONBLOCK: a fifo by that name must not block; it means nothing for a file.
	fd, err = unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NONBLOCK, fileMode)
	if err != nil {
		return -1, 0, pathError("open", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, 0, pathError("stat", path, err)
	}
	return fd, st.Size, nil
}

// Write logs data, a read's worth of a stream, as of time at. Output without
// newline at its end becomes a partial line at once. scratch is where lines are
// put together, at least MaxLine bytes; the larger the fewer writes.
//
// There is no error: a log that cannot be written loses its lines, with one
// warning, and the container goes on.
func (w *Writer) Write(s Stream, data []byte, at time.Time, scratch []byte) {
	if w.o.GlobalMax > 0 && w.total >= w.o.GlobalMax {
		return
	}
	w.prefix.set(s, at)
	out := scratch[:0]
	for len(data) > 0 {
		text, full, rest := piece(data)
		prefix := w.prefix.partial
		if full {
			prefix = w.prefix.full
		}
		line := int64(len(prefix) + len(text) + 1)
		if w.o.GlobalMax > 0 && w.total+line > w.o.GlobalMax {
			w.total = w.o.GlobalMax // a shorter line later must not leave a gap
			break
		}
		if len(out)+int(line) > cap(out) {
			w.flush(out)
			out = out[:0]
		}
		if w.o.MaxSize > 0 && w.size+int64(len(out))+line > w.o.MaxSize {
			w.flush(out)
			out = out[:0]
			w.rotateIfDue()
		}
		out = append(out, prefix...)
		out = append(out, text...)
		out = append(out, '\n')
		w.total += line
		data = rest
	}
	w.flush(out)
}

// flush writes whole lines. Of a write that stops half-way the complete lines
// stay, so that the file always ends with a newline.
func (w *Writer) flush(lines []byte) {
	for len(lines) > 0 {
		n, err := unix.Write(w.fd, lines)
		if err == unix.EINTR {
			continue
		}
		if n > 0 {
			w.size += int64(n)
		}
		if n == len(lines) {
			return
		}
		if err == nil && n > 0 {
			// Less than asked for: the disk is full, as the rest will tell.
			m, err2 := unix.Write(w.fd, lines[n:])
			if m > 0 {
				w.size += int64(m)
				n += m
			}
			if n == len(lines) {
				return
			}
			err = err2
			w.cutBack(lines[:n])
		}
		w.drop(err)
		return
	}
}

// cutBack removes the incomplete line at the end of what was written.
func (w *Writer) cutBack(written []byte) {
	tail := int64(len(written) - 1 - bytes.LastIndexByte(written, '\n'))
	if tail == 0 {
		return
	}
	// The file's own size, not the one counted: somebody may have cut it shorter.
	var st unix.Stat_t
	if unix.Fstat(w.fd, &st) == nil && st.Size >= tail && unix.Ftruncate(w.fd, st.Size-tail) == nil {
		w.size = st.Size - tail
	}
}

func (w *Writer) drop(err error) {
	if w.dropped {
		return
	}
	w.dropped = true
	if err == nil {
		err = unix.EIO
	}
	w.warn("output is lost while the log cannot be written", pathError("write", w.o.Path, err))
}

func (w *Writer) warn(what string, err error) {
	if w.o.Warn != nil {
		w.o.Warn(what + ": " + err.Error())
	}
}

// Reopen opens the path afresh, after somebody has renamed the file, and gives
// up the old one. It falls between two lines. On failure the old file stays in
// use.
func (w *Writer) Reopen() error {
	fd, size, err := open(w.o.Path)
	if err != nil {
		return err
	}
	w.replace(fd, size)
	return nil
}

func (w *Writer) replace(fd int, size int64) {
	_ = unix.Close(w.fd) // its pages are the kernel's now; only Close waits for the disk
	w.fd, w.size, w.retryAt = fd, size, 0
}

func (w *Writer) sync() {
	if w.o.NoSync {
		return
	}
	// A device or pipe given as log has nothing to sync: EINVAL.
	if err := unix.Fsync(w.fd); err != nil && err != unix.EINVAL && err != unix.EROFS {
		w.warn("the log may not be on disk", pathError("fsync", w.o.Path, err))
	}
}

// Close ends the log, on disk unless Options.NoSync.
func (w *Writer) Close() {
	w.sync()
	_ = unix.Close(w.fd)
	w.fd = -1
}

// Handle is what another program needs to go on with an open log.
type Handle struct {
	FD    int // the open file
	Total int64
}

// Handle returns the writer's state for Resume.
func (w *Writer) Handle() Handle { return Handle{FD: w.fd, Total: w.total} }

// Options returns what the log was opened with.
func (w *Writer) Options() Options { return w.o }

// Resume returns a Writer that goes on with a log opened before an exec.
func Resume(o Options, h Handle) (*Writer, error) {
	var st unix.Stat_t
	if err := unix.Fstat(h.FD, &st); err != nil {
		return nil, pathError("stat", o.Path, err)
	}
	return &Writer{o: o, fd: h.FD, size: st.Size, total: h.Total}, nil
}

func pathError(op, path string, err error) error {
	class := fault.Unknown
	switch err {
	case unix.ENOENT, unix.ENOTDIR:
		class = fault.NotFound
	case unix.EACCES, unix.EPERM, unix.ELOOP, unix.EISDIR, unix.ENAMETOOLONG:
		class = fault.FailedPrecondition
	case unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE:
		class = fault.ResourceExhausted
	}
	e := &os.PathError{Op: op, Path: path, Err: err}
	return fault.Wrap(class, "log", e)
}
