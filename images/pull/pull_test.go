// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/pull"
	berthregistry "github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/transfer"
	"github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/registry"
)

// layersOf are the layers of an image for this host.
func layersOf(t testing.TB, img *image.Image) []digest.Digest {
	t.Helper()
	m, err := images.Manifest(context.Background(), img, img.Manifest(), platforms.Default())
	if err != nil {
		t.Fatal(err)
	}
	all := make([]digest.Digest, len(m.Layers))
	for i, l := range m.Layers {
		all[i] = l.Digest
	}
	return all
}

// What containerd can run is pulled whole, and a second time is found up to date.
func TestPullKinds(t *testing.T) {
	r := open(t, nil)
	for _, kind := range image.Kinds {
		if kind.Hostile || kind.Name == "foreign-layer" {
			continue
		}
		t.Run(kind.Name, func(t *testing.T) {
			ref, img := r.push(t, kind.Name+":1", kind.Build)
			for n := range 2 {
				result, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil)
				if err != nil {
					t.Fatal(err)
				}
				equal(t, "target", result.Target.Digest, img.Manifest().Digest)
				equal(t, "reference", result.Reference.Text(), ref.Repository()+"@"+img.Manifest().Digest.String())
				equal(t, "updated", result.Updated, n == 0)
				if n == 1 && len(result.Bytes) > 0 {
					t.Errorf("fetched again: %v", result.Bytes)
				}
				if kind.Name != "no-layers" { // ctr calls only what has a snapshot unpacked
					r.check(t, ref)
				}
			}
		})
	}
	if m := r.Metrics(); m.Successes == 0 || len(m.Failures) > 0 || m.Skipped == 0 || m.Bytes[v1.MediaTypeImageLayerGzip] == 0 || len(m.Running) > 0 {
		t.Errorf("metrics: %+v", m)
	}
}

// A25.
func TestEqualPullsAreOne(t *testing.T) {
	r := open(t, nil)
	ref, img := r.push(t, "busy:1", image.Noise(3, 1<<20))
	layers := layersOf(t, img)
	release := r.registry.Inject(registry.Fault{Path: layers[0].String(), Do: registry.Stall})
	const callers = 4
	results := make([]pull.Result, callers)
	errs := make([]error, callers)
	told := make([]map[digest.Digest]transfer.Status, callers)
	var wait sync.WaitGroup
	for i := range callers {
		told[i] = map[digest.Digest]transfer.Status{}
		wait.Go(func() {
			// The timeout is not part of what is asked for.
			request := pull.Request{Reference: ref, Timeout: time.Duration(i) * time.Hour}
			results[i], errs[i] = r.Pull(r.context(t), request, func(p transfer.Progress) { told[i][p.Digest] = p.Status })
		})
	}
	// They have met when all are told what is stalled.
	r.await(t, func() bool { return r.registry.Count("GET", layers[1].String()) > 0 })
	release()
	wait.Wait()
	for i := range callers {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		equal(t, "reference", results[i].Reference.Text(), results[0].Reference.Text())
		for _, l := range layers {
			equal(t, "last status of a layer", told[i][l], transfer.Complete)
		}
	}
	for _, l := range append(layers, img.Manifest().Digest) {
		if n := r.registry.Fetches(l); n != 1 {
			t.Errorf("%s was fetched %d times", l, n)
		}
	}
	if m := r.Metrics(); m.Successes > 2 {
		t.Errorf("%d pulls were made for %d callers that met", m.Successes, callers)
	}
}

// A25: who has other credentials gets another pull.
func TestOtherCredentialsAreAnotherPull(t *testing.T) {
	r := open(t, nil)
	r.registry = serve(t, registry.Options{Auth: registry.Basic})
	ref, img := r.push(t, "secret:1", image.Noise(1, 1<<16))
	release := r.registry.Inject(registry.Fault{Path: layersOf(t, img)[0].String(), Do: registry.Stall})
	right := &berthregistry.Credentials{Username: registry.Username, Password: registry.Password}
	wrong := &berthregistry.Credentials{Username: registry.Username, Password: "wrong"}
	good := make(chan error, 1)
	go func() {
		_, err := r.Pull(r.context(t), pull.Request{Reference: ref, Access: berthregistry.Access{Credentials: right}}, nil)
		good <- err
	}()
	r.await(t, func() bool { return len(r.Metrics().Running) == 1 })
	_, err := r.Pull(r.context(t), pull.Request{Reference: ref, Access: berthregistry.Access{Credentials: wrong}}, nil)
	if !errdefs.IsUnauthorized(err) {
		t.Errorf("with a wrong password: %v, want Unauthenticated", err)
	}
	if err != nil && strings.Contains(err.Error(), "wrong") {
		t.Errorf("the error tells the password: %v", err)
	}
	release()
	if err := <-good; err != nil {
		t.Error(err)
	}
}

// One caller who leaves takes nothing from the other.
func TestACallerLeaves(t *testing.T) {
	r := open(t, nil)
	ref, img := r.push(t, "left:1", image.Noise(1, 1<<16))
	layer := layersOf(t, img)[0]
	release := r.registry.Inject(registry.Fault{Path: layer.String(), Do: registry.Stall})
	leaving, leave := context.WithCancel(r.context(t))
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := r.Pull(leaving, pull.Request{Reference: ref}, nil)
		first <- err
	}()
	r.await(t, func() bool { return r.registry.Count("GET", layer.String()) > 0 || len(r.Metrics().Running) == 1 })
	met := make(chan struct{}, 1)
	go func() {
		_, err := r.Pull(r.context(t), pull.Request{Reference: ref}, func(transfer.Progress) {
			select {
			case met <- struct{}{}:
			default:
			}
		})
		second <- err
	}()
	<-met
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who has left: %v", err)
	}
	release()
	if err := <-second; err != nil {
		t.Errorf("who has stayed: %v", err)
	}
}

// A27, A29: what the policy says comes before everything else.
func TestPolicyComesFirst(t *testing.T) {
	r := open(t, nil)
	ref, img := r.push(t, "judged:1", image.Noise(1, 1<<10))

	r.write(t, "policy.json", rejectAll)
	_, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil)
	if !errors.Is(err, policy.ErrRejected) {
		t.Errorf("error %v, want ErrRejected", err)
	}
	for _, l := range layersOf(t, img) {
		if n := r.registry.Count("GET", l.String()); n > 0 {
			t.Errorf("a layer was asked for %d times", n)
		}
	}
	r.clean(t)

	r.registry.Forget()
	for name, text := range map[string]string{"missing": "", "broken": "{"} {
		if text == "" {
			if err := os.Remove(filepath.Join(r.dir, "policy.json")); err != nil {
				t.Fatal(err)
			}
		} else {
			r.write(t, "policy.json", text)
		}
		if _, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil); !errors.Is(err, policy.ErrInvalid) {
			t.Errorf("policy %s: error %v, want ErrInvalid", name, err)
		}
	}
	if log := r.registry.Log(); len(log) > 0 {
		t.Errorf("the registry was asked: %v", log)
	}

	accepting := r.write(t, "other.json", acceptAll)
	if _, err := r.Pull(r.context(t), pull.Request{Reference: ref, Policy: accepting}, nil); err != nil {
		t.Errorf("with the policy of the call: %v", err)
	}
}

// A28.
func TestPolicyOfANamespace(t *testing.T) {
	r := open(t, func(c *pull.Config) { c.Policy.Dir = filepath.Dir(c.Policy.Path) })
	ref, _ := r.push(t, "judged:1", image.Noise(1, 1<<10))
	r.write(t, "ns1.json", rejectAll)
	if _, err := r.Pull(r.context(t), pull.Request{Reference: ref, PolicyNamespace: "ns1"}, nil); !errors.Is(err, policy.ErrRejected) {
		t.Errorf("in ns1: %v, want ErrRejected", err)
	}
	if _, err := r.Pull(r.context(t), pull.Request{Reference: ref, PolicyNamespace: "ns2"}, nil); err != nil {
		t.Errorf("in ns2: %v", err)
	}
}

// A27.
func TestNobodyListens(t *testing.T) {
	r := open(t, nil)
	ref := parse(t, "127.0.0.1:1/x:1")
	if _, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil); !errors.Is(err, berthregistry.ErrUnavailable) {
		t.Errorf("error %v, want ErrUnavailable", err)
	}
	r.clean(t)
}

// A35.
func TestTagMoves(t *testing.T) {
	r := open(t, nil)
	ref, a := r.push(t, "moving:1", image.Noise(1, 1000))
	r.pull(t, ref)

	_, b := r.push(t, "moving:1", image.Noise(1, 2000))
	remove := r.registry.Inject(registry.Fault{Path: layersOf(t, b)[0].String(), Do: registry.Answer(404, "BLOB_UNKNOWN")})
	if _, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil); !errdefs.IsNotFound(err) {
		t.Errorf("without the layer: %v, want NotFound", err)
	}
	remove()
	equal(t, "names after a failure", r.names(t), []string{ref.Text()})
	if img, err := r.records.Named(r.context(t), ref); err != nil || img.Target.Digest != a.Manifest().Digest {
		t.Errorf("after a failure the name stands for %v (%v)", img.Target.Digest, err)
	}

	if result := r.pull(t, ref); !result.Updated {
		t.Error("another image is said to be up to date")
	}
	names := r.names(t)
	slices.Sort(names)
	want := []string{ref.Text(), store.DanglingName(a.Manifest().Digest)}
	slices.Sort(want)
	equal(t, "names", names, want)
}

// A37.
func TestOtherPlatforms(t *testing.T) {
	r := open(t, nil)
	index, _ := r.push(t, "index:1", image.MultiPlatform)
	single, _ := r.push(t, "single:1", image.Schema2)
	for name, request := range map[string]pull.Request{
		"index":  {Reference: index, Platform: "linux/s390x"},
		"single": {Reference: single, Platform: "linux/arm64"},
	} {
		_, err := r.Pull(r.context(t), request, nil)
		if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), request.Platform) {
			t.Errorf("%s: error %v, want NotFound that names %s", name, err, request.Platform)
		}
	}
	r.clean(t)
	arm, err := r.Pull(r.context(t), pull.Request{Reference: index, Platform: "linux/arm64"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	host := r.pull(t, index)
	if arm.Config == host.Config {
		t.Errorf("both platforms have the configuration %s", arm.Config)
	}
	for _, platform := range []string{"linux", "x/y/z/a", "?"} {
		if _, err := r.Pull(r.context(t), pull.Request{Reference: index, Platform: platform}, nil); platform != "linux" && !errdefs.IsInvalidArgument(err) {
			t.Errorf("platform %q: error %v, want InvalidArgument", platform, err)
		}
	}
}

// A38.
func TestSchema1(t *testing.T) {
	r := open(t, nil)
	ref := parse(t, r.registry.Address+"/old:1")
	r.registry.Inject(registry.Fault{Path: "/manifests/", Do: schema1})
	_, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil)
	if err == nil || !strings.Contains(err.Error(), "schema 1") {
		t.Errorf("error %v, want one that says so", err)
	}
	r.clean(t)
}

// Labels tell where blobs have been seen, and survive the pull.
func TestSources(t *testing.T) {
	r := open(t, nil)
	one, img := r.push(t, "one/x:1", image.Noise(1, 1000))
	r.pull(t, one)
	two, _ := r.push(t, "two/x:1", image.Noise(1, 1000))
	r.pull(t, two)
	for _, d := range append(layersOf(t, img), img.Manifest().Digest) {
		info, err := r.d.Client().ContentStore().Info(r.context(t), d)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "sources of "+d.String(), info.Labels[transfer.SourceLabel(one)], "one/x,two/x")
	}
}

// A snapshot that has outlived its blob does not make an image without it.
func TestBlobOfASnapshotIsFetched(t *testing.T) {
	r := open(t, nil)
	ref, img := r.push(t, "outlived:1", image.Noise(2, 1000))
	r.pull(t, ref)
	layer := layersOf(t, img)[0]
	if err := r.d.Client().ContentStore().Delete(r.context(t), layer); err != nil {
		t.Fatal(err)
	}
	r.pull(t, ref)
	if _, err := r.d.Client().ContentStore().Info(r.context(t), layer); err != nil {
		t.Error(err)
	}
}

// What has been pulled stays when containerd collects garbage.
func TestNothingIsCollected(t *testing.T) {
	r := open(t, nil)
	ref, _ := r.push(t, "kept:1", image.MultiPlatform)
	r.pull(t, ref)
	before := r.left(t)
	r.prune(t)
	equal(t, "what is there", r.left(t), before)
	r.check(t, ref)
}

func TestUpdatedLimitIsForNewPulls(t *testing.T) {
	r := open(t, func(c *pull.Config) { c.Downloads = transfer.NewLimiter(1) })
	ref, img := r.push(t, "slow:1", image.Noise(4, 1000))
	layers := layersOf(t, img)
	var releases []func()
	for _, l := range layers {
		releases = append(releases, r.registry.Inject(registry.Fault{Path: l.String(), Do: registry.Stall}))
	}
	waiting := func() (n int) {
		for _, parts := range r.Metrics().Running {
			for _, p := range parts {
				if p.Status == transfer.Downloading && images.IsLayerType(p.MediaType) {
					n++
				}
			}
		}
		return n
	}
	done := make(chan error, 1)
	go func() {
		_, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil)
		done <- err
	}()
	r.await(t, func() bool { return waiting() == 1 })
	r.config.Downloads.Set(4)
	for _, release := range releases {
		if n := waiting(); n > 1 {
			t.Errorf("%d layers are fetched at a time", n)
		}
		release()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestBadRequests(t *testing.T) {
	r := open(t, nil)
	for name, request := range map[string]pull.Request{
		"nothing":          {},
		"negative timeout": {Reference: parse(t, "x"), Timeout: -1},
		"platform":         {Reference: parse(t, "x"), Platform: "a/b/c/d"},
	} {
		if _, err := r.Pull(r.context(t), request, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: error %v, want InvalidArgument", name, err)
		}
	}
	ref, _ := r.push(t, "x:1", image.Noise(1, 10))
	if _, err := r.Pull(r.context(t), pull.Request{Reference: ref, Slice: "x.slice"}, nil); !errdefs.IsNotImplemented(err) {
		t.Errorf("without a way to isolate: %v, want NotImplemented", err)
	}
	r.clean(t)
	if m := r.Metrics(); m.Failures["NotImplemented"] != 1 {
		t.Errorf("failures %v", m.Failures)
	}
	r.config.Unpacker.Snapshotter = "none"
	r.renew()
	_, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "snapshotter none") {
		t.Errorf("without the snapshotter: %v", err)
	}
	r.config.Unpacker.Snapshotter = "overlayfs"
	r.clean(t)
}

// A panic is an error for all who wait, and does not block the name.
func TestPanic(t *testing.T) {
	r := open(t, func(c *pull.Config) {
		c.Isolate = func(context.Context, pull.Request, func(transfer.Progress)) (pull.Result, error) { panic("oh") }
	})
	for range 2 {
		_, err := r.Pull(r.context(t), pull.Request{Reference: parse(t, "x"), Slice: "x.slice"}, nil)
		if !errdefs.IsInternal(err) || !strings.Contains(err.Error(), "oh") {
			t.Errorf("error %v", err)
		}
	}
	if running := r.Metrics().Running; len(running) > 0 {
		t.Errorf("still running: %v", running)
	}
}

// await waits until a condition holds.
func (r *rig) await(t testing.TB, condition func() bool) {
	t.Helper()
	for ctx := r.context(t); !condition(); {
		select {
		case <-ctx.Done():
			t.Fatal("it has not come to that")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

var _ content.Provider = (*image.Image)(nil)
