// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/ttrpc"
	"github.com/berthd/berth/shim/wire"
)

// ControlService is the ttrpc name of berth's own service of a shim.
//
//	Upgrade   { 1: path of the program } -> {}
//	ReopenLog { 1: container id }        -> {}
const ControlService = "berth.shim.v1.Control"

func (s *server) control(c *ttrpc.Call) {
	var text string
	sc := wire.Scan(c.Payload)
	for f := (wire.Field{}); sc.Next(&f); {
		if f.Num == 1 {
			sc.String(&f, &text, "")
		}
	}
	if err := sc.Err(); err != nil {
		c.Fail(err)
		return
	}
	switch string(c.Method) {
	case "Upgrade":
		s.upgradeByCall(c, text)
	case "ReopenLog":
		later := c.Later()
		s.tasks.Reopen(text, func(err error) {
			if err != nil {
				later.Fail(err)
				return
			}
			later.Reply(later.Buffer())
		})
	default:
		c.Fail(fault.New(fault.Unimplemented, "no method "+string(c.Method)+" in "+ControlService))
	}
}
