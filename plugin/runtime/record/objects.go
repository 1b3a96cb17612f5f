// SPDX-License-Identifier: Apache-2.0

package record

import (
	"slices"
	"sync"
	"time"
)

// Objects is what a program keeps in memory of containers, by ID: CRI-O's
// ContainerStorer. Safe for concurrent use. T is mostly a pointer.
type Objects[T any] struct {
	created func(T) time.Time
	mu      sync.RWMutex // guards all
	all     map[string]T
}

// NewObjects returns an empty collection of what was created at times that do not
// change.
func NewObjects[T any](created func(T) time.Time) *Objects[T] {
	return &Objects[T]{created: created, all: make(map[string]T)}
}

// Add stores an object, in the place of one that has the same ID.
func (o *Objects[T]) Add(id string, v T) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all[id] = v
}

// Get returns an object, zero if there is none of that ID.
func (o *Objects[T]) Get(id string) T {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.all[id]
}

// Delete forgets an object, if there is one.
func (o *Objects[T]) Delete(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.all, id)
}

// Size is the number of objects.
func (o *Objects[T]) Size() int {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return len(o.all)
}

// List returns all objects, newest first. The slice is the caller's.
func (o *Objects[T]) List() []T {
	o.mu.RLock()
	list := make([]T, 0, len(o.all))
	for _, v := range o.all {
		list = append(list, v)
	}
	o.mu.RUnlock()
	slices.SortStableFunc(list, func(a, b T) int { return o.created(b).Compare(o.created(a)) })
	return list
}

// First returns an object, any one, that the filter says yes to; zero if there is
// none.
func (o *Objects[T]) First(filter func(T) bool) T {
	for _, v := range o.List() {
		if filter(v) {
			return v
		}
	}
	var none T
	return none
}

// ApplyAll calls do for all objects at once and returns when all calls have. do may
// add and delete: it works on a copy.
func (o *Objects[T]) ApplyAll(do func(T)) {
	if do == nil {
		return
	}
	var wg sync.WaitGroup
	for _, v := range o.List() {
		wg.Go(func() { do(v) })
	}
	wg.Wait()
}
