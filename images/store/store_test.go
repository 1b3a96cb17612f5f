// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/image"
)

// A41, and the order of the ways to find an image.
func TestResolve(t *testing.T) {
	r := open(t, nil)
	a, b := sample(t, "a"), sample(t, "b")
	r.foreign(t, "berth.test/repo:1", a)
	r.foreign(t, "berth.test/repo:2", a)
	r.foreign(t, "docker.io/library/busybox:latest", b)
	r.foreign(t, "not a name", b)
	r.replace(t, "berth.test/own:1", sample(t, "own"))
	config := configOf(t, r, "berth.test/repo:1")
	hidden := "docker.io/library/" + hexOf(a)[:6] + ":latest"
	for _, c := range []struct{ input, want string }{
		{"berth.test/repo:1", "berth.test/repo:1"},
		{"busybox", "docker.io/library/busybox:latest"},
		{"berth.test/repo@" + digestOf(a), "berth.test/repo:1"},
		{"berth.test/repo:9@" + digestOf(a), "berth.test/repo:1"},
		{"not a name", "not a name"},
		{digestOf(a), "berth.test/repo:1"},
		{hexOf(a), "berth.test/repo:1"},
		{hexOf(a)[:4], "berth.test/repo:1"},
		{"sha256:" + hexOf(a)[:12], "berth.test/repo:1"},
		{config.String(), "berth.test/repo:1"},       // read, for nothing recorded it
		{config.Encoded()[:10], "berth.test/repo:1"}, // as CRI has it
		{configOf(t, r, "berth.test/own:1").Encoded()[:10], "berth.test/own:1"},
	} {
		img, err := r.Resolve(timeout(t), c.input)
		if err != nil || img.Name != c.want {
			t.Errorf("%s: %q, %v, want %q", c.input, img.Name, err, c.want)
		}
	}
	for _, input := range []string{"berth.test/repo:3", "nothing", "berth.test/other@" + digestOf(a), "ffff0000", digest.FromString("x").String()} {
		_, err := r.Resolve(timeout(t), input)
		var typed *store.DoesNotExistError
		if !errdefs.IsNotFound(err) || !errors.Is(err, store.ErrImageDoesNotExist) || !errors.As(err, &typed) || typed.Reference == "" {
			t.Errorf("%s: %v", input, err)
		}
	}
	for _, input := range []string{"", "Foo/bar", "@"} {
		if _, err := r.Resolve(timeout(t), input); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", input, err)
		}
	}
	r.foreign(t, hidden, b)
	if img, err := r.Resolve(timeout(t), hexOf(a)[:6]); err != nil || img.Name != hidden {
		t.Errorf("a record named like an ID: %q, %v", img.Name, err)
	}
}

// A40. Two images whose digests begin alike are found by trying.
func TestResolveAmbiguous(t *testing.T) {
	r := open(t, nil)
	first, second := alike(t, 6)
	r.foreign(t, "berth.test/one:1", first)
	r.foreign(t, "berth.test/two:1", second)
	short := hexOf(first)[:6]
	_, err := r.Resolve(timeout(t), short)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "ambiguous reference") {
		t.Errorf("%s: %v", short, err)
	}
	r.foreign(t, "docker.io/library/"+short+":latest", second)
	if img, err := r.Resolve(timeout(t), short); err != nil || img.Target.Digest != second.Manifest().Digest {
		t.Errorf("a record with the name: %+v, %v", img, err)
	}
}

// alike returns two images whose targets share that many digits.
func alike(t *testing.T, digits int) (a, b *image.Image) {
	t.Helper()
	seen := map[string]int{}
	make := func(i int) *image.Image {
		return build(t, image.Variant{Config: v1.ImageConfig{User: fmt.Sprint(i)}})
	}
	for i := range 1 << 20 {
		img := make(i)
		if j, ok := seen[hexOf(img)[:digits]]; ok {
			return make(j), img
		}
		seen[hexOf(img)[:digits]] = i
	}
	t.Fatal("no two digests begin alike")
	return nil, nil
}

func TestResolveAll(t *testing.T) {
	r := open(t, nil)
	a := sample(t, "a")
	r.foreign(t, "berth.test/a:1", a)
	r.foreign(t, "berth.test/a:2", a)
	r.foreign(t, "berth.test/b:1", sample(t, "b"))
	for _, c := range []struct{ input, named string }{{"berth.test/a:2", "berth.test/a:2"}, {hexOf(a)[:12], ""}} {
		got, err := r.ResolveAll(timeout(t), c.input)
		if err != nil {
			t.Fatal(err)
		}
		name := ""
		if got.Named != nil {
			name = got.Named.Name
		}
		if name != c.named || len(got.All) != 2 || got.Target() != a.Manifest().Digest {
			t.Errorf("%s: %+v", c.input, got)
		}
	}
}

// A35, A45: what a name stood for is kept when the name moves, and only then.
func TestReplace(t *testing.T) {
	r := open(t, nil)
	a, b := sample(t, "a"), sample(t, "b")
	r.replace(t, "berth.test/t:1", a)
	r.replace(t, "berth.test/t:1", a)
	r.wantNames(t, "berth.test/t:1")
	r.replace(t, "berth.test/t:1", b)
	r.wantNames(t, store.DanglingName(a.Manifest().Digest), "berth.test/t:1")
	if f := r.facts(t, "berth.test/t:1"); f.Config != configOf(t, r, digestOf(b)) {
		t.Error("the record tells facts of another image")
	}
	r.replace(t, "berth.test/t:2", a)
	r.wantNames(t, "berth.test/t:1", "berth.test/t:2")
	r.replace(t, "berth.test/t:1", a)
	r.wantNames(t, store.DanglingName(b.Manifest().Digest), "berth.test/t:1", "berth.test/t:2")
	r.replace(t, "berth.test/t:1", b)
	r.wantNames(t, "berth.test/t:1", "berth.test/t:2")
}

// moby's dangling records are known as such.
func TestReplaceMobyDangling(t *testing.T) {
	r := open(t, nil)
	a := sample(t, "a")
	r.foreign(t, "moby-dangling@"+digestOf(a), a)
	r.replace(t, "berth.test/t:1", a)
	r.wantNames(t, "berth.test/t:1")
}

func TestCreateDangling(t *testing.T) {
	r := open(t, nil)
	a := sample(t, "a")
	r.leased(t, func(ctx context.Context) {
		r.write(t, ctx, a)
		for range 2 {
			img, err := r.CreateDangling(ctx, a.Manifest(), map[string]string{"key": "value"})
			if err != nil || img.Name != store.DanglingName(a.Manifest().Digest) || img.Labels["key"] != "value" {
				t.Errorf("%+v, %v", img, err)
			}
		}
	})
	if img, err := r.Resolve(timeout(t), store.DanglingName(a.Manifest().Digest)); err != nil || img.Target.Digest != a.Manifest().Digest {
		t.Errorf("by its name: %+v, %v", img, err)
	}
	r.replace(t, "berth.test/t:1", a)
	r.leased(t, func(ctx context.Context) {
		img, err := r.CreateDangling(ctx, a.Manifest(), nil)
		if err != nil || img.Name != "berth.test/t:1" || img.Labels["key"] != "value" {
			t.Errorf("of an image with a name: %+v, %v", img, err)
		}
	})
	r.wantNames(t, "berth.test/t:1")
}

// In Kubernetes' namespace an image has the records that CRI would give it.
func TestReplaceKubernetes(t *testing.T) {
	r := open(t, func(o *store.Options) {
		o.Namespace = store.KubernetesNamespace
		o.Pinned = func(name string) bool { return name == "berth.test/t:1" }
	})
	a, b := sample(t, "a"), sample(t, "b")
	r.replace(t, "berth.test/t:1", a)
	idA := configOf(t, r, "berth.test/t:1").String()
	digested := "berth.test/t@" + digestOf(a)
	r.wantNames(t, sorted("berth.test/t:1", digested, idA)...)
	all, err := r.Records(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range all {
		if img.Labels["io.cri-containerd.image"] != "managed" || img.Target.Digest != a.Manifest().Digest {
			t.Errorf("%+v", img)
		}
		if pinned := img.Labels[store.LabelPinned] == store.Pinned; pinned != (img.Name == "berth.test/t:1") {
			t.Errorf("%s: pinned %v", img.Name, pinned)
		}
	}
	r.replace(t, "berth.test/t:1", b)
	r.wantNames(t, sorted("berth.test/t:1", digested, idA, "berth.test/t@"+digestOf(b), configOf(t, r, "berth.test/t:1").String())...)

	c := sample(t, "c")
	r.leased(t, func(ctx context.Context) {
		r.write(t, ctx, c)
		img, err := r.CreateDangling(ctx, c.Manifest(), nil)
		if kind, _ := store.ParseName(img.Name); err != nil || kind != store.KindID {
			t.Errorf("an image without a name is %+v, %v", img, err)
		}
	})
}

// Many move names at a time: no image is lost and no lock is left.
func TestReplaceConcurrently(t *testing.T) {
	r := open(t, nil)
	a, b := sample(t, "a"), sample(t, "b")
	r.leased(t, func(ctx context.Context) {
		r.write(t, ctx, a)
		r.write(t, ctx, b)
		done := make(chan error)
		for i := range 16 {
			target := []*image.Image{a, b}[i%2].Manifest()
			go func() { done <- r.Replace(ctx, images.Image{Name: "berth.test/t:1", Target: target}) }()
		}
		for range 16 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	for _, img := range []*image.Image{a, b} {
		if _, err := r.Resolve(timeout(t), digestOf(img)); err != nil {
			t.Error(err)
		}
	}
	if n := len(r.names(t)); n != 2 {
		t.Errorf("%d records: %s", n, r.names(t))
	}
}

func TestLock(t *testing.T) {
	r := open(t, nil)
	target := digest.FromString("x")
	unlock, err := r.Lock(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.Lock(ctx, target); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second one: %v", err)
	}
	unlock()
	again, err := r.Lock(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestFacts(t *testing.T) {
	r := open(t, nil)
	for name, kind := range map[string]image.Builder{
		"berth.test/multi:1": image.MultiPlatform, "berth.test/attested:1": image.Attested, "berth.test/docker:1": image.Schema2, "berth.test/none:1": image.NoLayers,
	} {
		img, err := kind(name)
		if err != nil {
			t.Fatal(err)
		}
		r.foreign(t, name, img)
		read := r.facts(t, name)
		r.replace(t, name, img)
		record, err := r.Resolve(timeout(t), name)
		if err != nil {
			t.Fatal(err)
		}
		if record.Labels["io.berth.image.target"] != digestOf(img) {
			t.Errorf("%s tells nothing: %v", name, record.Labels)
		}
		if told := r.facts(t, name); !cmp.Equal(told, read) || told.Err != nil || told.Size == 0 || told.Config == "" {
			t.Errorf("%s: read %+v, told %+v", name, read, told)
		}
	}
}

// Others move a record without touching its labels: they tell nothing then.
func TestFactsMoved(t *testing.T) {
	r := open(t, nil)
	a, b := sample(t, "a"), sample(t, "b")
	r.replace(t, "berth.test/a:1", a)
	r.replace(t, "berth.test/b:1", b)
	want := r.facts(t, "berth.test/b:1")
	moved := images.Image{Name: "berth.test/a:1", Target: b.Manifest()}
	if _, err := r.d.Client().ImageService().Update(r.Context(timeout(t)), moved, "target"); err != nil {
		t.Fatal(err)
	}
	img, err := r.Resolve(timeout(t), "berth.test/a:1")
	if err != nil || img.Labels["io.berth.image.target"] != digestOf(a) {
		t.Fatalf("%+v, %v", img, err)
	}
	if diff := cmp.Diff(want, r.facts(t, "berth.test/a:1")); diff != "" {
		t.Error(diff)
	}
}

// A42: what cannot be read has no facts, and nothing fails.
func TestFactsMissing(t *testing.T) {
	r := open(t, nil)
	gone := v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: digest.FromString("gone"), Size: 4}
	if _, err := r.d.Client().ImageService().Create(r.Context(timeout(t)), images.Image{Name: "berth.test/gone:1", Target: gone}); err != nil {
		t.Fatal(err)
	}
	if f := r.facts(t, "berth.test/gone:1"); !errdefs.IsNotFound(f.Err) {
		t.Errorf("%+v", f)
	}
}

// Only an event's text is lost with the image.
func TestEmit(t *testing.T) {
	r := open(t, nil)
	a := sample(t, "a")
	r.foreign(t, "berth.test/a:1", a)
	img, err := r.Resolve(timeout(t), "berth.test/a:1")
	if err != nil {
		t.Fatal(err)
	}
	r.Emit(store.ActionTag, img.Target.Digest, img.Name, r.Labels(timeout(t), img))
	want := store.Event{
		Action: store.ActionTag, ID: img.Target.Digest, Ref: img.Name,
		Attributes: map[string]string{"name": img.Name, "text": "a"},
	}
	if len(r.events) != 1 || r.events[0].Time.IsZero() {
		t.Fatalf("%+v", r.events)
	}
	got := r.events[0]
	got.Time = time.Time{}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	img.Target.Digest = digest.FromString("gone")
	if labels := r.Labels(timeout(t), img); labels != nil {
		t.Error(labels)
	}
}
