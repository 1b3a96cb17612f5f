// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// format is how a stream is compressed.
type format uint8

const (
	plain format = iota
	gzipped
	zstandard
	xzipped
	bzipped
)

// What streams begin with in formats that containerd does not know.
var (
	xzMagic    = []byte{0xFD, '7', 'z', 'X', 'Z', 0}
	bzip2Magic = []byte("BZh")
)

// peekBytes is more than the longest of what formats begin with.
const peekBytes = 16

// peek tells a stream's format, and whether nothing at all comes.
func peek(r io.Reader) (stream *bufio.Reader, f format, empty bool, err error) {
	stream = bufio.NewReaderSize(r, 64<<10)
	head, err := stream.Peek(peekBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, plain, false, err
	}
	switch known := compression.DetectCompression(head); {
	case known == compression.Gzip:
		f = gzipped
	case known == compression.Zstd:
		f = zstandard
	case bytes.HasPrefix(head, xzMagic):
		f = xzipped
	case bytes.HasPrefix(head, bzip2Magic):
		f = bzipped
	}
	return stream, f, len(head) == 0, nil
}

// decompress undoes a stream's compression. The caller closes what it returns; the
// stream below stays open. containerd's decompressor is not used: it knows less
// formats, and hands gzip to another process, which goes on reading after Close.
func decompress(r io.Reader, f format) (io.ReadCloser, error) {
	var stream io.ReadCloser
	var err error
	switch f {
	case gzipped:
		stream, err = gzip.NewReader(r)
	case zstandard:
		var decoder *zstd.Decoder
		// One goroutine's worth: what limits a load is the disk.
		if decoder, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1)); err == nil {
			stream = decoder.IOReadCloser()
		}
	case xzipped:
		var reader io.Reader
		reader, err = xz.NewReader(r)
		stream = io.NopCloser(reader)
	case bzipped:
		stream = io.NopCloser(bzip2.NewReader(r))
	default:
		stream = io.NopCloser(r)
	}
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return stream, nil
}
