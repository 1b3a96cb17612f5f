// SPDX-License-Identifier: Apache-2.0

// Package container is one container: its states, its first process (init) and
// the processes that were executed in it, and the order in which their ends are
// told. Everything here happens on the loop; what may block is a job that gets
// values and gives values back.
//
// It refuses to know the wire: requests come as values, answers go to callbacks.
package container

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/cgroup"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/rootfs"
	"github.com/berthd/berth/shim/runc"
	"github.com/berthd/berth/shim/seccomp"
	"github.com/berthd/berth/shim/wire"
)

// drainLimit is how long Delete waits for output that nobody takes, as the runc
// shim does.
const drainLimit = 10 * time.Second

// Publisher takes events, in order. Publish copies body.
type Publisher interface {
	Publish(topic, typeURL string, body []byte)
}

// Host is what a container works with; all of it outlives the container.
type Host struct {
	Loop     *loop.Loop
	Children *process.Table
	Runtime  *runc.Runtime
	Events   Publisher
	Plan     *plan.Plan
	Logf     func(msg string)
}

// Container is a container from Create to Delete.
type Container struct {
	h         Host
	state     State
	init      *Process
	execs     []*Process
	group     *cgroup.Group // nil until init exists
	oom       *cgroup.Watch
	connected bool // containerd is connected: its readers can be relied on

	checkpoint string // directory to restore from
	mounted    bool   // a root filesystem is mounted in the bundle

	// Steps that change the state run one at a time, in the order they came.
	steps loop.Steps

	// starting is set while Start is in progress, starts counts the execs whose
	// runtime call is in flight. Ends are told after their beginnings.
	starting  bool
	starts    int
	killed    bool // init was sent SIGKILL
	initEnded bool // init is gone; its end may still wait for those of execs
	closing   bool // there shall be no more execs

	checkpointing bool // a checkpoint is in progress
	left          bool // init was ended by one, as its caller wished
	recorded      bool // the exit files are written
	deleted       bool // nothing is left of it

	seccomp      *seccomp.Notifier // nil: none
	seccompTimer *loop.Timer
}

// New returns a container that Create will make. connected tells whether
// containerd is connected now.
func New(h Host, connected bool) *Container {
	return &Container{h: h, connected: connected}
}

// change runs work as a job, as a step of its own, when a is permitted then.
func (c *Container) change(a Action, work func() error, reply func(error)) {
	c.steps.Do(func() {
		if err := c.state.permit(a); err != nil {
			reply(err)
			c.steps.Next()
			return
		}
		var err error
		c.h.Loop.Go(func() { err = work() }, func() {
			reply(err)
			c.steps.Next()
		})
	})
}

// Init returns the first process.
func (c *Container) Init() *Process { return c.init }

// errNoProcess is returned for an exec id that is not, or no longer, known.
var errNoProcess = fault.New(fault.NotFound, "no such exec")

// Process returns init for an empty id, else the exec of that id.
func (c *Container) Process(id string) (*Process, error) {
	if id == "" {
		return c.init, nil
	}
	for _, p := range c.execs {
		if p.id == id {
			return p, nil
		}
	}
	return nil, fault.In("exec "+id, errNoProcess)
}

// SetConnected tells all streams whether containerd is connected.
func (c *Container) SetConnected(yes bool) {
	c.connected = yes
	c.each(func(p *Process) {
		if p.streams != nil {
			p.streams.SetConnected(yes)
		}
	})
}

// Reopen opens the log files of init and of the execs anew. done gets the first
// error once all have tried.
func (c *Container) Reopen(done func(error)) {
	left := 1 // this function
	var first error
	one := func(err error) {
		if first == nil {
			first = err
		}
		if left--; left == 0 {
			done(first)
		}
	}
	c.each(func(p *Process) {
		if p.streams != nil {
			left++
			p.streams.Reopen(one)
		}
	})
	one(nil)
}

func (c *Container) each(f func(p *Process)) {
	if c.init != nil {
		f(c.init)
	}
	for _, p := range c.execs {
		f(p)
	}
}

func (c *Container) path(name string) string { return filepath.Join(c.h.Plan.Bundle, name) }

func (c *Container) rootfs() string { return c.path("rootfs") }

func (c *Container) publish(topic, typeURL string, body []byte) {
	c.h.Events.Publish(topic, typeURL, body)
}

// CreateRequest is what Create needs to know.
type CreateRequest struct {
	Rootfs     []wire.Mount
	Checkpoint string // restore from this directory at Start
	Stdio      Stdio
	Limit      time.Duration // the caller's patience, 0: none said
}

// Create makes the container, up to the point where init waits for Start. reply
// gets init's pid, 0 for a container that Start will restore. After an error
// nothing is left and the container is of no further use.
func (c *Container) Create(r CreateRequest, reply func(pid int, err error)) {
	c.init = &Process{c: c, stdio: r.Stdio}
	c.checkpoint = r.Checkpoint
	if r.Checkpoint != "" {
		if err := checkImage(r.Checkpoint); err != nil {
			reply(0, err)
			return
		}
	}
	if err := c.listenSeccomp(); err != nil {
		reply(0, err)
		return
	}
	var u undo
	var l launch
	var err error
	c.steps.Do(func() {
		c.h.Loop.Go(cgroup.Hasten, nil)
		c.h.Loop.Go(func() {
			err = c.create(&r, &u, &l)
			u.end(&err)
		}, func() {
			if err != nil {
				c.closeSeccomp()
				reply(0, err)
				return
			}
			c.created(&r, &l)
			reply(c.init.pid, nil)
			c.steps.Next()
		})
	})
}

// create is the job of Create.
func (c *Container) create(r *CreateRequest, u *undo, l *launch) error {
	p := c.h.Plan
	if err := os.Mkdir(c.rootfs(), 0o711); err != nil && !os.IsExist(err) {
		return fault.Wrap(fault.Unknown, "root filesystem", err)
	}
	if len(r.Rootfs) > 0 {
		if err := mountRootfs(r.Rootfs, c.rootfs(), p.UsernsPath); err != nil {
			return fault.In("mount root filesystem", err)
		}
		c.mounted = true
		u.add(func() error { return rootfs.Unmount(c.rootfs()) })
	}
	if err := l.open(c.h, "", &r.Stdio); err != nil {
		return err
	}
	u.add(l.abort)
	if r.Checkpoint != "" {
		return nil
	}
	err := l.run(c.h.Loop, c.path(plan.InitPidFile), func(console string) error {
		return c.h.Runtime.Create(&runc.Creation{
			ID: p.ID, PidFile: plan.InitPidFile, ConsoleSocket: console, Files: l.streams.Files(),
			NoPivot: p.NoPivot, NoNewKeyring: p.NoNewKeyring, Timeout: c.limit(r.Limit),
		})
	})
	if fault.CodeOf(err) != fault.AlreadyExists { // else what the runtime has is not this container
		u.add(c.discard)
	}
	return err
}

// discard makes the runtime forget a container that has not come to life.
func (c *Container) discard() error {
	if err := c.h.Runtime.Delete(c.h.Plan.ID, true); fault.CodeOf(err) != fault.NotFound {
		return err
	}
	return nil
}

// mountRootfs mounts ms at target. Ids are mapped as the user namespace at userns
// does it, when that is given.
func mountRootfs(ms []wire.Mount, target, userns string) error {
	if userns == "" {
		return rootfs.Mount(ms, target, -1)
	}
	fd, err := unix.Open(userns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fault.Wrap(fault.FailedPrecondition, "user namespace "+userns, err)
	}
	defer unix.Close(fd)
	return rootfs.Mount(ms, target, fd)
}

// created makes the result of the job the container's.
func (c *Container) created(r *CreateRequest, l *launch) {
	if r.Checkpoint != "" {
		c.state = Restorable
		c.init.streams = l.streams
		c.init.state = Created
	} else {
		c.state = Created
		c.init.adopt(l, Created, c.ended)
		c.watch()
	}
	e := wire.TaskCreate{
		ContainerID: c.h.Plan.ID, Bundle: c.h.Plan.Bundle, Rootfs: r.Rootfs, Checkpoint: r.Checkpoint, Pid: uint32(c.init.pid),
		IO: wire.TaskIO{Stdin: r.Stdio.Stdin, Stdout: r.Stdio.Stdout, Stderr: r.Stdio.Stderr, Terminal: r.Stdio.Terminal},
	}
	c.publish(e.Topic(), e.TypeURL(), e.Append(nil))
}

// watch finds init's cgroup and watches it for kills by the kernel, before any
// code of the user's runs.
func (c *Container) watch() {
	var err error
	if c.group, err = cgroup.Of(c.init.pid); err != nil {
		c.h.Logf("no cgroup: " + err.Error())
		return
	}
	c.watchOOM()
}

func (c *Container) watchOOM() {
	var err error
	if c.oom, err = c.group.WatchOOM(c.h.Loop, c.outOfMemory); err != nil {
		c.oom = nil
		c.h.Logf("no notice of memory shortage: " + err.Error())
	}
}

// Start runs what Create has made ready. limit is the caller's patience, 0: none
// said.
func (c *Container) Start(limit time.Duration, reply func(pid int, err error)) {
	c.steps.Do(func() {
		if err := c.state.permit(Start); err != nil {
			reply(0, err)
			c.steps.Next()
			return
		}
		c.starting = true
		c.countSeccomp()
		var err error
		var l launch
		restore := c.state == Restorable
		l.streams, l.stdio, l.master = c.init.streams, &c.init.stdio, -1
		c.h.Loop.Go(func() {
			if restore {
				err = c.restore(&l, limit)
			} else {
				err = c.run(limit)
			}
		}, func() {
			c.starting = false
			if err == nil && restore {
				c.init.adopt(&l, Running, c.ended)
				c.watch()
			}
			c.started(err, reply)
			c.steps.Next()
		})
	})
}

// run is the job of Start. The runtime is executed only where the way around it
// is not known: it would take longer to begin than to do it.
func (c *Container) run(limit time.Duration) error {
	p := c.h.Plan
	if p.NativeStart {
		if err := c.h.Runtime.StartFifo(p.ID, c.init.pid, c.limit(limit)); err != runc.ErrUnknownState {
			return err
		}
	}
	return c.h.Runtime.Start(p.ID)
}

// restore is the job of Start for a container that comes from a checkpoint.
func (c *Container) restore(l *launch, limit time.Duration) error {
	p := c.h.Plan
	return l.run(c.h.Loop, c.path(plan.InitPidFile), func(console string) error {
		return c.h.Runtime.Restore(&runc.Restoration{
			Criu:    runc.Criu{ID: p.ID, ImagePath: c.checkpoint, WorkPath: c.criuWork("restore"), Timeout: c.limit(limit)},
			PidFile: plan.InitPidFile, ConsoleSocket: console, NoPivot: p.NoPivot, Files: l.streams.Files(),
		})
	})
}

// limit bounds what makes a process, where image, hooks and criu may take their
// time, by the settings and by how long the caller waits.
func (c *Container) limit(caller time.Duration) time.Duration {
	limit := time.Duration(c.h.Plan.CreateTimeout)
	if limit == 0 {
		limit = plan.DefaultCreateTimeout
	}
	if caller > 0 {
		limit = min(limit, caller)
	}
	return limit
}

func (c *Container) started(err error, reply func(pid int, err error)) {
	if err == nil {
		c.state, c.init.state = Running, Running
		c.init.streams.OpenInput()
		e := wire.TaskStart{ContainerID: c.h.Plan.ID, Pid: uint32(c.init.pid)}
		c.publish(e.Topic(), e.TypeURL(), e.Append(nil))
	}
	reply(c.init.pid, err)
	c.settle()
}
