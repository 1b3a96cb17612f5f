// SPDX-License-Identifier: Apache-2.0

package container

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/seccomp"
)

// seccompPause is how long a container goes on after the last forbidden call, so that
// one report has all that it tries.
const seccompPause = 5 * time.Second

// listenSeccomp answers forbidden system calls, if the plan says so.
func (c *Container) listenSeccomp() (err error) {
	p := c.h.Plan
	if p.SeccompSocket == "" {
		return nil
	}
	c.seccomp, err = seccomp.Listen(c.h.Loop, p.SeccompSocket, p.SeccompErrno)
	if err == nil {
		c.seccomp.Counted = c.forbidden
	}
	return err
}

// countSeccomp is called when the runtime has become a process of the container's.
func (c *Container) countSeccomp() {
	if c.seccomp != nil {
		c.seccomp.Count()
	}
}

func (c *Container) closeSeccomp() {
	if c.seccomp != nil {
		c.seccompTimer.Stop()
		c.seccomp.Close()
		c.seccomp = nil
	}
}

// forbidden is told of a call that the container may not make.
func (c *Container) forbidden() {
	c.seccompTimer.Stop()
	c.seccompTimer = c.h.Loop.After(seccompPause, func() {
		c.seccompTimer = nil
		text := c.seccomp.Text()
		c.h.Logf("forbidden system calls: " + text)
		if !c.h.Plan.SeccompStop || c.initEnded {
			return
		}
		c.leave(plan.SeccompFile, text, c.h.Plan.Bundle, c.h.Plan.Work)
		c.Kill(int(unix.SIGKILL), true, func(err error) {
			if err != nil {
				c.h.Logf("end the container for them: " + err.Error())
			}
		})
	})
}
