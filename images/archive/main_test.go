// SPDX-License-Identifier: Apache-2.0

package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/archive"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/unpack"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
)

// The tests work on a real containerd. Numbers in comments are acceptance statements
// of the images' specification.

const (
	patience    = 60 * time.Second
	snapshotter = "overlayfs"
)

func TestMain(m *testing.M) {
	host.EnterOffline()
	code := m.Run()
	if shared.d != nil {
		if err := shared.d.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// shared is the daemon of all tests: each has a namespace of its own in it.
var shared struct {
	once sync.Once
	d    *host.Daemon
	err  error
}

var namespaces atomic.Int32

// rig is an Archiver in a namespace that is empty, and is again when the test ends.
type rig struct {
	*archive.Archiver
	d     *host.Daemon
	store *store.Store

	mu     sync.Mutex
	events []string
}

func open(t testing.TB) *rig {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{Images: []string{}}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return openIn(t, shared.d, fmt.Sprintf("archive-%d", namespaces.Add(1)))
}

// openIn is open for a daemon and a namespace.
func openIn(t testing.TB, d *host.Daemon, namespace string) *rig {
	t.Helper()
	r := &rig{d: d}
	r.store = store.New(d.Client(), store.Options{Namespace: namespace, Events: r.hear})
	r.Archiver = archive.New(archive.Config{
		Client:   d.Client(),
		Store:    r.store,
		Unpacker: unpack.New(unpack.Config{Client: d.Client(), Snapshotter: snapshotter}),
		Now:      func() time.Time { return time.Unix(1700000000, 0) },
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd's log:\n%s", r.d.Log(15))
		}
		r.empty(t)
	})
	return r
}

func (r *rig) hear(e store.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, string(e.Action)+" "+e.Attributes["name"])
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// empty removes all records; then nothing may be left.
func (r *rig) empty(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(r.store.Context(context.Background()), patience)
	defer cancel()
	all, err := r.store.Records(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, img := range all {
		if err := r.d.Client().ImageService().Delete(ctx, img.Name); err != nil {
			t.Error(err)
		}
	}
	r.collect(t)
	if left := r.everything(t); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
}

// collect has containerd collect its garbage now.
func (r *rig) collect(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(r.store.Context(context.Background()), patience)
	defer cancel()
	manager := r.d.Client().LeasesService()
	lease, err := manager.Create(ctx, leases.WithRandomID())
	if err == nil {
		err = manager.Delete(ctx, lease, leases.SynchronousDelete)
	}
	if err != nil {
		t.Error(err)
	}
}

// everything lists what the namespace holds, but for records.
func (r *rig) everything(t testing.TB) (all []string) {
	t.Helper()
	ctx := r.store.Context(context.Background())
	held, err := r.d.Client().LeasesService().List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, l := range held {
		all = append(all, "lease "+l.ID)
	}
	ingests, err := r.d.Client().ContentStore().ListStatuses(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, s := range ingests {
		all = append(all, "ingest "+s.Ref)
	}
	err = r.d.Client().ContentStore().Walk(ctx, func(info content.Info) error {
		all = append(all, "blob "+info.Digest.String())
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	err = r.d.Client().SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		all = append(all, "snapshot "+info.Name)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	slices.Sort(all)
	return all
}

// snapshots counts those of the namespace.
func (r *rig) snapshots(t testing.TB) (n int) {
	t.Helper()
	for _, line := range r.everything(t) {
		if strings.HasPrefix(line, "snapshot ") {
			n++
		}
	}
	return n
}

// names lists the records.
func (r *rig) names(t testing.TB) (names []string) {
	t.Helper()
	all, err := r.store.Records(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range all {
		names = append(names, img.Name)
	}
	return names
}

// wantNames fails t unless these are the records.
func (r *rig) wantNames(t testing.TB, want ...string) {
	t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(want, r.names(t)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// wantEvents fails t unless these, in any order, have been told.
func (r *rig) wantEvents(t testing.TB, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.events)
	slices.Sort(want)
	if diff := cmp.Diff(want, r.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	r.events = nil
}

// wantComplete has ctr say that an image is complete and unpacked.
func (r *rig) wantComplete(t testing.TB, name string) {
	t.Helper()
	r.collect(t)
	out, err := r.d.Ctr("-n", r.store.Namespace(), "images", "check", "name=="+name).CombinedOutput()
	if err != nil {
		t.Fatalf("ctr images check: %v: %s", err, out)
	}
	fields := strings.Fields(string(out))
	if !slices.Contains(fields, "complete") || fields[len(fields)-1] != "true" {
		t.Errorf("ctr images check: %s", out)
	}
}

// load loads an archive that is in order.
func (r *rig) load(t testing.TB, stream []byte, platforms ...v1.Platform) []archive.Loaded {
	t.Helper()
	loaded, err := r.Load(timeout(t), archive.LoadRequest{Archive: bytes.NewReader(stream), Platforms: platforms})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range loaded {
		if one.Unpack != nil {
			t.Errorf("%s: %v", one.Image.Name, one.Unpack)
		}
	}
	return loaded
}

// save saves images that are in order.
func (r *rig) save(t testing.TB, names ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := r.Save(timeout(t), archive.SaveRequest{Images: names, Archive: &out}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// drop removes a blob behind everybody's back.
func (r *rig) drop(t testing.TB, blob digest.Digest) {
	t.Helper()
	if err := r.d.Client().ContentStore().Delete(r.store.Context(timeout(t)), blob); err != nil {
		t.Fatal(err)
	}
}

// manifestFor is an index' manifest for an architecture.
func (r *rig) manifestFor(t testing.TB, index v1.Descriptor, arch string) (v1.Descriptor, v1.Manifest) {
	t.Helper()
	ctx := r.store.Context(timeout(t))
	cs := r.d.Client().ContentStore()
	children, err := images.Children(ctx, cs, index)
	if err != nil {
		t.Fatal(err)
	}
	for _, child := range children {
		if child.Platform != nil && child.Platform.Architecture == arch {
			doc, err := images.Manifest(ctx, cs, child, nil)
			if err != nil {
				t.Fatal(err)
			}
			return child, doc
		}
	}
	t.Fatalf("no %s in %s", arch, index.Digest)
	return v1.Descriptor{}, v1.Manifest{}
}

// build makes an image of a kind.
func build(t testing.TB, kind image.Builder, ref string) *image.Image {
	t.Helper()
	img, err := kind(ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// packed is an OCI archive of images.
func packed(t testing.TB, imgs ...*image.Image) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := image.Archive(&out, imgs...); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// plain is an image of one layer; other text makes another image.
func plain(t testing.TB, ref, text string) *image.Image {
	t.Helper()
	files := []image.File{{Path: "text", Mode: 0o644, Data: []byte(text)}}
	img, err := image.New(ref, files, v1.ImageConfig{Labels: map[string]string{"text": text}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// entry is a file of an archive that a test makes by hand.
type entry struct {
	name string
	data []byte
	kind byte // 0: a file
	link string
}

func tarred(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: 0o644, Size: int64(len(e.data))}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// untarred is the files of a tar stream.
func untarred(t testing.TB, stream []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(stream))
	for {
		h, err := r.Next()
		if err != nil {
			return files
		}
		var data bytes.Buffer
		if _, err := data.ReadFrom(r); err != nil {
			t.Fatal(err)
		}
		files[filepath.Clean(h.Name)] = data.Bytes()
	}
}
