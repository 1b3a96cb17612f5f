// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/integration/host"
)

// forever is a process that only a signal ends.
var forever = oci.WithProcessArgs("sleep", "1000000")

// latency times what a user of containerd's client waits for. Containers have
// no stdio: what a reader costs is in the part output.
func (b *bench) latency(ctx context.Context) error {
	ctx = b.daemon.Context(ctx)
	execs, err := b.execBoxes(ctx)
	if err != nil {
		return err
	}
	n := b.settings.rounds
	progress("latency: %d rounds", n)
	err = b.turns(n, func(r host.Runtime) error {
		if err := b.steps(ctx, r); err != nil {
			return fmt.Errorf("steps of a container: %w", err)
		}
		if err := b.whole(ctx, r); err != nil {
			return fmt.Errorf("whole life: %w", err)
		}
		if err := b.exec(ctx, execs[r.Label]); err != nil {
			return fmt.Errorf("exec: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, x := range execs {
		if err := x.remove(ctx); err != nil {
			return err
		}
	}
	return b.quiet(ctx)
}

// steps times each step in the life of a container.
func (b *bench) steps(ctx context.Context, r host.Runtime) error {
	x, err := b.record(ctx, r, forever)
	if err != nil {
		return err
	}
	clock := newWatch()
	if err := x.create(ctx, cio.NullIO); err != nil {
		return err
	}
	create := clock.lap()
	if err := x.task.Start(ctx); err != nil {
		return err
	}
	start := clock.lap()
	if err := x.task.Kill(ctx, 9); err != nil {
		return err
	}
	if _, err := x.exit(ctx); err != nil {
		return err
	}
	exit := clock.lap()
	if _, err := x.task.Delete(ctx); err != nil {
		return err
	}
	remove := clock.lap()
	x.task = nil
	b.report.add(r, "latency", "create", create)
	b.report.add(r, "latency", "start", start)
	b.report.add(r, "latency", "create+start", create+start)
	b.report.add(r, "latency", "exit", exit)
	b.report.add(r, "latency", "delete", remove)
	if err := x.remove(ctx); err != nil {
		return err
	}
	return b.quiet(ctx)
}

// whole times the life of `true`.
func (b *bench) whole(ctx context.Context, r host.Runtime) error {
	x, err := b.record(ctx, r, oci.WithProcessArgs("true"))
	if err != nil {
		return err
	}
	clock := newWatch()
	if err := x.create(ctx, cio.NullIO); err != nil {
		return err
	}
	if err := x.task.Start(ctx); err != nil {
		return err
	}
	status, err := x.exit(ctx)
	if err != nil {
		return err
	}
	if status.ExitCode() != 0 {
		return fmt.Errorf("true exits with %d", status.ExitCode())
	}
	if _, err := x.task.Delete(ctx); err != nil {
		return err
	}
	b.report.add(r, "latency", "whole life of true", clock.lap())
	x.task = nil
	if err := x.remove(ctx); err != nil {
		return err
	}
	return b.quiet(ctx)
}

func (b *bench) execBoxes(ctx context.Context) (map[string]*box, error) {
	boxes := map[string]*box{}
	for _, r := range b.runtimes() {
		x, err := b.started(ctx, r, cio.NullIO, forever)
		if err != nil {
			return nil, err
		}
		boxes[r.Label] = x
	}
	return boxes, nil
}

func (b *bench) started(ctx context.Context, r host.Runtime, io cio.Creator, spec ...oci.SpecOpts) (*box, error) {
	x, err := b.record(ctx, r, spec...)
	if err != nil {
		return nil, err
	}
	if err := x.create(ctx, io); err != nil {
		return nil, err
	}
	return x, x.task.Start(ctx)
}

// exec times an exec of `true` from registering to forgetting it.
func (b *bench) exec(ctx context.Context, x *box) error {
	clock := newWatch()
	if err := execTrue(ctx, x.task, "e", cio.NullIO); err != nil {
		return err
	}
	b.report.add(x.runtime, "latency", "exec of true", clock.lap())
	return nil
}

func execTrue(ctx context.Context, task client.Task, id string, io cio.Creator) error {
	p, err := task.Exec(ctx, id, &specs.Process{
		Args: []string{"/bin/true"}, Cwd: "/", Env: []string{"PATH=/bin"},
	}, io)
	if err != nil {
		return err
	}
	ended, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	if err := p.Start(ctx); err != nil {
		return err
	}
	select {
	case s := <-ended:
		if s.Error() != nil || s.ExitCode() != 0 {
			return fmt.Errorf("exec of true exits with %d: %v", s.ExitCode(), s.Error())
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err = p.Delete(ctx)
	return err
}

// watch measures milliseconds between laps.
type watch struct{ since time.Time }

func newWatch() *watch { return &watch{time.Now()} }

func (w *watch) lap() float64 {
	now := time.Now()
	ms := now.Sub(w.since).Seconds() * 1e3
	w.since = now
	return ms
}
