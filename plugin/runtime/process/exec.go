// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/runtime/process/detach"
	"github.com/berthd/berth/plugin/runtime/process/identity"
	"github.com/berthd/berth/plugin/runtime/process/pipe"
)

const (
	// Signals to execs that fail for want of something are repeated.
	execRounds = 10
	execPause  = 50 * time.Millisecond
	// forgetLimit is more than a shim needs to delete an exec whose output others
	// keep open; forgetWait is how long the caller waits for that.
	forgetLimit = 15 * time.Second
	forgetWait  = 200 * time.Millisecond
	// waitAgain is when an end is asked for again while containerd is away.
	waitAgain = 250 * time.Millisecond
)

// streamPatience is for output that goes through the shim.
var streamPatience = pipe.Patience{Window: 500 * time.Millisecond, Limit: 5 * time.Second}

// execs are the container's execs that this program knows of.
type execs struct {
	mu     sync.Mutex // guards the rest
	closed bool       // the container is being killed
	pids   map[int]execPid
}

// execPid is the process of an exec.
type execPid struct {
	identity.Process
	kill bool // rather than interrupt
}

func (e *execs) set(closed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = closed
}

func (e *execs) close()  { e.set(true) }
func (e *execs) reopen() { e.set(false) }

func (e *execs) refuse() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrStopping
	}
	return nil
}

// AddExecPID registers the process of an exec, for KillExecPIDs: shouldKill tells
// whether it may be killed or only interrupted, as a monitor. Once killing has
// begun it is ErrStopping, and the caller has to end the process.
func (c *Container) AddExecPID(pid int, shouldKill bool) error {
	p, err := identity.Of(pid)
	if errors.Is(err, ErrNotFound) {
		p = identity.Process{} // it has ended
	}
	c.execs.mu.Lock()
	defer c.execs.mu.Unlock()
	if c.execs.closed {
		return fmt.Errorf("container %s: exec process %d: %w", c.ID, pid, ErrStopping)
	}
	c.execs.pids[pid] = execPid{p, shouldKill}
	return nil
}

// DeleteExecPID forgets the process of an exec that has ended.
func (c *Container) DeleteExecPID(pid int) {
	c.execs.mu.Lock()
	defer c.execs.mu.Unlock()
	delete(c.execs.pids, pid)
}

// KillExecPIDs signals the processes that are registered when it is called, each
// once: SIGKILL, or SIGINT where AddExecPID said so. It does not wait for their ends.
func (c *Container) KillExecPIDs() {
	c.execs.mu.Lock()
	todo := maps.Clone(c.execs.pids)
	c.execs.mu.Unlock()
	for range execRounds {
		maps.DeleteFunc(todo, func(pid int, p execPid) bool {
			sig := unix.SIGINT
			if p.kill {
				sig = unix.SIGKILL
			}
			// Without a number, and after its end, there is nobody. (Number 0 would
			// be this program's own group.)
			err := p.Signal(sig)
			return err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrReused) || errors.Is(err, ErrNotInitialized)
		})
		if len(todo) == 0 || !sleep(c.s.ctx, execPause) {
			return
		}
	}
}

// Size is that of a terminal, in characters.
type Size struct{ Width, Height uint16 }

// Command is a process to execute in a container. What it does not say is as the
// container's own process has it.
type Command struct {
	Args     []string
	Env      []string // added to the container's
	Cwd      string
	User     *specs.User
	Terminal bool
	Size     Size // of the terminal; zero: the kernel's
}

// process makes the specification of cmd from the container's.
func (c *Container) process(cmd *Command) (*specs.Process, error) {
	if len(cmd.Args) == 0 {
		return nil, fmt.Errorf("no command: %w", errdefs.ErrInvalidArgument)
	}
	if c.Spec == nil || c.Spec.Process == nil {
		return nil, fmt.Errorf("the container's specification is not known: %w", errdefs.ErrFailedPrecondition)
	}
	p := *c.Spec.Process
	p.Args, p.CommandLine, p.Terminal = cmd.Args, "", cmd.Terminal
	p.Env = slices.Concat(p.Env, cmd.Env)
	p.ConsoleSize = nil
	if cmd.Cwd != "" {
		p.Cwd = cmd.Cwd
	}
	if cmd.User != nil {
		p.User = *cmd.User
	}
	if cmd.Terminal {
		if !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
			p.Env = append(p.Env, "TERM=xterm")
		}
		if cmd.Size != (Size{}) {
			p.ConsoleSize = &specs.Box{Width: uint(cmd.Size.Width), Height: uint(cmd.Size.Height)}
		}
	}
	return &p, nil
}

// execution is a process that was executed in the container, from its start until
// forget.
type execution struct {
	c       *Container
	id      string
	pid     int
	streams *pipe.Streams
}

// ready returns an error if no exec can be started.
func (c *Container) ready(ctx context.Context) error {
	if err := c.execs.refuse(); err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	if s := c.StateNoLock().Status; s != Running && s != Stopped { // others may have resumed it
		if err := c.Refresh(ctx); err != nil {
			return err
		}
	}
	if s := c.StateNoLock().Status; s != Running {
		return fmt.Errorf("container %s is %s, not running: %w", c.ID, s, errdefs.ErrFailedPrecondition)
	}
	return c.Living()
}

// execute starts cmd with the streams, which it closes after an error.
func (c *Container) execute(ctx context.Context, cmd *Command, s *pipe.Streams) (_ *execution, err error) {
	x := &execution{c: c, id: "berth-" + strings.ToLower(rand.Text()), streams: s}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	spec, err := c.process(cmd)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.ID, err)
	}
	document, err := typeurl.MarshalAnyToProto(spec)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w: %w", c.ID, errdefs.ErrInternal, err)
	}
	io := s.Addresses()
	_, err = c.s.tasks.Exec(ctx, &tasks.ExecProcessRequest{
		ContainerID: c.ID, ExecID: x.id, Spec: document, Terminal: cmd.Terminal, Stdin: io.Stdin, Stdout: io.Stdout, Stderr: io.Stderr,
	})
	if err = native(err); err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.ID, err)
	}
	defer func() {
		if err != nil {
			x.forget(ctx)
		}
	}()
	answer, err := c.s.tasks.Start(ctx, &tasks.StartRequest{ContainerID: c.ID, ExecID: x.id})
	if err = native(err); err != nil {
		// The caller's patience may end when the process has begun.
		x.kill(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("exec in container %s: %w", c.ID, err)
	}
	x.pid = int(answer.Pid)
	s.Started()
	// A stop that has begun meanwhile did not see this one.
	if err = c.AddExecPID(x.pid, true); err != nil {
		x.kill(context.WithoutCancel(ctx))
		return nil, err
	}
	return x, nil
}

// wait returns the exit code of the process.
func (x *execution) wait(ctx context.Context) (int32, error) {
	for {
		end, err := x.c.s.tasks.Wait(ctx, &tasks.WaitRequest{ContainerID: x.c.ID, ExecID: x.id})
		err = native(err)
		switch {
		case err == nil:
			return int32(end.ExitStatus), nil
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case !errdefs.IsUnavailable(err) || !sleep(ctx, waitAgain):
			return 0, fmt.Errorf("exec %s in container %s: %w", x.id, x.c.ID, err)
		}
	}
}

// kill kills the process and those of its group.
func (x *execution) kill(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	killGroup(x.pid)
	// An error tells that there is no process, or that containerd is away.
	_, err := x.c.s.tasks.Kill(ctx, &tasks.KillRequest{ContainerID: x.c.ID, ExecID: x.id, Signal: uint32(unix.SIGKILL)})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		x.c.logger(ctx).WithField("exec", x.id).WithError(err).Warn("kill an exec")
	}
	killGroup(x.pid) // what was forked meanwhile
}

// forget removes the ended process from the shim. It returns soon even if others
// keep its output open: then that goes on in the background.
func (x *execution) forget(ctx context.Context) {
	x.streams.Close()
	x.c.DeleteExecPID(x.pid)
	done := make(chan struct{})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetLimit)
	// Close waits for it, but does not cut it short: it would remain for as long as
	// the container does.
	x.c.s.background.Go(func() {
		defer close(done)
		defer cancel()
		if err := x.delete(ctx); err != nil {
			x.c.logger(ctx).WithField("exec", x.id).WithError(err).Warn("forget an exec")
		}
	})
	select {
	case <-done:
	case <-time.After(forgetWait):
	}
}

// delete asks the shim to forget the process. One whose start was given up may
// still begin: it is killed then.
func (x *execution) delete(ctx context.Context) error {
	for {
		_, err := x.c.s.tasks.DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: x.c.ID, ExecID: x.id})
		err = native(err)
		switch {
		case err == nil || errdefs.IsNotFound(err):
			return nil
		case errdefs.IsFailedPrecondition(err):
			x.kill(ctx)
		case !errdefs.IsUnavailable(err):
			return err
		}
		if !sleep(ctx, waitAgain) {
			return err
		}
	}
}

// resize follows the sizes of a terminal until done. A burst may be shortened; the
// last counts.
func (c *Container) resize(ctx context.Context, exec string, sizes <-chan Size) {
	for {
		var size Size
		var ok bool
		select {
		case size, ok = <-sizes:
		case <-ctx.Done():
		}
		if !ok {
			return
		}
		for more := true; more; {
			select {
			case next, open := <-sizes:
				if more = open; open {
					size = next
				}
			default:
				more = false
			}
		}
		_, err := c.s.tasks.ResizePty(ctx, &tasks.ResizePtyRequest{
			ContainerID: c.ID, ExecID: exec, Width: uint32(size.Width), Height: uint32(size.Height),
		})
		if err != nil && ctx.Err() == nil {
			c.logger(ctx).WithField("exec", exec).WithError(native(err)).Debug("resize a terminal")
		}
	}
}

// ExecRequest is a process with streams.
type ExecRequest struct {
	Command
	// Stdin is read until its end, which becomes that of the process's input. A
	// read that is in progress when the process ends cannot be ended: it is the
	// caller's to do so. nil: no input.
	Stdin io.Reader
	// With a terminal there is only Stdout. nil: thrown away.
	Stdout, Stderr io.Writer
	// Resize are the sizes of the terminal from now on. nil: none.
	Resize <-chan Size
	// DetachKeys typed one after the other detach; see package detach.
	DetachKeys []byte
	// Detach leaves the process alone as soon as it runs, without streams.
	Detach bool
}

// Exec executes a process in the container, and returns its exit code when it has
// ended and its output is written. The process goes on if ctx ends before, or the
// user types the keys to detach, which is ErrDetached; its output is thrown away
// from then on.
func (c *Container) Exec(ctx context.Context, r ExecRequest) (int32, error) {
	if c.Spoofed() {
		return 0, nil
	}
	if err := c.ready(ctx); err != nil {
		return 0, err
	}
	o := pipe.Options{Stdin: r.Stdin != nil, Stdout: true, Stderr: true, Terminal: r.Terminal, Patience: streamPatience}
	if r.Detach {
		o = pipe.Options{Terminal: r.Terminal}
	}
	s, err := pipe.Open(o)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.ID, err)
	}
	x, err := c.execute(ctx, &r.Command, s)
	if err != nil {
		return 0, err
	}
	if r.Detach {
		c.s.spawn(ctx, x.abandon)
		return 0, nil
	}
	out := [2]*valve{{w: r.Stdout}, {w: r.Stderr}}
	s.CopyTo(out[0], out[1])

	var resizer sync.WaitGroup
	defer resizer.Wait()
	client, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	if r.Resize != nil {
		resizer.Go(func() { c.resize(client, x.id, r.Resize) })
	}
	if r.Stdin != nil {
		go x.feed(client, leave, detach.Reader(r.Stdin, r.DetachKeys)) // see ExecRequest.Stdin
	}
	code, err := x.wait(client)
	if err != nil && client.Err() != nil {
		out[0].shut()
		out[1].shut()
		c.s.spawn(ctx, x.abandon)
		return 0, fmt.Errorf("exec in container %s: %w", c.ID, context.Cause(client))
	}
	s.Drain()
	x.forget(ctx)
	return code, err
}

// feed gives the process its input.
func (x *execution) feed(ctx context.Context, leave context.CancelCauseFunc, from io.Reader) {
	err := x.streams.Feed(ctx, from)
	if errors.Is(err, ErrDetached) {
		leave(ErrDetached)
		return
	}
	// The shim holds the pipe too, for clients that come and go.
	_, err = x.c.s.tasks.CloseIO(ctx, &tasks.CloseIORequest{ContainerID: x.c.ID, ExecID: x.id, Stdin: true})
	if err != nil && ctx.Err() == nil {
		x.c.logger(ctx).WithField("exec", x.id).WithError(native(err)).Debug("close the input of an exec")
	}
}

// abandon lets the process go on without its client, and forgets it at its end; that
// is left to the shim if this program ends before. Other shims than berth's keep it.
func (x *execution) abandon(ctx context.Context) {
	if _, err := x.wait(ctx); err == nil {
		x.forget(ctx)
		return
	}
	x.streams.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	err := x.c.shim().Abandon(ctx, x.id)
	if err != nil && !errdefs.IsNotImplemented(err) && !errdefs.IsNotFound(err) {
		x.c.logger(ctx).WithField("exec", x.id).WithError(err).Warn("leave an exec to the shim")
	}
}

// valve passes output on until it is shut.
type valve struct {
	mu sync.Mutex // guards w, also while it is written to
	w  io.Writer
}

func (v *valve) Write(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.w == nil {
		return len(p), nil
	}
	if _, err := v.w.Write(p); err != nil {
		v.w = nil
	}
	return len(p), nil
}

func (v *valve) shut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.w = nil
}
