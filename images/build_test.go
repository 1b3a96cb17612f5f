// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"testing"

	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/image"
	server "github.com/berthd/berth/integration/registry"
)

// A builder's way: layers of an image, a root on it, a layer of that, an image.
func TestBuild(t *testing.T) {
	s := newStored(t, nil)
	s.built(image.MultiPlatform, multi)
	d, from, err := s.Open(s.ctx(), images.OpenRequest{Image: multi, Policy: images.PullNever})
	s.must(err)
	if d.Target.Digest == "" || from.DiffID() != d.Config.RootFS.DiffIDs[0] || from.Blob() != "" {
		t.Errorf("opened %+v, %+v", d, from)
	}
	w, err := from.Writable(s.ctx())
	s.must(err)
	// The root needs neither the layers' release nor the image's name.
	s.must(from.Release(s.ctx()))
	if arch, err := os.ReadFile(w.Root + "/etc/arch"); string(arch) != "amd64" {
		t.Errorf("got %q, %v", arch, err)
	}
	same, err := w.Commit(s.ctx())
	s.must(err)
	if same.DiffID() != from.DiffID() || same.Blob() != "" {
		t.Errorf("unchanged: got %s, %s", same.DiffID(), same.Blob())
	}
	s.must(os.WriteFile(w.Root+"/built", []byte("x"), 0o644))
	next, err := w.Commit(s.ctx())
	s.must(err)
	if next.DiffID() == from.DiffID() || next.Blob() == "" {
		t.Errorf("changed: got %s, %s", next.DiffID(), next.Blob())
	}
	config := d.Config
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, next.DiffID())
	raw, err := json.Marshal(config)
	s.must(err)
	made, err := s.Create(s.ctx(), images.CreateRequest{Config: raw, Parent: d.Target.Digest.String(), Layer: next.Blob()})
	s.must(err)
	for range 2 {
		s.must(errors.Join(w.Release(s.ctx()), same.Release(s.ctx()), next.Release(s.ctx())))
	}
	mounted, err := s.MountImage(s.ctx(), images.MountRequest{Image: made.ID.Encoded()})
	s.must(err)
	if _, err := os.Stat(mounted.Root + "/built"); err != nil {
		t.Error(err)
	}
	_, err = s.UnmountImage(s.ctx(), images.MountRequest{Image: made.ID.Encoded()})
	s.must(err)
	children, err := s.Children(s.ctx(), multi)
	if err != nil || len(children) != 1 || children[0] != made.Record.Target.Digest {
		t.Errorf("children: got %v, %v", children, err)
	}
}

func TestBuildFromNothing(t *testing.T) {
	s := newStored(t, nil)
	d, from, err := s.Open(s.ctx(), images.OpenRequest{})
	s.must(err)
	if d.Target.Digest != "" || from.DiffID() != "" {
		t.Errorf("opened %+v", d)
	}
	w, err := from.Writable(s.ctx())
	s.must(err)
	s.must(os.WriteFile(w.Root+"/first", []byte("x"), 0o644))
	next, err := w.Commit(s.ctx())
	s.must(err)
	if next.DiffID() == "" {
		t.Error("no layer")
	}
	s.must(errors.Join(next.Release(s.ctx()), w.Release(s.ctx()), from.Release(s.ctx())))
}

func TestOpenPulls(t *testing.T) {
	dir := t.TempDir()
	s := newStored(t, func(c *images.Config) {
		err := errors.Join(os.WriteFile(dir+"/registries.conf", nil, 0o600), os.WriteFile(dir+"/policy.json", []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600))
		if err == nil {
			c.Registry, err = registry.New(registry.Config{HostsDir: dir + "/hosts", CertsDir: dir + "/certs", AuthFile: dir + "/auth.json", RegistriesConf: dir + "/registries.conf", RegistriesConfDir: dir + "/more"})
		}
		if err != nil {
			t.Fatal(err)
		}
		c.Policy = policy.Config{Path: dir + "/policy.json", Dir: dir, RegistriesDir: dir}
	})
	r, err := server.Start(t.Context(), server.Options{Dir: t.TempDir()})
	s.must(err)
	t.Cleanup(r.Close)
	name := r.Address + "/app:1"
	img, err := image.ZstdLayers(name)
	s.must(err)
	s.must(r.Push(s.ctx(), name, img.Manifest(), img))
	if _, _, err := s.Open(s.ctx(), images.OpenRequest{Image: name, Policy: images.PullNever}); !errors.Is(err, store.ErrImageDoesNotExist) {
		t.Errorf("without a pull: got %v", err)
	}
	for _, c := range []struct {
		policy images.PullPolicy
		asks   bool
	}{{images.PullMissing, true}, {images.PullMissing, false}, {images.PullAlways, true}} {
		r.Forget()
		d, from, err := s.Open(s.ctx(), images.OpenRequest{Image: name, Policy: c.policy})
		s.must(err)
		if d.Target.Digest != img.Manifest().Digest || (len(r.Log()) > 0) != c.asks {
			t.Errorf("policy %d: got %s, asked for %v", c.policy, d.Target.Digest, r.Log())
		}
		s.must(from.Release(s.ctx()))
	}
}

func TestBuildCache(t *testing.T) {
	s := newStored(t, nil)
	s.built(image.MultiPlatform, multi)
	base, err := s.Inspect(s.ctx(), images.InspectRequest{Image: multi})
	s.must(err)
	ran := func(cmd string) []byte {
		raw, err := json.Marshal(map[string]any{"Cmd": []string{cmd}, "Hostname": cmd + "-host", "Env": []string{}})
		s.must(err)
		return raw
	}
	step := func(id, from, cmd string, write string) images.Made {
		_, err := s.CreateLayer(s.ctx(), images.LayerRequest{ID: id, Image: from})
		s.must(err)
		if write != "" {
			s.must(s.Perform(s.ctx(), id, func(root string) error { return os.WriteFile(root+write, []byte("x"), 0o644) }))
		}
		made, err := s.CommitStep(s.ctx(), images.CommitRequest{Container: id, Parent: from, CreatedBy: cmd, Config: &v1.ImageConfig{Cmd: []string{cmd}}, ContainerConfig: ran(cmd)})
		s.must(err)
		s.must(s.ReleaseLayer(s.ctx(), id))
		return made
	}
	first := step("one", multi, "first", "/first")
	second := step("two", first.ID.Encoded(), "second", "")
	third := step("three", second.ID.Encoded(), "third", "/third")
	find := func(sources []string, parent digest.Digest, config []byte) digest.Digest {
		t.Helper()
		c, err := s.BuildCache(s.ctx(), sources)
		s.must(err)
		found, err := c.Find(s.ctx(), images.BuildStep{Parent: parent, Config: config})
		s.must(err)
		return found
	}
	// What was built here, found by its parent; the container's own name is no part of it.
	again, err := json.Marshal(v1.ImageConfig{Cmd: []string{"first"}})
	s.must(err)
	if got := find([]string{"none:1"}, base.Target.Digest, again); got != first.Record.Target.Digest {
		t.Errorf("first: got %s, want %s", got, first.Record.Target.Digest)
	}
	for name, parent := range map[string]digest.Digest{"other": base.Target.Digest, "first": second.Record.Target.Digest, "second": ""} {
		if got := find(nil, parent, ran(name)); got != "" {
			t.Errorf("%s on %s: got %s", name, parent, got)
		}
	}
	// What was built elsewhere: the last image alone is here.
	s.must(s.Store().Replace(s.ctx(), cimages.Image{Name: "berth.test/cache:1", Target: third.Record.Target}))
	for _, made := range []images.Made{first, second} {
		records, err := s.Store().ByTarget(s.ctx(), made.Record.Target.Digest)
		s.must(err)
		_, err = s.Store().Unlink(s.ctx(), records...)
		s.must(err)
	}
	parent := base.Target.Digest
	for _, cmd := range []string{"first", "second", "third"} {
		got := find([]string{"berth.test/cache:1"}, parent, ran(cmd))
		if got == "" {
			t.Fatalf("%s: not found", cmd)
		}
		d, err := s.Inspect(s.ctx(), images.InspectRequest{Image: got.String()})
		s.must(err)
		if last := d.Config.History[len(d.Config.History)-1]; last.CreatedBy != cmd || d.Config.Config.Cmd[0] != cmd {
			t.Errorf("%s: got %+v", cmd, d.Config)
		}
		if again := find(nil, parent, ran(cmd)); again != got {
			t.Errorf("%s: found as %s, then %s", cmd, got, again)
		}
		parent = got
	}
	c, err := s.BuildCache(context.Background(), nil)
	s.must(err)
	if _, err := c.Find(s.ctx(), images.BuildStep{Config: []byte("{")}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("not JSON: got %v", err)
	}
}
