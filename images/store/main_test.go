// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
)

// The tests work on a real containerd. Numbers in comments are acceptance statements
// of the images' specification.

const patience = 60 * time.Second

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

// rig is a store in a namespace that is empty, and is again when the test ends.
type rig struct {
	*store.Store
	d *host.Daemon

	mu     sync.Mutex
	events []store.Event
}

func open(t testing.TB, change func(*store.Options)) *rig {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{Images: []string{}}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	r := &rig{d: shared.d}
	options := store.Options{Namespace: fmt.Sprintf("store-%d", namespaces.Add(1)), Events: r.hear}
	if change != nil {
		change(&options)
	}
	r.Store = store.New(shared.d.Client(), options)
	t.Cleanup(func() { r.empty(t) })
	return r
}

func (r *rig) hear(e store.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// empty removes all records; then nothing may be left.
func (r *rig) empty(t testing.TB) {
	ctx, cancel := context.WithTimeout(r.Context(context.Background()), patience)
	defer cancel()
	all, err := r.Records(ctx)
	if err != nil {
		t.Error(err)
	}
	for i, img := range all {
		var last []images.DeleteOpt
		if i == len(all)-1 {
			last = []images.DeleteOpt{images.SynchronousDelete()}
		}
		if err := r.d.Client().ImageService().Delete(ctx, img.Name, last...); err != nil {
			t.Error(err)
		}
	}
	if left := r.leftovers(t, ctx); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
}

func (r *rig) leftovers(t testing.TB, ctx context.Context) (left []string) {
	t.Helper()
	held, err := r.d.Client().LeasesService().List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, l := range held {
		left = append(left, "lease "+l.ID)
	}
	ingests, err := r.d.Client().ContentStore().ListStatuses(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, s := range ingests {
		left = append(left, "ingest "+s.Ref)
	}
	err = r.d.Client().ContentStore().Walk(ctx, func(info content.Info) error {
		left = append(left, "blob "+info.Digest.String())
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return left
}

// leased calls f with a lease that protects what it writes.
func (r *rig) leased(t testing.TB, f func(ctx context.Context)) {
	t.Helper()
	ctx := r.Context(timeout(t))
	manager := r.d.Client().LeasesService()
	lease, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	f(leases.WithLease(ctx, lease.ID))
	if err := manager.Delete(ctx, lease, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
}

// write puts an image's blobs into the content store, as a pull does.
func (r *rig) write(t testing.TB, ctx context.Context, img *image.Image) {
	t.Helper()
	cs := r.d.Client().ContentStore()
	put := images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		reader, err := img.ReaderAt(ctx, desc)
		if err != nil {
			return nil, err
		}
		defer reader.Close()
		blob := io.NewSectionReader(reader, 0, reader.Size())
		return nil, content.WriteBlob(ctx, cs, "test-"+desc.Digest.String(), blob, desc)
	})
	handler := images.Handlers(put, images.SetChildrenLabels(cs, images.ChildrenHandler(cs)))
	if err := images.Walk(ctx, handler, img.Manifest()); err != nil {
		t.Fatal(err)
	}
}

// foreign makes a record as other clients of containerd do.
func (r *rig) foreign(t testing.TB, name string, img *image.Image) {
	t.Helper()
	r.leased(t, func(ctx context.Context) {
		r.write(t, ctx, img)
		if _, err := r.d.Client().ImageService().Create(ctx, images.Image{Name: name, Target: img.Manifest()}); err != nil {
			t.Fatal(err)
		}
	})
}

// replace makes a record as berth does.
func (r *rig) replace(t testing.TB, name string, img *image.Image) {
	t.Helper()
	r.leased(t, func(ctx context.Context) {
		r.write(t, ctx, img)
		if err := r.Replace(ctx, images.Image{Name: name, Target: img.Manifest()}); err != nil {
			t.Fatal(err)
		}
	})
}

// names lists the records.
func (r *rig) names(t testing.TB) (names []string) {
	t.Helper()
	all, err := r.Records(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range all {
		names = append(names, img.Name)
	}
	return names
}

func (r *rig) wantNames(t testing.TB, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, r.names(t)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// sample is a small image; another text gives another digest.
func sample(t testing.TB, text string) *image.Image {
	t.Helper()
	layer, err := image.NewLayer(image.Gzip, image.File{Path: "text", Mode: 0o644, Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return build(t, image.Variant{Layers: []image.Layer{layer}, Config: v1.ImageConfig{Labels: map[string]string{"text": text}}})
}

func build(t testing.TB, variants ...image.Variant) *image.Image {
	t.Helper()
	img, err := image.Build("berth.test/x:1", variants...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digestOf(img *image.Image) string { return img.Manifest().Digest.String() }

func hexOf(img *image.Image) string { return strings.TrimPrefix(digestOf(img), "sha256:") }

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func sorted(names ...string) []string {
	slices.Sort(names)
	return names
}

func (r *rig) facts(t testing.TB, name string) store.Facts {
	t.Helper()
	img, err := r.Resolve(timeout(t), name)
	if err != nil {
		t.Fatal(err)
	}
	facts, err := r.Facts(timeout(t), []images.Image{img})
	if err != nil {
		t.Fatal(err)
	}
	return facts[img.Target.Digest]
}

func configOf(t testing.TB, r *rig, name string) digest.Digest {
	t.Helper()
	img, err := r.Resolve(timeout(t), name)
	if err != nil {
		t.Fatal(err)
	}
	best, err := r.Best(timeout(t), img.Target)
	if err != nil {
		t.Fatal(err)
	}
	id, err := best.ConfigDigest(r.Context(timeout(t)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}
