// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"io"
	"math"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzCheck has whatever passes check be what containerd's importer can take as it is.
func FuzzCheck(f *testing.F) {
	for _, seed := range []struct {
		kind       byte
		name, link string
		size       int64
		record     string
	}{
		{tar.TypeReg, "index.json", "", 4, ""},
		{tar.TypeReg, "./blobs//sha256/../x", "", 1 << 40, "comment"},
		{tar.TypeReg, "../x", "", 0, ""},
		{tar.TypeReg, "x", "", 0, "GNU.sparse.major"},
		{tar.TypeSymlink, "a/x", "../b/layer.tar", 0, ""},
		{tar.TypeSymlink, "a/x", "/etc/passwd", 0, ""},
		{tar.TypeDir, "a/", "", 0, ""},
		{tar.TypeLink, "a", "b", 0, ""},
		{tar.TypeXGlobalHeader, "pax_global_header", "", 0, ""},
	} {
		f.Add(seed.kind, seed.name, seed.link, seed.size, seed.record)
	}
	f.Fuzz(func(t *testing.T, kind byte, name, link string, size int64, record string) {
		size &= math.MaxInt64 // archive/tar returns no other
		got, err := check(&tar.Header{Typeflag: kind, Name: name, Linkname: link, Size: size, PAXRecords: map[string]string{record: "1"}})
		if err != nil || got == nil {
			return
		}
		switch {
		case got.Typeflag != tar.TypeReg && got.Typeflag != tar.TypeSymlink:
			t.Errorf("type %q", got.Typeflag)
		case got.Name != path.Clean(got.Name) || !filepath.IsLocal(got.Name) || !utf8.ValidString(got.Name):
			t.Errorf("name %q", got.Name)
		case got.Linkname != "" && !filepath.IsLocal(path.Join(path.Dir(got.Name), got.Linkname)):
			t.Errorf("%q links to %q", got.Name, got.Linkname)
		case got.Typeflag == tar.TypeReg && (got.Size != size || strings.HasPrefix(record, "GNU.sparse.")):
			t.Errorf("%d bytes of %d, record %q", got.Size, size, record)
		case got.Name == "index.json" && got.Size > maxDocumentBytes:
			t.Errorf("an index of %d bytes", got.Size)
		}
		if err := tar.NewWriter(io.Discard).WriteHeader(got); err != nil {
			t.Errorf("cannot be passed on: %v", err)
		}
	})
}
