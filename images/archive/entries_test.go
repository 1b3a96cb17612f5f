// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// FuzzEntries has whatever comes out of a stream keep what check promises.
func FuzzEntries(f *testing.F) {
	for _, h := range []tar.Header{
		{Name: "index.json", Typeflag: tar.TypeReg, Size: 4},
		{Name: "./blobs/sha256/x", Typeflag: tar.TypeReg, Size: 4},
		{Name: "../x", Typeflag: tar.TypeReg},
		{Name: "a/x", Typeflag: tar.TypeSymlink, Linkname: "../b/layer.tar"},
		{Name: "a/", Typeflag: tar.TypeDir},
		{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"BERTH.x": "1"}, Format: tar.FormatPAX},
	} {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(out.Bytes())
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		limited := io.LimitReader(newEntries(bytes.NewReader(stream)), 4*int64(len(stream))+1<<16)
		in := tar.NewReader(limited)
		for {
			h, err := in.Next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errdefs.IsInvalidArgument(err) {
					t.Fatalf("%v, want an invalid argument or the end", err)
				}
				return
			}
			if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeSymlink {
				t.Fatalf("type %q", h.Typeflag)
			}
			if h.Name != path.Clean(h.Name) || !filepath.IsLocal(h.Name) {
				t.Fatalf("name %q", h.Name)
			}
			if target := path.Join(path.Dir(h.Name), h.Linkname); h.Linkname != "" && !filepath.IsLocal(target) {
				t.Fatalf("%q links to %q", h.Name, h.Linkname)
			}
			if n, err := io.Copy(io.Discard, in); err == nil && n != h.Size {
				t.Fatalf("%d bytes of %d", n, h.Size)
			}
		}
	})
}
