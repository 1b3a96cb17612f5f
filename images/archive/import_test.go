// SPDX-License-Identifier: Apache-2.0

package archive_test

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/archive"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
)

func name(t testing.TB, text string) reference.Reference {
	t.Helper()
	ref, err := reference.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// bring imports a root that is in order.
func (r *rig) bring(t *testing.T, request archive.ImportRequest) archive.Loaded {
	t.Helper()
	one, err := r.Import(timeout(t), request)
	if err != nil {
		t.Fatal(err)
	}
	if one.Unpack != nil {
		t.Error(one.Unpack)
	}
	return one
}

// blob reads a document.
func (r *rig) blob(t *testing.T, desc v1.Descriptor) []byte {
	t.Helper()
	data, err := content.ReadBlob(r.store.Context(timeout(t)), r.d.Client().ContentStore(), desc)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// (59) What a layer may be is kept, everything else becomes gzip; the label says what
// is in it.
func TestImport(t *testing.T) {
	root := tarred(t, entry{name: "file", data: bytes.Repeat([]byte("data"), 1<<18)})
	for how := range compressions {
		t.Run(how, func(t *testing.T) {
			r := open(t)
			stream := compressed(t, how, root)
			one := r.bring(t, archive.ImportRequest{Root: iotest.HalfReader(bytes.NewReader(stream)), Name: name(t, "berth.test/root:1")})
			r.wantNames(t, "berth.test/root:1")
			r.wantEvents(t, "import berth.test/root:1")
			r.wantComplete(t, "berth.test/root:1")
			layer := r.document(t, one.Image.Target).Layers[0]
			kept := how == "gzip" || how == "zstd"
			if got := layer.Digest == digest.FromBytes(stream); got != kept {
				t.Errorf("kept as it is: %t, want %t", got, kept)
			}
			want := v1.MediaTypeImageLayerGzip
			if how == "zstd" {
				want = v1.MediaTypeImageLayerZstd
			}
			if layer.MediaType != want {
				t.Errorf("layer is %s, want %s", layer.MediaType, want)
			}
			r.wantUncompressed(t, layer, root)
		})
	}
	t.Run("bzip2", func(t *testing.T) {
		r := open(t)
		r.bring(t, archive.ImportRequest{Root: bytes.NewReader(read(t, "testdata/root.tar.bz2")), Name: name(t, "berth.test/root:1")})
		r.wantComplete(t, "berth.test/root:1")
	})
	t.Run("nothing", func(t *testing.T) {
		r := open(t)
		one := r.bring(t, archive.ImportRequest{Root: strings.NewReader(""), Name: name(t, "berth.test/root:1")})
		r.wantComplete(t, "berth.test/root:1")
		if got := len(r.document(t, one.Image.Target).Layers); got != 1 {
			t.Errorf("%d layers, want an empty one", got)
		}
	})
	t.Run("twice", func(t *testing.T) {
		r := open(t)
		a := r.bring(t, archive.ImportRequest{Root: bytes.NewReader(root), Message: "a"})
		b := r.bring(t, archive.ImportRequest{Root: bytes.NewReader(root), Message: "b"})
		r.wantNames(t, store.DanglingName(a.Image.Target.Digest), store.DanglingName(b.Image.Target.Digest))
		r.wantComplete(t, a.Image.Name)
		r.wantComplete(t, b.Image.Name)
		if a.Named {
			t.Error("named, want an image without a name")
		}
	})
	t.Run("unpacked before", func(t *testing.T) {
		// To unpack it again sets no label.
		r := open(t)
		r.bring(t, archive.ImportRequest{Root: bytes.NewReader(root)})
		stream := compressed(t, "gzip", root)
		for range 2 {
			one := r.bring(t, archive.ImportRequest{Root: bytes.NewReader(stream)})
			layer := r.document(t, one.Image.Target).Layers[0]
			r.wantUncompressed(t, layer, root)
			bare := content.Info{Digest: layer.Digest}
			if _, err := r.d.Client().ContentStore().Update(r.store.Context(timeout(t)), bare, "labels.containerd.io/uncompressed"); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("moves the name", func(t *testing.T) {
		r := open(t)
		a := r.bring(t, archive.ImportRequest{Root: bytes.NewReader(root), Name: name(t, "berth.test/root:1"), Message: "a"})
		r.bring(t, archive.ImportRequest{Root: bytes.NewReader(root), Name: name(t, "berth.test/root:1"), Message: "b"})
		r.wantNames(t, "berth.test/root:1", store.DanglingName(a.Image.Target.Digest))
	})
}

// wantUncompressed fails t unless a layer's label says what is in it.
func (r *rig) wantUncompressed(t *testing.T, layer v1.Descriptor, root []byte) {
	t.Helper()
	info, err := r.d.Client().ContentStore().Info(r.store.Context(timeout(t)), layer.Digest)
	if err != nil || info.Labels["containerd.io/uncompressed"] != digest.FromBytes(root).String() {
		t.Errorf("labels %v, %v; want the digest of what is in it", info.Labels, err)
	}
}

// TestImportConfig reads the configuration that is made.
func TestImportConfig(t *testing.T) {
	r := open(t)
	one := r.bring(t, archive.ImportRequest{
		Root:     strings.NewReader(""),
		Platform: v1.Platform{OS: "linux", Architecture: "aarch64"},
		Message:  "from a test",
		Changes:  []string{`ENV A="b c"`, "CMD echo $A", "HEALTHCHECK CMD true", "ONBUILD RUN x"},
	})
	var got map[string]any
	if err := json.Unmarshal(r.blob(t, r.document(t, one.Image.Target).Config), &got); err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1700000000, 0).UTC().Format(time.RFC3339)
	want := map[string]any{
		"architecture": "arm64",
		"os":           "linux",
		"created":      now,
		"config": map[string]any{
			"Env":         []any{"A=b c"},
			"Cmd":         []any{"/bin/sh", "-c", "echo $A"},
			"Healthcheck": map[string]any{"Test": []any{"CMD-SHELL", "true"}},
			"OnBuild":     []any{"RUN x"},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []any{digest.FromString("").String()}},
		"history": []any{map[string]any{"created": now, "comment": "from a test"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestImportRefused(t *testing.T) {
	whole := tarred(t, entry{name: "file", data: bytes.Repeat([]byte("data"), 1<<18)})
	zipped := compressed(t, "gzip", whole)
	digested := name(t, "berth.test/x@"+digest.FromString("").String())
	unread := unreadable{t}
	for _, c := range []struct {
		name    string
		request archive.ImportRequest
		reason  string
	}{
		{"change", archive.ImportRequest{Root: unread, Changes: []string{"RUN rm -rf /"}}, "RUN"},
		{"second change", archive.ImportRequest{Root: unread, Changes: []string{"USER x", "EXPOSE http"}}, "EXPOSE http"},
		{"digest for a name", archive.ImportRequest{Root: unread, Name: digested}, "digest"},
		{"half a platform", archive.ImportRequest{Root: unread, Platform: v1.Platform{OS: "linux"}}, "platform"},
		{"no root", archive.ImportRequest{}, "no root"},
		{"text", archive.ImportRequest{Root: strings.NewReader(strings.Repeat("text ", 300))}, "root"},
		{"zipped text", archive.ImportRequest{Root: bytes.NewReader(compressed(t, "gzip", bytes.Repeat([]byte("text "), 300)))}, "root"},
		{"truncated", archive.ImportRequest{Root: bytes.NewReader(whole[:1<<19])}, "unexpected EOF"},
		{"truncated gzip", archive.ImportRequest{Root: bytes.NewReader(zipped[:len(zipped)-5])}, "unexpected EOF"},
		{"garbage after gzip", archive.ImportRequest{Root: bytes.NewReader(append(bytes.Clone(zipped), "garbage garbage"...))}, "root"},
		{"broken xz", archive.ImportRequest{Root: strings.NewReader("\xFD7zXZ\x00 and so on")}, "xz"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := open(t)
			_, err := r.Import(timeout(t), c.request)
			if !errdefs.IsInvalidArgument(err) || !contains(err, c.reason) {
				t.Errorf("%v, want an invalid argument that says %q", err, c.reason)
			}
			r.wantNames(t)
			if left := r.everything(t); len(left) > 0 {
				t.Errorf("left: %s", left)
			}
		})
	}
}

// unreadable fails the test when it is read.
type unreadable struct{ t *testing.T }

func (u unreadable) Read([]byte) (int, error) {
	u.t.Error("the root was read")
	return 0, io.EOF
}

// TestImportSaveLoad takes an imported image to another store.
func TestImportSaveLoad(t *testing.T) {
	from, to := open(t), open(t)
	root := tarred(t, entry{name: "file", data: []byte("data")})
	from.bring(t, archive.ImportRequest{Root: bytes.NewReader(compressed(t, "zstd", root)), Name: name(t, "berth.test/root:1")})
	to.load(t, from.save(t, "berth.test/root:1"))
	to.wantComplete(t, "berth.test/root:1")
}
