// SPDX-License-Identifier: Apache-2.0

package loop

// Steps runs functions one after the other, in the order they came, when each
// begins on the loop and ends there some time later. The zero value has nothing to
// do.
type Steps struct {
	busy    bool
	waiting []func()
}

// Do runs f when all earlier steps have ended. f, or what it sets off, must call
// Next once.
func (s *Steps) Do(f func()) {
	if s.busy {
		s.waiting = append(s.waiting, f)
		return
	}
	s.busy = true
	f()
}

// Next ends the step that runs.
func (s *Steps) Next() {
	if len(s.waiting) == 0 {
		s.busy = false
		return
	}
	f := s.waiting[0]
	s.waiting = s.waiting[1:]
	f()
}

// Busy tells whether a step runs.
func (s *Steps) Busy() bool { return s.busy }
