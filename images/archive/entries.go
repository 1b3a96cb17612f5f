// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits of an archive. Each is far above what tools write, and keeps a small
// archive from costing much memory or time.
const (
	// maxEntries bounds the blobs that are written one by one: a hundred images of a
	// hundred layers, each with the three files of Docker's first format.
	maxEntries = 50_000
	// maxNameBytes is PATH_MAX of Linux.
	maxNameBytes = 4096
	// maxDocumentBytes is what registries take as a manifest (distribution
	// specification); an archive's documents are no larger.
	maxDocumentBytes = 4 << 20
)

// dockerManifest is what Docker calls its list of an archive's images.
const dockerManifest = "manifest.json"

// entries is a tar stream from which what an archive of images cannot hold has been
// taken out or, where somebody must have meant harm, is an error of the class
// ErrInvalidArgument. Names and types are checked once here, so that whoever reads
// it, containerd's importer, can take them as they are.
type entries struct {
	in    *tar.Reader
	out   *tar.Writer
	piece [64 << 10]byte
	ready bytes.Buffer // what is given out next
	count int
	err   error // that comes after ready
}

func newEntries(r io.Reader) *entries {
	e := &entries{in: tar.NewReader(r)}
	e.out = tar.NewWriter(&e.ready)
	return e
}

// Read returns the next bytes of the checked stream.
func (e *entries) Read(p []byte) (int, error) {
	for e.ready.Len() == 0 {
		if e.err != nil {
			return 0, e.err
		}
		e.err = e.fill()
	}
	return e.ready.Read(p)
}

// fill gets ready a piece of the entry at hand or, at its end, the next header.
func (e *entries) fill() error {
	n, err := e.in.Read(e.piece[:])
	if n > 0 {
		_, err := e.out.Write(e.piece[:n])
		return err // that of Read comes again
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("archive: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for {
		header, err := e.in.Next()
		if errors.Is(err, io.EOF) {
			return errors.Join(e.out.Close(), io.EOF)
		}
		if err != nil {
			return fmt.Errorf("archive: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if e.count++; e.count > maxEntries {
			return fmt.Errorf("archive: more than %d entries: %w", maxEntries, errdefs.ErrInvalidArgument)
		}
		passed, err := check(header)
		if err != nil {
			return fmt.Errorf("archive: entry %q: %w: %w", shortened(header.Name), err, errdefs.ErrInvalidArgument)
		}
		if passed != nil {
			return e.out.WriteHeader(passed)
		}
	}
}

// check returns the header to pass on, nil for an entry that nobody needs.
func check(h *tar.Header) (*tar.Header, error) {
	passed := &tar.Header{Typeflag: h.Typeflag, Size: h.Size, Mode: 0o444}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil, nil
	case tar.TypeDir, tar.TypeReg, tar.TypeSymlink:
	default:
		// Hard links included: no tool writes them, and nothing follows them.
		return nil, fmt.Errorf("type %q has no place among images", h.Typeflag)
	}
	var err error
	if passed.Name, err = local(h.Name); err != nil {
		return nil, err
	}
	switch {
	case h.Typeflag == tar.TypeDir:
		return nil, nil
	case h.Typeflag == tar.TypeSymlink:
		// Docker's and Podman's way to have one layer in two images.
		if path.IsAbs(h.Linkname) {
			return nil, fmt.Errorf("link to %q: absolute", shortened(h.Linkname))
		}
		if _, err := local(path.Join(path.Dir(passed.Name), h.Linkname)); err != nil {
			return nil, fmt.Errorf("link to %q: %w", shortened(h.Linkname), err)
		}
		passed.Size, passed.Linkname = 0, h.Linkname
		return passed, nil
	case sparse(h):
		return nil, errors.New("sparse: a few bytes would become many")
	}
	return passed, checkDocument(passed)
}

// checkDocument bounds the files that are read whole.
func checkDocument(h *tar.Header) error {
	switch h.Name {
	case v1.ImageLayoutFile, v1.ImageIndexFile, dockerManifest:
		if h.Size > maxDocumentBytes {
			return fmt.Errorf("%d bytes are more than %d", h.Size, maxDocumentBytes)
		}
	}
	return nil
}

// local returns the clean form of a name that stays below the archive's root. It will
// be part of a request to containerd, whose text must be UTF-8.
func local(name string) (string, error) {
	switch clean := path.Clean(name); {
	case len(name) > maxNameBytes:
		return "", fmt.Errorf("name of more than %d bytes", maxNameBytes)
	case !utf8.ValidString(name) || strings.ContainsRune(name, 0):
		return "", errors.New("name is not text")
	case !filepath.IsLocal(clean):
		return "", errors.New("name leads out of the archive")
	default:
		return clean, nil
	}
}

// sparse tells of files with holes. archive/tar fills them with zeros as it reads.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// shortened is a name as an error may hold it.
func shortened(name string) string {
	const enough = 200
	if len(name) > enough {
		return name[:enough] + "..."
	}
	return name
}
