// SPDX-License-Identifier: Apache-2.0

// Package flight lets equal requests that run at the same time in a process be one. A
// client that has lost patience asks again: the repeated request joins the first,
// instead of finding taken what that is about to make. It knows nothing of what is
// asked for.
package flight

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// Group is what requests may be joined with. The zero value is ready. Safe for
// concurrent use.
type Group struct {
	mu      sync.Mutex         // guards running, and callers of each
	running map[string]*flight // by the request
}

type flight struct {
	callers int
	cancel  context.CancelFunc
	done    chan struct{} // closed at the end
	result  any           // set before that
	err     error
}

// Join runs do for a request, or waits for the result of an equal one that runs
// already. Requests are equal if their types and their forms in JSON are. do has the context of the first caller, but for its end: it is cancelled
// when the last caller has gone, who waits for it even so, so that what do undoes
// is undone.
func Join[T any](ctx context.Context, g *Group, request any, do func(context.Context) (T, error)) (T, error) {
	var none T
	key, err := json.Marshal(request)
	if err != nil {
		return none, fmt.Errorf("request: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	f := g.enter(ctx, fmt.Sprintf("%T%s", request, key), func(ctx context.Context) (any, error) { return do(ctx) })
	select {
	case <-f.done:
	case <-ctx.Done():
		if !g.leave(f) {
			return none, context.Cause(ctx)
		}
		<-f.done
	}
	if f.err != nil {
		return none, f.err
	}
	return f.result.(T), nil
}

func (g *Group) enter(ctx context.Context, key string, do func(context.Context) (any, error)) *flight {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.running[key]; f != nil && f.callers > 0 {
		f.callers++
		return f
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{callers: 1, cancel: cancel, done: make(chan struct{})}
	if g.running == nil {
		g.running = make(map[string]*flight)
	}
	g.running[key] = f
	go func() {
		defer cancel()
		f.result, f.err = do(ctx)
		g.mu.Lock()
		if g.running[key] == f {
			delete(g.running, key)
		}
		g.mu.Unlock()
		close(f.done)
	}()
	return f
}

// leave tells whether the caller was the last.
func (g *Group) leave(f *flight) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.callers--
	if f.callers > 0 {
		return false
	}
	f.cancel()
	return true
}
