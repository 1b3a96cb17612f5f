// SPDX-License-Identifier: Apache-2.0

package flight

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

type request struct{ Name string }

func TestJoin(t *testing.T) {
	var g Group
	begun, end := make(chan struct{}), make(chan struct{})
	runs := 0
	do := func(context.Context) (int, error) {
		runs++
		close(begun)
		<-end
		return 42, nil
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if got, err := Join(t.Context(), &g, request{"a"}, do); got != 42 || err != nil {
				t.Errorf("%d, %v", got, err)
			}
		})
		<-begun
	}
	other := errors.New("other")
	if _, err := Join(t.Context(), &g, request{"b"}, func(context.Context) (int, error) { return 0, other }); !errors.Is(err, other) {
		t.Errorf("another request: %v", err)
	}
	for callers(&g) < 3 {
		time.Sleep(time.Millisecond)
	}
	close(end)
	wg.Wait()
	if runs != 1 {
		t.Errorf("%d runs", runs)
	}
	if len(g.running) != 0 {
		t.Errorf("%d are left", len(g.running))
	}
}

func callers(g *Group) (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.running {
		n += f.callers
	}
	return n
}

// The first caller may go; with the last one the work is cancelled, and is over when
// that one is answered.
func TestLeave(t *testing.T) {
	var g Group
	begun := make(chan struct{})
	over := false
	do := func(ctx context.Context) (int, error) {
		close(begun)
		<-ctx.Done()
		over = true
		return 0, ctx.Err()
	}
	first, leave := context.WithCancel(t.Context())
	last, leaveLast := context.WithCancel(t.Context())
	errs := make(chan error)
	go func() {
		_, err := Join(first, &g, request{"a"}, do)
		errs <- err
	}()
	<-begun
	go func() {
		_, err := Join(last, &g, request{"a"}, do)
		errs <- err
	}()
	for callers(&g) < 2 {
		time.Sleep(time.Millisecond)
	}
	leave()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	leaveLast()
	if err := <-errs; !errors.Is(err, context.Canceled) || !over {
		t.Errorf("the last: %v, over: %v", err, over)
	}
	if got, err := Join(t.Context(), &g, request{"a"}, func(context.Context) (int, error) { return 1, nil }); got != 1 || err != nil {
		t.Errorf("later: %d, %v", got, err)
	}
}
