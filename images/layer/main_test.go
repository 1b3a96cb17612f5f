// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"

	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/mount"
	"github.com/berthd/berth/images/unpack"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
)

// The tests drive a real containerd. Numbers in comments are acceptance statements of
// the image service.

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

var shared struct {
	once sync.Once
	d    *host.Daemon
	err  error
}

// rig is a containerd and the layers in it. What is there when the test ends is
// compared with what was before.
type rig struct {
	*host.Daemon
	*layer.Layers
	t   *testing.T
	ctx context.Context
}

func newRig(t *testing.T, snapshotter string) *rig {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{Images: []string{}}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	r := &rig{Daemon: shared.d, t: t, ctx: shared.d.Context(t.Context())}
	// It opens its data base at the first change.
	sn := r.Client().SnapshotService(snapshotter)
	if _, err := sn.Prepare(r.ctx, "first", ""); err != nil {
		t.Fatal(err)
	}
	if err := sn.Remove(r.ctx, "first"); err != nil {
		t.Fatal(err)
	}
	before := r.Count(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd's log:\n%s", r.Log(15))
		}
		r.Settle(t, before)
	})
	r.Layers = r.open(snapshotter)
	return r
}

// open is what another process would do.
func (r *rig) open(snapshotter string) *layer.Layers { return r.within(snapshotter, 0) }

// within is open with a limit for what an image unpacks to.
func (r *rig) within(snapshotter string, limit int64) *layer.Layers {
	return layer.New(layer.Config{
		Client: r.Client(), Namespace: r.Namespace,
		Unpacker: unpack.New(unpack.Config{Client: r.Client(), Snapshotter: snapshotter, Max: limit}),
		Mounts:   mount.New(r.Dir+"/mounts", r.Client().MountManager()),
	})
}

// pull puts an image into containerd until the test ends.
func (r *rig) pull(build image.Builder) *manifest.Manifest {
	r.t.Helper()
	return r.pullAs("berth.test/layer:1", build)
}

func (r *rig) pullAs(ref string, build image.Builder) *manifest.Manifest {
	r.t.Helper()
	img, err := build(ref)
	if err != nil {
		r.t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := img.Archive(&archive); err != nil {
		r.t.Fatal(err)
	}
	records, err := r.Client().Import(r.ctx, &archive)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := r.Client().ImageService().Delete(r.Context(context.Background()), ref, images.SynchronousDelete()); err != nil {
			r.t.Error(err)
		}
	})
	m, err := manifest.Best(r.ctx, r.Client().ContentStore(), records[0].Target, platforms.Default())
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// prepare makes a layer until the test ends.
func (r *rig) prepare(req layer.PrepareRequest) *layer.Layer {
	r.t.Helper()
	y, err := r.Prepare(r.t.Context(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.release(req.ID) })
	return y
}

func (r *rig) release(id string) {
	r.t.Helper()
	if err := r.Release(context.Background(), id); err != nil {
		r.t.Error(err)
	}
}

func (r *rig) perform(id string, fn func(root string) error) {
	r.t.Helper()
	if err := r.Perform(r.t.Context(), id, fn); err != nil {
		r.t.Fatal(err)
	}
}
