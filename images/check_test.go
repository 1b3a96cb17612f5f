// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/check"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/image"
)

// ctrCheck is what `ctr images check` says of a record.
func (s *stored) ctrCheck(name string) string {
	s.t.Helper()
	cmd := exec.Command(s.d.Ctr().Path, "--address", s.d.Socket, "--namespace", s.ns, "images", "check", "name=="+name)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestCheck(t *testing.T) {
	s := newStored(t, nil)
	s.broken = true
	s.busybox("berth.test/whole:1")
	s.add(sample(t, "packed"), nil, "berth.test/packed:1")
	s.add(sample(t, "broken"), nil, "berth.test/broken:1")
	s.add(kind(t, image.NoLayers), nil, "berth.test/none:1")
	s.add(sample(t, "discarded"), nil, "berth.test/discarded:1")
	s.leased(func(ctx context.Context) { s.unpack(ctx, "berth.test/discarded:1") })
	for _, name := range []string{"berth.test/broken:1", "berth.test/discarded:1"} {
		r, err := s.Store().Resolve(s.ctx(), name)
		if err != nil {
			t.Fatal(err)
		}
		best, err := s.Store().Best(s.ctx(), r.Target)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := best.Manifest(s.ctx())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Store().DeleteBlobs(s.ctx(), doc.Layers[0].Digest); err != nil {
			t.Fatal(err)
		}
	}
	states, err := s.Check(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	type state struct {
		complete, unpacked bool
		missing            int
	}
	got := map[string]state{}
	for _, one := range states {
		got[one.Name] = state{one.Complete, one.Unpacked, len(one.Missing)}
		if one.Problem != nil || one.Gone || one.Manifest == "" || (one.Size > 0) != (len(one.Missing) > 0) {
			t.Errorf("%+v", one)
		}
	}
	want := map[string]state{
		"berth.test/whole:1": {true, true, 0}, "berth.test/packed:1": {true, false, 0}, "berth.test/broken:1": {false, false, 1},
		"berth.test/none:1": {true, true, 0}, "berth.test/discarded:1": {true, true, 1},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(state{})); diff != "" {
		t.Error(diff)
	}
	for name, text := range map[string]string{"berth.test/whole:1": "complete (2/2)", "berth.test/broken:1": "incomplete (1/2)"} {
		if out := s.ctrCheck(name); !strings.Contains(out, text) {
			t.Errorf("ctr says of %s: %s", name, out)
		}
	}
	if some, err := s.Check(s.ctx(), "berth.test/none:1"); err != nil || len(some) != 1 {
		t.Errorf("%+v, %v", some, err)
	}
}

func TestRepair(t *testing.T) {
	s := newStored(t, func(c *images.Config) { c.Namespace = store.KubernetesNamespace })
	s.foreign(sample(t, "packed"), "berth.test/packed:1")
	s.add(sample(t, "gone"), nil, "berth.test/gone:1")
	gone, err := s.Store().Resolve(s.ctx(), "berth.test/gone:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Store().DeleteBlobs(s.ctx(), gone.Target.Digest); err != nil {
		t.Fatal(err)
	}
	done, err := s.Repair(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	count := map[check.Action]int{}
	for _, one := range done {
		if one.Err != nil {
			t.Errorf("%+v", one)
		}
		count[one.Action]++
	}
	if diff := cmp.Diff(map[check.Action]int{check.Removed: 3, check.Unpacked: 1, check.Recorded: 1}, count); diff != "" {
		t.Error(diff)
	}
	if n := len(s.names()); n != 3 {
		t.Errorf("%d records: %v", n, s.names())
	}
	states, err := s.Check(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range states {
		if !one.Complete || !one.Unpacked {
			t.Errorf("%+v", one)
		}
	}
	if done, err := s.Repair(s.ctx()); err != nil || len(done) > 0 {
		t.Errorf("again: %+v, %v", done, err)
	}
}
