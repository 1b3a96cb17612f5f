// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
)

const patience = 60 * time.Second

// shared is the daemon of the tests of stored images: each has a namespace of its own.
var shared struct {
	once sync.Once
	d    *host.Daemon
	err  error
}

func closeShared() error {
	if shared.d == nil {
		return nil
	}
	return shared.d.Close()
}

var namespaces atomic.Int32

// stored is a service in a namespace that is empty, and must be again when the test
// has removed its images and containers.
type stored struct {
	*images.Service
	t      testing.TB
	d      *host.Daemon
	ns     string
	broken bool // the test leaves images of which something is missing

	mu     sync.Mutex
	events []images.Event
}

func newStored(t testing.TB, change func(*images.Config)) *stored {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{Images: []string{}}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return storedOn(t, shared.d, fmt.Sprintf("stored-%d", namespaces.Add(1)), change)
}

func storedOn(t testing.TB, d *host.Daemon, namespace string, change func(*images.Config)) *stored {
	t.Helper()
	s := &stored{t: t, d: d, ns: namespace}
	config := images.Config{Client: d.Client(), Namespace: s.ns, Events: s.hear, Mounts: t.TempDir()}
	if change != nil {
		change(&config)
	}
	var err error
	if s.Service, err = images.New(config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.empty)
	return s
}

func (s *stored) hear(e images.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// heard are the events since it was last called, as "action name".
func (s *stored) heard() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		all = append(all, strings.TrimSpace(string(e.Action)+" "+e.Ref))
	}
	s.events = nil
	return all
}

func (s *stored) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.t.Cleanup(cancel)
	return s.Store().Context(ctx)
}

// whole checks that nothing is missing of the images that are left.
func (s *stored) whole(ctx context.Context) {
	states, err := s.Check(ctx)
	if err != nil {
		s.t.Error(err)
	}
	for _, one := range states {
		if !one.Complete && !s.broken {
			s.t.Errorf("not whole: %+v", one)
		}
	}
}

// empty removes all records; then nothing may be left.
func (s *stored) empty() {
	ctx, cancel := context.WithTimeout(s.Store().Context(context.Background()), patience)
	defer cancel()
	s.whole(ctx)
	all, err := s.Store().Records(ctx)
	if err != nil {
		s.t.Error(err)
	}
	_, err = s.Store().Unlink(ctx, all...)
	if err := errors.Join(err, s.Store().Collect(ctx)); err != nil {
		s.t.Error(err)
	}
	if left := s.left(ctx); len(left) > 0 {
		s.t.Errorf("left: %s", left)
	}
}

// left is what is there besides records.
func (s *stored) left(ctx context.Context) (left []string) {
	c := s.d.Client()
	held, err1 := c.LeasesService().List(ctx)
	for _, l := range held {
		left = append(left, "lease "+l.ID)
	}
	ingests, err2 := c.ContentStore().ListStatuses(ctx)
	for _, i := range ingests {
		left = append(left, "ingest "+i.Ref)
	}
	err3 := c.ContentStore().Walk(ctx, func(info content.Info) error {
		left = append(left, "blob "+info.Digest.String())
		return nil
	})
	err4 := c.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		left = append(left, "snapshot "+info.Name)
		return nil
	})
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			s.t.Error(err)
		}
	}
	return left
}

// leased calls f with a lease that protects what it writes.
func (s *stored) leased(f func(ctx context.Context)) {
	s.t.Helper()
	manager := s.d.Client().LeasesService()
	lease, err := manager.Create(s.ctx(), leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		s.t.Fatal(err)
	}
	f(leases.WithLease(s.ctx(), lease.ID))
	if err := manager.Delete(s.ctx(), lease, leases.SynchronousDelete); err != nil {
		s.t.Fatal(err)
	}
}

// write puts an image's blobs into the content store, as a pull does.
func (s *stored) write(ctx context.Context, img *image.Image) {
	s.t.Helper()
	cs := s.d.Client().ContentStore()
	put := cimages.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		reader, err := img.ReaderAt(ctx, desc)
		if err != nil {
			return nil, err
		}
		defer reader.Close()
		blob := io.NewSectionReader(reader, 0, reader.Size())
		return nil, content.WriteBlob(ctx, cs, "test-"+desc.Digest.String(), blob, desc)
	})
	handler := cimages.Handlers(put, cimages.SetChildrenLabels(cs, cimages.ChildrenHandler(cs)))
	if err := cimages.Walk(ctx, handler, img.Manifest()); err != nil {
		s.t.Fatal(err)
	}
}

// foreign makes a record as other clients of containerd do.
func (s *stored) foreign(img *image.Image, names ...string) {
	s.t.Helper()
	s.leased(func(ctx context.Context) {
		s.write(ctx, img)
		for _, name := range names {
			if _, err := s.d.Client().ImageService().Create(ctx, cimages.Image{Name: name, Target: img.Manifest()}); err != nil {
				s.t.Fatal(err)
			}
		}
	})
}

// add makes records as berth does, with labels.
func (s *stored) add(img *image.Image, labels map[string]string, names ...string) {
	s.t.Helper()
	s.leased(func(ctx context.Context) {
		s.write(ctx, img)
		for _, name := range names {
			if err := s.Store().Replace(ctx, cimages.Image{Name: name, Target: img.Manifest(), Labels: labels}); err != nil {
				s.t.Fatal(err)
			}
		}
	})
}

// dangling makes an image without a name.
func (s *stored) dangling(img *image.Image, labels map[string]string) {
	s.t.Helper()
	s.leased(func(ctx context.Context) {
		s.write(ctx, img)
		if _, err := s.Store().CreateDangling(ctx, img.Manifest(), labels); err != nil {
			s.t.Fatal(err)
		}
	})
}

func (s *stored) names() (names []string) {
	s.t.Helper()
	all, err := s.Store().Records(s.ctx())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range all {
		names = append(names, r.Name)
	}
	return names
}

func (s *stored) wantNames(want ...string) {
	s.t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(want, s.names()); diff != "" {
		s.t.Errorf("records (-want +got):\n%s", diff)
	}
}

func (s *stored) wantEvents(want ...string) {
	s.t.Helper()
	if diff := cmp.Diff(want, s.heard()); diff != "" {
		s.t.Errorf("events (-want +got):\n%s", diff)
	}
}

// container makes a container from a record of an image, with a snapshot of its own,
// and removes it when the test ends. of is what its record says it was made from.
func (s *stored) container(id, record, of string, more ...client.NewContainerOpts) client.Container {
	s.t.Helper()
	c := s.d.Client()
	img, err := c.GetImage(s.ctx(), record)
	if err != nil {
		s.t.Fatal(err)
	}
	opts := []client.NewContainerOpts{
		client.WithSnapshotter("overlayfs"), client.WithNewSnapshot(id, img), client.WithImageName(of),
		client.WithRuntime(host.Stock.Name, nil),
		client.WithNewSpec(oci.WithImageConfigArgs(img, nil), oci.WithProcessArgs("sleep", "1000"), oci.WithHostNamespace("network"), oci.WithHostNamespace("cgroup")),
	}
	made, err := c.NewContainer(s.ctx(), id, append(opts, more...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := made.Delete(s.ctx(), client.WithSnapshotCleanup); err != nil {
			s.t.Error(err)
		}
	})
	return made
}

// busybox adds an image that runs, unpacked, under a name.
func (s *stored) busybox(name string) {
	s.t.Helper()
	f, err := os.Open(host.Deps("images/busybox.tar"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	s.leased(func(ctx context.Context) {
		all, err := s.d.Client().Import(ctx, f)
		if err != nil {
			s.t.Fatal(err)
		}
		s.unpack(ctx, all[0].Name)
		if err := s.Store().Replace(ctx, cimages.Image{Name: name, Target: all[0].Target}); err != nil {
			s.t.Fatal(err)
		}
		if err := s.d.Client().ImageService().Delete(ctx, all[0].Name); err != nil {
			s.t.Fatal(err)
		}
	})
}

func (s *stored) unpack(ctx context.Context, name string) {
	s.t.Helper()
	img, err := s.d.Client().GetImage(ctx, name)
	if err == nil {
		err = img.Unpack(ctx, "overlayfs")
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// run starts a container's process, which ends with the test.
func (s *stored) run(c client.Container) {
	s.t.Helper()
	task, err := c.NewTask(s.ctx(), cio.NullIO)
	if err == nil {
		err = task.Start(s.ctx())
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if _, err := task.Delete(s.ctx(), client.WithProcessKill); err != nil {
			s.t.Error(err)
		}
	})
}

// sample is a small image; another text gives another one.
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

func kind(t testing.TB, builder image.Builder) *image.Image {
	t.Helper()
	img, err := builder("berth.test/x:1")
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digestOf(img *image.Image) string { return img.Manifest().Digest.String() }

func danglingName(img *image.Image) string { return store.DanglingName(img.Manifest().Digest) }
