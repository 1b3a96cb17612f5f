// SPDX-License-Identifier: Apache-2.0

package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/archive"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/image"
)

// saved reads what is in an archive that Save wrote, and checks that each blob is what
// its name says.
func saved(t *testing.T, stream []byte) (index v1.Index, docker []dockerManifest, blobs []string) {
	t.Helper()
	files := untarred(t, stream)
	for name, target := range map[string]any{v1.ImageIndexFile: &index, "manifest.json": &docker} {
		if text, ok := files[name]; ok {
			if err := json.Unmarshal(text, target); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, data := range files {
		if encoded, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			if digest.FromBytes(data).Encoded() != encoded {
				t.Errorf("%s is something else", name)
			}
			blobs = append(blobs, encoded)
		}
	}
	for _, m := range docker {
		for _, name := range append(m.Layers, m.Config) {
			if _, ok := files[name]; !ok {
				t.Errorf("manifest.json has %s, the archive has not", name)
			}
		}
	}
	return index, docker, blobs
}

func TestSaveNames(t *testing.T) {
	r := open(t)
	a, b := plain(t, "berth.test/a:1", "a"), plain(t, "berth.test/a:2", "b")
	other := plain(t, "berth.test/a-not:1", "c")
	r.load(t, packed(t, a, b, other))
	if err := r.store.Replace(r.store.Context(timeout(t)), images.Image{Name: "docker.io/library/short:3", Target: a.Manifest()}); err != nil {
		t.Fatal(err)
	}
	r.events = nil
	id := a.Manifest().Digest
	for _, c := range []struct {
		name   string
		inputs []string
		want   []string // names, or digests of what has none
		docker []string
		events []string
	}{
		{"name", []string{"berth.test/a:2"}, []string{"berth.test/a:2"}, []string{"berth.test/a:2"}, []string{"save berth.test/a:2"}},
		{"familiar", []string{"short:3"}, []string{"docker.io/library/short:3"}, []string{"short:3"}, []string{"save docker.io/library/short:3"}},
		{"all tags", []string{"berth.test/a"}, []string{"berth.test/a:1", "berth.test/a:2"}, []string{"berth.test/a:1", "berth.test/a:2"}, []string{"save berth.test/a:1", "save berth.test/a:2"}},
		{"id", []string{id.Encoded()}, []string{id.String()}, nil, []string{"save "}},
		{"prefix", []string{id.String()[:20]}, []string{id.String()}, nil, []string{"save "}},
		{"digest", []string{"berth.test/a@" + id.String()}, []string{id.String()}, nil, []string{"save "}},
		{"twice", []string{"berth.test/a:1", "berth.test/a:1", id.Encoded(), "short:3"}, []string{"berth.test/a:1", "docker.io/library/short:3"}, []string{"berth.test/a:1", "short:3"}, []string{"save berth.test/a:1", "save docker.io/library/short:3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			index, docker, _ := saved(t, r.save(t, c.inputs...))
			var names, tags []string
			for _, m := range index.Manifests {
				name := m.Annotations[images.AnnotationImageName]
				if name == "" {
					name = m.Digest.String()
				} else if want := name[strings.LastIndexByte(name, ':')+1:]; m.Annotations[v1.AnnotationRefName] != want {
					t.Errorf("reference name %q, want %q", m.Annotations[v1.AnnotationRefName], want)
				}
				names = append(names, name)
			}
			for _, m := range docker {
				tags = append(tags, m.RepoTags...)
			}
			if diff := cmp.Diff(c.want, names); diff != "" {
				t.Errorf("names (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.docker, tags); diff != "" {
				t.Errorf("manifest.json (-want +got):\n%s", diff)
			}
			r.wantEvents(t, c.events...)
		})
	}
	for input, class := range map[string]func(error) bool{
		"berth.test/none:1": errdefs.IsNotFound,
		"berth.test/none":   errdefs.IsNotFound,
		"abcdef":            errdefs.IsNotFound,
		"No:Such/Name":      errdefs.IsInvalidArgument,
	} {
		var out bytes.Buffer
		err := r.Save(timeout(t), archive.SaveRequest{Images: []string{"berth.test/a:1", input}, Archive: &out})
		if !class(err) || !contains(err, input) || out.Len() > 0 {
			t.Errorf("%s: %v and %d bytes", input, err, out.Len())
		}
	}
	some := []string{"berth.test/a:1"}
	for _, request := range []archive.SaveRequest{
		{Archive: io.Discard},
		{Images: some},
		{Images: some, Archive: io.Discard, Platforms: []v1.Platform{{OS: "linux"}}},
	} {
		if err := r.Save(timeout(t), request); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v, want an invalid argument", request, err)
		}
	}
}

// TestSaveKinds has berth, and ctr, load what it has saved.
func TestSaveKinds(t *testing.T) {
	from, to, stock := open(t), open(t), open(t)
	var names []string
	for _, kind := range image.Kinds {
		name := "berth.test/" + kind.Name + ":1"
		if _, err := from.Load(timeout(t), archive.LoadRequest{Archive: bytes.NewReader(packed(t, build(t, kind.Build, name)))}); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	stream := from.save(t, names...)
	saved(t, stream)
	if again := from.save(t, names...); !bytes.Equal(stream, again) {
		t.Error("saved again it is another archive")
	}
	if _, err := to.Load(timeout(t), archive.LoadRequest{Archive: bytes.NewReader(stream)}); err != nil {
		t.Fatal(err)
	}
	to.wantNames(t, names...)
	cmd := stock.d.Ctr("-n", stock.store.Namespace(), "images", "import", "--no-unpack", "-")
	cmd.Stdin = bytes.NewReader(stream)
	if out, err := cmd.CombinedOutput(); err != nil && !strings.Contains(string(out), "foreign") {
		t.Errorf("ctr images import: %v: %s", err, out)
	}
	for _, name := range names {
		want, err := from.store.Resolve(timeout(t), name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := to.store.Resolve(timeout(t), name)
		if err != nil || got.Target.Digest != want.Target.Digest {
			t.Errorf("%s: %s, %v; want %s", name, got.Target.Digest, err, want.Target.Digest)
		}
	}
	if !slices.Contains(stock.names(t), "berth.test/multi-platform:1") {
		t.Errorf("ctr has %s", stock.names(t))
	}
}

// TestSaveToDocker reads the archive as Docker's format, for which the layout's files
// are taken out.
func TestSaveToDocker(t *testing.T) {
	from, to := open(t), open(t)
	from.load(t, packed(t, build(t, image.MultiPlatform, "berth.test/multi:1"), plain(t, "berth.test/a:1", "a")))
	files := untarred(t, from.save(t, "berth.test/multi:1", "berth.test/a:1"))
	delete(files, v1.ImageLayoutFile)
	delete(files, v1.ImageIndexFile)
	var entries []entry
	for name, data := range files {
		if len(data) > 0 {
			entries = append(entries, entry{name: name, data: data})
		}
	}
	to.load(t, tarred(t, entries...))
	to.wantNames(t, "berth.test/multi:1", "berth.test/a:1")
	to.wantComplete(t, "berth.test/multi:1")
}

// (55) Variants that are not here are left out, unless they are asked for.
func TestSaveMissing(t *testing.T) {
	const name = "berth.test/multi:1"
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run("without "+arch, func(t *testing.T) {
			r := open(t)
			loaded := r.load(t, packed(t, build(t, image.MultiPlatform, name)))
			manifest, doc := r.manifestFor(t, loaded[0].Image.Target, arch)
			r.drop(t, doc.Layers[0].Digest)

			index, docker, blobs := saved(t, r.save(t, name))
			if index.Manifests[0].Digest != loaded[0].Image.Target.Digest {
				t.Errorf("saved %s, want the index", index.Manifests[0].Digest)
			}
			if slices.Contains(blobs, manifest.Digest.Encoded()) || len(blobs) != 4 {
				t.Errorf("blobs %s, want the index and the other variant", blobs)
			}
			if len(docker) != 1 {
				t.Errorf("manifest.json %+v, want the other variant", docker)
			}

			wanted := v1.Platform{OS: "linux", Architecture: arch}
			var out bytes.Buffer
			err := r.Save(timeout(t), archive.SaveRequest{Images: []string{name}, Platforms: []v1.Platform{wanted}, Archive: &out})
			if !errdefs.IsNotFound(err) || !contains(err, doc.Layers[0].Digest.String(), name) || out.Len() > 0 {
				t.Errorf("%v and %d bytes, want not found that names the blob", err, out.Len())
			}

			r.drop(t, manifest.Digest)
			saved(t, r.save(t, name))
		})
	}
	t.Run("all", func(t *testing.T) {
		r := open(t)
		img := plain(t, "berth.test/a:1", "a")
		r.load(t, packed(t, img))
		_, doc := img.Manifest(), r.document(t, img.Manifest())
		r.drop(t, doc.Layers[0].Digest)
		err := r.Save(timeout(t), archive.SaveRequest{Images: []string{"berth.test/a:1"}, Archive: io.Discard})
		if !errdefs.IsNotFound(err) || !contains(err, doc.Layers[0].Digest.String()) {
			t.Errorf("%v, want not found that names the blob", err)
		}
	})
}

func (r *rig) document(t *testing.T, desc v1.Descriptor) v1.Manifest {
	t.Helper()
	doc, err := images.Manifest(r.store.Context(timeout(t)), r.d.Client().ContentStore(), desc, nil)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestSavePlatforms(t *testing.T) {
	r := open(t)
	loaded := r.load(t, packed(t, build(t, image.MultiPlatform, "berth.test/multi:1")))
	arm, _ := r.manifestFor(t, loaded[0].Image.Target, "arm64")
	for _, c := range []struct {
		platforms []v1.Platform
		top       digest.Digest
		blobs     int
	}{
		{[]v1.Platform{arm64}, arm.Digest, 3},
		{[]v1.Platform{arm64, amd64}, loaded[0].Image.Target.Digest, 7},
		{nil, loaded[0].Image.Target.Digest, 7},
	} {
		var out bytes.Buffer
		if err := r.Save(timeout(t), archive.SaveRequest{Images: []string{"berth.test/multi:1"}, Platforms: c.platforms, Archive: &out}); err != nil {
			t.Fatal(err)
		}
		index, _, blobs := saved(t, out.Bytes())
		if index.Manifests[0].Digest != c.top || len(blobs) != c.blobs {
			t.Errorf("%v: %s and %d blobs, want %s and %d", c.platforms, index.Manifests[0].Digest, len(blobs), c.top, c.blobs)
		}
	}
	err := r.Save(timeout(t), archive.SaveRequest{Images: []string{"berth.test/multi:1"}, Platforms: []v1.Platform{riscv}, Archive: io.Discard})
	if !errdefs.IsNotFound(err) || !contains(err, "riscv64", "amd64", "arm64") {
		t.Errorf("%v, want not found with the platforms that are present", err)
	}
}

// TestSaveClosed has nobody read the archive to its end.
func TestSaveClosed(t *testing.T) {
	r := open(t)
	r.load(t, packed(t, build(t, image.Noise(1, 1<<20), "berth.test/noise:1")))
	r.events = nil
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	go func() {
		_, _ = io.CopyN(io.Discard, in, 100<<10)
		_ = in.Close()
	}()
	err = r.Save(timeout(t), archive.SaveRequest{Images: []string{"berth.test/noise:1"}, Archive: out})
	if !errdefs.IsAborted(err) || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("%v, want aborted because of a broken pipe", err)
	}
	r.wantEvents(t)
	for _, line := range r.everything(t) {
		if strings.HasPrefix(line, "lease") {
			t.Errorf("left: %s", line)
		}
	}
}

// TestSaveWhileDeleted deletes the image once its first bytes are written.
func TestSaveWhileDeleted(t *testing.T) {
	const name = "berth.test/multi:1"
	t.Run("image", func(t *testing.T) {
		r := open(t)
		r.load(t, packed(t, build(t, image.MultiPlatform, name)))
		r.saveWhileDeleted(t, name, name)
	})
	t.Run("other image", func(t *testing.T) {
		// The index does not refer to the variant, another record does.
		r := open(t)
		whole := packed(t, build(t, image.MultiPlatform, name))
		r.load(t, whole, amd64)
		from := open(t)
		from.load(t, whole)
		var arm bytes.Buffer
		if err := from.Save(timeout(t), archive.SaveRequest{Images: []string{name}, Platforms: []v1.Platform{arm64}, Archive: &arm}); err != nil {
			t.Fatal(err)
		}
		r.load(t, edited(t, arm.Bytes(), func(index *v1.Index) {
			index.Manifests[0].Annotations = map[string]string{images.AnnotationImageName: "berth.test/arm:1"}
		}))
		r.saveWhileDeleted(t, name, "berth.test/arm:1")
	})
}

func (r *rig) saveWhileDeleted(t *testing.T, name, deleted string) {
	t.Helper()
	ctx := r.store.Context(timeout(t))
	gone := false
	var out bytes.Buffer
	w := writing(func(p []byte) (int, error) {
		if !gone {
			gone = true
			if err := r.d.Client().ImageService().Delete(ctx, deleted, images.SynchronousDelete()); err != nil {
				return 0, err
			}
			r.collect(t)
		}
		return out.Write(p)
	})
	if err := r.Save(ctx, archive.SaveRequest{Images: []string{name}, Archive: w}); err != nil {
		t.Fatal(err)
	}
	if _, _, blobs := saved(t, out.Bytes()); len(blobs) != 7 {
		t.Errorf("%d blobs, want 7", len(blobs))
	}
	if slices.Contains(r.names(t), deleted) {
		t.Errorf("%s is there", deleted)
	}
}

type writing func(p []byte) (int, error)

func (f writing) Write(p []byte) (int, error) { return f(p) }

// TestSaveRotten has a blob on the disk that is not what it was.
func TestSaveRotten(t *testing.T) {
	r := open(t)
	img := plain(t, "berth.test/rotten:1", "rotten")
	r.load(t, packed(t, img))
	blob := r.document(t, img.Manifest()).Layers[0].Digest
	path := filepath.Join(r.d.Dir, "root/io.containerd.content.v1.content/blobs/sha256", blob.Encoded())
	data := read(t, path)
	data[len(data)/2] ^= 1
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	err := r.Save(timeout(t), archive.SaveRequest{Images: []string{"berth.test/rotten:1"}, Archive: io.Discard})
	if !errdefs.IsDataLoss(err) || !contains(err, blob.String()) {
		t.Errorf("%v, want data loss that names the blob", err)
	}
}

// TestSaveForeign takes what other clients of containerd have made: a name that is none
// of a registry's, a record without annotations, blobs without labels.
func TestSaveForeign(t *testing.T) {
	from, to := open(t), open(t)
	img := plain(t, "berth.test/x:1", "x")
	ctx := from.store.Context(timeout(t))
	manager := from.d.Client().LeasesService()
	lease, err := manager.Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	held := leases.WithLease(ctx, lease.ID)
	cs := from.d.Client().ContentStore()
	put := images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		data, err := content.ReadBlob(ctx, img, desc)
		if err == nil {
			err = content.WriteBlob(ctx, cs, "test-"+desc.Digest.String(), bytes.NewReader(data), desc)
		}
		if err != nil {
			return nil, err
		}
		return images.Children(ctx, cs, desc)
	})
	if err := images.Walk(held, put, img.Manifest()); err != nil {
		t.Fatal(err)
	}
	if _, err := from.d.Client().ImageService().Create(held, images.Image{Name: "Free Text", Target: img.Manifest()}); err != nil {
		t.Fatal(err)
	}
	stream := from.save(t, "Free Text")
	if err := manager.Delete(ctx, lease); err != nil {
		t.Fatal(err)
	}
	index, docker, _ := saved(t, stream)
	if index.Manifests[0].Annotations[images.AnnotationImageName] != "Free Text" || len(docker[0].RepoTags) > 0 {
		t.Errorf("index %+v, manifest.json %+v", index, docker)
	}
	to.load(t, stream)
	to.wantNames(t, store.DanglingName(img.Manifest().Digest))
}

// TestSaveOrder has what describes the archive come first.
func TestSaveOrder(t *testing.T) {
	r := open(t)
	r.load(t, packed(t, plain(t, "berth.test/a:1", "a")))
	in := tar.NewReader(bytes.NewReader(r.save(t, "berth.test/a:1")))
	var names []string
	for {
		h, err := in.Next()
		if err != nil {
			break
		}
		if h.Typeflag == tar.TypeReg && strings.HasPrefix(h.Name, "blobs/") {
			h.Name = "blob"
		}
		names = append(names, h.Name)
	}
	want := []string{"oci-layout", "index.json", "manifest.json", "blobs/", "blobs/sha256/", "blob", "blob", "blob"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}
