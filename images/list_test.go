// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/registry"
)

func (s *stored) list() []images.Image {
	s.t.Helper()
	list, err := s.List(s.ctx(), images.ListOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// A7.
func TestList(t *testing.T) {
	s := newStored(t, nil)
	a := sample(t, "a")
	s.foreign(a, "berth.test/b:2", "berth.test/a:1")
	list := s.list()
	if len(list) != 1 {
		t.Fatalf("%+v", list)
	}
	got := list[0]
	if diff := cmp.Diff([]string{"berth.test/a:1", "berth.test/b:2"}, got.RepoTags); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"berth.test/a@" + digestOf(a), "berth.test/b@" + digestOf(a)}, got.RepoDigests); diff != "" {
		t.Error(diff)
	}
	size := got.Size
	if got.Name == nil || got.Name.Text() != "berth.test/a:1" || size == nil || *size <= a.Manifest().Size || got.Digest != a.Manifest().Digest ||
		got.ConfigDigest != got.ID.Digest() || got.Labels["text"] != "a" || got.OCIConfig == nil || got.Pinned {
		t.Errorf("%+v", got)
	}
	brief, err := s.List(s.ctx(), images.ListOptions{Brief: true})
	if err != nil || len(brief) != 1 || brief[0].OCIConfig != nil || brief[0].ID != got.ID || *brief[0].Size != *size {
		t.Errorf("%+v, %v", brief, err)
	}
}

// A9, A42 and names that are none: nothing fails a list.
func TestListOddities(t *testing.T) {
	s := newStored(t, nil)
	s.broken = true
	s.foreign(sample(t, "a"), "berth.test/a:1", "free text")
	arm := build(t, image.Variant{Platform: v1.Platform{OS: "linux", Architecture: "s390x"}})
	s.add(arm, nil, "berth.test/other:1")
	gone := v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: digest.FromString("gone"), Size: 4}
	config := v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromString("config"), Size: 4}
	for name, target := range map[string]v1.Descriptor{"berth.test/gone:1": gone, "berth.test/config:1": config} {
		if _, err := s.d.Client().ImageService().Create(s.ctx(), cimages.Image{Name: name, Target: target}); err != nil {
			t.Fatal(err)
		}
	}
	list := s.list()
	if len(list) != 4 {
		t.Fatalf("%+v", list)
	}
	for _, img := range list {
		switch {
		case slices.Contains(img.Records, "berth.test/gone:1"), slices.Contains(img.Records, "berth.test/config:1"):
			if img.Size != nil || img.ConfigDigest != "" || len(img.RepoTags) != 1 || img.OCIConfig != nil {
				t.Errorf("%+v", img)
			}
		case slices.Contains(img.Records, "berth.test/other:1"):
			if img.Platform.Architecture != "s390x" || img.Size == nil {
				t.Errorf("%+v", img)
			}
		default:
			if diff := cmp.Diff([]string{"berth.test/a:1"}, img.RepoTags); diff != "" {
				t.Error(diff)
			}
		}
	}
}

// A call that was cancelled says so instead of listing images without facts.
func TestListCancelled(t *testing.T) {
	s := newStored(t, nil)
	s.foreign(sample(t, "a"), "berth.test/a:1")
	records, err := s.Store().Records(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx())
	cancel()
	if facts, err := s.Store().Facts(ctx, records); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", facts, err)
	}
	if _, err := s.List(ctx, images.ListOptions{}); err == nil {
		t.Error("no error")
	}
}

// A11, A12.
func TestStatusUnknown(t *testing.T) {
	s := newStored(t, nil)
	if _, err := s.StatusByName(s.ctx(), ref(t, "berth.test/none:1")); !errors.Is(err, images.ErrNoSuchImage) {
		t.Error(err)
	}
	id, err := reference.ParseID(strings.Repeat("ab", 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.StatusByID(s.ctx(), id); !errors.Is(err, images.ErrNoSuchImage) {
		t.Error(err)
	}
	for _, filter := range []string{"berth.test/none:1", "none", "abcd", "ABCDEF", id.Hex()} {
		list, err := s.List(s.ctx(), images.ListOptions{Filter: filter})
		if err != nil || len(list) != 0 {
			t.Errorf("%s: %+v, %v", filter, list, err)
		}
	}
}

// A13.
func TestStatusAnnotations(t *testing.T) {
	s := newStored(t, nil)
	s.foreign(kind(t, image.Schema2), "berth.test/docker:1")
	notes := map[string]string{"note": "text"}
	s.foreign(build(t, image.Variant{Annotations: notes}), "berth.test/oci:1")
	for name, want := range map[string]map[string]string{"berth.test/docker:1": nil, "berth.test/oci:1": notes} {
		got, err := s.StatusByName(s.ctx(), ref(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got.Annotations); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Targets with the same configuration are one image.
func TestStatusByID(t *testing.T) {
	s := newStored(t, nil)
	plain := build(t, image.Variant{})
	noted := build(t, image.Variant{Annotations: map[string]string{"a": "b"}})
	s.foreign(plain, "berth.test/a:1")
	s.foreign(noted, "berth.test/b:1")
	list := s.list()
	if len(list) != 1 {
		t.Fatalf("%+v", list)
	}
	got, err := s.StatusByID(s.ctx(), list[0].ID)
	if err != nil || len(got.RepoTags) != 2 || len(got.RepoDigests) != 4 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := s.Delete(s.ctx(), list[0].ID); err != nil {
		t.Error(err)
	}
	s.wantNames()
}

// A6.
func TestTryIDPrefix(t *testing.T) {
	s := newStored(t, nil)
	s.foreign(sample(t, "a"), "berth.test/a:1")
	id := s.list()[0].ID
	random := digest.FromString("random").Encoded()
	for input, want := range map[string]string{
		id.Hex()[:2]: "", id.Hex()[:3]: id.Hex(), id.Hex(): id.Hex(), "zzz": "", random: random, random[:20]: "", strings.ToUpper(random): "",
	} {
		got := s.TryIDPrefix(s.ctx(), input)
		if (got == nil) != (want == "") || got != nil && got.Hex() != want {
			t.Errorf("%s: %v, want %q", input, got, want)
		}
	}
}

// Two images whose IDs begin alike are not told apart by that.
func TestTryIDPrefixAmbiguous(t *testing.T) {
	s := newStored(t, nil)
	first := map[string]string{}
	for i := 0; ; i++ {
		img := build(t, image.Variant{Config: v1.ImageConfig{User: fmt.Sprint(i)}})
		s.foreign(img, fmt.Sprintf("berth.test/%d:1", i))
		got, err := s.StatusByName(s.ctx(), ref(t, fmt.Sprintf("berth.test/%d:1", i)))
		if err != nil {
			t.Fatal(err)
		}
		short := got.ID.Hex()[:3]
		if _, ok := first[short]; ok {
			if id := s.TryIDPrefix(s.ctx(), short); id != nil {
				t.Errorf("%s: %v", short, id)
			}
			return
		}
		first[short] = got.ID.Hex()
	}
}

// A9: an image that is being pulled, and cannot be read yet, is passed over.
func TestListPulling(t *testing.T) {
	dir := t.TempDir()
	server, err := registry.Start(t.Context(), registry.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	s := newStored(t, func(c *images.Config) {
		if err := os.WriteFile(dir+"/policy.json", []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Policy = policy.Config{Path: dir + "/policy.json"}
	})
	name := server.Address + "/app:1"
	img, err := image.Schema2(name)
	if err == nil {
		err = img.Push(s.ctx())
	}
	if err != nil {
		t.Fatal(err)
	}
	gone := v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: digest.FromString("gone"), Size: 4}
	if _, err := s.d.Client().ImageService().Create(s.ctx(), cimages.Image{Name: name, Target: gone}); err != nil {
		t.Fatal(err)
	}
	if n := len(s.list()); n != 1 {
		t.Errorf("%d images", n)
	}
	stalled := make(chan struct{})
	heal := server.Inject(registry.Fault{Path: "/blobs/", Times: 1, Do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		close(stalled)
		registry.Stall(w, r, next)
	}})
	pulled := make(chan error)
	go func() {
		_, err := s.Pull(s.ctx(), images.PullRequest{Name: name})
		pulled <- err
	}()
	<-stalled
	if list := s.list(); len(list) != 0 {
		t.Errorf("while it is pulled: %+v", list)
	}
	heal()
	if err := <-pulled; err != nil {
		t.Error(err)
	}
	if list := s.list(); len(list) != 1 || list[0].OCIConfig == nil {
		t.Errorf("%+v", list)
	}
	s.wantNames(name) // of what the name stood for nothing was left to keep
}

// A mounted image says where.
func TestListMounted(t *testing.T) {
	s := newStored(t, nil)
	s.add(sample(t, "a"), nil, "berth.test/a:1")
	mounted, err := s.MountImage(s.ctx(), images.MountRequest{Image: "berth.test/a:1"})
	if err != nil {
		t.Fatal(err)
	}
	status, err := s.StatusByName(s.ctx(), ref(t, "berth.test/a:1"))
	if err != nil || status.MountPoint != mounted.Root || s.list()[0].MountPoint != mounted.Root {
		t.Errorf("%+v, %v, want %s", status, err, mounted.Root)
	}
	if _, err := s.UnmountImage(s.ctx(), images.MountRequest{Image: "berth.test/a:1"}); err != nil {
		t.Fatal(err)
	}
	if at := s.list()[0].MountPoint; at != "" {
		t.Errorf("after unmounting: %s", at)
	}
}
