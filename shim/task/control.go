// SPDX-License-Identifier: Apache-2.0

package task

import (
	"github.com/berthd/berth/shim/attach"
	"github.com/berthd/berth/shim/fault"
)

// What the Task API lacks, for the shim's own service.

// Reopen makes the container's log writers open their files anew.
func (s *Service) Reopen(id string, done func(error)) {
	c, err := s.find(id)
	if err != nil {
		done(err)
		return
	}
	c.Reopen(done)
}

// Attach makes a socket for one more client of a process, and returns its path.
func (s *Service) Attach(id, exec string, want attach.Request) (string, error) {
	p, err := s.process(id, exec)
	if err != nil {
		return "", err
	}
	path, err := p.Attach(want)
	if exec != "" {
		err = fault.In("exec "+exec, err)
	}
	return path, fault.In("container "+id, err)
}

// Abandon has the shim delete an exec when it has ended: nobody else will.
func (s *Service) Abandon(id, exec string) error {
	p, err := s.process(id, exec)
	if err == nil {
		err = s.container.Abandon(p)
	}
	return fault.In("container "+id, err)
}

// StopExecs kills the container's execs and lets it have no more.
func (s *Service) StopExecs(id string) error {
	c, err := s.find(id)
	if err == nil {
		c.StopExecs()
	}
	return err
}
