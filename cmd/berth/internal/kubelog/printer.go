// SPDX-License-Identifier: Apache-2.0

package kubelog

import (
	"io"
	"sync"

	"github.com/berthd/berth/shim/crilog"
)

// Printer writes entries of any number of logs. Safe for concurrent use.
type Printer struct {
	Out, Err io.Writer
	// Timestamps puts the time before each line.
	Timestamps bool

	mu sync.Mutex // guards writing
}

// maxHeld is how much of a line is held back until its end, in bytes.
const maxHeld = 1 << 20

// Log returns a function for the entries of one log. With a prefix, lines are
// written whole, after it; without, in the pieces in which they come.
func (p *Printer) Log(prefix string) func(crilog.Entry) error {
	l := &log{p: p, prefix: prefix}
	return l.print
}

type log struct {
	p      *Printer
	prefix string
	held   [2][]byte // of stdout and stderr: a line without its end
	inside [2]bool   // a line has begun
}

const layout = "2006-01-02T15:04:05.000000000Z07:00"

func (l *log) print(e crilog.Entry) error {
	b := l.held[e.Stream]
	if !l.inside[e.Stream] {
		b = append(b[:0], l.prefix...)
		if l.p.Timestamps {
			b = append(e.Time.AppendFormat(b, layout), ' ')
		}
	}
	b = append(b, e.Text...)
	if !e.Partial {
		b = append(b, '\n')
	}
	l.inside[e.Stream] = e.Partial
	l.held[e.Stream] = b
	if e.Partial && l.prefix != "" && len(b) < maxHeld {
		return nil
	}
	l.held[e.Stream] = b[:0]
	w := l.p.Out
	if e.Stream == crilog.Stderr {
		w = l.p.Err
	}
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	_, err := w.Write(b)
	return err
}
