// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/berthd/berth/integration/host"
)

// bench is one run: a containerd, an image in it, and what was found so far.
type bench struct {
	daemon   *host.Daemon
	settings *settings
	report   *report
	image    client.Image
	last     int // number of the last container
}

func (b *bench) open(ctx context.Context) error {
	ctx = b.daemon.Context(ctx)
	image, err := b.daemon.Client().GetImage(ctx, host.Busybox)
	if err != nil {
		return err
	}
	b.image = image
	return image.Unpack(ctx, "overlayfs")
}

func (b *bench) runtimes() []host.Runtime { return []host.Runtime{b.settings.a, b.settings.b} }

// turns calls f n times for each runtime, in an order that changes, so that
// neither always follows the other.
func (b *bench) turns(n int, f func(r host.Runtime) error) error {
	rs := b.runtimes()
	for i := range n {
		for j := range rs {
			r := rs[(i+j)%len(rs)]
			if err := f(r); err != nil {
				return fmt.Errorf("%s, round %d: %w", r.Label, i+1, err)
			}
		}
	}
	return nil
}

// box is a container with a task.
type box struct {
	runtime   host.Runtime
	container client.Container
	task      client.Task
	ended     <-chan client.ExitStatus
}

// record makes the container's record and snapshot, not its task.
func (b *bench) record(ctx context.Context, r host.Runtime, spec ...oci.SpecOpts) (*box, error) {
	b.last++
	id := "b" + strconv.Itoa(b.last)
	spec = append([]oci.SpecOpts{
		oci.WithImageConfig(b.image),
		oci.WithCgroup("/" + b.daemon.Namespace + "/" + id),
	}, spec...)
	c, err := b.daemon.Client().NewContainer(ctx, id,
		client.WithRuntime(r.Name, nil),
		client.WithNewSnapshot(id, b.image),
		client.WithNewSpec(spec...))
	if err != nil {
		return nil, err
	}
	return &box{runtime: r, container: c}, nil
}

// create makes the task and waits for its end in the background.
func (x *box) create(ctx context.Context, io cio.Creator) (err error) {
	var opts []client.NewTaskOpts
	if x.runtime.Path != "" {
		opts = append(opts, client.WithRuntimePath(x.runtime.Path))
	}
	if x.task, err = x.container.NewTask(ctx, io, opts...); err != nil {
		return err
	}
	x.ended, err = x.task.Wait(ctx)
	return err
}

func (x *box) exit(ctx context.Context) (client.ExitStatus, error) {
	select {
	case s := <-x.ended:
		return s, s.Error()
	case <-ctx.Done():
		return client.ExitStatus{}, ctx.Err()
	}
}

// shim is the process id of the box's shim: the parent of its init.
func (x *box) shim() (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", x.task.Pid()))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(field(string(status), "PPid:"))
}

// remove ends the task, if there is one, and removes everything.
func (x *box) remove(ctx context.Context) error {
	if x.task != nil {
		if err := x.task.Kill(ctx, 9); err != nil {
			return err
		}
		if _, err := x.exit(ctx); err != nil {
			return err
		}
		if _, err := x.task.Delete(ctx); err != nil {
			return err
		}
	}
	return x.container.Delete(ctx, client.WithSnapshotCleanup)
}

// quiet waits until containerd has no child any more. It runs the shim's
// `delete` behind its callers' back, which would disturb the next measurement.
func (b *bench) quiet(ctx context.Context) error {
	dir := fmt.Sprintf("/proc/%d/task/", b.daemon.Pid())
	for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
		threads, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		busy := false
		for _, t := range threads {
			children, _ := os.ReadFile(dir + t.Name() + "/children")
			busy = busy || len(children) > 0
		}
		if !busy {
			return nil
		}
	}
	return ctx.Err()
}

// field returns the first word after name in a file of lines "name value ...".
func field(text, name string) string {
	_, rest, _ := strings.Cut("\n"+text, "\n"+name)
	if words := strings.Fields(rest); len(words) > 0 {
		return words[0]
	}
	return ""
}
