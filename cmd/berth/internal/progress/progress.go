// SPDX-License-Identifier: Apache-2.0

// Package progress shows how the parts of a transfer get on: as bars on a terminal,
// else as lines. It is told everything as values, and knows nothing of what moves.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/terminal"
)

// Part is what is known of one part of a transfer at a moment.
type Part struct {
	// Name tells it from others, and is shown.
	Name string
	// Status says in a word or two what becomes of it.
	Status string
	// Done and Total are bytes; a Total of 0 is unknown, or of no interest.
	Done, Total int64
	// Ended tells that nothing more becomes of it. Something may become of what is
	// all there, but has not ended.
	Ended bool
}

// Display shows parts. Safe for concurrent use, but for Close, which comes last.
type Display struct {
	mu    sync.Mutex // guards what is below, and keeps what is shown in order
	parts map[string]*part
	show  func(*part)
	close func()
}

// part is a Part and how it came there.
type part struct {
	Part

	began time.Time // when bytes began to move in this status
	from  int64     // what was there by then
	shown time.Time
	news  bool // its status is another than before
}

// New returns a display on a file. The caller closes it.
func New(out *os.File, mode Mode) *Display {
	d := &Display{parts: map[string]*part{}, close: func() {}}
	switch {
	case mode == None:
		d.show = func(*part) {}
	case mode == TTY, mode == Auto && terminal.Is(out):
		all := &bars{out: out}
		d.show, d.close = all.show, all.draw
	default:
		d.show = func(p *part) { writeLine(out, p) }
	}
	return d
}

// Show shows what has become of a part.
func (d *Display) Show(p Part) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.parts[p.Name]
	switch {
	case known == nil:
		known = &part{}
		d.parts[p.Name] = known
	case known.Ended:
		return // what comes late changes nothing
	}
	known.news = known.Status != p.Status
	if known.news || p.Done < known.from {
		known.began, known.from = time.Now(), p.Done
	}
	known.Part = p
	d.show(known)
}

// Close ends the display. What is not all there is left as it was last.
func (d *Display) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.close()
}

// rate is bytes a second in this status, 0 while it cannot be told.
func (p *part) rate() uint64 {
	const least = 200 * time.Millisecond // less says nothing
	if d := time.Since(p.began); d > least && p.Done > p.from {
		return uint64(float64(p.Done-p.from) / d.Seconds())
	}
	return 0
}

// amount writes how much has moved, and how fast.
func (p *part) amount() string {
	if p.Total <= 0 {
		return ""
	}
	text := report.Bytes(uint64(p.Total))
	if p.Done < p.Total {
		text = report.Bytes(uint64(max(0, p.Done))) + "/" + text
	}
	if r := p.rate(); r > 0 {
		text += "  " + report.Bytes(r) + "/s"
	}
	return text
}

// lineEvery is how often a part is written that moves on in the same status: often
// enough for somebody who looks at a log whether anything moves at all.
const lineEvery = 10 * time.Second

// writeLine writes a line for a part if there is something new.
func writeLine(out io.Writer, p *part) {
	if !p.news && !p.Ended && time.Since(p.shown) < lineEvery {
		return
	}
	p.shown = time.Now()
	text := p.Name + ": " + p.Status
	if amount := p.amount(); amount != "" && (p.Done > 0 || p.Ended) {
		text += " " + amount
	}
	_, _ = fmt.Fprintln(out, text) // to show less is no fault of the transfer
}

// Mode is how progress is shown: a flag.
type Mode string

// Modes.
const (
	Auto  Mode = "auto" // bars on a terminal, else lines
	TTY   Mode = "tty"
	Plain Mode = "plain"
	None  Mode = "none"
)

// String returns it as the flag has it.
func (m *Mode) String() string { return string(*m) }

// Set refuses what is no mode.
func (m *Mode) Set(text string) error {
	switch Mode(text) {
	case Auto, TTY, Plain, None:
		*m = Mode(text)
		return nil
	}
	return fmt.Errorf("auto, tty, plain or none: %w", errdefs.ErrInvalidArgument)
}

// Type names it in a usage.
func (m *Mode) Type() string { return "auto|tty|plain|none" }
