// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// ErrStalled says that a registry has sent nothing for as long as the progress
// timeout. It is a context.DeadlineExceeded.
var ErrStalled error = stalled{}

type stalled struct{}

// Error implements error.
func (stalled) Error() string { return "no progress" }

// Unwrap tells the class.
func (stalled) Unwrap() error { return context.DeadlineExceeded }

// watch cancels a pull whose registry has stopped to send. It is armed by the first
// byte of a layer: until then a registry may be fetching the image itself. While
// nobody reads from the registry, because unpacking is behind, nothing is missed.
type watch struct {
	stop func() // ends it and waits for it

	mu      sync.Mutex // guards what is below
	armed   bool
	readers int
	last    time.Time // when there was something last, or reading began
}

// newWatch returns a watch, and a context that it cancels with ErrStalled; the
// caller calls stop. Without a timeout it never does. Time is looked at ten times
// in a timeout, as CRI-O does.
func newWatch(ctx context.Context, timeout time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{}
	if timeout == 0 {
		w.stop = func() { cancel(nil) }
		return ctx, w
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(max(timeout/10, time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				if w.stalled(now, timeout) {
					cancel(fmt.Errorf("%w: the registry has sent nothing for %v", ErrStalled, timeout))
					return
				}
			}
		}
	}()
	w.stop = func() {
		cancel(nil)
		<-ended
	}
	return ctx, w
}

func (w *watch) stalled(now time.Time, timeout time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.armed && w.readers > 0 && now.Sub(w.last) > timeout
}

// reading says that a read from the registry begins.
func (w *watch) reading() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.readers == 0 {
		w.last = time.Now()
	}
	w.readers++
}

// read says that a read has brought n bytes.
func (w *watch) read(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.readers--
	if n > 0 {
		w.armed, w.last = true, time.Now()
	}
}
