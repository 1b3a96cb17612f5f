// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/image"
)

func TestInspect(t *testing.T) {
	s := newStored(t, nil)
	img := s.built(image.MultiPlatform, multi)
	s.add(img, map[string]string{store.LabelParent: digest.FromString("parent").String()}, "berth.test/other:2")
	for platform, want := range map[string]string{"": "linux/amd64", "linux/arm64": "linux/arm64"} {
		d, err := s.Inspect(s.ctx(), images.InspectRequest{Image: multi, Platform: platform})
		s.must(err)
		if got := platforms.Format(d.Config.Platform); got != want || d.Manifest.Platform == nil || platforms.Format(*d.Manifest.Platform) != want {
			t.Errorf("%q: got %s, %+v", platform, got, d.Manifest)
		}
		if d.ConfigDigest != digest.FromBytes(d.RawConfig) || d.Target.Digest != img.Manifest().Digest || d.Size == 0 || d.Snapshot == "" || d.Unpacked || d.Updated.IsZero() {
			t.Errorf("%q: got %+v", platform, d)
		}
		if diff := cmp.Diff([]string{multi, "berth.test/other:2"}, d.RepoTags); diff != "" || d.Parent != digest.FromString("parent") {
			t.Errorf("%q: parent %s, tags (-want +got):\n%s", platform, d.Parent, diff)
		}
		desc, err := s.Manifest(s.ctx(), images.InspectRequest{Image: multi, Platform: platform})
		if diff := cmp.Diff(d.Manifest, desc); err != nil || diff != "" {
			t.Errorf("manifest: %v (-want +got):\n%s", err, diff)
		}
	}
	_, err := s.Inspect(s.ctx(), images.InspectRequest{Image: multi, Platform: "linux/s390x"})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "platform linux/s390x") {
		t.Errorf("absent platform: got %v", err)
	}
	if _, err := s.Inspect(s.ctx(), images.InspectRequest{Image: "none:1"}); !errors.Is(err, store.ErrImageDoesNotExist) {
		t.Errorf("unknown image: got %v", err)
	}
	mounted, err := s.MountImage(s.ctx(), images.MountRequest{Image: multi})
	s.must(err)
	if d, err := s.Inspect(s.ctx(), images.InspectRequest{Image: multi}); err != nil || !d.Unpacked || d.Manifest.Digest != mounted.Manifest {
		t.Errorf("unpacked: got %+v, %v", d, err)
	}
	_, err = s.UnmountImage(s.ctx(), images.MountRequest{Image: multi})
	s.must(err)
}

// A44: what Manifests tells of an attested image.
func TestManifests(t *testing.T) {
	s := newStored(t, nil)
	const name = "berth.test/attested:1"
	img := s.built(image.Attested, name)
	list, err := s.Manifests(s.ctx(), name)
	s.must(err)
	if len(list) != 2 || string(list[0].Kind) != "image" || string(list[1].Kind) != "attestation" || list[1].Subject != list[0].Descriptor.Digest || !list[0].Available {
		t.Errorf("of %s: got %+v", img.Manifest().Digest, list)
	}
}

// Spec 4.2, ImageHistory.
func TestHistory(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	s := newStored(t, func(c *images.Config) { c.Now = func() time.Time { return now } })
	const base = "berth.test/base:1"
	s.busybox(base)
	first := s.change("one", base, "first", func(root string) error {
		return os.WriteFile(root+"/x", []byte(strings.Repeat("x", 1<<20)), 0o644)
	})
	second := s.change("two", first.ID.Encoded(), "second", func(string) error { return nil })
	name, err := reference.Parse("berth.test/second:1")
	s.must(err)
	s.must(s.Tag(s.ctx(), second.ID.Encoded(), name)) // which keeps what the image was made from
	list, err := s.History(s.ctx(), images.InspectRequest{Image: second.ID.Encoded()})
	s.must(err)
	if len(list) != 2 { // busybox says nothing of itself
		t.Fatalf("got %+v", list)
	}
	top, below := list[0], list[1]
	if top.Image != second.Record.Target.Digest || top.CreatedBy != "second" || !top.Empty || top.Size != 0 || !top.Created.Equal(now) || !cmp.Equal(top.Tags, []string{"berth.test/second:1"}) {
		t.Errorf("top: got %+v", top)
	}
	if below.Image != first.Record.Target.Digest || below.CreatedBy != "first" || below.Empty || below.Size < 1<<20 || len(below.Tags) != 0 {
		t.Errorf("below: got %+v", below)
	}
	// Without the parent's record its step is nobody's.
	records, err := s.Store().ByTarget(s.ctx(), first.Record.Target.Digest)
	s.must(err)
	_, err = s.Store().Unlink(s.ctx(), records...)
	s.must(err)
	if list, err := s.History(s.ctx(), images.InspectRequest{Image: second.ID.Encoded()}); err != nil || list[1].Image != "" || list[1].Size < 1<<20 {
		t.Errorf("without the parent: got %+v, %v", list, err)
	}
	if _, err := s.History(s.ctx(), images.InspectRequest{Image: "none:1"}); !errors.Is(err, store.ErrImageDoesNotExist) {
		t.Errorf("unknown image: got %v", err)
	}
}

// change makes an image of an image, without running anything.
func (s *stored) change(id, from, by string, fn func(root string) error) images.Made {
	s.t.Helper()
	_, err := s.CreateLayer(s.ctx(), images.LayerRequest{ID: id, Image: from})
	s.must(err)
	s.must(s.Perform(s.ctx(), id, fn))
	made, err := s.CommitStep(s.ctx(), images.CommitRequest{Container: id, CreatedBy: by})
	s.must(err)
	s.must(s.ReleaseLayer(s.ctx(), id))
	return made
}

func TestHistoryTooLong(t *testing.T) {
	s := newStored(t, nil)
	s.leased(func(ctx context.Context) {
		made, err := s.Create(ctx, images.CreateRequest{Config: []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},"history":[{"created_by":"a lie"}]}`)})
		s.must(err)
		_, err = s.History(ctx, images.InspectRequest{Image: made.ID.Encoded()})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), made.ID.Encoded()) {
			t.Errorf("got %v", err)
		}
	})
}

// Squash is part of the service too: see package commit for what it does.
func TestSquashPlatform(t *testing.T) {
	s := newStored(t, nil)
	s.built(image.MultiPlatform, multi)
	made, err := s.Squash(s.ctx(), images.SquashRequest{Image: multi, Platform: "linux/arm64"})
	s.must(err)
	d, err := s.Inspect(s.ctx(), images.InspectRequest{Image: made.ID.Encoded()})
	if err != nil || d.Config.Architecture != "arm64" || d.Target.MediaType != v1.MediaTypeImageManifest {
		t.Errorf("got %+v, %v", d, err)
	}
	if _, err := s.Squash(s.ctx(), images.SquashRequest{Image: multi, Platform: "linux/s390x"}); !errdefs.IsNotFound(err) {
		t.Errorf("absent platform: got %v", err)
	}
}
