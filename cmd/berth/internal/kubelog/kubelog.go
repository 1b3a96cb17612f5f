// SPDX-License-Identifier: Apache-2.0

// Package kubelog reads logs of containers in Kubernetes' format, across rotation,
// also while they are written. It never writes to them.
package kubelog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/shim/crilog"
)

// Options say what of a log is read.
type Options struct {
	// Tail is how many lines from the end; negative: all.
	Tail int
	// Since leaves out what is older. Zero: nothing.
	Since time.Time
	// Ended, if not nil, makes Read wait for more until it is closed.
	Ended <-chan struct{}
}

// Read calls emit for each entry of a log and of the older files that rotation has
// left beside it. The entry's text is valid during the call only. A log that does
// not exist is NotFound, unless it may yet come to be. When ctx ends, Read returns
// its error.
func Read(ctx context.Context, path string, o Options, emit func(crilog.Entry) error) error {
	r := &reader{path: path, since: o.Since, emit: emit}
	defer r.close()
	var changes <-chan struct{}
	if o.Ended != nil {
		// Before the first look: what comes in between is seen.
		var stop func()
		var err error
		if changes, stop, err = watch(path); err != nil {
			return err
		}
		defer stop()
	}
	if err := r.begin(o); err != nil {
		return err
	}
	for last := false; ; {
		if err := r.readAll(ctx); err != nil {
			return err
		}
		if last || o.Ended == nil {
			return r.flush()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changes:
		case <-o.Ended:
			last = true // what was written before the end is there by now
		}
	}
}

// reader is in the middle of a log.
type reader struct {
	path  string
	since time.Time
	emit  func(crilog.Entry) error

	file *os.File // nil: the log does not exist yet
	rest []byte   // the begin of a line whose end is not there yet
}

func (r *reader) close() {
	if r.file != nil {
		_ = r.file.Close() // only read
	}
}

// begin opens the file that the first line is in, at that line.
func (r *reader) begin(o Options) error {
	files := chain(r.path)
	if len(files) == 0 {
		if o.Ended != nil {
			return nil
		}
		return fmt.Errorf("log %s: %w", r.path, errdefs.ErrNotFound)
	}
	want := o.Tail
	for i, name := range files { // newest first
		if o.Tail >= 0 || i == len(files)-1 {
			f, err := os.Open(name)
			if err != nil {
				return fmt.Errorf("log: %w", err)
			}
			start, found, err := tail(f, want)
			if err == nil && (found >= want && o.Tail >= 0 || i == len(files)-1) {
				_, err = f.Seek(start, io.SeekStart)
				r.file = f
				return err
			}
			want -= found
			if err := errors.Join(err, f.Close()); err != nil {
				return fmt.Errorf("log: %w", err)
			}
		}
	}
	return nil
}

// chain returns the log and what rotation has left of it, newest first.
func chain(path string) []string {
	var files []string
	for i := 0; ; i++ {
		name := path
		if i > 0 {
			name += "." + strconv.Itoa(i)
		}
		if _, err := os.Stat(name); err != nil {
			if i == 0 {
				continue // in the middle of a rotation by somebody else
			}
			return files
		}
		files = append(files, name)
	}
}

// readAll reads all there is, and in later files of the chain.
func (r *reader) readAll(ctx context.Context) error {
	for {
		if r.file == nil {
			f, err := os.Open(r.path)
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("log: %w", err)
			}
			r.file = f
		}
		// Before the end is looked for: whatever is rotated has its end by then.
		next, err := r.next()
		if err != nil {
			return err
		}
		if err := r.readFile(ctx); err != nil {
			return err
		}
		if next == nil {
			return r.rewind()
		}
		_ = r.file.Close() // only read
		r.file = next
	}
}

// next opens the file after the one that is read, if it has been rotated.
func (r *reader) next() (*os.File, error) {
	mine, err := r.file.Stat()
	if err != nil {
		return nil, err
	}
	files := chain(r.path)
	at := len(files) // it has been removed: the oldest comes next
	for i, name := range files {
		if st, err := os.Stat(name); err == nil && os.SameFile(mine, st) {
			at = i
			break
		}
	}
	if at == 0 || len(files) == 0 {
		return nil, nil
	}
	f, err := os.Open(files[at-1])
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // the next look tells
	}
	return f, err
}

// rewind goes back to the begin of a file that was truncated.
func (r *reader) rewind() error {
	at, err := r.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if st, err := r.file.Stat(); err != nil || st.Size() >= at {
		return err
	}
	r.rest = nil
	_, err = r.file.Seek(0, io.SeekStart)
	return err
}

func (r *reader) readFile(ctx context.Context) error {
	b := make([]byte, 1<<16) // as much as a pipe holds
	for ctx.Err() == nil {
		n, err := r.file.Read(b)
		if err := r.take(b[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
	}
	return context.Cause(ctx)
}

// take emits the lines that are whole.
func (r *reader) take(b []byte) error {
	r.rest = append(r.rest, b...)
	from := r.rest
	for {
		line, rest, whole := bytes.Cut(from, []byte{'\n'})
		if !whole {
			break
		}
		from = rest
		if err := r.line(line); err != nil {
			return err
		}
	}
	r.rest = append(r.rest[:0], from...)
	return nil
}

// flush emits what a crash has left of a line.
func (r *reader) flush() error {
	if len(r.rest) == 0 {
		return nil
	}
	return r.line(r.rest)
}

// line emits a line. One that is not in the format is shown as it is: somebody
// looks for it.
func (r *reader) line(line []byte) error {
	e, err := crilog.ParseLine(line)
	if err != nil {
		if !r.since.IsZero() {
			return nil //nolint:nilerr // nobody knows when it was
		}
		e = crilog.Entry{Text: line}
	}
	if e.Time.Before(r.since) {
		return nil
	}
	return r.emit(e)
}

// tail returns where the last lines of a file begin, and how many there are, which
// are fewer if the file has no more. A negative number is all.
func tail(f *os.File, lines int) (start int64, found int, err error) {
	if lines < 0 {
		return 0, 0, nil
	}
	// Starts of the container's lines, not of their pieces; the last ones only.
	var starts []int64
	var at int64
	partial := [2]bool{}
	for b := bufio.NewReaderSize(f, 1<<16); ; {
		line, err := b.ReadBytes('\n')
		if len(line) > 0 {
			e, parseErr := crilog.ParseLine(bytes.TrimSuffix(line, []byte{'\n'}))
			if parseErr != nil || !partial[e.Stream] {
				starts = append(starts, at)
			}
			if parseErr == nil {
				partial[e.Stream] = e.Partial
			}
			at += int64(len(line))
			if excess := len(starts) - lines; lines > 0 && excess > lines+1024 { // now and then
				starts = append(starts[:0], starts[excess:]...)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, 0, err
		}
	}
	if lines == 0 {
		return at, 0, nil
	}
	if len(starts) == 0 {
		return 0, 0, nil
	}
	found = min(len(starts), lines)
	return starts[len(starts)-found], found, nil
}
