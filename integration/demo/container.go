// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// stopTime is how long a container may take to end when it is told to.
const stopTime = 10 * time.Second

// container is one that runs, or ran.
type container struct {
	record client.Container
	task   client.Task // nil before it is made
	output *indenter

	ended  chan struct{}     // closed when the container has ended
	status client.ExitStatus // valid then
}

// show starts a container whose output appears as it is written. The caller
// ends it with finish.
func (d *demo) show(ctx context.Context, id string, img client.Image, spec ...oci.SpecOpts) (*container, error) {
	began := time.Now()
	output := &indenter{}
	c, err := d.start(ctx, d.runtime, id, img, cio.NewCreator(cio.WithStreams(nil, output, output)), spec...)
	if err != nil {
		return nil, err
	}
	c.output = output
	fmt.Printf("  started in %s, process %d\n", since(began), c.task.Pid())
	return c, nil
}

// start creates and starts a container. The caller ends it with finish or
// remove.
func (d *demo) start(ctx context.Context, runtime, id string, img client.Image, streams cio.Creator, spec ...oci.SpecOpts) (_ *container, err error) {
	spec = append([]oci.SpecOpts{oci.WithImageConfig(img)}, spec...)
	c := &container{output: &indenter{}, ended: make(chan struct{})}
	c.record, err = d.client.NewContainer(ctx, id, client.WithImage(img), client.WithNewSnapshot(id, img),
		client.WithNewSpec(spec...), client.WithRuntime(runtime, nil))
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("container %s: %w", id, err), c.remove(ctx))
		}
	}()
	if c.task, err = c.record.NewTask(ctx, streams); err != nil {
		return nil, err
	}
	exit, err := c.task.Wait(ctx)
	if err != nil {
		return nil, err
	}
	go func() {
		c.status = <-exit
		close(c.ended)
	}()
	return c, c.task.Start(ctx)
}

// exec runs a command inside the container to its end.
func (c *container) exec(ctx context.Context, args ...string) error {
	began := time.Now()
	spec, err := c.record.Spec(ctx)
	if err != nil {
		return fmt.Errorf("exec in %s: %w", c.record.ID(), err)
	}
	spec.Process.Args = args
	output := &indenter{}
	p, err := c.task.Exec(ctx, "exec", spec.Process, cio.NewCreator(cio.WithStreams(nil, output, output)))
	if err != nil {
		return fmt.Errorf("exec in %s: %w", c.record.ID(), err)
	}
	exit, err := p.Wait(ctx)
	if err == nil {
		err = p.Start(ctx)
	}
	if err != nil {
		_, undo := p.Delete(context.WithoutCancel(ctx), client.WithProcessKill)
		return errors.Join(fmt.Errorf("exec in %s: %w", c.record.ID(), err), undo)
	}
	code := (<-exit).ExitCode()
	if _, err := p.Delete(ctx); err != nil {
		return fmt.Errorf("exec in %s: %w", c.record.ID(), err)
	}
	output.flush()
	fmt.Printf("  exec %v: exit code %d, %s\n", args, code, since(began))
	return nil
}

// finish sends a signal, unless it is 0, waits for the end, kills what does not
// end, says what the exit code was, and removes the container.
func (c *container) finish(ctx context.Context, signal syscall.Signal) error {
	began := time.Now()
	if signal != 0 {
		if err := c.task.Kill(ctx, signal); err != nil {
			return errors.Join(fmt.Errorf("signal %s: %w", c.record.ID(), err), c.remove(ctx))
		}
	}
	select {
	case <-c.ended:
		took := since(began)
		if err := c.remove(ctx); err != nil { // output is complete only then
			return err
		}
		if signal != 0 {
			fmt.Printf("  exit code %d, %s after SIG%s\n", c.status.ExitCode(), took, signalName(signal))
		} else {
			fmt.Printf("  exit code %d\n", c.status.ExitCode())
		}
		return c.status.Error()
	case <-time.After(stopTime):
		if signal == syscall.SIGKILL {
			return errors.Join(fmt.Errorf("container %s: does not end", c.record.ID()), c.remove(ctx))
		}
		fmt.Printf("  still there after %s\n", stopTime)
		return c.finish(ctx, syscall.SIGKILL)
	}
}

func signalName(s syscall.Signal) string {
	if s == syscall.SIGKILL {
		return "KILL"
	}
	return "TERM"
}

// remove removes the container whatever its state, also after ctx has ended.
func (c *container) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if c.task != nil {
		if _, err := c.task.Delete(ctx, client.WithProcessKill); err != nil {
			return fmt.Errorf("delete %s: %w", c.record.ID(), err)
		}
	}
	c.output.flush()
	if err := c.record.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		return fmt.Errorf("delete %s: %w", c.record.ID(), err)
	}
	return nil
}

// indenter shows a container's output, line by line, set off from our own.
type indenter struct {
	mu   sync.Mutex // guards rest and the order of lines
	rest []byte
}

func (i *indenter) Write(p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rest = append(i.rest, p...)
	for {
		line, rest, found := bytes.Cut(i.rest, []byte("\n"))
		if !found {
			return len(p), nil
		}
		fmt.Fprintf(os.Stdout, "    | %s\n", line)
		i.rest = rest
	}
}

// flush shows a last line that was not ended.
func (i *indenter) flush() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.rest) > 0 {
		fmt.Fprintf(os.Stdout, "    | %s\n", i.rest)
		i.rest = nil
	}
}
