// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"slices"
	"testing"
)

func TestSteps(t *testing.T) {
	var s Steps
	var got []int
	step := func(n int) func() { return func() { got = append(got, n) } }
	s.Do(step(1))
	s.Do(step(2))
	s.Do(func() { // ends at once
		step(3)()
		s.Next()
	})
	s.Do(step(4))
	if !slices.Equal(got, []int{1}) || !s.Busy() {
		t.Fatalf("%v, busy %v", got, s.Busy())
	}
	s.Next()
	s.Next()
	if !slices.Equal(got, []int{1, 2, 3, 4}) || !s.Busy() {
		t.Fatalf("%v, busy %v", got, s.Busy())
	}
	s.Next()
	if s.Busy() {
		t.Error("busy with nothing")
	}
}
