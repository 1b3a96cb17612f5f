// SPDX-License-Identifier: Apache-2.0

// Package store keeps containers in memory, by a name their keeper chooses. It
// knows of a container only when it was created.
package store

import (
	"maps"
	"slices"
	"sort"
	"sync"

	"github.com/berthd/berth/plugin/runtime/process"
)

// Store keeps containers. Safe for concurrent use. The zero value is empty.
type Store struct {
	mu  sync.RWMutex // guards all
	all map[string]*process.Container
}

// Add keeps c as id, instead of what was kept so before.
func (s *Store) Add(id string, c *process.Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string]*process.Container{}
	}
	s.all[id] = c
}

// Get returns the container kept as id, or nil.
func (s *Store) Get(id string) *process.Container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.all[id]
}

// Delete keeps id no longer, if it was.
func (s *Store) Delete(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, id)
}

// List returns all containers, the newest first. The list is the caller's.
func (s *Store) List() []*process.Container {
	h := History(s.values())
	sort.Sort(&h)
	return h
}

// values are the containers in no order.
func (s *Store) values() []*process.Container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Values(s.all))
}

// Size is how many containers are kept.
func (s *Store) Size() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.all)
}

// First returns some container that filter accepts, or nil.
func (s *Store) First(filter func(*process.Container) bool) *process.Container {
	for _, c := range s.values() {
		if filter(c) {
			return c
		}
	}
	return nil
}

// ApplyAll calls f for all containers at the same time and returns when all calls
// have. f must not call Add or Delete. A nil f does nothing.
func (s *Store) ApplyAll(f func(*process.Container)) {
	if f == nil {
		return
	}
	var wg sync.WaitGroup
	for _, c := range s.values() {
		wg.Go(func() { f(c) })
	}
	wg.Wait()
}

// History sorts containers by their creation, the newest first.
type History []*process.Container

func (h *History) Len() int { return len(*h) }

func (h *History) Less(i, j int) bool {
	return (*h)[i].StateNoLock().Created.After((*h)[j].StateNoLock().Created)
}

func (h *History) Swap(i, j int) { (*h)[i], (*h)[j] = (*h)[j], (*h)[i] }
