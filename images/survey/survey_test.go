// SPDX-License-Identifier: Apache-2.0

package survey_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/berthd/berth/images/survey"
)

// pack makes an archive; a name with a slash at its end is a directory, one with
// "->" a symbolic link.
func pack(t testing.TB, size int64, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		h := &tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeReg, Size: size}
		if name[len(name)-1] == '/' {
			h.Typeflag, h.Size = tar.TypeDir, 0
		}
		if before, after, ok := bytes.Cut([]byte(name), []byte("->")); ok {
			h.Name, h.Linkname, h.Typeflag, h.Size = string(before), string(after), tar.TypeSymlink, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func zipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstandard(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

func TestRead(t *testing.T) {
	const size = 1000
	tests := map[string]struct {
		names []string
		files int64
		leans bool
	}{
		"own directories":    {[]string{"a/", "a/b/", "a/b/c", "x"}, 2, false},
		"with ./":            {[]string{"./", "./a/", "./a/x"}, 1, false},
		"from /":             {[]string{"/a/", "/a/x"}, 1, false},
		"no directory":       {[]string{"a/x"}, 1, true},
		"directory after":    {[]string{"a/x", "a/"}, 1, true},
		"one level missing":  {[]string{"a/", "a/b/c/"}, 0, true},
		"whiteout":           {[]string{"a/.wh.x"}, 1, true},
		"through a link":     {[]string{"b/", "a->b", "a/x"}, 1, true},
		"directory replaced": {[]string{"b/", "a/", "a->b", "a/x"}, 1, true},
		"up and out":         {[]string{"../../x"}, 1, false},
		"nothing":            {nil, 0, false},
	}
	forms := map[string]func(testing.TB, []byte) []byte{
		"plain": func(_ testing.TB, b []byte) []byte { return b }, "gzip": zipped, "zstd": zstandard,
	}
	for name, test := range tests {
		for form, compress := range forms {
			t.Run(name+"/"+form, func(t *testing.T) {
				layer := compress(t, pack(t, size, test.names...))
				got, err := survey.Read(bytes.NewReader(layer), 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				if want := (survey.Report{Size: test.files * size, Leans: test.leans}); got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
			})
		}
	}
}

func TestReadStopsABomb(t *testing.T) {
	tests := map[string][]byte{
		"one file":            zipped(t, pack(t, 20<<20, "zeros")),
		"many files":          zipped(t, pack(t, 1<<20, "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11")),
		"zstd":                zstandard(t, pack(t, 20<<20, "zeros")),
		"behind the archive":  zipped(t, append(pack(t, 0, "x"), make([]byte, 20<<20)...)),
		"size that overflows": hugeHeader(t),
	}
	for name, layer := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := survey.Read(bytes.NewReader(layer), 10<<20)
			if !errors.Is(err, survey.ErrTooLarge) || !errdefs.IsResourceExhausted(err) {
				t.Errorf("error %v, want ErrTooLarge", err)
			}
		})
	}
}

// hugeHeader is an archive that claims a file larger than any disk.
func hugeHeader(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "x", Size: 1 << 62, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBudget(t *testing.T) {
	b := survey.NewBudget(10)
	for n, want := range []struct {
		take int64
		ok   bool
	}{{4, true}, {6, true}, {0, true}, {1, false}} {
		if err := b.Take(want.take); (err == nil) != want.ok || err != nil && !errors.Is(err, survey.ErrTooLarge) {
			t.Errorf("taking %d as number %d: %v", want.take, n, err)
		}
	}
	for _, take := range []int64{-1, 11, 1 << 62} {
		if err := survey.NewBudget(10).Take(take); !errors.Is(err, survey.ErrTooLarge) {
			t.Errorf("taking %d of 10: %v", take, err)
		}
	}
}

func TestReadRefusesWhatIsNoArchive(t *testing.T) {
	layer := zipped(t, pack(t, 100, "x"))
	for name, b := range map[string][]byte{
		"text":      []byte("<html>not found</html>" + string(make([]byte, 1000))),
		"truncated": layer[:len(layer)/2],
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := survey.Read(bytes.NewReader(b), 1<<20); !errors.Is(err, survey.ErrNotArchive) || !errdefs.IsInvalidArgument(err) {
				t.Errorf("error %v, want ErrNotArchive", err)
			}
		})
	}
	broken := errors.New("line is down")
	if _, err := survey.Read(io.MultiReader(bytes.NewReader(layer[:20]), fails{broken}), 1<<20); !errors.Is(err, broken) || errors.Is(err, survey.ErrNotArchive) {
		t.Errorf("error %v, want that of the reader", err)
	}
}

type fails struct{ err error }

func (f fails) Read([]byte) (int, error) { return 0, f.err }

func TestStream(t *testing.T) {
	read := func(r io.Reader) (survey.Report, error) { return survey.Read(r, 1<<20) }
	layer := zipped(t, pack(t, 100, "a/x"))

	s := survey.NewStream(read)
	for _, b := range layer {
		if err := s.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	report, known, err := s.Wait()
	if want := (survey.Report{Size: 100, Leans: true}); report != want || !known || err != nil {
		t.Errorf("got %+v %v %v, want %+v", report, known, err, want)
	}

	s = survey.NewStream(read)
	if err := s.Write(layer[:10]); err != nil {
		t.Fatal(err)
	}
	s.Abandon()
	if _, known, err := s.Wait(); known || err != nil {
		t.Errorf("of an abandoned stream: known %v, error %v", known, err)
	}

	s = survey.NewStream(read)
	bomb := zipped(t, pack(t, 2<<20, "zeros"))
	var err2 error
	for err2 == nil { // the survey takes what it is given before it looks at it
		err2 = s.Write(bomb)
	}
	if !errors.Is(err2, survey.ErrTooLarge) {
		t.Errorf("writing a bomb: %v", err2)
	}
	s.Abandon()
	if _, known, err := s.Wait(); !known || !errors.Is(err, survey.ErrTooLarge) {
		t.Errorf("of a bomb: known %v, error %v", known, err)
	}
}
