// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/listing"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/image"
)

func (s *stored) summaries(o images.SummaryOptions) []images.Summary {
	s.t.Helper()
	list, err := s.Summaries(s.ctx(), o)
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// firstNames are those of a list's images.
func firstNames(list []images.Summary) (names []string) {
	for _, sum := range list {
		names = append(names, sum.Records[0])
	}
	return names
}

// A43: filters, alone and together; the newest comes first.
func TestSummariesFilters(t *testing.T) {
	s := newStored(t, nil)
	s.add(sample(t, "a"), nil, "berth.test/team/a:1")
	s.add(sample(t, "b"), nil, "docker.io/library/b:latest")
	s.add(sample(t, "c"), nil, "berth.test/team/c:2")
	d := sample(t, "d")
	s.dangling(d, nil)
	const a, b, c = "berth.test/team/a:1", "docker.io/library/b:latest", "berth.test/team/c:2"
	none := danglingName(d)
	for _, test := range []struct {
		name    string
		filters map[string][]string
		want    []string
	}{
		{"none", nil, []string{none, c, b, a}},
		{"dangling", map[string][]string{"dangling": {"true"}}, []string{none}},
		{"not dangling", map[string][]string{"dangling": {"0"}}, []string{c, b, a}},
		{"label", map[string][]string{"label": {"text=b"}}, []string{b}},
		{"label's key", map[string][]string{"label": {"text"}}, []string{none, c, b, a}},
		{"two labels", map[string][]string{"label": {"text=b", "text=c"}}, nil},
		{"label!", map[string][]string{"label!": {"text=b", "text=c"}}, []string{none, a}},
		{"before", map[string][]string{"before": {"b"}}, []string{a}},
		{"since", map[string][]string{"since": {"b"}}, []string{none, c}},
		{"between", map[string][]string{"since": {a}, "before": {c}}, []string{b}},
		{"repository", map[string][]string{"reference": {"berth.test/team/*"}}, []string{c, a}},
		{"tag", map[string][]string{"reference": {"*/*/*:2"}}, []string{c}},
		{"familiar", map[string][]string{"reference": {"b"}}, []string{b}},
		{"familiar and tag", map[string][]string{"reference": {"b:la*", "nothing"}}, []string{b}},
		{"until", map[string][]string{"until": {"1h"}}, nil},
		{"all together", map[string][]string{
			"reference": {"berth.test/*/*"}, "label": {"text"}, "label!": {"text=a"}, "since": {a}, "before": {none}, "dangling": {"false"}, "until": {"2100-01-01"},
		}, []string{c}},
	} {
		got := firstNames(s.summaries(images.SummaryOptions{Filters: test.filters}))
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: %s", test.name, diff)
		}
	}
	for _, filters := range []map[string][]string{{"nonsense": {"x"}}, {"dangling": {"maybe"}}, {"until": {"soon"}}, {"reference": {"["}}} {
		if _, err := s.Summaries(s.ctx(), images.SummaryOptions{Filters: filters}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", filters, err)
		}
	}
	if _, err := s.Summaries(s.ctx(), images.SummaryOptions{Filters: map[string][]string{"since": {"none"}}}); !errors.Is(err, images.ErrNoSuchImage) {
		t.Error(err)
	}
}

// A44.
func TestSummariesManifests(t *testing.T) {
	s := newStored(t, nil)
	s.add(kind(t, image.Attested), nil, "berth.test/attested:1")
	s.add(kind(t, image.MultiPlatform), nil, "berth.test/multi:1")
	for _, sum := range s.summaries(images.SummaryOptions{Manifests: true}) {
		if len(sum.Manifests) != 2 {
			t.Errorf("%+v", sum)
			continue
		}
		first, second := sum.Manifests[0], sum.Manifests[1]
		if first.Kind != listing.VariantImage || !first.Available || first.Content == 0 || first.Platform.Architecture != "amd64" {
			t.Errorf("%+v", first)
		}
		if sum.RepoTags[0] == "berth.test/attested:1" {
			if second.Kind != listing.VariantAttestation || second.Subject != first.Descriptor.Digest {
				t.Errorf("%+v", second)
			}
		} else if second.Kind != listing.VariantImage || second.Platform.Architecture != "arm64" {
			t.Errorf("%+v", second)
		}
	}
}

// A42: what is not here does not fail a list.
func TestSummariesMissing(t *testing.T) {
	s := newStored(t, nil)
	s.broken = true
	multi := kind(t, image.MultiPlatform)
	s.add(multi, nil, "berth.test/multi:1")
	var manifests []digest.Digest
	for _, m := range s.summaries(images.SummaryOptions{Manifests: true})[0].Manifests {
		manifests = append(manifests, m.Descriptor.Digest)
	}
	if err := s.Store().DeleteBlobs(s.ctx(), manifests...); err != nil {
		t.Fatal(err)
	}
	gone := v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: digest.FromString("gone"), Size: 4}
	if _, err := s.d.Client().ImageService().Create(s.ctx(), cimages.Image{Name: "berth.test/gone:1", Target: gone}); err != nil {
		t.Fatal(err)
	}
	list := s.summaries(images.SummaryOptions{Manifests: true, SharedSize: true, ContainerCount: true})
	if len(list) != 2 {
		t.Fatalf("%+v", list)
	}
	for _, sum := range list {
		for _, m := range sum.Manifests {
			if m.Available || m.Content != 0 {
				t.Errorf("%+v", m)
			}
		}
	}
}

// Sizes, users, parents and what is shared.
func TestSummariesFigures(t *testing.T) {
	s := newStored(t, nil)
	s.busybox("berth.test/run:1")
	s.container("user", "berth.test/run:1", "berth.test/run:1")
	base, err := s.Store().Resolve(s.ctx(), "berth.test/run:1")
	if err != nil {
		t.Fatal(err)
	}
	a, b := sample(t, "a"), sample(t, "b")
	s.dangling(a, map[string]string{store.LabelParent: base.Target.Digest.String()})
	s.add(b, map[string]string{store.LabelParent: digestOf(a)}, "berth.test/b:1")
	noted := build(t, image.Variant{})
	s.add(noted, nil, "berth.test/n:1")

	plain := s.summaries(images.SummaryOptions{})
	if names := firstNames(plain); slices.Contains(names, danglingName(a)) || len(names) != 3 {
		t.Errorf("parents are listed: %v", names)
	}
	for _, sum := range plain {
		if sum.Shared != -1 || sum.Containers != -1 || sum.Manifests != nil || sum.Content == 0 || sum.Size() != sum.Content+sum.Unpacked {
			t.Errorf("%+v", sum)
		}
	}
	for _, sum := range s.summaries(images.SummaryOptions{All: true, ContainerCount: true, SharedSize: true, Manifests: true}) {
		switch sum.Records[0] {
		case "berth.test/run:1":
			if sum.Containers != 1 || sum.Unpacked == 0 || sum.Shared != 0 || !slices.Equal(sum.Manifests[0].Containers, []string{"user"}) {
				t.Errorf("%+v", sum)
			}
		case danglingName(a):
			if !sum.Dangling || sum.Parent != base.Target.Digest || sum.Containers != 0 {
				t.Errorf("%+v", sum)
			}
		case "berth.test/b:1":
			if sum.Parent != a.Manifest().Digest {
				t.Errorf("%+v", sum)
			}
		}
	}
	if children, err := s.Children(s.ctx(), "berth.test/run:1"); err != nil || !slices.Equal(children, []digest.Digest{a.Manifest().Digest}) {
		t.Errorf("%v, %v", children, err)
	}
	if n := s.Count(s.ctx()); n != 4 {
		t.Errorf("%d images", n)
	}
}

// What images share is counted once, and what is used cannot be reclaimed.
func TestDiskUsage(t *testing.T) {
	s := newStored(t, nil)
	s.busybox("berth.test/run:1")
	s.add(sample(t, "a"), nil, "berth.test/a:1")
	s.leased(func(ctx context.Context) { s.unpack(ctx, "berth.test/a:1") })
	before, err := s.DiskUsage(s.ctx())
	if err != nil || before.Images != 2 || before.Layers == 0 || before.Reclaimable != before.Content+before.Layers {
		t.Errorf("%+v, %v", before, err)
	}
	s.add(sample(t, "a"), nil, "berth.test/again:1")
	if again, err := s.DiskUsage(s.ctx()); err != nil || again != before {
		t.Errorf("%+v, %v, want %+v", again, err, before)
	}
	s.container("user", "berth.test/run:1", "berth.test/run:1")
	used, err := s.DiskUsage(s.ctx())
	if err != nil || used.Reclaimable >= before.Reclaimable || used.Reclaimable == 0 {
		t.Errorf("%+v, %v", used, err)
	}
	report, err := s.Prune(s.ctx(), all)
	if err != nil || report.Reclaimed != used.Reclaimable {
		t.Errorf("reclaimed %+v, %v, want %d", report, err, used.Reclaimable)
	}
}

func TestLogEvent(t *testing.T) {
	s := newStored(t, nil)
	a := sample(t, "a")
	s.add(a, nil, "berth.test/a:1")
	s.LogEvent(s.ctx(), store.ActionSave, a.Manifest().Digest, "berth.test/a:1")
	s.LogEvent(s.ctx(), store.ActionSave, digest.FromString("gone"), "")
	if len(s.events) != 2 || s.events[0].Attributes["text"] != "a" || len(s.events[1].Attributes) != 0 {
		t.Errorf("%+v", s.events)
	}
}
