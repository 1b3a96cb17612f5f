// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/store"
)

// pinned are the names that are pinned by their labels, and whether the list says so.
func (s *stored) wantPinned(want ...string) {
	s.t.Helper()
	pinned := map[string]bool{}
	for _, name := range want {
		pinned[name] = true
	}
	all, err := s.Store().Records(s.ctx())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range all {
		if got := r.Labels[store.LabelPinned] == store.Pinned; got != pinned[r.Name] {
			s.t.Errorf("%s has label: %v, want %v", r.Name, got, pinned[r.Name])
		}
	}
	for _, img := range s.list() {
		if img.Pinned != pinned[img.RepoTags[0]] {
			s.t.Errorf("%s is listed as pinned: %v", img.RepoTags[0], img.Pinned)
		}
	}
}

// A21, A22.
func TestPins(t *testing.T) {
	s := newStored(t, func(c *images.Config) { c.PauseImage, c.Pins = "pause:3", []string{"berth.test/a*"} })
	const pause, a, b = "docker.io/library/pause:3", "berth.test/a:1", "berth.test/b:1"
	s.add(sample(t, "pause"), nil, pause)
	s.add(sample(t, "a"), nil, a)
	s.foreign(sample(t, "b"), b)
	s.wantPinned(pause, a)
	if err := s.UpdatePins(s.ctx(), []string{"*B:*"}); err != nil {
		t.Fatal(err)
	}
	s.wantPinned(pause, b)
	if err := s.UpdatePins(s.ctx(), nil); err != nil {
		t.Fatal(err)
	}
	s.wantPinned(pause)
}

// What somebody has pinned stays so whatever the configuration says, and moves with
// the name.
func TestPinByHand(t *testing.T) {
	s := newStored(t, func(c *images.Config) { c.Pins = []string{"berth.test/b:1"} })
	const a, b = "berth.test/a:1", "berth.test/b:1"
	s.add(sample(t, "a"), nil, a)
	s.add(sample(t, "b"), nil, b)
	if err := s.Pin(s.ctx(), a); err != nil {
		t.Fatal(err)
	}
	if err := s.UpdatePins(s.ctx(), []string{"berth.test/b:1"}); err != nil {
		t.Fatal(err)
	}
	s.wantPinned(a, b)
	s.add(sample(t, "c"), nil, a)
	if r, err := s.Store().Resolve(s.ctx(), a); err != nil || r.Labels[store.LabelPinned] != store.Pinned {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := s.Prune(s.ctx(), nil); err != nil {
		t.Error(err)
	}
	if err := s.Unpin(s.ctx(), a); err != nil {
		t.Error(err)
	}
	s.wantPinned(b)
	if err := s.Unpin(s.ctx(), b); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	if err := s.Pin(s.ctx(), "berth.test/none:1"); !errors.Is(err, images.ErrNoSuchImage) {
		t.Error(err)
	}
}
