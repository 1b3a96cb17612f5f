// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// locks is a set of locks, one for each key that somebody holds or waits for. Keys
// are names of records and digests of targets; names are locked before targets.
type locks struct {
	mu   sync.Mutex // guards held
	held map[string]*lock
}

type lock struct {
	token chan struct{} // holds one value while nobody holds the lock
	users int           // who holds it or waits; guarded by locks.mu
}

// Lock waits until no other caller in this process works on the image with that
// target, and returns what ends the lock. It is what makes "read, then delete"
// one step among the users of a Store; against other processes deletes are
// conditional on the target. The error is that of ctx.
//
// Replace and CreateDangling take the locks of the targets they touch: do not call
// them with one of these held.
func (s *Store) Lock(ctx context.Context, target digest.Digest) (unlock func(), err error) {
	return s.locks.lock(ctx, target.String())
}

// lockAll locks several targets, in an order that all callers share.
func (s *Store) lockAll(ctx context.Context, targets ...digest.Digest) (unlock func(), err error) {
	slices.Sort(targets)
	var unlocks []func()
	unlock = func() {
		for _, f := range unlocks {
			f()
		}
	}
	for _, target := range slices.Compact(targets) {
		one, err := s.locks.lock(ctx, target.String())
		if err != nil {
			unlock()
			return nil, err
		}
		unlocks = append(unlocks, one)
	}
	return unlock, nil
}

func (l *locks) lock(ctx context.Context, key string) (func(), error) {
	one := l.enter(key)
	select {
	case <-one.token:
		return func() {
			one.token <- struct{}{} // cannot block: the token is ours
			l.leave(key, one)
		}, nil
	case <-ctx.Done():
		l.leave(key, one)
		return nil, fmt.Errorf("wait for other work on image %s: %w", key, ctx.Err())
	}
}

func (l *locks) enter(key string) *lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.held[key]
	if one == nil {
		one = &lock{token: make(chan struct{}, 1)}
		one.token <- struct{}{}
		l.held[key] = one
	}
	one.users++
	return one
}

func (l *locks) leave(key string, one *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one.users--; one.users == 0 {
		delete(l.held, key)
	}
}
