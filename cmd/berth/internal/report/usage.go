// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"time"

	"github.com/berthd/berth/plugin/runtime/process/stats"
)

// Load tells how many processors something used between two measurements, which
// only those who measure again can tell.
type Load struct {
	before map[string]sample
}

type sample struct {
	at    time.Time
	usage time.Duration
}

// Share returns the share of a processor that was used since the last measurement of
// the same thing; the first one has none.
func (l *Load) Share(id string, at time.Time, cpu stats.CPU) (share float64, ok bool) {
	if l.before == nil {
		l.before = map[string]sample{}
	}
	before, known := l.before[id]
	if known && !at.After(before.at) {
		return 0, false // a sample of the same time
	}
	l.before[id] = sample{at, cpu.Usage}
	if !known || cpu.Usage < before.usage {
		return 0, false
	}
	return float64(cpu.Usage-before.usage) / float64(at.Sub(before.at)), true
}

// Memory writes what is used of what is allowed.
func Memory(m stats.Memory) (used, limit string) {
	return Bytes(m.WorkingSet), Limit(m.Limit)
}

// Percent is Share in a table.
func (l *Load) Percent(id string, at time.Time, cpu stats.CPU) string {
	share, ok := l.Share(id, at, cpu)
	if !ok {
		return ""
	}
	return Percent(share)
}

// moment is between the two measurements of what is shown once.
const moment = 500 * time.Millisecond

// ShowUsage is Show for what is measured. A table that is shown once needs two
// measurements: its CPU is what was used between them.
func ShowUsage[T any](ctx context.Context, l *Listing, get func(context.Context) (*List[T], error)) error {
	if !l.Watch && l.Format == Tables {
		if _, err := get(ctx); err != nil {
			return err
		}
		timer := time.NewTimer(moment)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return Show(ctx, l, get)
}
