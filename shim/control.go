// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"github.com/berthd/berth/shim/attach"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/ttrpc"
	"github.com/berthd/berth/shim/wire"
)

// ControlService is the ttrpc name of berth's own service of a shim.
//
//	Upgrade   { 1: path of the program } -> {}
//	ReopenLog { 1: container id } -> {}
//	Attach    { 1: container id, 2: exec id, 3: stdin, 4: stdout, 5: stderr, 6: stdin once }
//	          -> { 1: path of a socket }
//	StopExecs { 1: container id } -> {}
//	Abandon   { 1: container id, 2: exec id } -> {}
//
// Paths and ids are strings, the rest of Attach is bool. README.md says what
// Attach's socket is.
const ControlService = "berth.shim.v1.Control"

// controlRequest is a request of any method: a field means the same in all.
type controlRequest struct {
	name   string // a container's id, or a path
	exec   string
	attach attach.Request
}

func (r *controlRequest) decode(b []byte) error {
	s := wire.Scan(b)
	for f := (wire.Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &r.name, "")
		case 2:
			s.String(&f, &r.exec, "")
		case 3:
			f.Bool(&r.attach.Stdin)
		case 4:
			f.Bool(&r.attach.Stdout)
		case 5:
			f.Bool(&r.attach.Stderr)
		case 6:
			f.Bool(&r.attach.Once)
		}
	}
	return s.Err()
}

func (s *server) control(c *ttrpc.Call) {
	var r controlRequest
	if err := r.decode(c.Payload); err != nil {
		c.Fail(err)
		return
	}
	switch string(c.Method) {
	case "Upgrade":
		s.upgradeByCall(c, r.name)
	case "ReopenLog":
		later := c.Later()
		s.tasks.Reopen(r.name, func(err error) { answer(later, later.Buffer(), err) })
	case "Attach":
		path, err := s.tasks.Attach(r.name, r.exec, r.attach)
		answer(c, wire.AppendString(c.Buffer(), 1, path), err)
	case "StopExecs":
		answer(c, c.Buffer(), s.tasks.StopExecs(r.name))
	case "Abandon":
		answer(c, c.Buffer(), s.tasks.Abandon(r.name, r.exec))
	default:
		c.Fail(fault.New(fault.Unimplemented, "no method "+string(c.Method)+" in "+ControlService))
	}
}

func answer(c *ttrpc.Call, body []byte, err error) {
	if err != nil {
		c.Fail(err)
		return
	}
	c.Reply(body)
}
