// SPDX-License-Identifier: Apache-2.0

package commit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/commit"
	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
)

// step makes an image of what a script does in a container of another.
func (r *rig) step(id, script string, from commit.Image) commit.Image {
	r.t.Helper()
	parent := client.NewImage(r.Client(), from.Record)
	r.run(id, script, client.WithImage(parent), client.WithSnapshotter("overlayfs"), client.WithNewSnapshot(id, parent))
	img, err := r.Commit(r.ctx, commit.Request{Container: id})
	r.must(err)
	return img
}

func (r *rig) base() commit.Image {
	r.t.Helper()
	record, err := r.Client().ImageService().Get(r.ctx, host.Busybox)
	r.must(err)
	return commit.Image{Record: record}
}

func TestSquash(t *testing.T) {
	r := newRig(t)
	first := r.step("one", "mkdir -p /data/sub && echo 1 > /data/a && echo 1 > /data/sub/b && echo 1 > /gone", r.base())
	second := r.step("two", "rm -r /data/sub /gone && mkdir /data/sub && echo 2 > /data/a && rm /bin/vi", first)
	check := `test "$(cat /data/a)" = 2 && test -d /data/sub && ! test -e /data/sub/b && ! test -e /gone && ! test -e /bin/vi && test -x /bin/ls`
	parent, _ := r.read(r.busybox.Target())
	_, whole := r.read(second.Record.Target)
	for _, c := range []struct {
		name, base string
		kept       int
	}{{"on its base", host.Busybox, len(parent.Layers)}, {"into one", "", 0}} {
		t.Run(c.name, func(t *testing.T) {
			img, err := r.Squash(t.Context(), commit.SquashRequest{Image: second.ID.String(), Base: c.base})
			r.must(err)
			m, config := r.read(img.Record.Target)
			if len(m.Layers) != c.kept+1 || config.RootFS.DiffIDs[c.kept] != img.Layer {
				t.Errorf("layers: got %v, %v", m.Layers, config.RootFS.DiffIDs)
			}
			made := 0
			for _, h := range config.History {
				if !h.EmptyLayer {
					made++
				}
			}
			if made != c.kept+1 || len(config.History) != len(whole.History)+1 {
				t.Errorf("history: got %+v", config.History)
			}
			if last := config.History[len(config.History)-1]; !strings.Contains(last.Comment, second.Record.Target.Digest.String()) || last.EmptyLayer {
				t.Errorf("history: got %+v", last)
			}
			if !slices.Equal(config.Config.Cmd, whole.Config.Cmd) || !store.IsDangling(img.Record.Name) {
				t.Errorf("got %+v of %+v", config.Config, img.Record)
			}
			// What is gone is not in the layer but as gone.
			files := r.archive(m.Layers[c.kept])
			if files["gone"] != nil || files["data/sub/b"] != nil || files["data/a"] == nil || (files["bin/.wh.vi"] == nil) != (c.kept == 0) {
				t.Errorf("the layer has %v", files)
			}
			r.collect()
			r.try("try-"+strings.ReplaceAll(c.name, " ", "-"), check, img)
		})
	}
	if _, err := r.Client().ImageService().Get(r.ctx, second.Record.Name); err != nil {
		t.Errorf("the image that was squashed: %v", err)
	}
}

func TestSquashNothing(t *testing.T) {
	r := newRig(t)
	first := r.step("one", "echo 1 > /gone", r.base())
	made, err := manifest.New(r.Client().ContentStore(), first.Record.Target)
	r.must(err)
	r.layer("two", layer.PrepareRequest{Parent: made})
	r.must(r.layers.Perform(t.Context(), "two", func(root string) error {
		return errors.Join(os.Remove(root+"/gone"), os.Remove(root+"/run"))
	}))
	second, err := r.Commit(t.Context(), commit.Request{Container: "two"})
	r.must(err)
	img, err := r.Squash(t.Context(), commit.SquashRequest{Image: second.ID.String(), Base: host.Busybox})
	r.must(err)
	parent, _ := r.read(r.busybox.Target())
	m, config := r.read(img.Record.Target)
	if len(m.Layers) != len(parent.Layers) || img.Layer != "" || !config.History[len(config.History)-1].EmptyLayer {
		t.Errorf("what cancels out: got %+v, %+v", m.Layers, config.History)
	}
	same, err := r.Squash(t.Context(), commit.SquashRequest{Image: host.Busybox, Base: host.Busybox})
	r.must(err)
	if m, _ := r.read(same.Record.Target); len(m.Layers) != len(parent.Layers) {
		t.Errorf("on itself: got %+v", m.Layers)
	}
	for base, want := range map[string]func(error) bool{
		first.ID.String(): errdefs.IsFailedPrecondition,
		"none:1":          func(err error) bool { return errors.Is(err, store.ErrImageDoesNotExist) },
	} {
		if _, err := r.Squash(t.Context(), commit.SquashRequest{Image: host.Busybox, Base: base}); !want(err) {
			t.Errorf("on %s: got %v", base, err)
		}
	}
	if _, err := r.Squash(t.Context(), commit.SquashRequest{Image: "none:1"}); !errors.Is(err, store.ErrImageDoesNotExist) {
		t.Errorf("unknown image: got %v", err)
	}
}

// load puts an image into containerd until the test ends.
func (r *rig) load(build image.Builder) commit.Image {
	r.t.Helper()
	img, err := build("berth.test/made:1")
	r.must(err)
	var archive bytes.Buffer
	r.must(img.Archive(&archive))
	records, err := r.Client().Import(r.ctx, &archive)
	r.must(err)
	return commit.Image{Record: records[0]}
}

func TestDockerStaysDocker(t *testing.T) {
	r := newRig(t)
	img, err := r.Squash(t.Context(), commit.SquashRequest{Image: r.load(image.Schema2).Record.Name})
	r.must(err)
	m, _ := r.read(img.Record.Target)
	if img.Record.Target.MediaType != images.MediaTypeDockerSchema2Manifest || m.MediaType != images.MediaTypeDockerSchema2Manifest ||
		m.Config.MediaType != images.MediaTypeDockerSchema2Config || m.Layers[0].MediaType != images.MediaTypeDockerSchema2LayerGzip {
		t.Errorf("got %+v of %+v", m, img.Record.Target)
	}
}

func TestCreate(t *testing.T) {
	r := newRig(t)
	first := r.step("one", "echo 1 > /made", r.base())
	m, config := r.read(first.Record.Target)
	raw, err := json.Marshal(struct {
		v1.Image
		ContainerConfig v1.ImageConfig `json:"container_config"`
	}{config, v1.ImageConfig{Cmd: []string{"made by hand"}}})
	r.must(err)
	req := commit.CreateRequest{Config: raw, Parent: host.Busybox, Layer: m.Layers[len(m.Layers)-1].Digest}
	img, err := r.Create(t.Context(), req)
	r.must(err)
	got, _ := r.read(img.Record.Target)
	if img.ID != digest.FromBytes(raw) || img.Layer != first.Layer || len(got.Layers) != len(m.Layers) {
		t.Errorf("got %+v of %+v", img, got)
	}
	if img.Record.Labels[store.LabelParent] != r.busybox.Target().Digest.String() {
		t.Errorf("record: got %v", img.Record.Labels)
	}
	// The container's configuration is kept by the record.
	r.collect()
	blob := digest.Digest(img.Record.Labels["containerd.io/gc.ref.content.moby/container.config"])
	kept, err := content.ReadBlob(r.ctx, r.Client().ContentStore(), v1.Descriptor{Digest: blob})
	if err != nil || !strings.Contains(string(kept), "made by hand") {
		t.Errorf("container's configuration: %q, %v", kept, err)
	}
	r.try("again", "test -e /made", img)
	empty, err := r.Create(t.Context(), commit.CreateRequest{Config: []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`)})
	r.must(err)
	if empty.Record.Labels["org.mobyproject.image.fromscratch"] != "true" {
		t.Errorf("from nothing: got %v", empty.Record.Labels)
	}
	for name, c := range map[string]struct {
		change func(*commit.CreateRequest)
		is     func(error) bool
	}{
		"not JSON":          {func(r *commit.CreateRequest) { r.Config = []byte("{") }, errdefs.IsInvalidArgument},
		"one layer too few": {func(r *commit.CreateRequest) { r.Layer = "" }, errdefs.IsInvalidArgument},
		"no such layer":     {func(r *commit.CreateRequest) { r.Layer = digest.FromString("none") }, errdefs.IsNotFound},
		"no such parent":    {func(r *commit.CreateRequest) { r.Parent = "none:1" }, errdefs.IsNotFound},
		"not a layer":       {func(r *commit.CreateRequest) { r.Layer = m.Config.Digest }, errdefs.IsInvalidArgument},
	} {
		bad := req
		c.change(&bad)
		if _, err := r.Create(t.Context(), bad); !c.is(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
