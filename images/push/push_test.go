// SPDX-License-Identifier: Apache-2.0

package push_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/push"
	"github.com/berthd/berth/images/reference"
	berthregistry "github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/transfer"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/registry"
)

// The tests push from a real containerd to real registries. Numbers in comments are
// acceptance statements of the images' specification.

const patience = 60 * time.Second

func TestMain(m *testing.M) {
	host.EnterOffline()
	d, err := host.New(host.Options{Images: []string{}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	daemon = d
	code := m.Run()
	if err := d.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// daemon is that of all tests: each has a namespace of its own in it.
var daemon *host.Daemon

// rig is a Pusher in an empty namespace.
type rig struct {
	*push.Pusher
	records *store.Store
	uploads *transfer.Limiter
}

func open(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"registries.conf": "", "drop-ins/none.conf": "", "auth.json": "{}"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	registries, err := berthregistry.New(berthregistry.Config{
		HostsDir: filepath.Join(dir, "certs.d"), CertsDir: filepath.Join(dir, "certs"),
		RegistriesConf: filepath.Join(dir, "registries.conf"), RegistriesConfDir: filepath.Join(dir, "drop-ins"),
		AuthFile: filepath.Join(dir, "auth.json"),
	})
	if err != nil {
		t.Fatal(err)
	}
	namespace := "push-" + strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	r := &rig{records: store.New(daemon.Client(), store.Options{Namespace: namespace}), uploads: transfer.NewLimiter(5)}
	r.Pusher = push.New(push.Config{
		Client: daemon.Client(), Records: r.records, Registry: registries,
		Platform: platforms.Default(), Uploads: r.uploads, Now: time.Now,
	})
	t.Cleanup(func() { r.empty(t) })
	return r
}

func (r *rig) empty(t testing.TB) {
	ctx := r.context(t)
	leases, err := daemon.Client().LeasesService().List(ctx)
	if err != nil || len(leases) > 0 {
		t.Errorf("leases left: %v (%v)", leases, err)
	}
	all, err := daemon.Client().ImageService().List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, img := range all {
		if err := daemon.Client().ImageService().Delete(ctx, img.Name, images.SynchronousDelete()); err != nil {
			t.Error(err)
		}
	}
}

func (r *rig) context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(r.records.Context(context.Background()), patience)
	t.Cleanup(cancel)
	return ctx
}

func serve(t testing.TB, o registry.Options) *registry.Registry {
	t.Helper()
	o.Dir = t.TempDir()
	server, err := registry.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server
}

func parse(t testing.TB, text string) reference.Reference {
	t.Helper()
	ref, err := reference.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// store puts an image into containerd under a name, without some blobs.
func (r *rig) store(t testing.TB, ref reference.Reference, img *image.Image, without ...digest.Digest) {
	t.Helper()
	ctx, done, err := daemon.Client().WithLease(r.context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := done(ctx); err != nil {
			t.Error(err)
		}
	}()
	cs := daemon.Client().ContentStore()
	children := images.SetChildrenLabels(cs, images.ChildrenHandler(cs))
	err = images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		if slices.Contains(without, desc.Digest) {
			return nil, images.ErrSkipDesc
		}
		blob, err := content.BlobReadSeeker(ctx, img, desc)
		if err != nil {
			return nil, err
		}
		defer blob.Close()
		if err := content.WriteBlob(ctx, cs, desc.Digest.String(), blob, desc); err != nil {
			return nil, err
		}
		return children(ctx, desc)
	}), img.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.records.Replace(ctx, images.Image{Name: ref.Text(), Target: img.Manifest()}); err != nil {
		t.Fatal(err)
	}
}

func build(t testing.TB, ref reference.Reference, b image.Builder) *image.Image {
	t.Helper()
	img, err := b(ref.Text())
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// manifestOf is the manifest of an image for a platform.
func manifestOf(t testing.TB, img *image.Image, platform platforms.MatchComparer) (v1.Descriptor, v1.Manifest) {
	t.Helper()
	ctx := context.Background()
	m, err := images.Manifest(ctx, img, img.Manifest(), platform)
	if err != nil {
		t.Fatal(err)
	}
	children, err := images.Children(ctx, img, img.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range children {
		if c.Platform != nil && platform.Match(*c.Platform) {
			return c, m
		}
	}
	return img.Manifest(), m
}

var arm = platforms.OnlyStrict(platforms.MustParse("linux/arm64"))

func TestPushKinds(t *testing.T) {
	r := open(t)
	server := serve(t, registry.Options{})
	for _, kind := range image.Kinds {
		if kind.Hostile || kind.Name == "foreign-layer" {
			continue // the first are like others here; the second a registry refuses
		}
		t.Run(kind.Name, func(t *testing.T) {
			ref := parse(t, server.Address+"/"+kind.Name+":1")
			img := build(t, ref, kind.Build)
			r.store(t, ref, img)
			last := map[digest.Digest]transfer.Status{}
			result, err := r.Push(r.context(t), push.Request{Reference: ref}, func(p transfer.Progress) { last[p.Digest] = p.Status })
			if err != nil {
				t.Fatal(err)
			}
			if result.Target.Digest != img.Manifest().Digest || result.Instead != nil || result.Missing != nil {
				t.Errorf("pushed %+v, want %s", result, img.Manifest().Digest)
			}
			for d, status := range last {
				if !status.Ended() {
					t.Errorf("%s is %q in the end", d, status)
				}
			}
			if len(last) == 0 {
				t.Error("no progress was told")
			}
			if text := head(t, server, ref); text != img.Manifest().Digest.String() {
				t.Errorf("the tag stands for %s", text)
			}
			server.Forget()
			if _, err := r.Push(r.context(t), push.Request{Reference: ref}, nil); err != nil {
				t.Error(err)
			}
			if n := server.Count(http.MethodPut, ""); n > 0 {
				t.Errorf("again: %d uploads", n)
			}
		})
	}
}

// head is the digest that a tag stands for in a registry.
func head(t testing.TB, server *registry.Registry, ref reference.Reference) string {
	t.Helper()
	q, err := http.NewRequest(http.MethodHead, server.URL()+"/v2/"+ref.Path()+"/manifests/"+ref.Tag(), nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Accept", v1.MediaTypeImageManifest+", "+v1.MediaTypeImageIndex+", "+images.MediaTypeDockerSchema2Manifest)
	response, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close() // it has none
	return response.Header.Get("Docker-Content-Digest")
}

// A53.
func TestMounts(t *testing.T) {
	r := open(t)
	server, other := serve(t, registry.Options{}), serve(t, registry.Options{Listen: "127.0.0.2:0"})
	a, b, c := parse(t, server.Address+"/a:1"), parse(t, server.Address+"/b:1"), parse(t, other.Address+"/c:1")
	img := build(t, a, image.Noise(2, 1<<16))
	r.store(t, a, img)
	_, m := manifestOf(t, img, platforms.Default())
	for _, ref := range []reference.Reference{a, b, c} {
		if err := r.records.Replace(r.context(t), images.Image{Name: ref.Text(), Target: img.Manifest()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Push(r.context(t), push.Request{Reference: a}, nil); err != nil {
		t.Fatal(err)
	}
	from := map[digest.Digest]string{}
	if _, err := r.Push(r.context(t), push.Request{Reference: b}, func(p transfer.Progress) { from[p.Digest] = p.From }); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Push(r.context(t), push.Request{Reference: c}, nil); err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if mounts, uploads := server.Mounts(l.Digest), server.Uploads(l.Digest); mounts != 1 || uploads != 1 {
			t.Errorf("a layer was mounted %d times and uploaded %d times, want once each", mounts, uploads)
		}
		if want := server.Address + "/a"; from[l.Digest] != want {
			t.Errorf("a layer is said to be from %q, want %q", from[l.Digest], want)
		}
		if n := other.Uploads(l.Digest); n != 1 {
			t.Errorf("a layer was uploaded %d times to another registry", n)
		}
		info, err := daemon.Client().ContentStore().Info(r.context(t), l.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"a,b", "c"}, []string{info.Labels[transfer.SourceLabel(a)], info.Labels[transfer.SourceLabel(c)]}); diff != "" {
			t.Errorf("sources (-want +got):\n%s", diff)
		}
	}
}

// A54.
func TestPartOfAnIndex(t *testing.T) {
	r := open(t)
	server := serve(t, registry.Options{})
	ref := parse(t, server.Address+"/index:1")
	img := build(t, ref, image.MultiPlatform)
	mine, _ := manifestOf(t, img, platforms.Default())
	theirs, _ := manifestOf(t, img, arm)

	r.store(t, ref, img, theirs.Digest)
	result, err := r.Push(r.context(t), push.Request{Reference: ref}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if result.Target.Digest != mine.Digest || result.Instead == nil || result.Instead.Digest != img.Manifest().Digest || len(result.Missing) != 1 || result.Missing[0].Digest != theirs.Digest {
		t.Errorf("pushed %+v, want %s in place of the index, for want of %s", result, mine.Digest, theirs.Digest)
	}
	if got := head(t, server, ref); got != mine.Digest.String() {
		t.Errorf("the tag stands for %s", got)
	}
	if _, err := r.Push(r.context(t), push.Request{Reference: ref, Platform: "linux/arm64"}, nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("of an absent platform: %v, want NotFound that names it", err)
	}
	if _, err := r.Push(r.context(t), push.Request{Reference: ref, Platform: "linux/amd64"}, nil); err != nil {
		t.Errorf("of the platform that is here: %v", err)
	}
	if _, err := r.Push(r.context(t), push.Request{Reference: ref, Platform: "a/b/c/d"}, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("of nonsense: %v, want InvalidArgument", err)
	}
}

// A54: only another platform's variant is here, and none at all.
func TestOnlyAnotherPlatform(t *testing.T) {
	r := open(t)
	server := serve(t, registry.Options{})
	ref := parse(t, server.Address+"/other:1")
	img := build(t, ref, image.MultiPlatform)
	mine, _ := manifestOf(t, img, platforms.Default())
	theirs, _ := manifestOf(t, img, arm)
	r.store(t, ref, img, mine.Digest)
	if result, err := r.Push(r.context(t), push.Request{Reference: ref}, nil); err != nil || result.Target.Digest != theirs.Digest {
		t.Errorf("pushed %s (%v), want %s", result.Target.Digest, err, theirs.Digest)
	}
	if err := daemon.Client().ContentStore().Delete(r.context(t), theirs.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Push(r.context(t), push.Request{Reference: ref}, nil); !errdefs.IsNotFound(err) {
		t.Errorf("without any variant: %v, want NotFound", err)
	}
}

// A55.
func TestMissingLayer(t *testing.T) {
	r := open(t)
	server, other := serve(t, registry.Options{}), serve(t, registry.Options{Listen: "127.0.0.2:0"})
	a := parse(t, server.Address+"/a:1")
	img := build(t, a, image.Noise(2, 1000))
	_, m := manifestOf(t, img, platforms.Default())
	lost := m.Layers[1].Digest
	r.store(t, a, img, lost)
	if _, err := r.Push(r.context(t), push.Request{Reference: a}, nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), lost.String()) {
		t.Errorf("error %v, want NotFound that names %s", err, lost)
	}
	if n := server.Count(http.MethodPut, ""); n > 0 {
		t.Errorf("%d uploads before the error", n)
	}

	// When the registry has it, it need not be here.
	if err := server.Push(context.Background(), a.Text(), img.Manifest(), img); err != nil {
		t.Fatal(err)
	}
	if err := transfer.AddSource(r.context(t), daemon.Client().ContentStore(), img.Manifest().Digest, a); err != nil {
		t.Fatal(err)
	}
	b, c := parse(t, server.Address+"/b:1"), parse(t, other.Address+"/c:1")
	for _, ref := range []reference.Reference{b, c} {
		if err := r.records.Replace(r.context(t), images.Image{Name: ref.Text(), Target: img.Manifest()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Push(r.context(t), push.Request{Reference: b}, nil); err != nil {
		t.Errorf("to where the layer can be mounted: %v", err)
	}
	if n := server.Mounts(lost); n != 1 {
		t.Errorf("the layer was mounted %d times", n)
	}
	if _, err := r.Push(r.context(t), push.Request{Reference: c}, nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), lost.String()) {
		t.Errorf("to another registry: %v, want NotFound that names %s", err, lost)
	}
}

func TestPushFails(t *testing.T) {
	r := open(t)
	server := serve(t, registry.Options{})
	ref := parse(t, server.Address+"/x:1")
	if _, err := r.Push(r.context(t), push.Request{Reference: ref}, nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), ref.Text()) {
		t.Errorf("of no image: %v, want NotFound that names it", err)
	}
	if _, err := r.Push(r.context(t), push.Request{}, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("of nothing: %v, want InvalidArgument", err)
	}
	r.store(t, ref, build(t, ref, image.Noise(1, 1<<20)))
	for code, is := range map[string]func(error) bool{"UNAUTHORIZED": errdefs.IsUnauthorized, "DENIED": errdefs.IsPermissionDenied} {
		remove := server.Inject(registry.Fault{Method: http.MethodPost, Do: registry.Answer(403, code)})
		if _, err := r.Push(r.context(t), push.Request{Reference: ref}, nil); !is(err) {
			t.Errorf("%s: %v", code, err)
		}
		remove()
	}
	nobody := parse(t, "127.0.0.1:1/x:1")
	if err := r.records.Replace(r.context(t), images.Image{Name: nobody.Text(), Target: build(t, ref, image.Noise(1, 1<<20)).Manifest()}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Push(r.context(t), push.Request{Reference: nobody}, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("to nobody: %v, want Unavailable", err)
	}
	ctx, cancel := context.WithCancel(r.context(t))
	cancel()
	if _, err := r.Push(ctx, push.Request{Reference: ref}, nil); err == nil {
		t.Error("cancelled, and succeeded")
	}
}
