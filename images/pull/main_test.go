// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
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

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/images/reference"
	berthregistry "github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/transfer"
	"github.com/berthd/berth/images/unpack"
	"github.com/berthd/berth/integration/crypt"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/registry"
)

// The tests pull from a real registry into a real containerd. Numbers in comments
// are acceptance statements of the images' specification.

const patience = 60 * time.Second

func TestMain(m *testing.M) {
	crypt.Main()
	if os.Getenv(envPull) != "" {
		if err := actPull(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
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

// shared is the daemon of all tests that do not ask for one of their own: each has
// a namespace of its own in it.
var shared struct {
	once sync.Once
	d    *host.Daemon
	err  error
}

var namespaces atomic.Int32

// rig is a Puller, a registry, and a namespace that is empty, and is again when the
// test ends.
type rig struct {
	*pull.Puller
	d        *host.Daemon
	registry *registry.Registry
	records  *store.Store
	config   pull.Config
	dir      string
}

// policies of the rig's directory.
const (
	acceptAll = `{"default": [{"type": "insecureAcceptAnything"}]}`
	rejectAll = `{"default": [{"type": "reject"}]}`
)

func open(t testing.TB, change func(*pull.Config)) *rig {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{Images: []string{}, TOML: crypt.TOML()}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return openOn(t, shared.d, change)
}

func openOn(t testing.TB, d *host.Daemon, change func(*pull.Config)) *rig {
	t.Helper()
	r := &rig{d: d, dir: t.TempDir()}
	r.registry = serve(t, registry.Options{})
	r.write(t, "policy.json", acceptAll)
	r.write(t, "registries.conf", "")
	r.write(t, "registries.conf.d/none.conf", "")
	r.write(t, "auth.json", "{}")
	var err error
	if r.config, err = settings(d.Client(), fmt.Sprintf("pull-%d", namespaces.Add(1)), r.dir); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&r.config)
	}
	r.renew()
	t.Cleanup(func() { r.empty(t) })
	return r
}

// renew replaces the Puller: what it remembers is gone.
func (r *rig) renew() {
	r.config.Client = r.d.Client()
	r.config.Unpacker.Client = r.config.Client
	r.records = store.New(r.config.Client, store.Options{Namespace: r.config.Namespace})
	r.config.Records = r.records
	r.Puller = pull.New(r.config)
}

// settings are a Puller's that have nothing of this machine's.
func settings(c *client.Client, namespace, dir string) (pull.Config, error) {
	registries, err := berthregistry.New(berthregistry.Config{
		HostsDir: filepath.Join(dir, "certs.d"), CertsDir: filepath.Join(dir, "certs"),
		RegistriesConf: filepath.Join(dir, "registries.conf"), RegistriesConfDir: filepath.Join(dir, "registries.conf.d"),
		AuthFile: filepath.Join(dir, "auth.json"),
	})
	return pull.Config{
		Client: c, Namespace: namespace,
		Unpacker:  unpack.New(unpack.Config{Client: c, Snapshotter: "overlayfs"}),
		Records:   store.New(c, store.Options{Namespace: namespace}),
		Registry:  registries,
		Policy:    policy.Config{Path: filepath.Join(dir, "policy.json")},
		Platform:  platforms.Default(),
		Downloads: transfer.NewLimiter(3),
		Now:       time.Now,
	}, err
}

func (r *rig) write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
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

// push puts an image into the registry and returns its reference there.
func (r *rig) push(t testing.TB, name string, build image.Builder) (reference.Reference, *image.Image) {
	t.Helper()
	ref := parse(t, r.registry.Address+"/"+name)
	img, err := build(ref.Text())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.registry.Push(context.Background(), ref.Text(), img.Manifest(), img); err != nil {
		t.Fatal(err)
	}
	return ref, img
}

func parse(t testing.TB, text string) reference.Reference {
	t.Helper()
	ref, err := reference.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func (r *rig) context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(r.records.Context(context.Background()), patience)
	t.Cleanup(cancel)
	return ctx
}

// pull pulls what must succeed, and checks that the image is complete.
func (r *rig) pull(t testing.TB, ref reference.Reference) pull.Result {
	t.Helper()
	result, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.check(t, ref)
	return result
}

// check holds the image against what ctr says of it.
func (r *rig) check(t testing.TB, ref reference.Reference) {
	t.Helper()
	out, err := r.d.Ctr("--namespace", r.config.Namespace, "images", "check", "name=="+ref.Text()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if text := string(out); !strings.Contains(text, " complete ") || !strings.Contains(text, "true") {
		t.Errorf("ctr images check says:\n%s", text)
	}
}

// unnamed checks that there is no record at all.
func (r *rig) unnamed(t testing.TB) {
	t.Helper()
	all, err := r.d.Client().ImageService().List(r.context(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range all {
		t.Errorf("there is an image %s", img.Name)
	}
}

// left lists what the namespace has besides records.
func (r *rig) left(t testing.TB) (left []string) {
	t.Helper()
	ctx := r.context(t)
	c := r.d.Client()
	held, err := c.LeasesService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range held {
		left = append(left, "lease "+l.ID)
	}
	ingests, err := c.ContentStore().ListStatuses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ingests {
		left = append(left, "ingest "+i.Ref)
	}
	err = c.ContentStore().Walk(ctx, func(i content.Info) error {
		left = append(left, "blob "+i.Digest.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = c.SnapshotService(r.config.Unpacker.Snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		left = append(left, "snapshot "+i.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(left)
	return left
}

// clean checks that nothing is left of what has failed.
func (r *rig) clean(t testing.TB) {
	t.Helper()
	r.unnamed(t)
	if left := r.left(t); len(left) > 0 {
		t.Errorf("left:\n%s", strings.Join(left, "\n"))
	}
}

// prune deletes all leases, and waits until nothing is kept that need not be.
func (r *rig) prune(t testing.TB) {
	t.Helper()
	ctx := r.context(t)
	service := r.d.Client().LeasesService()
	all, err := service.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if err := service.Delete(ctx, l); err != nil {
			t.Fatal(err)
		}
	}
	last, err := service.Create(ctx, leases.WithRandomID())
	if err == nil {
		err = service.Delete(ctx, last, leases.SynchronousDelete)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// empty removes all records; then nothing may be left.
func (r *rig) empty(t testing.TB) {
	ctx := r.context(t)
	all, err := r.d.Client().ImageService().List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, img := range all {
		if err := r.d.Client().ImageService().Delete(ctx, img.Name); err != nil {
			t.Error(err)
		}
	}
	before, _ := r.d.Client().LeasesService().List(ctx)
	if !t.Failed() && len(before) > 0 {
		t.Errorf("leases left: %v", before)
	}
	r.prune(t)
	if left := r.left(t); len(left) > 0 {
		t.Errorf("left:\n%s", strings.Join(left, "\n"))
	}
}

func (r *rig) names(t testing.TB) (names []string) {
	t.Helper()
	all, err := r.d.Client().ImageService().List(r.context(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range all {
		names = append(names, img.Name)
	}
	return names
}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
