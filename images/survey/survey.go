// SPDX-License-Identifier: Apache-2.0

// Package survey reads a layer before anybody unpacks it, mostly while it arrives:
// how large it will be on disk, and whether it can be unpacked apart from the
// layers below it. It owns the limit on what an image may unpack to. It writes
// nothing, and does not judge names: containerd keeps an archive inside its
// snapshot.
package survey

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// ErrTooLarge says that an image would unpack to more than its Budget. Its class is
// ErrResourceExhausted.
var ErrTooLarge = errdefs.ErrResourceExhausted.WithMessage("image unpacks to more than is allowed")

// ErrNotArchive says that a layer is no tar archive, or compressed in a way that
// containerd cannot read. Its class is ErrInvalidArgument.
var ErrNotArchive = errdefs.ErrInvalidArgument.WithMessage("layer is not a tar archive")

// Budget is how many bytes the layers of one image may still unpack to, all
// together. Safe for concurrent use.
type Budget struct {
	limit int64
	left  atomic.Int64
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget {
	b := &Budget{limit: limit}
	b.left.Store(limit)
	return b
}

// Take takes n bytes for a layer. The error is ErrTooLarge.
func (b *Budget) Take(n int64) error {
	if n < 0 || n > b.limit || b.left.Add(-n) < 0 {
		return fmt.Errorf("%w: the limit is %d bytes", ErrTooLarge, b.limit)
	}
	return nil
}

// Report is what a layer says of itself.
type Report struct {
	// Size is what its files have together, in bytes, holes included.
	Size int64
	// Leans says that a directory is written into which the layer itself does not
	// have. If the layer is unpacked apart from those below it, such a directory
	// gets an owner and a mode that it must not have.
	Leans bool
}

// maxDirectories bounds what Read remembers. A layer with more is said to lean.
const maxDirectories = 1 << 18

// Read reads a layer to its end, with whatever compression containerd knows. The
// layer may unpack to no more than limit bytes; of a bomb not much more than these
// is decompressed. The error is ErrTooLarge, ErrNotArchive, or that of r.
func Read(r io.Reader, limit int64) (Report, error) {
	source := &faults{Reader: r}
	report, err := read(source, limit)
	switch {
	case err == nil:
		return report, nil
	case source.err != nil:
		return Report{}, source.err
	case errors.Is(err, ErrTooLarge):
		return Report{}, err
	}
	return Report{}, fmt.Errorf("%w: %w", ErrNotArchive, err)
}

func read(r io.Reader, limit int64) (Report, error) {
	plain, err := decompress(bufio.NewReaderSize(r, 64<<10))
	if err != nil {
		return Report{}, err
	}
	defer plain.Close()
	// What is between and behind files takes no room in a snapshot, but time. A
	// file's size is in its header, holes and all: both are bounded.
	stream := &bounded{Reader: plain, budget: NewBudget(limit)}
	report, err := walk(tar.NewReader(stream), NewBudget(limit))
	if err != nil {
		return Report{}, err
	}
	// containerd reads to the end, too: the digest is of all.
	_, err = io.Copy(io.Discard, stream)
	return report, err
}

func walk(archive *tar.Reader, budget *Budget) (Report, error) {
	report := Report{}
	own := map[string]bool{".": true, "/": true}
	for {
		header, err := archive.Next()
		if err == io.EOF {
			return report, nil
		}
		if err != nil {
			return Report{}, err
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := budget.Take(header.Size); err != nil {
			return Report{}, err
		}
		report.Size += header.Size
		// Joined to the root, as containerd does: "../x" is "/x".
		name := path.Join("/", header.Name)
		if report.Leans = report.Leans || !own[path.Dir(name)]; report.Leans {
			continue
		}
		if header.Typeflag == tar.TypeDir {
			own[name] = true
			report.Leans = len(own) > maxDirectories
		} else {
			delete(own, name) // replaced by a link, it leads elsewhere
		}
	}
}

func decompress(r *bufio.Reader) (io.ReadCloser, error) {
	head, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(r)
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}):
		// The second is a frame to skip, with which some writers begin.
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// faults remembers what reading has failed by, to tell it from what is wrong with
// what was read.
type faults struct {
	io.Reader

	err error
}

func (f *faults) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

type bounded struct {
	io.Reader

	budget *Budget
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if over := b.budget.Take(int64(n)); over != nil {
		return 0, over
	}
	return n, err
}
