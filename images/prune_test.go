// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/lease"
	"github.com/berthd/berth/images/store"
)

// all is the filter for images with names.
var all = map[string][]string{"dangling": {"false"}}

// A35: only what has no name goes by default, and what it had is counted.
func TestPrune(t *testing.T) {
	s := newStored(t, nil)
	a, b := sample(t, "a"), sample(t, "b")
	s.add(a, nil, "berth.test/t:1")
	s.leased(func(ctx context.Context) { s.unpack(ctx, "berth.test/t:1") })
	s.add(b, nil, "berth.test/t:1")
	s.wantNames(danglingName(a), "berth.test/t:1")
	s.heard()
	report, err := s.Prune(s.ctx(), nil)
	if err != nil || len(report.Removed) != 1 || report.Removed[0].Deleted != a.Manifest().Digest || report.Reclaimed < a.Manifest().Size {
		t.Errorf("%+v, %v", report, err)
	}
	s.wantNames("berth.test/t:1")
	events := s.events
	s.wantEvents("delete", "prune")
	if got := events[1].Attributes["reclaimed"]; got != strconv.FormatInt(report.Reclaimed, 10) {
		t.Errorf("reclaimed %s, want %d", got, report.Reclaimed)
	}
	if report, err := s.Prune(s.ctx(), nil); err != nil || len(report.Removed) > 0 || report.Reclaimed != 0 {
		t.Errorf("again: %+v, %v", report, err)
	}
}

// A51, and the other ways in which a container tells its image.
func TestPruneAllKeepsUsed(t *testing.T) {
	for name, of := range map[string]func(digest, id string) string{
		"name":             func(string, string) string { return "berth.test/run:1" },
		"tag and digest":   func(digest, _ string) string { return "berth.test/run:1@" + digest },
		"digest":           func(digest, _ string) string { return "berth.test/run@" + digest },
		"ID":               func(_, id string) string { return id },
		"beginning of ID":  func(digest, _ string) string { return digest[len("sha256:"):][:12] },
		"nothing it tells": func(string, string) string { return "" },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStored(t, nil)
			s.busybox("berth.test/run:1")
			status, err := s.StatusByName(s.ctx(), ref(t, "berth.test/run:1"))
			if err != nil {
				t.Fatal(err)
			}
			s.add(sample(t, "other"), nil, "berth.test/other:1")
			s.container("user", "berth.test/run:1", of(status.Target.Digest.String(), status.ID.Hex()))
			report, err := s.Prune(s.ctx(), all)
			if err != nil || len(report.Removed) != 2 {
				t.Errorf("%+v, %v", report, err)
			}
			s.wantNames("berth.test/run:1")
		})
	}
}

// Of an image in use the names go that no container was made from.
func TestPruneAllNames(t *testing.T) {
	s := newStored(t, nil)
	s.busybox("berth.test/run:1")
	s.busybox("berth.test/run:2")
	s.container("user", "berth.test/run:2", "berth.test/run:2")
	if _, err := s.Prune(s.ctx(), all); err != nil {
		t.Error(err)
	}
	s.wantNames("berth.test/run:2")
}

// A name that a container was made from, and that means another image by now, keeps
// the image that the container has.
func TestPruneMovedName(t *testing.T) {
	s := newStored(t, nil)
	s.busybox("berth.test/run:1")
	old, err := s.Store().Resolve(s.ctx(), "berth.test/run:1")
	if err != nil {
		t.Fatal(err)
	}
	s.container("user", "berth.test/run:1", "berth.test/run:1")
	s.add(sample(t, "new"), nil, "berth.test/run:1")
	if _, err := s.Prune(s.ctx(), all); err != nil {
		t.Error(err)
	}
	s.wantNames(store.DanglingName(old.Target.Digest))
}

func TestPruneFilters(t *testing.T) {
	for _, c := range []struct {
		name    string
		filters map[string][]string
		left    []string
	}{
		{"label", map[string][]string{"label": {"text=a"}}, []string{"berth.test/b:1"}},
		{"label!", map[string][]string{"label!": {"text=a"}}, []string{"berth.test/a:1"}},
		{"until long ago", map[string][]string{"until": {"24h"}}, []string{"berth.test/a:1", "berth.test/b:1"}},
		{"until now", map[string][]string{"until": {time.Now().Add(time.Hour).Format(time.RFC3339)}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStored(t, nil)
			s.add(sample(t, "a"), nil, "berth.test/a:1")
			s.add(sample(t, "b"), nil, "berth.test/b:1")
			c.filters["dangling"] = []string{"false"}
			if _, err := s.Prune(s.ctx(), c.filters); err != nil {
				t.Error(err)
			}
			s.wantNames(c.left...)
		})
	}
	s := newStored(t, nil)
	for key, values := range map[string][]string{"until": {"1h", "2h"}, "dangling": {"maybe"}, "before": {"x"}, "nonsense": {"x"}} {
		if _, err := s.Prune(s.ctx(), map[string][]string{key: values}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// A50: the second of two gets a conflict, which is shown by an event's receiver that
// prunes itself.
func TestPruneTwice(t *testing.T) {
	var s *stored
	inner := make(chan error, 1)
	s = newStored(t, func(c *images.Config) {
		c.Events = func(e images.Event) {
			if e.Action == store.ActionDelete {
				_, err := s.Prune(s.ctx(), nil)
				inner <- err
			}
		}
	})
	s.dangling(sample(t, "a"), nil)
	if _, err := s.Prune(s.ctx(), nil); err != nil {
		t.Error(err)
	}
	if err := <-inner; !errors.Is(err, images.ErrPruning) || !errdefs.IsConflict(err) {
		t.Errorf("during another one: %v", err)
	}
}

// What interrupted pulls, and processes that were killed, have left goes as well, but
// not what is being pulled.
func TestPruneLeases(t *testing.T) {
	s := newStored(t, nil)
	a, b := sample(t, "a"), sample(t, "b")
	working, err := lease.Create(s.ctx(), s.d.Client().LeasesService(), leases.WithRandomID(), leases.WithLabel(store.LabelPruneLease, "pull"))
	if err != nil {
		t.Fatal(err)
	}
	s.write(leases.WithLease(s.ctx(), working.ID), b)
	for label, value := range map[string]string{store.LabelPruneLease: "pull", "moby/prune.images": "pull", lease.LabelOwner: "an-earlier-boot/pid:[1]/7/7"} {
		left, err := s.d.Client().LeasesService().Create(s.ctx(), leases.WithRandomID(), leases.WithLabel(label, value))
		if err != nil {
			t.Fatal(err)
		}
		s.write(leases.WithLease(s.ctx(), left.ID), a)
	}
	report, err := s.Prune(s.ctx(), nil)
	if err != nil || report.Reclaimed == 0 {
		t.Errorf("%+v, %v", report, err)
	}
	if left := s.left(s.ctx()); len(left) != 1+3 {
		t.Errorf("left: %s, want a lease with three blobs", left)
	}
	if err := s.d.Client().LeasesService().Delete(s.ctx(), working); err != nil {
		t.Error(err)
	}
}

// Images that were made from others go first; pinned ones stay with their parents.
func TestPruneChildren(t *testing.T) {
	s := newStored(t, func(c *images.Config) { c.Pins = []string{"*pinned*"} })
	a, b := sample(t, "a"), sample(t, "b")
	s.dangling(a, nil)
	s.dangling(b, map[string]string{store.LabelParent: digestOf(a)})
	c, d := sample(t, "c"), sample(t, "d")
	s.dangling(c, nil)
	s.add(d, map[string]string{store.LabelParent: digestOf(c)}, "berth.test/pinned:1")
	if _, err := s.Prune(s.ctx(), all); err != nil {
		t.Error(err)
	}
	s.wantNames(danglingName(c), "berth.test/pinned:1")
}

// A cancelled prune stops.
func TestPruneCancelled(t *testing.T) {
	s := newStored(t, nil)
	s.dangling(sample(t, "a"), nil)
	ctx, cancel := context.WithCancel(s.ctx())
	cancel()
	if _, err := s.Prune(ctx, nil); err == nil {
		t.Error("no error")
	}
	s.wantNames(danglingName(sample(t, "a")))
}

// A52: what cannot be removed does not keep the others, and is told with them.
func TestPruneFails(t *testing.T) {
	s := newStored(t, nil)
	a, b, c := sample(t, "a"), sample(t, "b"), sample(t, "c")
	s.add(a, nil, "berth.test/a:1")
	s.add(b, nil, "berth.test/b:1")
	s.add(c, nil, "berth.test/c:1")
	refuse := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, o ...grpc.CallOption) error {
		if r, ok := req.(*imagesapi.DeleteImageRequest); ok && r.GetName() == "berth.test/b:1" {
			return status.Error(codes.Internal, "the disk is full")
		}
		return call(ctx, method, req, reply, conn, o...)
	}
	broken, err := client.New(s.d.Socket, client.WithExtraDialOpts([]grpc.DialOption{grpc.WithChainUnaryInterceptor(refuse)}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broken.Close() })
	service, err := images.New(images.Config{Client: broken, Namespace: s.ns})
	if err != nil {
		t.Fatal(err)
	}
	report, err := service.Prune(s.ctx(), all)
	if err == nil || !strings.Contains(err.Error(), "berth.test/b:1") || !strings.Contains(err.Error(), "the disk is full") {
		t.Error(err)
	}
	if len(report.Removed) != 4 || report.Reclaimed == 0 {
		t.Errorf("%+v", report)
	}
	s.wantNames("berth.test/b:1")
}
