// SPDX-License-Identifier: Apache-2.0

package archive_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/archive"
	"github.com/berthd/berth/images/unpack"
	"github.com/berthd/berth/integration/image"
)

// refused fails t unless an archive is refused for the reason, and leaves nothing.
func (r *rig) refused(t *testing.T, stream []byte, reason string) {
	t.Helper()
	before := r.everything(t)
	_, err := r.Load(timeout(t), archive.LoadRequest{Archive: bytes.NewReader(stream)})
	if !errdefs.IsInvalidArgument(err) || errdefs.IsNotFound(err) || !contains(err, reason) {
		t.Errorf("%v, want an invalid argument that says %q", err, reason)
	}
	if after := r.everything(t); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("left: %s", after)
	}
}

// layout is an OCI layout by hand: documents that are the blobs, and the index' entries.
type layout struct {
	t     testing.TB
	blobs []entry
	index v1.Index
}

func (l *layout) blob(mediaType string, data []byte) v1.Descriptor {
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	l.blobs = append(l.blobs, entry{name: "blobs/sha256/" + desc.Digest.Encoded(), data: data})
	return desc
}

func (l *layout) json(mediaType string, value any) v1.Descriptor {
	text, err := json.Marshal(value)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.blob(mediaType, text)
}

func (l *layout) indexOf(entries ...v1.Descriptor) v1.Descriptor {
	return l.json(v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: entries,
	})
}

func (l *layout) image(config v1.Descriptor, layers ...v1.Descriptor) v1.Descriptor {
	return l.json(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: config, Layers: layers,
	})
}

func (l *layout) pack(tops ...v1.Descriptor) []byte {
	l.index.Manifests = tops
	text, err := json.Marshal(l.index)
	if err != nil {
		l.t.Fatal(err)
	}
	return tarred(l.t, append(l.blobs,
		entry{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}, entry{name: "index.json", data: text})...)
}

func config(l *layout) v1.Descriptor {
	return l.json(v1.MediaTypeImageConfig, v1.Image{Platform: amd64, RootFS: v1.RootFS{Type: "layers"}})
}

// TestLoadRefused holds archives that are broken, or that somebody made to do harm.
func TestLoadRefused(t *testing.T) {
	whole := packed(t, plain(t, "berth.test/a:1", "a"))
	absent := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 6}
	with := func(e entry) []byte {
		return tarred(t, append([]entry{e}, entry{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)})...)
	}
	for _, c := range []struct {
		name   string
		stream []byte
		reason string
	}{
		{"nothing", nil, "nothing in it"},
		{"text", bytes.Repeat([]byte("hello, world. "), 100), "tar"},
		{"tar without files", make([]byte, 1024), "unrecognized"},
		{"unknown files", tarred(t, entry{name: "a", data: []byte("b")}), "unrecognized"},
		{"broken gzip", append([]byte{0x1F, 0x8B, 0x08}, make([]byte, 100)...), "archive"},
		{"broken xz", []byte("\xFD7zXZ\x00 and so on and so forth"), "xz"},
		{"broken bzip2", []byte("BZh and so on and so forth, for some bytes more"), "bzip2"},
		{"gzip without its end", compressed(t, "gzip", whole)[:len(compressed(t, "gzip", whole))-4], "unexpected EOF"},
		{"goes on", append(bytes.Clone(whole), make([]byte, 2<<20)...), "goes on"},
		{"no index", with(entry{name: "a", data: []byte("b")}), "index.json"},
		{"index is no JSON", with(entry{name: "index.json", data: []byte("{")}), "index"},
		{"index is a list", with(entry{name: "index.json", data: []byte("[]")}), "index"},
		{"index without images", with(entry{name: "index.json", data: []byte("{}")}), "no image"},
		{"oversize index", with(entry{name: "index.json", data: make([]byte, 5<<20)}), "bytes"},
		{"oversize manifest.json", with(entry{name: "./manifest.json", data: make([]byte, 5<<20)}), "bytes"},
		{"deep JSON", with(entry{name: "index.json", data: bytes.Repeat([]byte(`[`), 3<<20)}), "depth"},
		{"another version", tarred(t, entry{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"9"}`)}), "version"},
		{"climbing name", with(entry{name: "../../etc/passwd", data: []byte("x")}), "leads out"},
		{"climbing in between", with(entry{name: "blobs/../../x", data: []byte("x")}), "leads out"},
		{"absolute name", with(entry{name: "/etc/passwd", data: []byte("x")}), "leads out"},
		{"absolute link", with(entry{name: "x", kind: tar.TypeSymlink, link: "/etc/passwd"}), "absolute"},
		{"climbing link", with(entry{name: "a/x", kind: tar.TypeSymlink, link: "../../etc/passwd"}), "leads out"},
		{"hard link", with(entry{name: "x", kind: tar.TypeLink, link: "/etc/passwd"}), "type"},
		{"device", with(entry{name: "x", kind: tar.TypeChar}), "type"},
		{"fifo", with(entry{name: "x", kind: tar.TypeFifo}), "type"},
		{"name that is no text", with(entry{name: "a\xff\xfeb", data: []byte("x")}), "not text"},
		{"long name", with(entry{name: strings.Repeat("long/", 1000) + "x", data: []byte("x")}), "bytes"},
		{"absent manifest", (&layout{t: t}).pack(absent), absent.Digest.String()},
		{"no digest", (&layout{t: t}).pack(v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: "../../../etc/passwd", Size: 1}), "etc/passwd"},
		{"empty index in the index", one(t, func(l *layout) v1.Descriptor { return l.indexOf() }), "without images"},
		{"absent layer", one(t, func(l *layout) v1.Descriptor {
			return l.image(config(l), v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: absent.Digest, Size: 6})
		}), absent.Digest.String()},
		{"blob that is not what its name says", one(t, func(l *layout) v1.Descriptor {
			layer := l.blob(v1.MediaTypeImageLayer, make([]byte, 1024))
			l.blobs[0].data = bytes.Repeat([]byte("x"), 1024)
			return l.image(config(l), layer)
		}), "missing"},
		{"absent configuration", one(t, func(l *layout) v1.Descriptor {
			return l.image(v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: absent.Digest, Size: 6})
		}), absent.Digest.String()},
		{"configuration is no JSON", one(t, func(l *layout) v1.Descriptor {
			return l.image(l.blob(v1.MediaTypeImageConfig, []byte("{")))
		}), "configuration"},
		{"manifest is no JSON", one(t, func(l *layout) v1.Descriptor {
			return l.blob(v1.MediaTypeImageManifest, []byte("manifest"))
		}), "manifest"},
		{"manifest is an index", one(t, func(l *layout) v1.Descriptor {
			index := l.indexOf(l.image(config(l)))
			index.MediaType = v1.MediaTypeImageManifest
			return index
		}), "manifest"},
		{"schema 1", one(t, func(l *layout) v1.Descriptor {
			return l.blob(v1.MediaTypeImageManifest, []byte(`{"schemaVersion":1,"fsLayers":[{"blobSum":"sha256:x"}]}`))
		}), "schema 1"},
		{"size of a manifest", one(t, func(l *layout) v1.Descriptor {
			m := l.image(config(l))
			m.Size++
			return m
		}), "described as"},
		{"size of a layer", one(t, func(l *layout) v1.Descriptor {
			layer := l.blob(v1.MediaTypeImageLayer, make([]byte, 1024))
			layer.Size = 1 << 40
			return l.image(config(l), layer)
		}), "described as"},
		{"huge configuration", one(t, func(l *layout) v1.Descriptor {
			return l.image(l.blob(v1.MediaTypeImageConfig, make([]byte, 5<<20)))
		}), "more than"},
		{"huge manifest", one(t, func(l *layout) v1.Descriptor {
			return l.blob(v1.MediaTypeImageManifest, make([]byte, 5<<20))
		}), "more than"},
		{"indexes in each other", one(t, func(l *layout) v1.Descriptor {
			top := l.image(config(l))
			for range 6 {
				top = l.indexOf(top)
			}
			return top
		}), "indexes in each other"},
		{"many ways through indexes", one(t, func(l *layout) v1.Descriptor {
			top := l.image(config(l))
			for range 4 {
				top = l.indexOf(slices.Repeat([]v1.Descriptor{top}, 100)...)
			}
			return top
		}), "blobs"},
		{"many ways to many layers", one(t, func(l *layout) v1.Descriptor {
			layer := l.blob(v1.MediaTypeImageLayer, make([]byte, 1024))
			image := l.image(config(l), slices.Repeat([]v1.Descriptor{layer}, 10_000)...)
			return l.indexOf(slices.Repeat([]v1.Descriptor{image}, 10_000)...)
		}), "blobs"},
		{"digest of another", edited(t, whole, func(index *v1.Index) {
			index.Manifests[0].Annotations["io.containerd.image.name"] = "berth.test/a@" + absent.Digest.String()
		}), "name"},
		{"docker: absent configuration", tarred(t, entry{name: "manifest.json", data: []byte(`[{"Config":"c.json"}]`)}), "c.json"},
		{"docker: absent layer", tarred(t, entry{name: "manifest.json", data: []byte(`[{"Config":"c","Layers":["l"]}]`)}, entry{name: "c", data: []byte("{}")}), "l"},
		{"docker: absent target of a link", tarred(t, entry{name: "manifest.json", data: []byte(`[]`)}, entry{name: "l", kind: tar.TypeSymlink, link: "nowhere"}), "nowhere"},
		{"docker: no image", tarred(t, entry{name: "manifest.json", data: []byte(`[]`)}), "no image"},
		{"docker: huge configuration", tarred(t, entry{name: "manifest.json", data: []byte(`[{"Config":"c","Layers":[]}]`)}, entry{name: "c", data: make([]byte, 5<<20)}), "more than"},
		{"docker: bad name", tarred(t, entry{name: "manifest.json", data: []byte(`[{"Config":"c","RepoTags":["-:-"]}]`)}, entry{name: "c", data: []byte("{}")}), "-:-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			open(t).refused(t, c.stream, c.reason)
		})
	}
}

// one is a layout of one image.
func one(t testing.TB, build func(*layout) v1.Descriptor) []byte {
	t.Helper()
	l := &layout{t: t}
	return l.pack(build(l))
}

// TestLoadTruncated cuts an archive at every kilobyte.
func TestLoadTruncated(t *testing.T) {
	r := open(t)
	whole := packed(t, build(t, image.Attested, "berth.test/a:1"))
	end := bytes.LastIndexFunc(whole, func(c rune) bool { return c != 0 })
	for n := 512; n < end; n += 1024 {
		_, err := r.Load(timeout(t), archive.LoadRequest{Archive: bytes.NewReader(whole[:n])})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d of %d bytes: %v, want an invalid argument", n, end, err)
		}
	}
	if left := r.everything(t); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
}

// TestLoadSparse refuses a file that is a terabyte only once it is read, in both forms
// that GNU tar has.
func TestLoadSparse(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(dir + "/blob")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 40); err != nil {
		t.Fatal(err)
	}
	for format, reason := range map[string]string{"gnu": "type", "posix": "sparse"} {
		t.Run(format, func(t *testing.T) {
			stream, err := exec.Command("tar", "-C", dir, "-cS", "--format="+format, "blob").Output()
			if err != nil {
				t.Fatal(err)
			}
			open(t).refused(t, stream, reason)
		})
	}
}

// TestLoadKeepsToItself makes sure that nothing was ever written beside the stores.
func TestLoadKeepsToItself(t *testing.T) {
	r := open(t)
	dir := t.TempDir()
	t.Chdir(dir)
	r.load(t, packed(t, plain(t, "berth.test/a:1", "a")))
	files, err := os.ReadDir(dir)
	if err != nil || len(files) > 0 {
		t.Errorf("%v, %v", files, err)
	}
}

// A bomb is recorded and not unpacked: it takes what is allowed, and not much more.
func TestBomb(t *testing.T) {
	const limit, enough = 64 << 20, 1 << 30
	bring := map[string]func(r *rig, t *testing.T) archive.Loaded{
		"load":   func(r *rig, t *testing.T) archive.Loaded { return r.loadOne(t, image.Bomb(8<<30)) },
		"layers": func(r *rig, t *testing.T) archive.Loaded { return r.loadOne(t, image.Noise(3, limit/2-1<<20)) },
		"import": func(r *rig, t *testing.T) archive.Loaded {
			one, err := r.Import(timeout(t), archive.ImportRequest{Root: zeros(t, 2<<30), Name: name(t, "berth.test/bomb:1")})
			if err != nil {
				t.Fatal(err)
			}
			return one
		},
	}
	for kind, f := range bring {
		t.Run(kind, func(t *testing.T) {
			r := open(t)
			r.Unpacker.Max = limit
			var one archive.Loaded
			peak := r.peak(t, func() { one = f(r, t) })
			if !errors.Is(one.Unpack, unpack.ErrTooLarge) || !errdefs.IsResourceExhausted(one.Unpack) || !contains(one.Unpack, "berth.test/bomb:1") {
				t.Errorf("%v, want ErrTooLarge", one.Unpack)
			}
			if peak == 0 || peak > enough {
				t.Errorf("snapshots have taken %d bytes, want more than none and less than %d", peak, enough)
			}
			if n := r.snapshots(t); n > 0 {
				t.Errorf("%d snapshots left", n)
			}
			r.wantNames(t, "berth.test/bomb:1")
		})
	}
}

func (r *rig) loadOne(t *testing.T, kind image.Builder) archive.Loaded {
	t.Helper()
	loaded, err := r.Load(timeout(t), archive.LoadRequest{Archive: bytes.NewReader(packed(t, build(t, kind, "berth.test/bomb:1")))})
	if err != nil {
		t.Fatal(err)
	}
	return loaded[0]
}

// zeros is a root with one file.
func zeros(t *testing.T, size int64) io.Reader {
	t.Helper()
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: size}); err != nil {
		t.Fatal(err)
	}
	return io.MultiReader(&head, io.LimitReader(zero{}, size+1024))
}

type zero struct{}

// Read implements io.Reader.
func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// peak is how many bytes the snapshots have taken at most while f ran.
func (r *rig) peak(t *testing.T, f func()) (most int64) {
	t.Helper()
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				most = max(most, taken(r.d.Dir+"/root/io.containerd.snapshotter.v1."+snapshotter))
			}
		}
	}()
	f()
	close(done)
	<-watched
	return most
}

// taken is the size of what is below a folder, as far as it does not go away meanwhile.
func taken(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it has gone away
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return nil
	})
	return sum
}
