// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Format is the compression of a layer, named by the layer's media type.
type Format string

// The compressions that layers have.
const (
	Plain Format = v1.MediaTypeImageLayer
	Gzip  Format = v1.MediaTypeImageLayerGzip
	Zstd  Format = v1.MediaTypeImageLayerZstd
)

// foreignGzip is what a layer is that may not be distributed. The specification has
// given it up; images with it are still met.
const foreignGzip = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"

// Layer is a layer of a Variant.
type Layer struct {
	desc v1.Descriptor
	diff digest.Digest // of the uncompressed stream
	data []byte        // nil: described, but no part of the image
}

// NewLayer is a layer with these files, in this order. Without files it is a tar
// stream without entries.
func NewLayer(format Format, files ...File) (Layer, error) {
	raw, err := pack(files)
	if err != nil {
		return Layer{}, err
	}
	return newLayer(format, raw, gzip.DefaultCompression)
}

func newLayer(format Format, raw []byte, level int) (Layer, error) {
	data, err := format.compress(raw, level)
	if err != nil {
		return Layer{}, err
	}
	return Layer{desc: describe(string(format), data), diff: digest.FromBytes(raw), data: data}, nil
}

// compress takes gzip's level, which others pass over.
func (f Format) compress(raw []byte, level int) (_ []byte, err error) {
	var out bytes.Buffer
	var w io.WriteCloser
	switch f {
	case Gzip:
		if w, err = gzip.NewWriterLevel(&out, level); err != nil {
			return nil, err
		}
	case Zstd:
		encoder, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		w = encoder
	default:
		return raw, nil
	}
	if _, err := w.Write(raw); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// ForeignLayer is a layer that may not be distributed: the image describes it and
// does not contain it.
func ForeignLayer(files ...File) (Layer, error) {
	layer, err := NewLayer(Gzip, files...)
	if err != nil {
		return Layer{}, err
	}
	layer.data = nil
	layer.desc.MediaType = foreignGzip
	layer.desc.URLs = []string{"http://127.0.0.1:1/layer"}
	return layer, nil
}

// NoiseLayer is one file of size bytes that do not compress. The same seed gives
// the same bytes.
func NoiseLayer(seed byte, size int) (Layer, error) {
	data := make([]byte, size)
	// It cannot fail.
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data)
	raw, err := pack([]File{{Path: fmt.Sprintf("noise-%d", seed), Mode: 0o644, Data: data}})
	if err != nil {
		return Layer{}, err
	}
	return newLayer(Gzip, raw, gzip.NoCompression) // trying takes long
}

// chunk is how many zeros are compressed once and then repeated.
const chunk = 16 << 20

// ZeroLayer is one file of size zeros, a multiple of 16 MiB, whose compressed form
// is a thousandth of that. It is made without holding the zeros, but their digest
// has to be computed: about a second for each GiB.
func ZeroLayer(size int64) (Layer, error) {
	diff := digest.Canonical.Digester()
	data, err := zeros(size, diff.Hash())
	return Layer{desc: describe(string(Gzip), data), diff: diff.Digest(), data: data}, err
}

// zeros writes the stream to raw as well.
func zeros(size int64, raw io.Writer) (data []byte, err error) {
	if size%chunk != 0 {
		return nil, fmt.Errorf("layer of %d zeros: not a multiple of %d", size, chunk)
	}
	var head bytes.Buffer
	t := tar.NewWriter(&head)
	if err := t.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: size}); err != nil {
		return nil, err
	}
	zeros := make([]byte, chunk)
	// Members of gzip may be concatenated: the stream is what they hold together.
	for _, m := range []struct {
		raw   []byte
		times int64
	}{{head.Bytes(), 1}, {zeros, size / chunk}, {zeros[:1024], 1}} {
		zipped, err := Gzip.compress(m.raw, gzip.DefaultCompression)
		if err != nil {
			return nil, err
		}
		for range m.times {
			data = append(data, zipped...)
			if _, err := raw.Write(m.raw); err != nil {
				return nil, err
			}
		}
	}
	return data, nil
}

// File is one entry of a layer, owned by root. Mode's type bits say what it is: a
// folder (fs.ModeDir), a symbolic link (fs.ModeSymlink), the device 1:3
// (fs.ModeDevice), a pipe (fs.ModeNamedPipe) or, without any, a file; a file with
// a Link is a hard link. The sticky bit is fs.ModeSticky.
type File struct {
	Path string // below the root of the layer, without a leading slash
	Mode fs.FileMode
	Data []byte // of a file
	Link string // of a symbolic or a hard link
}

// pack is the files as an uncompressed tar stream, in their order.
func pack(files []File) ([]byte, error) {
	var out bytes.Buffer
	t := tar.NewWriter(&out)
	for _, f := range files {
		if err := f.write(t); err != nil {
			return nil, err
		}
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func (f File) write(t *tar.Writer) error {
	// No time and no owner: the digest depends on the contents alone.
	h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Data))}
	if f.Mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	switch f.Mode.Type() {
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, f.Path+"/"
	case fs.ModeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
	case fs.ModeDevice:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, 3
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	default:
		if f.Link != "" {
			h.Typeflag, h.Linkname = tar.TypeLink, f.Link
		}
	}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("file %s: %w", f.Path, err)
	}
	if _, err := t.Write(f.Data); err != nil {
		return fmt.Errorf("file %s: %w", f.Path, err)
	}
	return nil
}
