// SPDX-License-Identifier: Apache-2.0

package record

import (
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type object struct{ created int64 }

func newObjects() *Objects[*object] {
	return NewObjects(func(o *object) time.Time { return time.Unix(o.created, 0) })
}

// (60, 62)
func TestObjects(t *testing.T) {
	o := newObjects()
	if o.Get("a") != nil || o.First(func(*object) bool { return true }) != nil {
		t.Error("something is in it")
	}
	o.Delete("a")
	for _, n := range []int64{1, 3, 2} {
		o.Add(strconv.FormatInt(n, 10), &object{n})
	}
	o.Add("2", &object{2})
	var got []int64
	for _, v := range o.List() {
		got = append(got, v.created)
	}
	if diff := cmp.Diff([]int64{3, 2, 1}, got); diff != "" || o.Size() != 3 {
		t.Errorf("%d objects (-want +got):\n%s", o.Size(), diff)
	}
	if v := o.First(func(v *object) bool { return v.created == 2 }); v == nil || v != o.Get("2") {
		t.Errorf("first: %v", v)
	}
	var sum atomic.Int64
	o.ApplyAll(func(v *object) { sum.Add(v.created) })
	o.ApplyAll(nil)
	if sum.Load() != 6 {
		t.Errorf("sum %d", sum.Load())
	}
}

// (61)
func TestObjectsConcurrently(t *testing.T) {
	o := newObjects()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 100 {
				id := strconv.Itoa(n % 7)
				o.Add(id, &object{int64(i)})
				o.Get(id)
				o.List()
				o.ApplyAll(func(v *object) { _ = v.created })
				o.Delete(id)
			}
		})
	}
	wg.Wait()
	if o.Size() != 0 {
		t.Errorf("%d left", o.Size())
	}
}
