// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/removal"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/image"
)

func ref(t *testing.T, name string) reference.Reference {
	t.Helper()
	r, err := reference.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A16.
func TestUntag(t *testing.T) {
	s := newStored(t, nil)
	a := sample(t, "a")
	s.add(a, nil, "berth.test/a:1", "berth.test/b:1")
	gone, err := s.Untag(s.ctx(), ref(t, "berth.test/a:1"))
	if diff := cmp.Diff([]images.Removed{{Untagged: "berth.test/a:1"}}, gone); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := s.StatusByName(s.ctx(), ref(t, "berth.test/b:1")); err != nil {
		t.Error(err)
	}
	gone, err = s.Untag(s.ctx(), ref(t, "berth.test/b:1"))
	want := []images.Removed{{Untagged: "berth.test/b:1"}, {Deleted: a.Manifest().Digest}}
	if diff := cmp.Diff(want, gone); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	s.wantNames()
	s.wantEvents("untag berth.test/a:1", "untag berth.test/b:1", "delete")
	if _, err := s.Untag(s.ctx(), ref(t, "berth.test/b:1")); !errors.Is(err, images.ErrNoSuchImage) {
		t.Errorf("again: %v", err)
	}
}

// A16, A17 in Kubernetes' namespace, where an image has three records.
func TestDeleteAllRecords(t *testing.T) {
	for _, how := range []string{"delete", "untag", "remove by name", "remove by ID"} {
		t.Run(how, func(t *testing.T) {
			s := newStored(t, func(c *images.Config) { c.Namespace = store.KubernetesNamespace })
			s.add(sample(t, "a"), nil, "berth.test/a:1")
			if n := len(s.names()); n != 3 {
				t.Fatalf("%d records", n)
			}
			status, err := s.StatusByName(s.ctx(), ref(t, "berth.test/a:1"))
			if err != nil {
				t.Fatal(err)
			}
			switch how {
			case "delete":
				_, err = s.Delete(s.ctx(), status.ID)
			case "untag":
				_, err = s.Untag(s.ctx(), ref(t, "berth.test/a:1"))
			case "remove by name":
				_, err = s.Remove(s.ctx(), "berth.test/a:1", images.RemoveOptions{})
			case "remove by ID":
				_, err = s.Remove(s.ctx(), status.ID.Hex()[:12], images.RemoveOptions{})
			}
			if err != nil {
				t.Error(err)
			}
			s.wantNames()
			if left := s.left(s.ctx()); len(left) > 0 { // A49
				t.Errorf("left: %s", left)
			}
		})
	}
}

func TestDeleteUnknown(t *testing.T) {
	s := newStored(t, nil)
	id, err := reference.ParseID(digest.FromString("x").Encoded())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Delete(s.ctx(), id); !errors.Is(err, images.ErrNoSuchImage) {
		t.Error(err)
	}
	if _, err := s.Remove(s.ctx(), "berth.test/none:1", images.RemoveOptions{}); !errors.Is(err, images.ErrNoSuchImage) {
		t.Error(err)
	}
}

// wantConflict checks that an error is a conflict that names what it must.
func wantConflict(t *testing.T, err error, hard bool, text string) {
	t.Helper()
	var conflict *removal.ConflictError
	if !errdefs.IsConflict(err) || !errors.Is(err, images.ErrConflict) || !errors.As(err, &conflict) || conflict.Hard != hard || !strings.Contains(err.Error(), text) {
		t.Errorf("%v, want a conflict (hard: %v) about %s", err, hard, text)
	}
}

// A46.
func TestRemoveRunning(t *testing.T) {
	s := newStored(t, nil)
	s.busybox("berth.test/run:1")
	c := s.container("runs", "berth.test/run:1", "berth.test/run:1")
	s.run(c)
	status, err := s.StatusByName(s.ctx(), ref(t, "berth.test/run:1"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Remove(s.ctx(), "berth.test/run:1", images.RemoveOptions{})
	wantConflict(t, err, true, "runs")
	for _, id := range []string{status.ID.Hex(), status.Target.Digest.String()} {
		_, err = s.Remove(s.ctx(), id, images.RemoveOptions{Force: true})
		wantConflict(t, err, true, "runs")
	}
	s.wantNames("berth.test/run:1")
	gone, err := s.Remove(s.ctx(), "berth.test/run:1", images.RemoveOptions{Force: true})
	if diff := cmp.Diff([]images.Removed{{Untagged: "berth.test/run:1"}}, gone); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	s.wantNames(store.DanglingName(status.Target.Digest))
	task, err := c.Task(s.ctx(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if state, err := task.Status(s.ctx()); err != nil || state.Status != "running" {
		t.Errorf("%v, %v", state, err)
	}
	// What runs from an image without a name keeps it from a prune, too.
	if report, err := s.Prune(s.ctx(), nil); err != nil || len(report.Removed) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

// A container that does not run is in the way only without force.
func TestRemoveStopped(t *testing.T) {
	s := newStored(t, nil)
	s.busybox("berth.test/run:1")
	s.container("stopped", "berth.test/run:1", "berth.test/run:1")
	status, err := s.StatusByName(s.ctx(), ref(t, "berth.test/run:1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, input := range []string{"berth.test/run:1", status.ID.Hex()} {
		_, err := s.Remove(s.ctx(), input, images.RemoveOptions{})
		wantConflict(t, err, false, "stopped")
	}
	gone, err := s.Remove(s.ctx(), status.ID.Hex(), images.RemoveOptions{Force: true})
	want := []images.Removed{{Untagged: "berth.test/run:1"}, {Deleted: status.Target.Digest}}
	if diff := cmp.Diff(want, gone); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	s.wantNames()
}

// A47.
func TestRemoveSeveralNames(t *testing.T) {
	s := newStored(t, nil)
	a := sample(t, "a")
	s.add(a, nil, "berth.test/a:1", "berth.test/b:1")
	_, err := s.Remove(s.ctx(), digestOf(a), images.RemoveOptions{})
	wantConflict(t, err, false, "berth.test/b:1")
	if !errors.Is(err, images.ErrImageMultiplyTagged) {
		t.Error(err)
	}
	gone, err := s.Remove(s.ctx(), "berth.test/a:1", images.RemoveOptions{})
	if diff := cmp.Diff([]images.Removed{{Untagged: "berth.test/a:1"}}, gone); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	s.add(a, nil, "berth.test/a:1")
	gone, err = s.Remove(s.ctx(), digestOf(a), images.RemoveOptions{Force: true})
	want := []images.Removed{{Untagged: "berth.test/a:1"}, {Untagged: "berth.test/b:1"}, {Deleted: a.Manifest().Digest}}
	if diff := cmp.Diff(want, gone); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
}

// A repository's digests go with its last tag, and with no other.
func TestRemoveCompanions(t *testing.T) {
	s := newStored(t, nil)
	a := sample(t, "a")
	digested := "berth.test/a@" + digestOf(a)
	s.add(a, nil, "berth.test/a:1", "berth.test/a:2", digested, "berth.test/b:1")
	for _, c := range []struct {
		name string
		left []string
	}{
		{"berth.test/a:1", []string{"berth.test/a:2", digested, "berth.test/b:1"}},
		{"berth.test/a:2", []string{"berth.test/b:1"}},
	} {
		if _, err := s.Remove(s.ctx(), c.name, images.RemoveOptions{}); err != nil {
			t.Error(err)
		}
		s.wantNames(c.left...)
	}
}

// A name that moved since it was looked at is not lost.
func TestRemoveMoved(t *testing.T) {
	s := newStored(t, nil)
	a, b := sample(t, "a"), sample(t, "b")
	s.add(a, nil, "berth.test/a:1")
	old, err := s.Store().Resolve(s.ctx(), "berth.test/a:1")
	if err != nil {
		t.Fatal(err)
	}
	s.add(b, nil, "berth.test/a:1")
	if gone, err := s.Store().Delete(s.ctx(), old); err != nil || len(gone) > 0 {
		t.Errorf("%v, %v", gone, err)
	}
	s.wantNames(danglingName(a), "berth.test/a:1")
}

// A48: parents go as far as nobody needs them. A child keeps its parent.
func TestRemoveParents(t *testing.T) {
	s := newStored(t, nil)
	a, b, c, d := sample(t, "a"), sample(t, "b"), sample(t, "c"), sample(t, "d")
	parent := func(img *image.Image) map[string]string { return map[string]string{store.LabelParent: digestOf(img)} }
	s.add(a, nil, "berth.test/base:1")
	s.dangling(b, parent(a))
	s.dangling(c, parent(b))
	s.add(d, parent(c), "berth.test/child:1")
	if _, err := s.Remove(s.ctx(), "berth.test/child:1", images.RemoveOptions{Parents: true}); err != nil {
		t.Fatal(err)
	}
	s.wantNames("berth.test/base:1")

	s.dangling(b, parent(a))
	gone, err := s.Remove(s.ctx(), "berth.test/base:1", images.RemoveOptions{})
	if diff := cmp.Diff([]images.Removed{{Untagged: "berth.test/base:1"}}, gone); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	s.wantNames(danglingName(a), danglingName(b))
	status, err := s.List(s.ctx(), images.ListOptions{Filter: digestOf(a)})
	if err != nil || len(status) != 1 || status[0].PreviousName != "berth.test/base" {
		t.Errorf("%+v, %v", status, err)
	}
}

// Content of one platform goes, but not what others need.
func TestRemovePlatforms(t *testing.T) {
	s := newStored(t, nil)
	multi := kind(t, image.MultiPlatform)
	s.add(multi, nil, "berth.test/multi:1")
	arm := v1.Platform{OS: "linux", Architecture: "arm64"}
	only := images.RemoveOptions{Platforms: []v1.Platform{arm}}
	if _, err := s.Remove(s.ctx(), "berth.test/multi:1", only); !errdefs.IsInvalidArgument(err) {
		t.Errorf("without force: %v", err)
	}
	only.Force = true
	before := s.blobs()
	gone, err := s.Remove(s.ctx(), "berth.test/multi:1", only)
	if err != nil || len(gone) != 1 || gone[0].Deleted == "" {
		t.Fatalf("%v, %v", gone, err)
	}
	if after := s.blobs(); len(before)-len(after) != 3 || slices.Contains(after, gone[0].Deleted) {
		t.Errorf("of %d blobs %d are left", len(before), len(after))
	}
	s.wantNames("berth.test/multi:1")
	if _, err := s.Remove(s.ctx(), "berth.test/multi:1", only); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("again: %v", err)
	}
	if states, err := s.Check(s.ctx()); err != nil || !states[0].Complete {
		t.Errorf("%+v, %v", states, err)
	}
}

func (s *stored) blobs() (all []digest.Digest) {
	s.t.Helper()
	err := s.d.Client().ContentStore().Walk(s.ctx(), func(info content.Info) error {
		all = append(all, info.Digest)
		return nil
	})
	if err != nil {
		s.t.Error(err)
	}
	return all
}

// Many remove and make names at a time.
func TestRemoveConcurrently(t *testing.T) {
	s := newStored(t, nil)
	a := sample(t, "a")
	s.add(a, nil, "berth.test/a:1", "berth.test/a:2", "berth.test/a:3")
	done := make(chan error)
	for range 3 {
		for _, name := range []string{"berth.test/a:1", "berth.test/a:2", "berth.test/a:3"} {
			go func() {
				_, err := s.Remove(context.WithoutCancel(t.Context()), name, images.RemoveOptions{})
				done <- err
			}()
		}
	}
	failed := 0
	for range 9 {
		if err := <-done; err != nil {
			failed++
			if !errors.Is(err, images.ErrNoSuchImage) {
				t.Error(err)
			}
		}
	}
	if failed != 6 {
		t.Errorf("%d of 9 did not find the name, want 6", failed)
	}
	s.wantNames()
}

// Images that are mounted into a container are in use: as berth mounts them, which is
// a label of the container's snapshot.
func TestRemoveVolume(t *testing.T) {
	s := newStored(t, nil)
	s.busybox("berth.test/run:1")
	s.add(sample(t, "volume"), nil, "berth.test/volume:1")
	s.leased(func(ctx context.Context) { s.unpack(ctx, "berth.test/volume:1") })
	volume, err := s.d.Client().GetImage(s.ctx(), "berth.test/volume:1")
	if err != nil {
		t.Fatal(err)
	}
	layers, err := volume.RootFS(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	s.container("user", "berth.test/run:1", "berth.test/run:1")
	label := "containerd.io/gc.ref.snapshot.overlayfs/" + layers[0].String()
	_, err = s.d.Client().SnapshotService("overlayfs").Update(s.ctx(),
		snapshots.Info{Name: "user", Labels: map[string]string{label: identity.ChainID(layers).String()}}, "labels."+label)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Remove(s.ctx(), "berth.test/volume:1", images.RemoveOptions{})
	wantConflict(t, err, false, "user")
	users, err := s.Users(s.ctx(), volume.Target().Digest)
	if err != nil || len(users) != 1 || !users[0].Volume {
		t.Errorf("%+v, %v", users, err)
	}
	if report, err := s.Prune(s.ctx(), all); err != nil || len(report.Removed) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
}
