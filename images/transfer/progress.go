// SPDX-License-Identifier: Apache-2.0

// Package transfer owns what pulls and pushes have in common: how far each blob
// is (Table), how many may move at a time (Limiter), and where a blob has been
// seen (Sources). It moves nothing by itself.
package transfer

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Interval is how often progress is told: as often as a person can see.
const Interval = 100 * time.Millisecond

// Status is what becomes of a blob at the moment. It is text for people.
type Status string

// What a blob can be about.
const (
	Waiting     Status = "waiting" // for its turn
	Downloading Status = "downloading"
	Downloaded  Status = "download complete"
	Exists      Status = "already exists"
	Extracting  Status = "extracting"
	Complete    Status = "pull complete"

	Preparing   Status = "preparing"
	Pushing     Status = "pushing"
	Mounted     Status = "mounted" // from Progress.From, without moving a byte
	LayerExists Status = "layer already exists"
	Pushed      Status = "pushed"
)

// Ended tells that nothing more becomes of a blob.
func (s Status) Ended() bool {
	switch s {
	case Exists, Complete, Mounted, LayerExists, Pushed:
		return true
	}
	return false
}

// Progress is how far one blob is.
type Progress struct {
	Ref       string // the image, as its record is named
	Digest    digest.Digest
	MediaType string
	Status    Status
	// Offset of Total bytes have moved in this status, or before it.
	Offset, Total int64
	// Start is when the blob was met first.
	Start time.Time
	// From is the repository that a blob was mounted from.
	From string `json:",omitempty"`
}

// Table is how far each blob of one image is. Safe for concurrent use.
type Table struct {
	ref string
	now func() time.Time

	mu    sync.Mutex // guards what is below
	parts map[digest.Digest]*Progress
	order []digest.Digest
}

// NewTable returns a table without blobs.
func NewTable(ref string, now func() time.Time) *Table {
	return &Table{ref: ref, now: now, parts: map[digest.Digest]*Progress{}}
}

// Set says what becomes of a blob. What has ended stays so, except that a blob
// which exists may still be extracted.
func (t *Table) Set(desc v1.Descriptor, status Status) {
	t.change(desc, func(p *Progress) {
		if p.Status == Complete {
			return
		}
		p.Status = status
		if status == Downloaded || status.Ended() {
			p.Offset = p.Total
		}
	})
}

// SetMounted says that a blob was mounted from another repository.
func (t *Table) SetMounted(desc v1.Descriptor, from string) {
	t.change(desc, func(p *Progress) { p.Status, p.From = Mounted, from })
}

// Add says that n more bytes have moved.
func (t *Table) Add(desc v1.Descriptor, n int) {
	t.change(desc, func(p *Progress) { p.Offset += int64(n) })
}

// Seek says how many bytes there are already.
func (t *Table) Seek(desc v1.Descriptor, offset int64) {
	t.change(desc, func(p *Progress) { p.Offset = offset })
}

// Put takes over what another table has told.
func (t *Table) Put(p Progress) {
	t.change(v1.Descriptor{Digest: p.Digest}, func(mine *Progress) { *mine = p })
}

func (t *Table) change(desc v1.Descriptor, f func(*Progress)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.parts[desc.Digest]
	if p == nil {
		p = &Progress{Ref: t.ref, Digest: desc.Digest, MediaType: desc.MediaType, Total: desc.Size, Start: t.now()}
		t.parts[desc.Digest] = p
		t.order = append(t.order, desc.Digest)
	}
	f(p)
}

// Parts returns how far all blobs are, in the order in which they were met.
func (t *Table) Parts() []Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	parts := make([]Progress, len(t.order))
	for i, d := range t.order {
		parts[i] = *t.parts[d]
	}
	return parts
}

// Follow tells fn, every Interval and in the end, each blob that has changed, until
// done is closed or ctx ends. It calls fn from the calling goroutine. fn may be nil.
func (t *Table) Follow(ctx context.Context, done <-chan struct{}, fn func(Progress)) {
	if fn == nil {
		select {
		case <-done:
		case <-ctx.Done():
		}
		return
	}
	told := map[digest.Digest]Progress{}
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.tell(told, fn)
		case <-done:
			t.tell(told, fn)
			return
		case <-ctx.Done():
			return
		}
	}
}

func (t *Table) tell(told map[digest.Digest]Progress, fn func(Progress)) {
	changed := slices.DeleteFunc(t.Parts(), func(p Progress) bool { return told[p.Digest] == p })
	for _, p := range changed {
		fn(p)
		told[p.Digest] = p
	}
}

// Bytes sums up what has moved, by media type.
func (t *Table) Bytes() map[string]int64 {
	sum := map[string]int64{}
	for _, p := range t.Parts() {
		if p.Status != Exists && p.Status != Mounted && p.Status != LayerExists {
			sum[p.MediaType] += p.Offset
		}
	}
	maps.DeleteFunc(sum, func(_ string, n int64) bool { return n == 0 })
	return sum
}
