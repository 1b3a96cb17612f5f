// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// flights are the creations that this process is about. A client that has lost
// patience asks again: the repeated request joins the first, instead of finding the
// name taken by it.
type flights struct {
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

// join runs do for a request, or waits for the result of an equal one that runs
// already. do has the context of the first caller, but for its end: it is cancelled
// when the last caller has gone, who waits for it even so, so that what do undoes
// is undone.
func join[T any](ctx context.Context, fs *flights, request any, do func(context.Context) (T, error)) (T, error) {
	var none T
	key, err := json.Marshal(request)
	if err != nil {
		return none, fmt.Errorf("request: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	f := fs.enter(ctx, fmt.Sprintf("%T%s", request, key), func(ctx context.Context) (any, error) { return do(ctx) })
	select {
	case <-f.done:
	case <-ctx.Done():
		if !fs.leave(f) {
			return none, context.Cause(ctx)
		}
		<-f.done
	}
	if f.err != nil {
		return none, f.err
	}
	return f.result.(T), nil
}

func (fs *flights) enter(ctx context.Context, key string, do func(context.Context) (any, error)) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.running[key]; f != nil && f.callers > 0 {
		f.callers++
		return f
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{callers: 1, cancel: cancel, done: make(chan struct{})}
	if fs.running == nil {
		fs.running = make(map[string]*flight)
	}
	fs.running[key] = f
	go func() {
		defer cancel()
		f.result, f.err = do(ctx)
		fs.mu.Lock()
		if fs.running[key] == f {
			delete(fs.running, key)
		}
		fs.mu.Unlock()
		close(f.done)
	}()
	return f
}

// leave tells whether the caller was the last.
func (fs *flights) leave(f *flight) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.callers--
	if f.callers > 0 {
		return false
	}
	f.cancel()
	return true
}
