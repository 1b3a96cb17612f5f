// SPDX-License-Identifier: Apache-2.0

package store

import (
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/process"
)

func container(t *testing.T, id string, created int64) *process.Container {
	t.Helper()
	s := process.New(nil)
	t.Cleanup(s.Close)
	c, err := s.Container(process.Config{ID: id, Dir: t.TempDir(), Metadata: labels.Metadata{CreatedAt: time.Unix(created, 0)}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// 60, 62.
func TestStore(t *testing.T) {
	var s Store
	if s.Get("none") != nil || s.First(func(*process.Container) bool { return true }) != nil || s.Size() != 0 {
		t.Error("the zero store is not empty")
	}
	s.Delete("none")
	for i, created := range []int64{1, 3, 2} {
		s.Add(strconv.Itoa(i), container(t, strconv.FormatInt(created, 10), created))
	}
	var got []string
	for _, c := range s.List() {
		got = append(got, c.ID)
	}
	if diff := cmp.Diff([]string{"3", "2", "1"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if c := s.First(func(c *process.Container) bool { return c.ID == "2" }); c == nil || c.ID != "2" {
		t.Errorf("first: got %v", c)
	}
	if c := s.First(func(*process.Container) bool { return false }); c != nil {
		t.Errorf("first without a match: got %v", c.ID)
	}
	var n atomic.Int32
	s.ApplyAll(nil)
	s.ApplyAll(func(*process.Container) { n.Add(1) })
	if n.Load() != 3 {
		t.Errorf("applied to %d", n.Load())
	}
	replaced := container(t, "new", 9)
	s.Add("1", replaced)
	if s.Get("1") != replaced || s.Size() != 3 {
		t.Error("not replaced")
	}
	s.Delete("1")
	if s.Get("1") != nil || s.Size() != 2 {
		t.Error("not deleted")
	}
}

// 61: for the race detector.
func TestConcurrent(t *testing.T) {
	var s Store
	c := container(t, "c", 1)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				id := strconv.Itoa((i + j) % 5)
				s.Add(id, c)
				s.Get(id)
				s.List()
				s.First(func(*process.Container) bool { return false })
				s.ApplyAll(func(c *process.Container) { c.StateNoLock() })
				s.Delete(id)
			}
		})
	}
	wg.Wait()
}
