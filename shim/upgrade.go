// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"os"
	"time"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/handover"
	"github.com/berthd/berth/shim/ttrpc"
)

// upgradeByCall answers from the new program: it finds the request among those
// that were not answered.
func (s *server) upgradeByCall(c *ttrpc.Call, binary string) {
	if s.resumed {
		c.Reply(c.Buffer())
		return
	}
	later := c.Later()
	s.upgrade(binary, later.Fail)
}

func (s *server) upgradeBySignal() {
	s.upgrade(s.plan.Binary, func(err error) { s.log.warn("upgrade: " + err.Error()) })
}

// upgrade replaces the program by binary, if that can take over; else failed is
// called and nothing has happened.
func (s *server) upgrade(binary string, failed func(error)) {
	if s.upgrading {
		failed(fault.New(fault.Unavailable, "another upgrade is under way"))
		return
	}
	s.upgrading = true
	fail := func(err error) {
		s.upgrading = false
		failed(err)
	}
	s.loop.Quiesce(func() {
		before := s.plan.Binary
		s.plan.Binary = binary
		state, _ := s.state()
		s.plan.Binary = before
		var err error
		s.loop.Go(func() { err = handover.Check(s.children, binary, state) }, func() {
			if err != nil {
				fail(err)
				return
			}
			s.plan.Binary = binary
			s.log.note("upgrading to " + binary)
			s.replace(binary, func(err error) {
				s.plan.Binary = before
				fail(err)
			})
		})
	})
}

// A container that is being deleted is handed over when that has ended: a look
// each busyPause, busyTries times at most, which covers what Delete may take.
const (
	busyPause = 100 * time.Millisecond
	busyTries = 300
)

// replace executes binary in place of this program at the next moment without
// jobs. failed is called if that did not work, with everything as it was. A fresh
// start gives way to an upgrade.
func (s *server) replace(binary string, failed func(error)) {
	tries := 0
	var try func()
	try = func() {
		switch tries++; {
		case binary == handover.Self() && s.upgrading:
		case s.ending || tries > busyTries:
			failed(fault.New(fault.Unavailable, "the shim is ending, or its container waits to be restored"))
		case s.tasks.Busy(), s.pod != nil && s.pod.Busy():
			s.loop.After(busyPause, func() { s.loop.Quiesce(try) })
		default:
			state, keep := s.state()
			err := handover.Exec(binary, state, keep)
			s.children.Rehandle()
			failed(fault.Wrap(fault.Internal, "upgrade", err))
		}
	}
	s.loop.Quiesce(try)
}

// state returns everything that the next program must know, and the descriptors
// that go along.
func (s *server) state() (b []byte, keep []int) {
	add := func(fd int) { keep = append(keep, fd) }
	state := handover.State{
		Plan:   s.plan.Append(nil),
		Server: s.ttrpc.Snapshot(nil, add),
		Events: s.events.Snapshot(nil, add),
	}
	if c := s.tasks.Container(); c != nil {
		state.Container = c.Snapshot(nil, add)
	}
	if s.pod != nil {
		state.Sandbox = s.pod.Snapshot(nil)
	}
	return state.Append(nil), keep
}

// binaryFile is where containerd finds the program for the shim's delete.
const binaryFile = "shim-binary-path"

// recordBinary names the program that runs now, after an upgrade.
func (s *server) recordBinary() {
	path := s.plan.Bundle + "/" + binaryFile
	if b, err := os.ReadFile(path); err == nil && string(b) != s.plan.Binary {
		if err := os.WriteFile(path, []byte(s.plan.Binary), 0o600); err != nil {
			s.log.warn("upgrade: " + err.Error())
		}
	}
}
