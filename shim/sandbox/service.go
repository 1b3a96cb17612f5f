// SPDX-License-Identifier: Apache-2.0

// Package sandbox serves containerd's Sandbox API for a pod that has no pause
// container. The pod is a directory of pinned namespaces and of files that its
// members share (layout.go); no process of it runs, but for an init that reaps
// when the members share a PID namespace. Making a pod takes parsers and forks,
// which is a transient program's work (shim/pod); how a member joins is
// shim/join's.
package sandbox

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/cgroup"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/ttrpc"
	"github.com/berthd/berth/shim/wire"
)

// VerbMake is the transient command that makes a pod: CreateSandboxRequest on
// stdin, Made on stdout.
const VerbMake = "make-pod"

// Made is what the resident has to know of a pod that has been made.
type Made struct {
	InitPid     int    // 0 unless the members share a PID namespace
	InitStart   uint64 // process.StartTime of it
	Cgroup      string // the pod's, "" when it has none
	CgroupOwned bool   // it was made with the pod, and goes with it
}

// Append appends the message to b.
func (m *Made) Append(b []byte) []byte {
	b = wire.AppendVarint(b, 1, uint64(m.InitPid))
	b = wire.AppendVarint(b, 2, m.InitStart)
	if m.Cgroup != "" { // a path is bytes: not checked to be UTF-8
		b = wire.AppendBytes(b, 3, []byte(m.Cgroup))
	}
	return wire.AppendBool(b, 4, m.CgroupOwned)
}

// Decode replaces m by the message in b.
func (m *Made) Decode(b []byte) error {
	*m = Made{}
	s := wire.Scan(b)
	for f := (wire.Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			m.InitPid = int(f.Value)
		case 2:
			m.InitStart = f.Value
		case 3:
			m.Cgroup = string(f.Bytes)
		case 4:
			f.Bool(&m.CgroupOwned)
		}
	}
	return s.Err()
}

// Host is what the service needs of its process.
type Host struct {
	Loop     *loop.Loop
	Children *process.Table
	Plan     *plan.Plan
	Warn     func(text string)
	// Make executes VerbMake. It blocks: jobs call it.
	Make func(request []byte) ([]byte, error)
}

// state of the pod. Numbers are part of the handover's format.
type state int

const (
	absent  state = iota // not created, or shut down
	created              // its namespaces and files are there
	ready                // started
	stopped
)

// Service is the Sandbox API for the one pod of this shim. Its methods are for
// the loop.
type Service struct {
	// Shutdown is called when the pod is gone and its shim is to end.
	Shutdown func()

	host  Host
	dir   string
	state state
	made  Made
	taken bool             // another shim has the pod of this name
	init  *process.Process // nil: none
	group *cgroup.Group    // nil: none

	createdAt int64 // Unix nanoseconds; when it was started, as containerd means it
	exitedAt  int64
	code      int

	waiters  []*ttrpc.Call
	initGone func() // waits for init's end

	// Create, stop and shutdown happen one after the other.
	steps loop.Steps

	// Polls decode into the same variables, whose strings keep their memory.
	query  wire.SandboxRequest
	status wire.SandboxStatusRequest
}

// New returns the service of a shim that has no pod yet. A plan whose names
// cannot be a pod's is InvalidArgument.
func New(h Host) (*Service, error) {
	dir, err := Dir(State, h.Plan.Namespace, h.Plan.ID)
	return &Service{host: h, dir: dir}, err
}

// Empty tells whether there is no pod and none in the making.
func (s *Service) Empty() bool { return s.state == absent && !s.steps.Busy() }

// Busy tells whether the pod cannot be handed over now.
func (s *Service) Busy() bool { return s.steps.Busy() }

// Serve answers c, now or later.
func (s *Service) Serve(c *ttrpc.Call) {
	switch string(c.Method) {
	case "SandboxStatus":
		s.serveStatus(c)
	case "SandboxMetrics":
		s.metrics(c)
	case "CreateSandbox":
		s.create(c)
	case "StartSandbox":
		s.start(c)
	case "Platform":
		s.platform(c)
	case "StopSandbox":
		s.stop(c)
	case "WaitSandbox":
		s.wait(c)
	case "PingSandbox", "UpdateSandbox":
		// What an update may change is in the pod's cgroup, which the kubelet writes
		// itself, or in containerd's record.
		if s.known(c) {
			c.Reply(c.Buffer())
		}
	case "ShutdownSandbox":
		s.shutdown(c)
	default:
		c.Fail(fault.New(fault.Unimplemented, "no method "+string(c.Method)+" in the Sandbox API"))
	}
}

// known decodes a request that only names the pod. It fails c and returns false
// if that is not this one.
func (s *Service) known(c *ttrpc.Call) bool {
	err := s.query.Decode(c.Payload)
	if err == nil {
		err = s.is(s.query.SandboxID)
	}
	if err != nil {
		c.Fail(err)
	}
	return err == nil
}

func (s *Service) is(id string) error {
	if id != s.host.Plan.ID {
		return fault.New(fault.NotFound, "no such sandbox: "+id)
	}
	return nil
}

func (s *Service) create(c *ttrpc.Call) {
	var r wire.CreateSandboxRequest
	err := r.Decode(c.Payload)
	switch p := s.host.Plan; {
	case err != nil:
	case r.SandboxID != p.ID:
		err = fault.New(fault.InvalidArgument, "create sandbox "+r.SandboxID+": this shim is for "+p.ID)
	case !p.In(r.BundlePath):
		err = fault.New(fault.InvalidArgument, "create sandbox "+r.SandboxID+": bundle is "+r.BundlePath+", this shim was started in "+p.Bundle)
	}
	if err != nil {
		c.Fail(err)
		return
	}
	later := c.Later()
	s.steps.Do(func() {
		if s.state != absent {
			later.Fail(fault.New(fault.AlreadyExists, "sandbox "+r.SandboxID+" already exists"))
			s.steps.Next()
			return
		}
		var answer []byte
		var err error
		s.host.Loop.Go(func() { answer, err = s.host.Make(later.Payload) }, func() {
			if err == nil {
				err = s.made.Decode(answer)
			}
			if err == nil {
				err = s.own()
			}
			s.taken = fault.CodeOf(err) == fault.AlreadyExists
			if err != nil {
				later.Fail(fault.In("create sandbox "+r.SandboxID, err))
			} else {
				s.state = created
				later.Reply(later.Buffer())
			}
			s.steps.Next()
		})
	})
}

// own takes charge of the pod that s.made describes.
func (s *Service) own() (err error) {
	if s.made.InitPid != 0 {
		s.init = s.host.Children.Adopt(s.made.InitPid, s.initEnded)
		// For delete, should the pod's directory be lost.
		text := strconv.AppendUint(append(strconv.AppendInt(nil, int64(s.made.InitPid), 10), ' '), s.made.InitStart, 10)
		if err := os.WriteFile(filepath.Join(s.host.Plan.Bundle, InitFile), text, 0o600); err != nil {
			s.host.Warn("bundle: " + err.Error())
		}
	}
	if s.made.Cgroup != "" {
		s.group, err = cgroup.At(s.made.Cgroup)
	}
	return err
}

// initEnded notes the end of the shared PID namespace: without it no member can
// be started any more.
func (s *Service) initEnded(e process.Exit) {
	s.init = nil
	s.ended(e.Code, e.At)
	if f := s.initGone; f != nil {
		s.initGone = nil
		f()
	}
}

// ended makes the pod a stopped one and tells those who wait for that.
func (s *Service) ended(code int, at int64) {
	if s.state != ready && s.state != created {
		return
	}
	s.state, s.code, s.exitedAt = stopped, code, at
	if err := os.WriteFile(filepath.Join(s.dir, StoppedFile), nil, 0o600); err != nil && !os.IsNotExist(err) {
		s.host.Warn("pod directory: " + err.Error()) // whoever asks is told nonetheless
	}
	for _, c := range s.waiters {
		c.Reply(s.exit(c.Buffer()))
	}
	s.waiters = nil
}

func (s *Service) exit(b []byte) []byte {
	return (&wire.WaitSandboxResponse{ExitStatus: uint32(s.code), ExitedAt: s.exitedAt}).Append(b)
}

func (s *Service) start(c *ttrpc.Call) {
	if !s.known(c) {
		return
	}
	if s.state != created {
		c.Fail(fault.New(fault.FailedPrecondition, "start sandbox "+s.query.SandboxID+": it is "+s.state.String()))
		return
	}
	spec, err := os.ReadFile(filepath.Join(s.dir, SpecFile))
	if err != nil {
		c.Fail(fault.Wrap(fault.Internal, "start sandbox "+s.query.SandboxID, err))
		return
	}
	// The first to enter a cgroup since a while is the first member: no pause
	// container has.
	s.host.Loop.Go(cgroup.Hasten, nil)
	s.state, s.createdAt = ready, time.Now().UnixNano()
	// No pid is told: containerd would write paths of that process's namespaces into
	// the members' specifications, where one that missed its rewriting would join
	// whatever has the number then.
	r := wire.StartSandboxResponse{CreatedAt: s.createdAt, Spec: wire.Any{TypeURL: wire.SpecURL, Value: spec}}
	c.Reply(r.Append(c.Buffer()))
}

func (s state) String() string {
	return [...]string{absent: "not created", created: "created", ready: "running", stopped: "stopped"}[s]
}

func (s *Service) platform(c *ttrpc.Call) {
	if s.known(c) {
		r := wire.PlatformResponse{Platform: wire.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}}
		c.Reply(r.Append(c.Buffer()))
	}
}

func (s *Service) stop(c *ttrpc.Call) {
	var r wire.StopSandboxRequest
	err := r.Decode(c.Payload)
	if err == nil {
		err = s.is(r.SandboxID)
	}
	if err != nil {
		c.Fail(err)
		return
	}
	later := c.Later()
	s.steps.Do(func() {
		s.halt(time.Duration(r.TimeoutSecs)*time.Second, func() {
			later.Reply(later.Buffer())
			s.steps.Next()
		})
	})
}

// halt ends what runs of the pod, then the pod, and calls done.
func (s *Service) halt(patience time.Duration, done func()) {
	if s.state != created && s.state != ready {
		done()
		return
	}
	var err error
	s.host.Loop.Go(func() { err = stopMembers(s.host.Loop, s.dir, patience) }, func() {
		if err != nil {
			s.host.Warn("stop sandbox: " + err.Error())
		}
		finish := func() {
			s.ended(0, time.Now().UnixNano())
			done()
		}
		if s.init == nil {
			finish()
			return
		}
		// The kernel ends whatever else is in its namespace before it ends itself.
		s.initGone = finish
		_ = s.init.Signal(int(unix.SIGKILL)) // ErrFinished: its end is on its way
	})
}

func (s *Service) wait(c *ttrpc.Call) {
	if !s.known(c) {
		return
	}
	switch s.state {
	case absent:
		c.Fail(fault.New(fault.NotFound, "sandbox "+s.query.SandboxID+" is not created"))
	case stopped:
		c.Reply(s.exit(c.Buffer()))
	default:
		s.waiters = append(s.waiters, c.Later())
	}
}

// serveStatus never fails for a pod that is not well: containerd would pass the
// error on as it is.
func (s *Service) serveStatus(c *ttrpc.Call) {
	err := s.status.Decode(c.Payload)
	if err == nil {
		err = s.is(s.status.SandboxID)
	}
	if err != nil {
		c.Fail(err)
		return
	}
	r := wire.SandboxStatusResponse{
		SandboxID: s.status.SandboxID, State: wire.SandboxNotReady, CreatedAt: s.createdAt, ExitedAt: s.exitedAt,
	}
	if s.state == ready {
		r.State = wire.SandboxReady
	}
	if s.status.Verbose {
		if info, err := os.ReadFile(filepath.Join(s.dir, InfoFile)); err == nil {
			// An object in JSON, which gets one member more.
			r.Info = []wire.KeyValue{{Key: "info", Value: `{"processStatus":"` + s.state.String() + `",` + strings.TrimPrefix(string(info), "{")}}
		}
	}
	c.Reply(r.Append(c.Buffer()))
}

// metrics answers with the statistics of the pod's cgroup, empty ones when there
// is none. It does not fail, as one failure would cost the caller those of all
// other pods.
func (s *Service) metrics(c *ttrpc.Call) {
	if !s.known(c) {
		return
	}
	id, now := s.query.SandboxID, time.Now().UnixNano()
	if s.group != nil {
		b, err := wire.AppendSandboxMetrics(c.Buffer(), id, now, s.group.MetricsURL(), s.group.AppendStats)
		if err == nil {
			c.Reply(b)
			return
		}
	}
	url := cgroup.MetricsV2URL
	if s.group != nil {
		url = s.group.MetricsURL()
	}
	b, _ := wire.AppendSandboxMetrics(c.Buffer(), id, now, url, nil) // without metrics nothing can fail
	c.Reply(b)
}

// shutdown removes the pod, made or half made, and ends the shim. When something
// cannot be removed the shim stays for another try.
func (s *Service) shutdown(c *ttrpc.Call) {
	if !s.known(c) {
		return
	}
	later := c.Later()
	s.steps.Do(func() {
		s.halt(0, func() {
			var err error
			s.host.Loop.Go(func() { err = s.remove() }, func() {
				if err != nil {
					later.Fail(fault.In("shut down sandbox "+s.host.Plan.ID, err))
				} else {
					s.state = absent
					later.Reply(later.Buffer())
					s.Shutdown()
				}
				s.steps.Next()
			})
		})
	})
}

func (s *Service) remove() error {
	if s.taken {
		return nil
	}
	if s.made.CgroupOwned {
		if err := RemoveCgroup(s.dir, s.made.Cgroup); err != nil {
			s.host.Loop.Post(func() { s.host.Warn("pod's cgroup: " + err.Error()) })
		}
	}
	return Remove(s.dir)
}

// Snapshot appends to b what the next program has to know, nil if there is no
// pod. Calls that wait are among the server's.
func (s *Service) Snapshot(b []byte) []byte {
	if s.state == absent {
		return nil
	}
	b = wire.AppendVarint(b, 1, uint64(s.state))
	b = wire.AppendVarint(b, 2, uint64(s.createdAt))
	b = wire.AppendVarint(b, 3, uint64(s.exitedAt))
	b = wire.AppendVarint(b, 4, uint64(s.code))
	b = wire.AppendTag(b, 5, wire.Bytes)
	mark := wire.Begin(b)
	b = wire.End(s.made.Append(b), mark)
	return wire.AppendBool(b, 6, s.init != nil)
}

// Restore takes over the pod that a previous program left in b.
func (s *Service) Restore(b []byte) error {
	alive := false
	sc := wire.Scan(b)
	for f := (wire.Field{}); sc.Next(&f); {
		switch f.Num {
		case 1:
			s.state = state(f.Value)
		case 2:
			s.createdAt = int64(f.Value)
		case 3:
			s.exitedAt = int64(f.Value)
		case 4:
			s.code = int(f.Value)
		case 5:
			if err := s.made.Decode(f.Bytes); err != nil {
				return fault.In("state of the sandbox", err)
			}
		case 6:
			f.Bool(&alive)
		}
	}
	if err := sc.Err(); err != nil {
		return fault.In("state of the sandbox", err)
	}
	if s.state <= absent || s.state > stopped {
		return fault.New(fault.InvalidArgument, "state of the sandbox: unknown")
	}
	if alive {
		s.init = s.host.Children.Readopt(s.made.InitPid, s.made.InitStart, s.initEnded)
	}
	if s.made.Cgroup == "" {
		return nil
	}
	var err error
	s.group, err = cgroup.At(s.made.Cgroup)
	return err
}
