// SPDX-License-Identifier: Apache-2.0

// Package task serves containerd's Task API for the one container of this shim:
// it decodes requests, asks shim/container, and encodes what comes back. Rules
// about containers are not made here.
package task

import (
	"os"
	"time"

	"github.com/berthd/berth/shim/container"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/runc"
	"github.com/berthd/berth/shim/ttrpc"
	"github.com/berthd/berth/shim/wire"
)

// ServiceV3 is the name under which newer clients call the same methods. The
// messages that a shim without streaming IO gets are the same in both versions.
const ServiceV3 = "containerd.task.v3.Task"

// Service is the Task API. Its methods are for the loop.
type Service struct {
	// Shutdown is called when a client asks the shim to end and no container is
	// left.
	Shutdown func()
	// Deleted is called when the container has been deleted.
	Deleted func()
	// Ending: the shim is about to end and takes no container any more.
	Ending bool

	host      container.Host
	connected bool
	container *container.Container // nil before Create and after Delete
	creating  bool

	// One request of each kind that containerd polls with: decoded into the same
	// variable, its strings keep their memory.
	state wire.StateRequest
	stats wire.StatsRequest
	pids  wire.PidsRequest
}

// New returns the service of a shim that has no container yet.
func New(h container.Host) *Service { return &Service{host: h} }

// Container returns the shim's container, nil if there is none.
func (s *Service) Container() *container.Container { return s.container }

// SetConnected tells the service whether containerd is connected.
func (s *Service) SetConnected(yes bool) {
	s.connected = yes
	if s.container != nil {
		s.container.SetConnected(yes)
	}
}

// Empty tells whether there is no container and none in the making.
func (s *Service) Empty() bool { return s.container == nil && !s.creating }

// Busy tells whether the container cannot be handed over now.
func (s *Service) Busy() bool { return s.container != nil && !s.container.Movable() }

// Restore takes over the container that a previous program left in b.
func (s *Service) Restore(b []byte) (err error) {
	s.container, err = container.Restore(s.host, s.connected, b)
	return err
}

// Serves tells whether calls to the named service are for s.
func Serves(service []byte) bool {
	return string(service) == wire.TaskService || string(service) == ServiceV3
}

// Serve answers c, now or later. The conversions in the switch do not allocate.
func (s *Service) Serve(c *ttrpc.Call) {
	switch string(c.Method) {
	case "Create":
		s.create(c)
	case "Start":
		s.start(c)
	case "Delete":
		s.delete(c)
	case "Exec":
		s.exec(c)
	case "State":
		s.serveState(c)
	case "Wait":
		s.wait(c)
	case "Kill":
		s.kill(c)
	case "Pids":
		s.servePids(c)
	case "Stats":
		s.serveStats(c)
	case "Pause", "Resume":
		s.freeze(c)
	case "Update":
		s.update(c)
	case "Checkpoint":
		s.checkpoint(c)
	case "ResizePty":
		s.resize(c)
	case "CloseIO":
		s.closeIO(c)
	case "Connect":
		s.connect(c)
	case "Shutdown":
		s.shutdown(c)
	default:
		c.Fail(fault.New(fault.Unimplemented, "no method "+string(c.Method)+" in the Task API"))
	}
}

// find returns the container if id is its name.
func (s *Service) find(id string) (*container.Container, error) {
	if s.container == nil || id != s.host.Plan.ID {
		return nil, fault.New(fault.NotFound, "no such container: "+id)
	}
	return s.container, nil
}

func (s *Service) process(id, exec string) (*container.Process, error) {
	c, err := s.find(id)
	if err != nil {
		return nil, err
	}
	return c.Process(exec)
}

// decoded decodes the request of c into r, or fails c and returns false.
func decoded(c *ttrpc.Call, r interface{ Decode(b []byte) error }) bool {
	if err := r.Decode(c.Payload); err != nil {
		c.Fail(err)
		return false
	}
	return true
}

// answer replies to c with an empty message, or fails it.
func answer(c *ttrpc.Call, err error) {
	if err != nil {
		c.Fail(err)
		return
	}
	c.Reply(c.Buffer())
}

func (s *Service) create(c *ttrpc.Call) {
	var r wire.CreateTaskRequest
	if !decoded(c, &r) {
		return
	}
	if err := s.accept(&r); err != nil {
		c.Fail(err)
		return
	}
	s.creating = true
	later := c.Later()
	s.configure(r.Options, func(err error) {
		if err != nil {
			s.creating = false
			later.Fail(err)
			return
		}
		made := container.New(s.host, s.connected)
		made.Create(container.CreateRequest{
			Rootfs:     r.Rootfs,
			Checkpoint: r.Checkpoint,
			Stdio:      container.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
			Limit:      later.Limit,
		}, func(pid int, err error) {
			s.creating = false
			if err != nil {
				later.Fail(fault.In("create container "+r.ID, err))
				return
			}
			s.container = made
			later.Reply((&wire.CreateTaskResponse{Pid: uint32(pid)}).Append(later.Buffer()))
		})
	})
}

// configure makes the plan one with the options in a, when they are not those
// that the shim was started with.
func (s *Service) configure(a wire.Any, done func(error)) {
	if s.host.Plan.Knows(&a) {
		done(nil)
		return
	}
	var changed *plan.Plan
	var err error
	a.Value = append([]byte(nil), a.Value...) // the request's memory is the caller's
	s.host.Loop.Go(func() { changed, err = runc.Options(s.host.Runtime, s.host.Plan, &a) }, func() {
		if err == nil {
			*s.host.Plan = *changed
			s.host.Runtime.Configure(changed, os.Environ())
		}
		done(err)
	})
}

// accept refuses a container that is not the one this shim was started for.
func (s *Service) accept(r *wire.CreateTaskRequest) error {
	p := s.host.Plan
	switch {
	case r.ID != p.ID:
		return fault.New(fault.InvalidArgument, "create container "+r.ID+": this shim is for "+p.ID)
	case p.Sandboxer:
		return fault.New(fault.FailedPrecondition, "create container "+r.ID+": this shim serves a sandbox")
	case s.Ending:
		return fault.New(fault.Unavailable, "create container "+r.ID+": this shim is ending")
	case s.container != nil || s.creating:
		return fault.New(fault.AlreadyExists, "container "+r.ID+" already exists")
	case !p.In(r.Bundle):
		return fault.New(fault.InvalidArgument, "create container "+r.ID+": bundle is "+r.Bundle+", this shim was started in "+p.Bundle)
	}
	return nil
}

func (s *Service) start(c *ttrpc.Call) {
	var r wire.StartRequest
	if !decoded(c, &r) {
		return
	}
	p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		c.Fail(err)
		return
	}
	later := c.Later()
	reply := func(pid int, err error) {
		if err != nil {
			later.Fail(fault.In("start in container "+r.ID, err))
			return
		}
		later.Reply((&wire.StartResponse{Pid: uint32(pid)}).Append(later.Buffer()))
	}
	if r.ExecID == "" {
		s.container.Start(c.Limit, reply)
	} else {
		s.container.StartExec(p, c.Limit, reply)
	}
}

func (s *Service) delete(c *ttrpc.Call) {
	var r wire.DeleteRequest
	if !decoded(c, &r) {
		return
	}
	p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		c.Fail(err)
		return
	}
	later := c.Later()
	reply := func(pid int, e process.Exit, err error) {
		if err != nil {
			later.Fail(fault.In("container "+r.ID, err))
			return
		}
		later.Reply((&wire.DeleteResponse{Pid: uint32(pid), ExitStatus: uint32(e.Code), ExitedAt: e.At}).Append(later.Buffer()))
	}
	if r.ExecID != "" {
		s.container.DeleteExec(p, func(err error) { reply(p.Pid(), p.Exit(), err) })
		return
	}
	gone := s.container
	gone.Delete(func(pid int, e process.Exit, err error) {
		if err == nil && s.container == gone {
			s.container = nil
			s.Deleted()
		}
		reply(pid, e, err)
	})
}

func (s *Service) exec(c *ttrpc.Call) {
	var r wire.ExecProcessRequest
	err := r.Decode(c.Payload)
	var in *container.Container
	if err == nil {
		in, err = s.find(r.ID)
	}
	if err == nil && !r.Spec.Is(wire.ProcessURL) {
		err = fault.New(fault.InvalidArgument, "exec "+r.ExecID+": process specification of type "+quote(r.Spec.TypeURL)+", want "+wire.ProcessURL)
	}
	if err == nil {
		err = in.Exec(r.ExecID, container.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}, r.Spec.Value)
	}
	answer(c, err)
}

func (s *Service) serveState(c *ttrpc.Call) {
	if !decoded(c, &s.state) {
		return
	}
	p, err := s.process(s.state.ID, s.state.ExecID)
	if err != nil {
		c.Fail(err)
		return
	}
	if p.State() == container.Stopped && p.Unread() {
		s.awaitReader(c.Later(), p, readerTries)
		return
	}
	s.replyState(c, p)
}

// containerd, started again, opens the output of its processes in the background,
// asks for their states, and gives up the opening for one that has ended. So the
// answer about a process whose output waits is not quicker than that opening.
const (
	readerPause = 5 * time.Millisecond
	readerTries = 10
)

func (s *Service) awaitReader(c *ttrpc.Call, p *container.Process, tries int) {
	s.host.Loop.After(readerPause, func() {
		if tries > 1 && p.Unread() {
			s.awaitReader(c, p, tries-1)
			return
		}
		s.replyState(c, p)
	})
}

func (s *Service) replyState(c *ttrpc.Call, p *container.Process) {
	io, exit := p.Stdio(), p.Exit()
	r := wire.StateResponse{
		ID: s.host.Plan.ID, ExecID: p.ID(), Bundle: s.host.Plan.Bundle, Pid: uint32(p.Pid()), Status: status[p.State()],
		Stdin: io.Stdin, Stdout: io.Stdout, Stderr: io.Stderr, Terminal: io.Terminal,
	}
	if p.State() == container.Stopped {
		r.ExitStatus, r.ExitedAt = uint32(exit.Code), exit.At
	}
	c.Reply(r.Append(c.Buffer()))
}

// status translates states into containerd's.
var status = [...]wire.Status{
	container.Creating:   wire.StatusUnknown,
	container.Created:    wire.StatusCreated,
	container.Restorable: wire.StatusCreated,
	container.Running:    wire.StatusRunning,
	container.Pausing:    wire.StatusPausing,
	container.Paused:     wire.StatusPaused,
	container.Stopped:    wire.StatusStopped,
}

func (s *Service) wait(c *ttrpc.Call) {
	var r wire.WaitRequest
	if !decoded(c, &r) {
		return
	}
	p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		c.Fail(err)
		return
	}
	later := c.Later()
	p.Wait(func(e process.Exit) {
		later.Reply((&wire.WaitResponse{ExitStatus: uint32(e.Code), ExitedAt: e.At}).Append(later.Buffer()))
	})
}

func (s *Service) kill(c *ttrpc.Call) {
	var r wire.KillRequest
	if !decoded(c, &r) {
		return
	}
	p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		c.Fail(err)
		return
	}
	if r.ExecID != "" {
		answer(c, p.Kill(int(r.Signal)))
		return
	}
	later := c.Later()
	s.container.Kill(int(r.Signal), r.All, func(err error) { answer(later, err) })
}

func (s *Service) servePids(c *ttrpc.Call) {
	if !decoded(c, &s.pids) {
		return
	}
	in, err := s.find(s.pids.ID)
	if err != nil {
		c.Fail(err)
		return
	}
	b := c.Buffer()
	in.Pids(func(pid int, exec string) {
		info := wire.ProcessInfo{Pid: uint32(pid)}
		if exec != "" {
			info.Info = wire.Any{TypeURL: wire.ProcessDetailsURL, Value: (&wire.ProcessDetails{ExecID: exec}).Append(nil)}
		}
		b = wire.AppendTag(b, 1, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.End(info.Append(b), mark)
	})
	c.Reply(b)
}

func (s *Service) serveStats(c *ttrpc.Call) {
	if !decoded(c, &s.stats) {
		return
	}
	in, err := s.find(s.stats.ID)
	if err != nil {
		c.Fail(err)
		return
	}
	b, err := wire.AppendStats(c.Buffer(), in.StatsURL(), in.AppendStats)
	if err != nil {
		c.Fail(err)
		return
	}
	c.Reply(b)
}

func (s *Service) freeze(c *ttrpc.Call) {
	var r wire.PauseRequest // ResumeRequest is the same
	err := r.Decode(c.Payload)
	var in *container.Container
	if err == nil {
		in, err = s.find(r.ID)
	}
	if err != nil {
		c.Fail(err)
		return
	}
	later := c.Later()
	reply := func(err error) { answer(later, err) }
	if string(c.Method) == "Pause" {
		in.Pause(reply)
	} else {
		in.Resume(reply)
	}
}

func (s *Service) update(c *ttrpc.Call) {
	var r wire.UpdateTaskRequest
	err := r.Decode(c.Payload)
	var in *container.Container
	if err == nil {
		in, err = s.find(r.ID)
	}
	if err == nil && !r.Resources.Is(wire.LinuxResourcesURL) {
		err = fault.New(fault.InvalidArgument, "update container "+r.ID+": resources of type "+quote(r.Resources.TypeURL)+", want "+wire.LinuxResourcesURL)
	}
	if err != nil {
		c.Fail(err)
		return
	}
	resources := append([]byte(nil), r.Resources.Value...)
	later := c.Later()
	in.Update(resources, func(err error) { answer(later, fault.In("update container "+r.ID, err)) })
}

func (s *Service) checkpoint(c *ttrpc.Call) {
	var r wire.CheckpointTaskRequest
	var o wire.CheckpointOptions
	err := r.Decode(c.Payload)
	var in *container.Container
	if err == nil {
		in, err = s.find(r.ID)
	}
	if err == nil && r.Options.TypeURL != "" {
		if !r.Options.Is(wire.CheckpointOptionsURL) {
			err = fault.New(fault.InvalidArgument, "checkpoint container "+r.ID+": options of type "+quote(r.Options.TypeURL)+", want "+wire.CheckpointOptionsURL)
		} else {
			err = o.Decode(r.Options.Value)
		}
	}
	if err != nil {
		c.Fail(err)
		return
	}
	later := c.Later()
	in.Checkpoint(r.Path, &o, c.Limit, func(err error) { answer(later, fault.In("checkpoint container "+r.ID, err)) })
}

func (s *Service) resize(c *ttrpc.Call) {
	var r wire.ResizePtyRequest
	err := r.Decode(c.Payload)
	var p *container.Process
	if err == nil {
		p, err = s.process(r.ID, r.ExecID)
	}
	if err == nil {
		err = p.Resize(r.Width, r.Height)
	}
	answer(c, err)
}

func (s *Service) closeIO(c *ttrpc.Call) {
	var r wire.CloseIORequest
	err := r.Decode(c.Payload)
	var p *container.Process
	if err == nil {
		p, err = s.process(r.ID, r.ExecID)
	}
	if err == nil && r.Stdin {
		p.CloseStdin()
	}
	answer(c, err)
}

func (s *Service) connect(c *ttrpc.Call) {
	r := wire.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: Version}
	if s.container != nil {
		r.TaskPid = uint32(s.container.Init().Pid())
	}
	c.Reply(r.Append(c.Buffer()))
}

// shutdown ends the shim unless a container remains, for which it would be an
// orphan: then it is an empty success, as containerd's shims have it.
func (s *Service) shutdown(c *ttrpc.Call) {
	c.Reply(c.Buffer())
	if s.Empty() {
		s.Shutdown()
	}
}

// Version of the shim, set when it is linked.
var Version = "devel"

func quote(s string) string { return `"` + s + `"` }
