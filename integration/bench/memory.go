// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/berthd/berth/integration/host"
)

// memory measures shims of idle containers: fresh, and after a while of what a
// node does to every container, a stats poll a second and now and then an exec.
// Both runtimes' containers live side by side, so they are polled alike.
func (b *bench) memory(ctx context.Context) error {
	ctx = b.daemon.Context(ctx)
	s := b.settings
	progress("memory: %d idle containers each, %v of polls, %d execs each", s.idle, s.poll, s.execs)
	idle := map[string][]*box{}
	err := b.turns(s.idle, func(r host.Runtime) error {
		x, err := b.started(ctx, r, b.idleIO(), forever)
		idle[r.Label] = append(idle[r.Label], x)
		return err
	})
	if err != nil {
		return err
	}
	if err := b.weigh(idle, "fresh"); err != nil {
		return err
	}
	if err := b.wear(ctx, idle); err != nil {
		return err
	}
	if err := b.weigh(idle, fmt.Sprintf("after %v, %d execs", s.poll, s.execs)); err != nil {
		return err
	}
	var errs []error
	for _, boxes := range idle {
		for _, x := range boxes {
			errs = append(errs, x.remove(ctx))
		}
	}
	return errors.Join(append(errs, b.quiet(ctx))...)
}

func (b *bench) idleIO() cio.Creator {
	if b.settings.nulls {
		return cio.NullIO
	}
	return cio.NewCreator(cio.WithStreams(nil, io.Discard, io.Discard), cio.WithFIFODir(b.daemon.Dir+"/fifo"))
}

// wear polls every container once a second and runs the execs, spread evenly,
// each runtime's one after the other. It ends when both are done.
func (b *bench) wear(ctx context.Context, idle map[string][]*box) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running int
	ended := make(chan error)
	for _, boxes := range idle {
		running++
		go func() { ended <- b.execAll(ctx, boxes) }()
	}
	end := time.After(b.settings.poll)
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for running > 0 || end != nil {
		select {
		case <-second.C:
			if err := pollAll(ctx, idle); err != nil {
				cancel(err)
			}
		case <-end:
			end = nil
		case err := <-ended:
			running--
			if err != nil {
				cancel(err)
				end = nil
			}
		}
	}
	return context.Cause(ctx)
}

func pollAll(ctx context.Context, idle map[string][]*box) error {
	for _, boxes := range idle {
		for _, x := range boxes {
			if _, err := x.task.Metrics(ctx); err != nil {
				return fmt.Errorf("%s: metrics of %s: %w", x.runtime.Label, x.container.ID(), err)
			}
		}
	}
	return nil
}

func (b *bench) execAll(ctx context.Context, boxes []*box) error {
	total := b.settings.execs * len(boxes)
	if total == 0 {
		return nil
	}
	began := time.Now()
	for i := range total {
		due := began.Add(b.settings.poll * time.Duration(i) / time.Duration(total))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(due)):
		}
		x := boxes[i%len(boxes)]
		if err := execTrue(ctx, x.task, "e"+strconv.Itoa(i), b.idleIO()); err != nil {
			return fmt.Errorf("%s: exec in %s: %w", x.runtime.Label, x.container.ID(), err)
		}
	}
	return nil
}

// weigh reads what the kernel books on each shim.
func (b *bench) weigh(idle map[string][]*box, when string) error {
	for _, boxes := range idle {
		for _, x := range boxes {
			pid, err := x.shim()
			if err != nil {
				return err
			}
			if err := b.weighOne(x.runtime, pid, "memory, "+when); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) weighOne(r host.Runtime, pid int, part string) error {
	w, err := weight(pid)
	for _, f := range w {
		b.report.add(r, part, f.name, f.value)
	}
	return err
}

// booked is one of the figures that the kernel keeps of a process.
type booked struct {
	name  string
	value float64
}

func weight(pid int) ([]booked, error) {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return nil, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	var all []booked
	for _, m := range []struct{ name, text, key string }{
		{"private dirty", string(rollup), "Private_Dirty:"},
		{"PSS", string(rollup), "Pss:"},
		{"RSS", string(rollup), "Rss:"},
		{"threads", string(status), "Threads:"},
	} {
		v, err := strconv.ParseFloat(field(m.text, m.key), 64)
		if err != nil {
			return nil, fmt.Errorf("%s of process %d: %w", m.name, pid, err)
		}
		all = append(all, booked{m.name, v})
	}
	return all, nil
}
