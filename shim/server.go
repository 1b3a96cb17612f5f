// SPDX-License-Identifier: Apache-2.0

// Package shim is the resident process of containerd-shim-berth-v1: it puts the
// packages below it together, serves, and ends. README.md follows a container
// through them.
package shim

import (
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/container"
	"github.com/berthd/berth/shim/event"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/handover"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/runc"
	"github.com/berthd/berth/shim/sandbox"
	"github.com/berthd/berth/shim/task"
	"github.com/berthd/berth/shim/ttrpc"
	"github.com/berthd/berth/shim/wire"
)

const (
	// orphanLimit is how long a shim without a container waits for a connection
	// before it ends: containerd died after start, or lost interest.
	orphanLimit = time.Minute
	// orphanPause is how often it looks meanwhile whether it is still wanted.
	orphanPause = 2 * time.Second
	// deletedLimit is how long a shim whose container is deleted waits to be told
	// to end. containerd does so at once, unless it was killed while it waited
	// for the answer: started again it knows of no container, but is connected.
	deletedLimit = 10 * time.Second
	// flushLimit bounds how long an ending shim tries to get rid of events.
	flushLimit = 5 * time.Second
)

// server is the resident process.
type server struct {
	plan     plan.Plan
	log      *log
	loop     *loop.Loop
	children *process.Table
	events   *event.Publisher
	tasks    *task.Service
	pod      *sandbox.Service // nil in the shim of a container
	ttrpc    *ttrpc.Server
	orphan   *loop.Timer
	served   bool // the container has been deleted, or the pod shut down
	ending   bool
	refresh  refresh
	resumed  bool // serving again what the previous program had not answered
	// upgrading: another program was asked for. A fresh start of this one would pass for
	// it, with the request unanswered.
	upgrading bool
}

// Serve is the resident process: it returns when the shim has nothing left to
// do. A fresh one finds its listening socket and its plan in descriptors
// plan.ServerFD and plan.PlanFD, one that takes over in what handover says.
func Serve() error {
	state, err := handover.Inherited()
	if err != nil {
		return err
	}
	if state == nil {
		if state, err = fresh(); err != nil {
			return err
		}
	}
	s := &server{}
	if err := s.plan.Decode(state.Plan); err != nil {
		return err
	}
	s.log = &log{path: s.plan.Bundle + "/log", debug: s.plan.Debug, id: s.plan.ID}
	if err := s.build(); err != nil {
		return err
	}
	if err := s.restore(state); err != nil {
		return err
	}
	if state.Server == nil {
		if err := s.ttrpc.Listen(plan.ServerFD); err != nil {
			return err
		}
	} else {
		s.name()
	}
	s.connsChanged(s.ttrpc.Conns())
	s.refresh.base = s.memory()
	s.loop.Idle = s.rest
	return s.loop.Run()
}

// fresh returns the state of a shim that `start` has just made.
func fresh() (*handover.State, error) {
	defer unix.Close(plan.PlanFD)
	b, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(plan.PlanFD))
	if err != nil {
		return nil, fault.Wrap(fault.InvalidArgument, "not started by the start command", err)
	}
	return &handover.State{Plan: b}, nil
}

// build makes the parts and joins them.
func (s *server) build() error {
	if err := process.Subreaper(); err != nil {
		return err
	}
	var err error
	if s.loop, err = loop.New(); err != nil {
		return err
	}
	s.children = process.New(s.loop)
	s.children.Handle(unix.SIGUSR1, s.dump)
	s.children.Handle(unix.SIGUSR2, s.upgradeBySignal)
	// A shim ends when its container is deleted. An order to end, as a service
	// manager gives it to all that are left, must not take the container along.
	s.children.Handle(unix.SIGTERM, s.endIfEmpty)
	s.children.Handle(unix.SIGINT, s.endIfEmpty)
	s.children.Handle(unix.SIGHUP, func() {})
	s.children.Handle(unix.SIGPIPE, func() {})
	r := &runc.Runtime{Loop: s.loop, Children: s.children}
	r.Configure(&s.plan, os.Environ())
	s.events = event.New(s.loop, s.plan.TTRPCAddress, s.plan.Namespace, func(format string, args ...any) { s.log.warn(fmt.Sprintf(format, args...)) })
	s.tasks = task.New(container.Host{
		Loop: s.loop, Children: s.children, Runtime: r, Events: s.events, Plan: &s.plan, Logf: s.log.warn,
	})
	s.tasks.Shutdown = s.endIfEmpty
	s.tasks.Deleted = s.deleted
	if s.plan.Sandboxer {
		s.pod, err = sandbox.New(sandbox.Host{
			Loop: s.loop, Children: s.children, Plan: &s.plan, Warn: s.log.warn,
			Make: func(request []byte) ([]byte, error) { return r.Transient(&s.plan, sandbox.VerbMake, request) },
		})
		if err != nil {
			return err
		}
		s.pod.Shutdown = s.podGone
	}
	s.ttrpc = ttrpc.NewServer(s.loop, s.serve)
	s.ttrpc.ConnsChanged = s.connsChanged
	return nil
}

// restore takes over from a previous program.
func (s *server) restore(state *handover.State) error {
	if state.Events != nil {
		if err := s.events.Restore(state.Events); err != nil {
			return err
		}
	}
	if state.Container != nil {
		if err := s.tasks.Restore(state.Container); err != nil {
			return err
		}
	}
	if state.Sandbox != nil && s.pod != nil {
		if err := s.pod.Restore(state.Sandbox); err != nil {
			return err
		}
	}
	if state.Server == nil {
		return nil
	}
	if state.Container == nil && state.Sandbox == nil {
		// Not created yet, or deleted: what the previous program waited for does not
		// come along.
		s.loop.After(orphanLimit, s.endIfEmpty)
	}
	s.recordBinary()
	s.resumed = true
	defer func() { s.resumed = false }()
	return s.ttrpc.Restore(state.Server)
}

// serve hands a call to the service that it names.
func (s *server) serve(c *ttrpc.Call) {
	switch {
	case task.Serves(c.Service):
		s.tasks.Serve(c)
	case s.pod != nil && string(c.Service) == wire.SandboxService:
		s.pod.Serve(c)
	case string(c.Service) == ControlService:
		s.control(c)
	default:
		c.Fail(fault.New(fault.Unimplemented, "no service "+string(c.Service)))
	}
}

// connsChanged notes whether containerd is there, and ends a shim that nobody
// ever asked for a container or a sandbox.
func (s *server) connsChanged(n int) {
	s.tasks.SetConnected(n > 0)
	if s.served { // the shim is to end, whoever connects
		if n == 0 && s.pod != nil {
			s.end()
		}
		return
	}
	s.orphan.Stop()
	s.orphan = nil
	if n == 0 {
		s.awaitOwner(0)
	}
}

// awaitOwner ends a shim that is for nothing: that has waited long enough for a
// connection, or whose bundle is gone, because whoever wanted it gave up between
// start and Create.
func (s *server) awaitOwner(waited time.Duration) {
	s.orphan = s.loop.After(orphanPause, func() {
		_, err := os.Lstat(s.plan.Bundle)
		if waited += orphanPause; waited >= orphanLimit || os.IsNotExist(err) {
			s.endIfEmpty()
			return
		}
		s.awaitOwner(waited)
	})
}

// deleted gives containerd a while to tell the shim to end.
func (s *server) deleted() {
	s.served = true
	p := &s.plan
	if err := sandbox.Leave(sandbox.State, p.Namespace, p.SandboxID, p.ID); err != nil {
		s.log.warn(err.Error())
	}
	s.orphan.Stop()
	s.orphan = s.loop.After(deletedLimit, s.endIfEmpty)
}

// podGone ends the shim when containerd has the answer and closes its connection,
// as it does then. Its client may take an answer and a connection that closes
// behind it for a connection that closes.
func (s *server) podGone() {
	s.served = true
	s.orphan.Stop()
	s.orphan = s.loop.After(deletedLimit, s.end)
}

func (s *server) endIfEmpty() {
	if s.tasks.Empty() && (s.pod == nil || s.pod.Empty()) {
		s.end()
	}
}

// end ends the shim once its events are out.
func (s *server) end() {
	if s.ending {
		return
	}
	s.ending, s.tasks.Ending = true, true
	// Before the last events are out: a start for a new container of this name must not
	// find this shim.
	_ = unix.Unlink(s.plan.Socket)
	s.events.Flush(flushLimit, s.loop.Stop)
}

// name gives the process the short name (proc_pid_comm(5)) that tools look for.
// After an exec of /proc/self/exe it is "exe".
func (s *server) name() {
	if err := os.WriteFile("/proc/self/comm", []byte(path.Base(s.plan.Binary)), 0); err != nil {
		s.log.warn(err.Error())
	}
}

// dump writes the stacks of all goroutines to the log.
func (s *server) dump() {
	b := make([]byte, 64<<10)
	s.log.warn("stacks: " + string(b[:runtime.Stack(b, true)]))
}
