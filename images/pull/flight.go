// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"fmt"
	"maps"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/transfer"
)

// key is what makes two requests the same.
type key struct {
	request     Request // without Timeout, and without the pointer below
	credentials registry.Credentials
	anonymous   bool
}

func keyOf(r Request) key {
	k := key{request: r, anonymous: r.Access.Credentials == nil}
	if !k.anonymous {
		k.credentials = *r.Access.Credentials
	}
	k.request.Access.Credentials = nil
	k.request.Timeout = 0
	return k
}

// flight is a pull that runs, for all who wait for it.
type flight struct {
	table   *transfer.Table
	cancel  context.CancelCauseFunc
	waiters int // guarded by Puller.mu

	done   chan struct{} // closed when what is below is set
	result Result
	err    error
}

// share has a pull run once for all who ask for it meanwhile. It is cancelled when
// nobody waits any more, and then waited for.
func (p *Puller) share(ctx context.Context, r Request, tell func(transfer.Progress)) (Result, error) {
	k := keyOf(r)
	f := p.join(ctx, k, r)
	f.table.Follow(ctx, f.done, tell)
	if last := p.leave(k, f); last {
		f.cancel(context.Cause(ctx))
		<-f.done
		return f.result, f.err
	}
	select {
	case <-f.done:
		return f.result, f.err
	default:
		return Result{}, context.Cause(ctx)
	}
}

func (p *Puller) join(ctx context.Context, k key, r Request) *flight {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.flights[k]
	if f == nil {
		f = &flight{table: transfer.NewTable(r.Reference.Text(), p.config.Now), done: make(chan struct{})}
		p.flights[k] = f
		// Whoever asked first may leave while others wait.
		shared, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		f.cancel = cancel
		go p.fly(shared, k, f, r)
	}
	f.waiters++
	return f
}

// leave tells whether nobody is left who waits.
func (p *Puller) leave(k key, f *flight) (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f.waiters--
	if f.waiters == 0 && p.flights[k] == f {
		delete(p.flights, k) // who comes now does not want one that is cancelled
	}
	return f.waiters == 0
}

func (p *Puller) fly(ctx context.Context, k key, f *flight, r Request) {
	began := p.config.Now()
	defer func() {
		if cause := recover(); cause != nil {
			log.G(ctx).WithField("image", r.Reference.Text()).WithField("stack", string(debug.Stack())).Error("panic in pull")
			f.err = fmt.Errorf("panic: %v: %w", cause, errdefs.ErrInternal)
		}
		p.land(k, f, p.config.Now().Sub(began))
		close(f.done)
	}()
	f.result, f.err = p.run(ctx, r, f.table)
}

func (p *Puller) land(k key, f *flight, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flights[k] == f {
		delete(p.flights, k)
	}
	p.metrics.add(f, took)
}

// Metrics are sums over all pulls since the Puller was made, each counted once
// however many have waited for it.
type Metrics struct {
	Bytes     map[string]int64 // fetched, by media type
	Skipped   int64            // layers that were there
	Successes int64
	Failures  map[string]int64 // by class, as in "NotFound"
	Seconds   float64          // of all pulls together
	// Running is how far the pulls are that run now, by the name of the image.
	Running map[string][]transfer.Progress
}

func (m *Metrics) add(f *flight, took time.Duration) {
	for mediaType, n := range f.table.Bytes() {
		m.Bytes[mediaType] += n
	}
	m.Seconds += took.Seconds()
	if f.err != nil {
		m.Failures[class(f.err)]++
		return
	}
	m.Skipped += int64(f.result.Skipped)
	m.Successes++
}

func class(err error) string {
	// The first that fits; the order does not matter.
	for _, c := range []struct {
		is   func(error) bool
		name string
	}{
		{errdefs.IsNotFound, "NotFound"},
		{errdefs.IsUnavailable, "Unavailable"},
		{errdefs.IsUnauthorized, "Unauthenticated"},
		{errdefs.IsPermissionDenied, "PermissionDenied"},
		{errdefs.IsResourceExhausted, "ResourceExhausted"},
		{errdefs.IsInvalidArgument, "InvalidArgument"},
		{errdefs.IsFailedPrecondition, "FailedPrecondition"},
		{errdefs.IsNotImplemented, "NotImplemented"},
		{errdefs.IsDeadlineExceeded, "DeadlineExceeded"},
		{errdefs.IsCanceled, "Canceled"},
		{errdefs.IsDataLoss, "DataLoss"},
	} {
		if c.is(err) {
			return c.name
		}
	}
	return "Unknown"
}

// Metrics returns the sums as they are now.
func (p *Puller) Metrics() Metrics {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.metrics
	m.Bytes, m.Failures = maps.Clone(m.Bytes), maps.Clone(m.Failures)
	m.Running = map[string][]transfer.Progress{}
	for k, f := range p.flights {
		name := k.request.Reference.Text()
		m.Running[name] = append(m.Running[name], f.table.Parts()...)
	}
	return m
}
