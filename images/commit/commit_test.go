// SPDX-License-Identifier: Apache-2.0

package commit_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/images/commit"
	"github.com/berthd/berth/images/idmap"
	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/unpack"
	"github.com/berthd/berth/integration/host"
)

// A60
func TestUnchanged(t *testing.T) {
	r := newRig(t)
	// The runtime would make /run, which the image lacks, to mount something on it.
	r.run("one", "", client.WithImage(r.busybox), client.WithSnapshotter("overlayfs"), client.WithNewSnapshot("one", r.busybox), client.WithNewSpec(oci.WithProcessArgs("/bin/sh", "-c", "true"), oci.WithoutRunMount))
	c, err := r.Client().LoadContainer(r.ctx, "one")
	r.must(err)
	r.task(c)
	img, err := r.Commit(t.Context(), commit.Request{Container: "one", Comment: "nothing"})
	r.must(err)
	m, config := r.read(img.Record.Target)
	parent, before := r.read(r.busybox.Target())
	if len(m.Layers) != len(parent.Layers) || len(config.RootFS.DiffIDs) != len(before.RootFS.DiffIDs) || img.Layer != "" {
		t.Errorf("layers: got %v, want those of %v; the last: %v", m.Layers, parent.Layers, r.archive(m.Layers[len(m.Layers)-1]))
	}
	last := config.History[len(config.History)-1]
	if !last.EmptyLayer || last.Comment != "nothing" || last.CreatedBy != "/bin/sh -c true" || last.Created == nil {
		t.Errorf("history: got %+v", last)
	}
}

// A61
func TestCommit(t *testing.T) {
	r := newRig(t)
	r.container("one", "mkdir /data && echo made > /data/file && rm /bin/vi && chmod 4755 /bin/busybox")
	img, err := r.Commit(t.Context(), commit.Request{
		Container: "one", Author: "me", CreatedBy: "a test",
		Config: &v1.ImageConfig{Cmd: []string{"cat", "/data/file"}, Env: []string{"A=1"}},
	})
	r.must(err)
	if !store.IsDangling(img.Record.Name) || img.Record.Labels[store.LabelParent] != r.busybox.Target().Digest.String() {
		t.Errorf("record: got %+v", img.Record)
	}
	m, config := r.read(img.Record.Target)
	if m.Config.Digest != img.ID || config.RootFS.DiffIDs[len(config.RootFS.DiffIDs)-1] != img.Layer {
		t.Errorf("got %+v of %+v", img, m)
	}
	if !slices.Equal(config.Config.Cmd, []string{"cat", "/data/file"}) || config.Author != "me" || config.Architecture != "amd64" {
		t.Errorf("configuration: got %+v", config)
	}
	if last := config.History[len(config.History)-1]; last.CreatedBy != "a test" || last.EmptyLayer {
		t.Errorf("history: got %+v", last)
	}
	r.collect()
	r.try("again", `test "$(cat /data/file)" = made && ! test -e /bin/vi && test -u /bin/busybox`, img)
	// And of that one, whose parent is not named.
	r.run("third", "echo more >> /data/file", client.WithImage(client.NewImage(r.Client(), img.Record)),
		client.WithSnapshotter("overlayfs"), client.WithNewSnapshot("third", client.NewImage(r.Client(), img.Record)))
	next, err := r.Commit(t.Context(), commit.Request{Container: "third"})
	r.must(err)
	if got := next.Record.Labels[store.LabelParent]; got != img.Record.Target.Digest.String() {
		t.Errorf("parent: got %s, want %s", got, img.Record.Target.Digest)
	}
	// What keeps the layers of both is the image alone.
	r.must(r.Client().ImageService().Delete(r.ctx, img.Record.Name, images.SynchronousDelete()))
	r.try("fourth", `test "$(tail -n 1 /data/file)" = more`, next)
}

func TestCommitRefuses(t *testing.T) {
	r := newRig(t)
	if _, err := r.Commit(t.Context(), commit.Request{Container: "none"}); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "none") {
		t.Errorf("unknown container: got %v", err)
	}
	r.container("one", "echo x > /x")
	if _, err := r.Commit(t.Context(), commit.Request{Container: "one", Parent: "none:1"}); !errors.Is(err, store.ErrImageDoesNotExist) {
		t.Errorf("unknown parent: got %v", err)
	}
	r.layer("empty", layer.PrepareRequest{})
	scratch, err := r.Commit(t.Context(), commit.Request{Container: "empty"})
	r.must(err)
	if m, config := r.read(scratch.Record.Target); len(m.Layers) != 0 || len(config.History) != 1 || config.OS != "linux" {
		t.Errorf("from nothing: got %+v, %+v", m, config)
	}
	if _, err := r.Commit(t.Context(), commit.Request{Container: "one", Parent: scratch.ID.String()}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("another image as the parent: got %v", err)
	}
	// The image has gone; its layers are there for the container.
	record, err := r.Client().ImageService().Get(r.ctx, host.Busybox)
	r.must(err)
	manager := r.Client().LeasesService()
	lease, err := manager.Create(r.ctx, leases.WithRandomID())
	r.must(err)
	r.must(manager.AddResource(r.ctx, lease, leases.Resource{ID: record.Target.Digest.String(), Type: "content"}))
	r.must(r.Client().ImageService().Delete(r.ctx, host.Busybox))
	_, err = r.Commit(t.Context(), commit.Request{Container: "one"})
	_, restored := r.Client().ImageService().Create(r.ctx, record)
	r.must(restored)
	r.must(manager.Delete(r.ctx, lease))
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without its image: got %v", err)
	}
}

// layer makes what a container writes to, until the test ends.
func (r *rig) layer(id string, req layer.PrepareRequest) {
	r.t.Helper()
	req.ID = id
	_, err := r.layers.Prepare(r.ctx, req)
	r.must(err)
	r.t.Cleanup(func() {
		if err := r.layers.Release(r.end, id); err != nil {
			r.t.Error(err)
		}
	})
}

// A62
func TestUserNamespace(t *testing.T) {
	ids := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	mapped := idmap.Map{UIDs: ids, GIDs: ids}
	const script = "mkdir /data && echo x > /data/root && echo x > /data/user && chown 1000:100 /data/user && echo x > /bin/tool"
	r := newRig(t)
	for _, c := range []struct {
		name string
		opt  client.NewContainerOpts
	}{
		{"mapped", client.WithNewSnapshot("mapped", r.busybox, client.WithUserNSRemapperLabels(ids, ids))},
		{"copied", client.WithUserNSRemappedSnapshot("copied", r.busybox, ids, ids)},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := client.WithNewSpec(oci.WithProcessArgs("/bin/sh", "-c", script), oci.WithUserNamespace(ids, ids))
			made, err := r.Client().NewContainer(r.ctx, c.name, client.WithImage(r.busybox), client.WithSnapshotter("overlayfs"), c.opt, spec, client.WithRuntime(host.Stock.Name, nil))
			r.must(err)
			defer func() { r.must(made.Delete(r.ctx, client.WithSnapshotCleanup)) }()
			r.task(made)
			// What setcap writes in the namespace.
			capability := []byte{1, 0, 0, 3, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa0, 0x86, 1, 0}
			r.must(r.layers.Perform(t.Context(), c.name, func(root string) error {
				return unix.Setxattr(root+"/bin/tool", "security.capability", capability, 0)
			}))
			img, err := r.Commit(t.Context(), commit.Request{Container: c.name})
			r.must(err)
			m, _ := r.read(img.Record.Target)
			files := r.archive(m.Layers[len(m.Layers)-1])
			for name, want := range map[string][2]int{"data/": {0, 0}, "data/root": {0, 0}, "data/user": {1000, 100}, "bin/tool": {0, 0}} {
				h, ok := files[name]
				if !ok || h.Uid != want[0] || h.Gid != want[1] {
					t.Errorf("%s: got %+v, want owner %v", name, h, want)
				}
			}
			if got := files["bin/tool"].PAXRecords["SCHILY.xattr.security.capability"]; got != "\x01\x00\x00\x02"+string(capability[4:20]) {
				t.Errorf("capabilities: got %q", got)
			}
			if len(files) > 6 { // the four, /bin and nothing of the image
				t.Errorf("%d entries in the layer", len(files))
			}
			r.try(c.name+"-again", `test "$(stat -c %u:%g /data/root /data/user | tr '\n' ' ')" = "0:0 1000:100 "`, img)
		})
	}
	r.layer("bare", layer.PrepareRequest{IDs: mapped})
	r.must(r.layers.Perform(t.Context(), "bare", func(root string) error {
		return errors.Join(unix.Mkdir(root+"/folder", 0o755), unix.Chown(root+"/folder", 100007, 100008))
	}))
	bare, err := r.Commit(t.Context(), commit.Request{Container: "bare"})
	r.must(err)
	m, _ := r.read(bare.Record.Target)
	if h := r.archive(m.Layers[0])["folder/"]; len(m.Layers) != 1 || h == nil || h.Uid != 7 || h.Gid != 8 {
		t.Errorf("from nothing: got %+v of %+v", h, m.Layers)
	}
	// An owner that the container cannot see is not silently another.
	r.must(r.layers.Perform(t.Context(), "bare", func(root string) error { return unix.Mkdir(root+"/strange", 0o755) }))
	if _, err := r.Commit(t.Context(), commit.Request{Container: "bare"}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "strange") {
		t.Errorf("strange owner: got %v", err)
	}
}

// archive lists the entries of a layer.
func (r *rig) archive(desc v1.Descriptor) map[string]*tar.Header {
	r.t.Helper()
	blob, err := r.Client().ContentStore().ReaderAt(r.ctx, desc)
	r.must(err)
	defer blob.Close()
	plain, err := compression.DecompressStream(content.NewReader(blob))
	r.must(err)
	defer plain.Close()
	files := map[string]*tar.Header{}
	for in := tar.NewReader(plain); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		r.must(err)
		files[h.Name] = h
	}
}

// A39, what reads images: layers whose blobs are not here, only unpacked, as a remote
// snapshotter and CRI's discard_unpacked_layers leave them.
func TestLayersElsewhere(t *testing.T) {
	r := newRig(t)
	first := r.step("one", "echo 1 > /made", r.base())
	m, _ := r.read(first.Record.Target)
	gone := m.Layers[len(m.Layers)-1].Digest
	second := func(id string) (commit.Image, error) {
		parent := client.NewImage(r.Client(), first.Record)
		r.run(id, "echo 2 > /more", client.WithImage(parent), client.WithSnapshotter("overlayfs"), client.WithNewSnapshot(id, parent))
		return r.Commit(t.Context(), commit.Request{Container: id})
	}
	cs := r.Client().ContentStore()
	r.must(cs.Delete(r.ctx, gone))
	if _, err := second("two"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), gone.String()) {
		t.Errorf("nowhere: got %v, want NotFound naming %s", err, gone)
	}
	const source = "containerd.io/distribution.source.berth.test"
	info := content.Info{Digest: first.Record.Target.Digest, Labels: map[string]string{source: "app"}}
	_, err := cs.Update(r.ctx, info, "labels."+source)
	r.must(err)
	img, err := second("three")
	r.must(err)
	made, err := cs.Info(r.ctx, img.Record.Target.Digest)
	if err != nil || made.Labels[source] != "app" {
		t.Errorf("where to find it: got %v, %v", made.Labels, err)
	}
	r.try("again", "test -e /made && test -e /more", img)
}

func TestManyCommitsAtOnce(t *testing.T) {
	r := newRig(t)
	r.container("one", "echo x > /x")
	var all sync.WaitGroup
	layers := make([]digest.Digest, 6)
	for i := range layers {
		all.Go(func() {
			img, err := r.Commit(t.Context(), commit.Request{Container: "one"})
			if err != nil {
				t.Error(err)
			}
			layers[i] = img.Layer
		})
	}
	all.Wait()
	if slices.Sort(layers); layers[0] == "" || layers[0] != layers[len(layers)-1] {
		t.Errorf("layers: got %v, want one", layers)
	}
}

// A call that ends too early leaves nothing; newRig counts.
func TestCancelled(t *testing.T) {
	r := newRig(t)
	r.container("one", "echo x > /x && dd if=/dev/urandom of=/large bs=1M count=8")
	img, err := r.Commit(t.Context(), commit.Request{Container: "one"})
	r.must(err)
	for name, call := range map[string]func(context.Context) error{
		"commit": func(ctx context.Context) error {
			_, err := r.Commit(ctx, commit.Request{Container: "one"})
			return err
		},
		"squash": func(ctx context.Context) error {
			_, err := r.Squash(ctx, commit.SquashRequest{Image: img.ID.String()})
			return err
		},
	} {
		ended := 0
		for wait := time.Millisecond; ; wait = wait * 3 / 2 {
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			err := call(ctx)
			cancel()
			if err == nil {
				break
			}
			ended++
			if !errors.Is(err, context.DeadlineExceeded) && !errdefs.IsCanceled(err) && !errdefs.IsDeadlineExceeded(err) {
				t.Errorf("%s after %v: %v", name, wait, err)
			}
			if wait > patience {
				t.Fatalf("%s takes longer than %v", name, wait)
			}
		}
		t.Logf("%s: ended %d times", name, ended)
	}
}

// What a container has written may be no more than an image may.
func TestCommitTooMuch(t *testing.T) {
	r := newRig(t)
	r.container("large", "dd if=/dev/zero of=/zeros bs=1M count=64")
	r.unpacker.Max = 32 << 20
	before := r.Count(t)
	if _, err := r.Commit(r.ctx, commit.Request{Container: "large"}); !errors.Is(err, unpack.ErrTooLarge) {
		t.Errorf("got %v, want ErrTooLarge", err)
	}
	r.Settle(t, before)
}
