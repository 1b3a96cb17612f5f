// SPDX-License-Identifier: Apache-2.0

package archive_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ulikunitz/xz"

	"github.com/berthd/berth/images/archive"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/unpack"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
)

// TestLoadKinds loads every kind of image. What is hostile must not get out.
func TestLoadKinds(t *testing.T) {
	for _, kind := range image.Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			r := open(t)
			passwd := read(t, "/etc/passwd")
			name := "berth.test/" + kind.Name + ":1"
			img := build(t, kind.Build, name)
			loaded, err := r.Load(timeout(t), archive.LoadRequest{Archive: bytes.NewReader(packed(t, img))})
			if err != nil {
				t.Fatal(err)
			}
			if len(loaded) != 1 || !loaded[0].Named || loaded[0].Image.Target.Digest != img.Manifest().Digest {
				t.Fatalf("loaded %+v", loaded)
			}
			r.wantNames(t, name)
			r.wantEvents(t, "load "+name)
			switch {
			case kind.Name == "foreign-layer":
				if loaded[0].Unpack == nil {
					t.Error("unpacked without its layer")
				}
			case kind.Name == "no-layers":
				if loaded[0].Unpack != nil || r.snapshots(t) != 0 {
					t.Errorf("unpack: %v, %d snapshots", loaded[0].Unpack, r.snapshots(t))
				}
			case kind.Hostile:
				t.Logf("unpack: %v", loaded[0].Unpack)
			default:
				if loaded[0].Unpack != nil {
					t.Error(loaded[0].Unpack)
				}
				r.wantComplete(t, name)
			}
			if _, err := os.Lstat("/berth-outside"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("outside: %v", err)
			}
			if !bytes.Equal(passwd, read(t, "/etc/passwd")) {
				t.Error("/etc/passwd has changed")
			}
		})
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// compressions are what streams may be compressed by. There is nothing that writes
// bzip2: testdata has such files.
var compressions = map[string]func(w io.Writer) (io.WriteCloser, error){
	"none": func(w io.Writer) (io.WriteCloser, error) { return unchanged{w}, nil },
	"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
	"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	"xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
}

type unchanged struct{ io.Writer }

func (unchanged) Close() error { return nil }

func compressed(t testing.TB, how string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := compressions[how](&out)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestLoadCompressed(t *testing.T) {
	for how := range compressions {
		t.Run(how, func(t *testing.T) {
			r := open(t)
			stream := packed(t, plain(t, "berth.test/a:1", "a"))
			r.load(t, compressed(t, how, stream))
			r.wantComplete(t, "berth.test/a:1")
		})
	}
	t.Run("bzip2", func(t *testing.T) {
		r := open(t)
		r.load(t, read(t, "testdata/archive.tar.bz2"))
		r.wantComplete(t, "berth.test/bzip2:1")
	})
}

// TestLoadFolder takes an OCI layout that somebody has packed with tar.
func TestLoadFolder(t *testing.T) {
	r := open(t)
	dir := t.TempDir()
	if err := image.Layout(dir, plain(t, "berth.test/a:1", "a"), plain(t, "berth.test/b:1", "b")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"."}, {"blobs", "index.json", "oci-layout"}, {"./index.json", "./oci-layout", "./blobs"}} {
		stream, err := exec.Command("tar", append([]string{"-C", dir, "-c"}, args...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		r.load(t, stream)
		r.wantNames(t, "berth.test/a:1", "berth.test/b:1")
		r.wantComplete(t, "berth.test/b:1")
	}
}

// TestLoadFromPipe reads all that the writer writes: padding must not break its pipe.
func TestLoadFromPipe(t *testing.T) {
	r := open(t)
	stream := append(packed(t, plain(t, "berth.test/a:1", "a")), make([]byte, 200<<10)...)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	written := make(chan error, 1)
	go func() {
		_, err := out.Write(stream)
		written <- errors.Join(err, out.Close())
	}()
	if _, err := r.Load(timeout(t), archive.LoadRequest{Archive: in}); err != nil {
		t.Error(err)
	}
	if err := <-written; err != nil {
		t.Errorf("the writer: %v", err)
	}
	r.wantComplete(t, "berth.test/a:1")
}

// (56) A name moves; who loses it becomes dangling; who has none is dangling.
func TestLoadNames(t *testing.T) {
	from, to := open(t), open(t)
	a, b := plain(t, "berth.test/name:1", "a"), plain(t, "berth.test/name:1", "b")
	from.load(t, packed(t, a))
	from.wantEvents(t, "load berth.test/name:1")

	byID := from.save(t, a.Manifest().Digest.Encoded()[:12])
	from.wantEvents(t, "save ")
	loaded := to.load(t, byID)
	if loaded[0].Named || loaded[0].Image.Name != store.DanglingName(a.Manifest().Digest) {
		t.Errorf("loaded %+v, want a dangling image", loaded[0])
	}
	to.wantNames(t, store.DanglingName(a.Manifest().Digest))
	to.wantEvents(t, "load ")

	byName := from.save(t, "berth.test/name:1")
	to.load(t, byName)
	to.wantNames(t, "berth.test/name:1")
	to.load(t, packed(t, b))
	to.wantNames(t, "berth.test/name:1", store.DanglingName(a.Manifest().Digest))
	to.wantComplete(t, "berth.test/name:1")
	to.wantComplete(t, store.DanglingName(a.Manifest().Digest))

	// Without a name, of an image that has one here: it keeps that.
	again := to.load(t, untitled(t, b))
	if again[0].Named || again[0].Image.Name != "berth.test/name:1" {
		t.Errorf("loaded %+v, want the image that is here", again[0])
	}
}

// untitled is an archive of an image without its name.
func untitled(t testing.TB, img *image.Image) []byte {
	t.Helper()
	return edited(t, packed(t, img), func(index *v1.Index) { index.Manifests[0].Annotations = nil })
}

// edited is an archive with another index.
func edited(t testing.TB, stream []byte, edit func(*v1.Index)) []byte {
	t.Helper()
	files := untarred(t, stream)
	var index v1.Index
	if err := json.Unmarshal(files[v1.ImageIndexFile], &index); err != nil {
		t.Fatal(err)
	}
	edit(&index)
	text, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	files[v1.ImageIndexFile] = text
	var entries []entry
	for name, data := range files {
		entries = append(entries, entry{name: name, data: data})
	}
	return tarred(t, entries...)
}

func TestLoadManyImages(t *testing.T) {
	r := open(t)
	var imgs []*image.Image
	var names []string
	for i := range 5 {
		names = append(names, fmt.Sprintf("berth.test/many-%d:1", i))
		imgs = append(imgs, plain(t, names[i], fmt.Sprint(i%3)))
	}
	r.load(t, packed(t, imgs...))
	r.wantNames(t, names...)
	if got := r.snapshots(t); got != 3 {
		t.Errorf("%d snapshots, want 3", got)
	}
}

// TestLoadReferenceNames has the two annotations that may name an image.
func TestLoadReferenceNames(t *testing.T) {
	img := plain(t, "berth.test/x:1", "x")
	dangling := store.DanglingName(img.Manifest().Digest)
	digested := "berth.test/x@" + img.Manifest().Digest.String()
	for _, c := range []struct{ name, ref, want string }{
		{"docker.io/library/full:1", "1", "docker.io/library/full:1"},
		{"familiar", "", "docker.io/library/familiar:latest"},
		{"", "localhost/podman:1", "localhost/podman:1"},
		{"", "skopeo:1", "docker.io/library/skopeo:1"},
		{"", "latest", dangling},
		{"", "", dangling},
		{"", "Not:Valid/Name", dangling},
		{"berth-dangling@" + img.Manifest().Digest.String(), "", dangling},
		{img.Manifest().Digest.String(), "", dangling},
		{digested, "", digested},
	} {
		t.Run(c.name+" "+c.ref, func(t *testing.T) {
			r := open(t)
			r.load(t, edited(t, packed(t, img), func(index *v1.Index) {
				index.Manifests[0].Annotations = map[string]string{"io.containerd.image.name": c.name, v1.AnnotationRefName: c.ref}
			}))
			r.wantNames(t, c.want)
			r.wantComplete(t, c.want)
		})
	}
}

var (
	amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = v1.Platform{OS: "linux", Architecture: "arm64"}
	riscv = v1.Platform{OS: "linux", Architecture: "riscv64"}
)

// (57) What is asked for must be there; what is not is neither kept nor unpacked.
func TestLoadPlatforms(t *testing.T) {
	const name = "berth.test/multi:1"
	multi := func(t testing.TB) []byte { return packed(t, build(t, image.MultiPlatform, name)) }
	t.Run("absent", func(t *testing.T) {
		r := open(t)
		_, err := r.Load(timeout(t), archive.LoadRequest{Archive: bytes.NewReader(multi(t)), Platforms: []v1.Platform{amd64, riscv}})
		if !errdefs.IsNotFound(err) || !contains(err, "linux/riscv64", "linux/amd64", "linux/arm64", name) {
			t.Errorf("%v, want not found with the platforms that are present", err)
		}
		r.wantNames(t)
		if left := r.everything(t); len(left) > 0 {
			t.Errorf("left: %s", left)
		}
	})
	t.Run("one", func(t *testing.T) {
		r := open(t)
		loaded := r.load(t, multi(t), arm64)
		r.collect(t)
		if got := r.snapshots(t); got != 1 {
			t.Errorf("%d snapshots, want that of arm64", got)
		}
		missing, _ := r.manifestForMissing(t, loaded[0].Image.Target, "amd64")
		if !missing {
			t.Error("amd64 is here, and nobody asked for it")
		}
		r.manifestFor(t, loaded[0].Image.Target, "arm64")
	})
	t.Run("both", func(t *testing.T) {
		r := open(t)
		r.load(t, multi(t), arm64, amd64)
		if got := r.snapshots(t); got != 2 {
			t.Errorf("%d snapshots, want 2", got)
		}
		r.wantComplete(t, name)
	})
	t.Run("host", func(t *testing.T) {
		r := open(t)
		loaded := r.load(t, multi(t))
		r.wantComplete(t, name)
		r.manifestFor(t, loaded[0].Image.Target, "arm64")
		if got := r.snapshots(t); got != 1 {
			t.Errorf("%d snapshots, want that of the host", got)
		}
	})
	t.Run("attestation", func(t *testing.T) {
		r := open(t)
		r.load(t, packed(t, build(t, image.Attested, name)), amd64)
		r.wantComplete(t, name)
		if got := r.snapshots(t); got != 1 {
			t.Errorf("%d snapshots, want that of the image", got)
		}
		// Index, two manifests, two configurations, a layer, a statement.
		if got := len(r.everything(t)); got != 7+1 {
			t.Errorf("%d things, want the attestation with the image: %s", got, r.everything(t))
		}
	})
}

// manifestForMissing tells whether an index' manifest is not here.
func (r *rig) manifestForMissing(t testing.TB, index v1.Descriptor, arch string) (bool, error) {
	t.Helper()
	ctx := r.store.Context(timeout(t))
	text, err := content.ReadBlob(ctx, r.d.Client().ContentStore(), index)
	if err != nil {
		t.Fatal(err)
	}
	var doc v1.Index
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	for _, m := range doc.Manifests {
		if m.Platform.Architecture == arch {
			_, err := r.d.Client().ContentStore().Info(ctx, m.Digest)
			return errdefs.IsNotFound(err), err
		}
	}
	t.Fatalf("%s is not in the index", arch)
	return false, nil
}

func contains(err error, texts ...string) bool {
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			return false
		}
	}
	return true
}

// TestLoadMissingVariant takes an index one of whose manifests is not in the archive.
func TestLoadMissingVariant(t *testing.T) {
	from, to := open(t), open(t)
	loaded := from.load(t, packed(t, build(t, image.MultiPlatform, "berth.test/multi:1")))
	arm, _ := from.manifestFor(t, loaded[0].Image.Target, "arm64")
	stream := from.save(t, "berth.test/multi:1")
	var kept []entry
	for name, data := range untarred(t, stream) {
		if !strings.Contains(name, arm.Digest.Encoded()) {
			kept = append(kept, entry{name: name, data: data})
		}
	}
	to.load(t, tarred(t, kept...))
	to.wantComplete(t, "berth.test/multi:1")
	_, err := to.Load(timeout(t), archive.LoadRequest{Archive: bytes.NewReader(tarred(t, kept...)), Platforms: []v1.Platform{arm64}})
	if !errdefs.IsNotFound(err) || !contains(err, arm.Digest.String()) {
		t.Errorf("%v, want not found with the missing manifest", err)
	}
}

func TestLoadRequest(t *testing.T) {
	r := open(t)
	stream := packed(t, plain(t, "berth.test/a:1", "a"))
	for _, request := range []archive.LoadRequest{
		{},
		{Archive: bytes.NewReader(stream), Platforms: []v1.Platform{{Architecture: "amd64"}}},
	} {
		if _, err := r.Load(timeout(t), request); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v, want an invalid argument", request, err)
		}
	}
}

// (58) The record is there, the error is reported and not returned.
func TestLoadCannotUnpack(t *testing.T) {
	r := open(t)
	stream := dockerArchive(t, dockerSaved{layers: [][]byte{bytes.Repeat([]byte("no tar stream. "), 100)}, tags: []string{"berth.test/broken:1"}})
	loaded, err := r.Load(timeout(t), archive.LoadRequest{Archive: bytes.NewReader(stream)})
	if err != nil {
		t.Fatal(err)
	}
	if loaded[0].Unpack == nil || !contains(loaded[0].Unpack, "berth.test/broken:1", "linux/amd64") {
		t.Errorf("unpack: %v, want the image and the platform", loaded[0].Unpack)
	}
	r.wantNames(t, "berth.test/broken:1")
	if got := r.snapshots(t); got != 0 {
		t.Errorf("%d snapshots left", got)
	}
}

// TestLoadTogether has several loads of one archive, whose files have the same names.
func TestLoadTogether(t *testing.T) {
	r := open(t)
	// What a load with ctr that was killed leaves: an ingest that is not what it seems.
	ctx := r.store.Context(timeout(t))
	manager := r.d.Client().LeasesService()
	lease, err := manager.Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := manager.Delete(ctx, lease); err != nil {
			t.Error(err)
		}
	}()
	w, err := content.OpenWriter(leases.WithLease(ctx, lease.ID), r.d.Client().ContentStore(), content.WithRef("tar-index.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write([]byte("something else")); err != nil {
		t.Fatal(err)
	}

	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			stream := packed(t, plain(t, fmt.Sprintf("berth.test/together-%d:1", i), "same"), plain(t, fmt.Sprintf("berth.test/own-%d:1", i), fmt.Sprint(i)))
			loaded, err := r.Load(timeout(t), archive.LoadRequest{Archive: bytes.NewReader(stream)})
			if err != nil {
				t.Error(err)
			}
			for _, one := range loaded {
				if one.Unpack != nil {
					t.Error(one.Unpack)
				}
			}
		})
	}
	group.Wait()
	for i := range 4 {
		r.wantComplete(t, fmt.Sprintf("berth.test/together-%d:1", i))
		r.wantComplete(t, fmt.Sprintf("berth.test/own-%d:1", i))
	}
}

// TestLoadCancelled stops while a blob is on its way.
func TestLoadCancelled(t *testing.T) {
	r := open(t)
	ctx, cancel := context.WithCancel(timeout(t))
	defer cancel()
	stream := packed(t, build(t, image.Noise(1, 20<<20), "berth.test/noise:1"))
	_, err := r.Load(ctx, archive.LoadRequest{Archive: io.MultiReader(
		bytes.NewReader(stream[:10<<20]), during(cancel), bytes.NewReader(stream[10<<20:]),
	)})
	if !errdefs.IsCanceled(err) {
		t.Errorf("%v, want that it was cancelled", err)
	}
	r.wantNames(t)
	if left := r.everything(t); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
}

// during is a reader of nothing that calls a function when it is its turn.
func during(f func()) io.Reader { return calling(f) }

type calling func()

func (f calling) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

// TestLoadForKubernetes makes the records that containerd's CRI plugin expects.
func TestLoadForKubernetes(t *testing.T) {
	open(t) // the daemon
	r := openIn(t, shared.d, store.KubernetesNamespace)
	a, b := plain(t, "berth.test/a:1", "a"), plain(t, "berth.test/b:1", "b")
	r.load(t, packed(t, a))
	r.load(t, untitled(t, b))
	r.wantNames(t, "berth.test/a:1", "berth.test/a@"+a.Manifest().Digest.String(),
		r.document(t, a.Manifest()).Config.Digest.String(), r.document(t, b.Manifest()).Config.Digest.String())
	r.wantComplete(t, "berth.test/a:1")

	to := open(t)
	to.load(t, r.save(t, "berth.test/a:1", r.document(t, b.Manifest()).Config.Digest.Encoded()))
	to.wantNames(t, "berth.test/a:1", store.DanglingName(b.Manifest().Digest))
}

// TestLoadWhileKilled has containerd go away in the middle.
func TestLoadWhileKilled(t *testing.T) {
	d := host.Run(t, host.Options{Images: []string{}})
	own, err := client.New(d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	a := archive.New(archive.Config{
		Client:   own,
		Store:    store.New(own, store.Options{Namespace: "killed"}),
		Unpacker: unpack.New(unpack.Config{Client: own, Snapshotter: snapshotter}),
	})
	stream := packed(t, build(t, image.Noise(1, 20<<20), "berth.test/noise:1"))
	kill := func() {
		if err := d.Kill(); err != nil {
			t.Error(err)
		}
	}
	_, err = a.Load(timeout(t), archive.LoadRequest{Archive: io.MultiReader(
		bytes.NewReader(stream[:10<<20]), during(kill), bytes.NewReader(stream[10<<20:]),
	)})
	if !errdefs.IsUnavailable(err) || errdefs.IsInvalidArgument(err) {
		t.Errorf("%v, want that containerd is not available", err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	r := openIn(t, d, "killed")
	r.wantNames(t)
	r.load(t, stream)
	r.wantComplete(t, "berth.test/noise:1")
	r.abandoned(t)
}

// abandoned ends the leases that a killed operation has left to expire.
func (r *rig) abandoned(t *testing.T) {
	t.Helper()
	ctx := r.store.Context(timeout(t))
	manager := r.d.Client().LeasesService()
	all, err := manager.List(ctx)
	if err != nil || len(all) != 1 || all[0].Labels["containerd.io/gc.expire"] == "" {
		t.Fatalf("leases %v, %v; want one that expires", all, err)
	}
	if err := manager.Delete(ctx, all[0]); err != nil {
		t.Error(err)
	}
}
