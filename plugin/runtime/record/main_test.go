// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/plugin/labels"
)

// daemons are the containerds of this test binary: most tests share the first.
var daemons struct {
	once   sync.Once
	shared *host.Daemon
	err    error
}

func TestMain(m *testing.M) {
	host.EnterOffline()
	code := m.Run()
	if d := daemons.shared; d != nil {
		if err := d.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// world is a Store with directories of its own, on a containerd whose calls can be
// made to fail.
type world struct {
	*Store
	d    *host.Daemon
	fail *failure
	n    int // containers so far
}

// failure is the gRPC connection's: calls are counted, and fail from a number on,
// for a number of calls.
type failure struct {
	calls, from, count atomic.Int64
	hook               atomic.Pointer[func(method string)]
	methods            sync.Map // by number, what was called
}

const forever = 1 << 30

func (f *failure) arm(from, count int64) {
	f.calls.Store(0)
	f.from.Store(from)
	f.count.Store(count)
}

func (f *failure) next(method string) error {
	n := f.calls.Add(1)
	f.methods.Store(n, method)
	if hook := f.hook.Load(); hook != nil {
		(*hook)(method)
	}
	if from := f.from.Load(); from > 0 && n >= from && n < from+f.count.Load() {
		return errdefs.ErrUnavailable.WithMessage("injected")
	}
	return nil
}

func (f *failure) method(n int64) string {
	m, _ := f.methods.Load(n)
	return fmt.Sprint(m)
}

// new makes a world on the shared daemon.
func newWorld(t testing.TB) *world {
	t.Helper()
	daemons.once.Do(func() {
		daemons.shared, daemons.err = host.New(host.Options{})
		// The record of a copied configuration counts, not when it is made.
	})
	if daemons.err != nil {
		t.Fatal(daemons.err)
	}
	return newWorldOn(t, daemons.shared, Options{})
}

func newWorldOn(t testing.TB, d *host.Daemon, o Options) *world {
	t.Helper()
	w := &world{d: d, fail: &failure{}}
	unary := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, do grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if err := w.fail.next(method); err != nil {
			return err
		}
		return do(ctx, method, req, reply, cc, opts...)
	}
	stream := func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, do grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		if err := w.fail.next(method); err != nil {
			return nil, err
		}
		return do(ctx, desc, cc, method, opts...)
	}
	c, err := client.New(d.Socket, client.WithDefaultNamespace(d.Namespace),
		client.WithExtraDialOpts([]grpc.DialOption{grpc.WithUnaryInterceptor(unary), grpc.WithStreamInterceptor(stream)}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	dir := filepath.Join(d.Dir, "tmp", strings.NewReplacer("/", "-", "#", "-").Replace(t.Name()))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	o.Namespace, o.Root, o.State = d.Namespace, dir+"/root", dir+"/state"
	o.Tasks = filepath.Join(d.State(), "io.containerd.runtime.v2.task")
	if w.Store, err = New(c, o); err != nil {
		t.Fatal(err)
	}
	return w
}

// again is the same world as a new process sees it.
func (w *world) again(t testing.TB) *world {
	t.Helper()
	c, err := client.New(w.d.Socket, client.WithDefaultNamespace(w.d.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	s, err := New(c, w.o)
	if err != nil {
		t.Fatal(err)
	}
	return &world{Store: s, d: w.d, fail: &failure{}}
}

// census is everything that this package makes.
func (w *world) census(t testing.TB) string {
	t.Helper()
	ctx := w.in(context.Background())
	c := w.d.Client()
	var lines []string
	add := func(kind string, ids ...string) {
		for _, id := range ids {
			lines = append(lines, kind+" "+id)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cs, err := c.ContainerService().List(ctx)
	must(err)
	for _, x := range cs {
		add("container", x.ID)
	}
	bs, err := c.SandboxStore().List(ctx)
	must(err)
	for _, x := range bs {
		add("sandbox", x.ID)
	}
	ls, err := c.LeasesService().List(ctx)
	must(err)
	for _, l := range ls {
		add("lease", l.ID)
		rs, err := c.LeasesService().ListResources(ctx, l)
		must(err)
		for _, r := range rs {
			add("lease "+l.ID, r.Type+" "+r.ID)
		}
	}
	for _, name := range []string{"overlayfs", "native"} {
		must(c.SnapshotService(name).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			add(name, i.Name)
			return nil
		}))
	}
	for _, pattern := range []string{w.workDirs() + "/*", w.runDirs() + "/*", string(w.claims) + "/*"} {
		found, err := filepath.Glob(pattern)
		must(err)
		add("file", found...)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	must(err)
	for line := range strings.SplitSeq(string(info), "\n") {
		if strings.Contains(line, w.o.State) {
			add("mount", line)
		}
	}
	return strings.Join(lines, "\n")
}

func (w *world) wantCensus(t testing.TB, before string) {
	t.Helper()
	was := map[string]bool{}
	for line := range strings.SplitSeq(before, "\n") {
		was[line] = true
	}
	for line := range strings.SplitSeq(w.census(t), "\n") {
		if !was[line] && line != "" {
			t.Errorf("left: %s", line)
		}
	}
}

// podRequest is a pod with a name that is unique in the test.
func (w *world) podRequest(t testing.TB) *CreatePod {
	w.n++
	id := fmt.Sprintf("pod%d-%s", w.n, short(t))
	p := labels.Pod{ID: id, Name: id, Namespace: "default", UID: "uid-" + id}
	p.FullName = p.KubernetesName()
	return &CreatePod{Pod: p, Settings: labels.Settings{NoProcess: true}}
}

func short(t testing.TB) string {
	name := strings.ToLower(strings.NewReplacer("/", "-", "#", "", "_", "-").Replace(strings.TrimPrefix(t.Name(), "Test")))
	return strings.Trim(name[max(0, len(name)-40):], "-.")
}

// request is a container of busybox in a pod.
func (w *world) request(p labels.Pod) *CreateContainer {
	w.n++
	name := fmt.Sprintf("c%d", w.n)
	return &CreateContainer{
		PodName: p.FullName, PodID: p.ID, ID: name + "-" + p.ID, Name: p.ContainerName(name, 0), MetadataName: name,
		Image: Image{Name: "busybox", Record: host.Busybox}, Spec: w.spec("/bin/sleep", "600"),
	}
}

// spec runs a command of the image.
func (w *world) spec(args ...string) SpecFunc {
	return func(ctx context.Context, c *Creation) (*specs.Spec, error) {
		r := c.Container.Record
		return oci.GenerateSpec(ctx, w.client, &r, oci.WithProcessArgs(args...), oci.WithAnnotations(c.Container.Metadata.SpecAnnotations()))
	}
}

// pod makes a finished pod, which is removed when the test ends.
func (w *world) pod(t testing.TB, change func(*CreatePod)) *Creation {
	t.Helper()
	r := w.podRequest(t)
	if change != nil {
		change(r)
	}
	c := w.made(t)(w.CreatePod(t.Context(), r))
	t.Cleanup(func() {
		if err := w.RemovePod(context.Background(), r.Pod.ID); err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("remove pod: %v", err)
		}
	})
	return c
}

// container makes a finished container.
func (w *world) container(t testing.TB, pod *Creation, change func(*CreateContainer)) *Creation {
	t.Helper()
	r := w.request(pod.Container.Metadata.Pod)
	if change != nil {
		change(r)
	}
	return w.made(t)(w.CreateContainer(t.Context(), r))
}

func (w *world) made(t testing.TB) func(*Creation, error) *Creation {
	return func(c *Creation, err error) *Creation {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		return c
	}
}

// labels of a snapshot, and its parent.
func (w *world) snapshot(t testing.TB, snapshotter, key string) (snapshots.Info, []mount.Mount) {
	t.Helper()
	sn := w.d.Client().SnapshotService(snapshotter)
	i, err := sn.Stat(w.in(t.Context()), key)
	if err != nil {
		t.Fatal(err)
	}
	m, err := sn.Mounts(w.in(t.Context()), key)
	if err != nil {
		t.Fatal(err)
	}
	return i, m
}

func (w *world) leased(t testing.TB, id string) []leases.Resource {
	t.Helper()
	r, err := w.d.Client().LeasesService().ListResources(w.in(t.Context()), leases.Lease{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return r
}
