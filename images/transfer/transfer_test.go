// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/reference"
)

func TestAppendSource(t *testing.T) {
	long := strings.Repeat("x", 1100)
	tests := map[string]struct {
		list, add, want string
		changed         bool
	}{
		"first":     {"", "a/b", "a/b", true},
		"second":    {"b", "a", "b,a", true},
		"again":     {"b,a", "b", "b,a", false},
		"too long":  {strings.Join([]string{"old", long + "1", long + "2", long + "3", long + "4"}, ","), "new", strings.Join([]string{long + "2", long + "3", long + "4", "new"}, ","), true},
		"too short": {"ab", "a", "ab,a", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, changed := appendSource("containerd.io/distribution.source.example.com", test.list, test.add)
			if got != test.want || changed != test.changed {
				t.Errorf("got %.40q (%d bytes) %v, want %.40q (%d bytes) %v", got, len(got), changed, test.want, len(test.want), test.changed)
			}
		})
	}
}

func TestSourceLabelHasNoPort(t *testing.T) {
	for text, want := range map[string]string{
		"example.com:5000/x": "containerd.io/distribution.source.example.com",
		"example.com/x":      "containerd.io/distribution.source.example.com",
		"[::1]:5000/x":       "containerd.io/distribution.source.::1",
	} {
		ref, err := reference.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := SourceLabel(ref); got != want {
			t.Errorf("%s: label %s, want %s", text, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	start := time.Unix(1, 0)
	table := NewTable("r.io/a:1", func() time.Time { return start })
	one := v1.Descriptor{Digest: digest.FromString("1"), MediaType: "m", Size: 10}
	two := v1.Descriptor{Digest: digest.FromString("2"), MediaType: "m", Size: 5}
	table.Set(one, Downloading)
	table.Add(one, 4)
	table.Set(two, Exists)
	want := []Progress{
		{Ref: "r.io/a:1", Digest: one.Digest, MediaType: "m", Status: Downloading, Offset: 4, Total: 10, Start: start},
		{Ref: "r.io/a:1", Digest: two.Digest, MediaType: "m", Status: Exists, Offset: 5, Total: 5, Start: start},
	}
	if diff := cmp.Diff(want, table.Parts()); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int64{"m": 4}, table.Bytes()); diff != "" {
		t.Errorf("bytes (-want +got):\n%s", diff)
	}
	table.Set(one, Complete)
	table.Set(one, Downloading)
	if got := table.Parts()[0].Status; got != Complete {
		t.Errorf("what has ended is %q", got)
	}
	var told []Status
	done := make(chan struct{})
	close(done)
	table.Follow(context.Background(), done, func(p Progress) { told = append(told, p.Status) })
	if diff := cmp.Diff([]Status{Complete, Exists}, told); diff != "" {
		t.Errorf("told in the end (-want +got):\n%s", diff)
	}
}

func TestLimiterKeepsSharesThatRun(t *testing.T) {
	l := NewLimiter(1)
	share := l.Share()
	release, err := Acquire(context.Background(), share)
	if err != nil {
		t.Fatal(err)
	}
	l.Set(2)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Acquire(ctx, share); err == nil {
		t.Error("the old bound has changed")
	}
	for range 2 {
		if _, err := Acquire(context.Background(), l.Share()); err != nil {
			t.Error(err)
		}
	}
	release()
}
