// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// Limiter bounds how many blobs move at a time. Safe for concurrent use.
type Limiter struct {
	current atomic.Pointer[semaphore.Weighted]
}

// NewLimiter returns a Limiter of max, which is at least 1.
func NewLimiter(limit int) *Limiter {
	l := &Limiter{}
	l.Set(limit)
	return l
}

// Set changes the bound for transfers that begin from now on. Those that run or
// wait keep the old one.
func (l *Limiter) Set(limit int) { l.current.Store(semaphore.NewWeighted(int64(max(1, limit)))) }

// Share returns the bound as it is now: what one pull or push goes by to its end.
func (l *Limiter) Share() *semaphore.Weighted { return l.current.Load() }

// Acquire waits for a turn by a bound, and returns what ends it. The error is
// that of ctx.
func Acquire(ctx context.Context, share *semaphore.Weighted) (release func(), err error) {
	if err := share.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return func() { share.Release(1) }, nil
}
