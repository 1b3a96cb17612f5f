// SPDX-License-Identifier: Apache-2.0

package commit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/commit"
	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/mount"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/unpack"
	"github.com/berthd/berth/integration/host"
)

// The tests drive a real containerd and runc. Numbers in comments are acceptance
// statements of the image service.

// patience bounds every wait.
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

var shared struct {
	once sync.Once
	d    *host.Daemon
	err  error
}

// rig is a containerd with busybox, and what makes images in it. What is there when
// the test ends is compared with what was before.
type rig struct {
	*host.Daemon
	*commit.Maker
	layers   *layer.Layers
	unpacker *unpack.Unpacker
	busybox  client.Image
	t        *testing.T
	ctx      context.Context
	end      context.Context // for what is done when the test ends
}

func newRig(t *testing.T) *rig {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	d := shared.d
	r := &rig{Daemon: d, t: t, ctx: d.Context(t.Context()), end: d.Context(context.Background())}
	var err error
	if r.busybox, err = d.Client().GetImage(r.ctx, host.Busybox); err == nil {
		err = r.busybox.Unpack(r.ctx, "overlayfs")
	}
	if err != nil {
		t.Fatal(err)
	}
	before, records := d.Count(t), r.records()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd's log:\n%s", d.Log(15))
		}
		r.ctx = r.end
		for name := range r.records() {
			if !records[name] {
				r.must(d.Client().ImageService().Delete(r.end, name, images.SynchronousDelete()))
			}
		}
		d.Settle(t, before)
	})
	r.unpacker = unpack.New(unpack.Config{Client: d.Client(), Snapshotter: "overlayfs"})
	r.layers = layer.New(layer.Config{
		Client: d.Client(), Namespace: d.Namespace,
		Unpacker: r.unpacker,
		Mounts:   mount.New(d.Dir+"/mounts", d.Client().MountManager()),
	})
	r.Maker = commit.New(commit.Config{
		Client: d.Client(), Layers: r.layers, Platform: platforms.Default(), Now: time.Now,
		Store: store.New(d.Client(), store.Options{Namespace: d.Namespace}),
	})
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) records() map[string]bool {
	r.t.Helper()
	all, err := r.Client().ImageService().List(r.ctx)
	r.must(err)
	names := map[string]bool{}
	for _, img := range all {
		names[img.Name] = true
	}
	return names
}

// container runs a command to its end in a new container, which stays until the test
// ends. It fails the test if the command does. Without options it is one of busybox.
func (r *rig) container(id, script string, opts ...client.NewContainerOpts) {
	r.t.Helper()
	if len(opts) == 0 {
		opts = []client.NewContainerOpts{client.WithNewSnapshot(id, r.busybox)}
	}
	r.run(id, script, append([]client.NewContainerOpts{client.WithImage(r.busybox), client.WithSnapshotter("overlayfs")}, opts...)...)
}

func (r *rig) run(id, script string, opts ...client.NewContainerOpts) {
	r.t.Helper()
	opts = append(opts, client.WithRuntime(host.Stock.Name, nil))
	if script != "" {
		opts = append(opts, client.WithNewSpec(oci.WithProcessArgs("/bin/sh", "-c", script), oci.WithRootFSPath("rootfs")))
	}
	c, err := r.Client().NewContainer(r.ctx, id, opts...)
	r.must(err)
	r.t.Cleanup(func() {
		if err := c.Delete(r.end, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
			r.t.Error(err)
		}
	})
	if script != "" {
		r.task(c)
	}
}

func (r *rig) task(c client.Container) {
	r.t.Helper()
	task, err := c.NewTask(r.ctx, cio.NullIO)
	r.must(err)
	exited, err := task.Wait(r.ctx)
	r.must(err)
	r.must(task.Start(r.ctx))
	select {
	case status := <-exited:
		if status.ExitCode() != 0 || status.Error() != nil {
			r.t.Errorf("container %s: exit code %d, %v", c.ID(), status.ExitCode(), status.Error())
		}
	case <-time.After(patience):
		r.t.Errorf("container %s does not end", c.ID())
	}
	_, err = task.Delete(r.end, client.WithProcessKill)
	r.must(err)
}

// try runs a command in a container of an image that has been made, as everybody
// else would.
func (r *rig) try(id, script string, img commit.Image) {
	r.t.Helper()
	made := client.NewImage(r.Client(), img.Record)
	if ok, err := made.IsUnpacked(r.ctx, "overlayfs"); err != nil || !ok {
		r.t.Errorf("image %s: unpacked %v, %v", img.ID, ok, err)
	}
	r.run(id, script, client.WithImage(made), client.WithSnapshotter("overlayfs"), client.WithNewSnapshot(id, made))
}

// collect has containerd remove what nobody refers to.
func (r *rig) collect() {
	r.t.Helper()
	lease, err := r.Client().LeasesService().Create(r.ctx, leases.WithRandomID())
	r.must(err)
	r.must(r.Client().LeasesService().Delete(r.ctx, lease, leases.SynchronousDelete))
}

func (r *rig) document(desc v1.Descriptor, into any) []byte {
	r.t.Helper()
	raw, err := content.ReadBlob(r.ctx, r.Client().ContentStore(), desc)
	r.must(err)
	r.must(json.Unmarshal(raw, into))
	return raw
}

// read returns the documents of an image.
func (r *rig) read(target v1.Descriptor) (m v1.Manifest, config v1.Image) {
	r.t.Helper()
	r.document(target, &m)
	r.document(m.Config, &config)
	return m, config
}
