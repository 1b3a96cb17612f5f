// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
)

// File is one entry of a layer, owned by root. Mode's type bits say what it is:
// a folder (fs.ModeDir), a symbolic link (fs.ModeSymlink) or, without any, a
// file. The sticky bit is fs.ModeSticky.
type File struct {
	Path string // below the root of the layer, without a leading slash
	Mode fs.FileMode
	Data []byte // of a file
	Link string // of a symbolic link
}

// layer is the files as an uncompressed tar stream, in their order.
func layer(files []File) ([]byte, error) {
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
	}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("file %s: %w", f.Path, err)
	}
	if _, err := t.Write(f.Data); err != nil {
		return fmt.Errorf("file %s: %w", f.Path, err)
	}
	return nil
}
