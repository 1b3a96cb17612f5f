// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/cmd/berth/internal/terminal"
)

// bars are lines on a terminal, which are written anew in one place. Those of parts
// that have ended go up and stay: there may be more than fit.
//
// No library draws them, since that which does it best (mpb) spends 27 ms of each
// start of berth on tables of all characters' widths, whatever berth then does.
type bars struct {
	out   *os.File
	live  []*part // that have not ended, in the order in which they came
	drawn int     // lines of them on the screen
	last  time.Time
}

// Escape sequences of every terminal there is.
const (
	up        = "\x1b[%dA" // to the first column, by lines
	clearLine = "\x1b[K"   // from the cursor on
	clearRest = "\x1b[J"   // below too
)

// drawEvery is how often the screen is written at most, unless there is news: parts
// are told of one by one, many at a time.
const drawEvery = 50 * time.Millisecond

func (b *bars) show(p *part) {
	if !slices.Contains(b.live, p) {
		b.live = append(b.live, p)
	}
	if p.news || p.Ended || time.Since(b.last) >= drawEvery {
		b.draw()
	}
}

// draw writes those that have ended for the last time, and the others below.
func (b *bars) draw() {
	b.last = time.Now()
	size := terminal.SizeOf(b.out)
	width := cmp.Or(int(size.Width), 80)
	height := cmp.Or(int(size.Height), 24) - 1 // the cursor is below
	var text strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&text, "\r"+up, b.drawn)
	}
	line := func(p *part) { text.WriteString(p.line(width) + clearLine + "\r\n") }
	b.live = slices.DeleteFunc(b.live, func(p *part) bool {
		if p.Ended {
			line(p)
		}
		return p.Ended
	})
	b.drawn = 0
	// What moves comes first: it is what somebody looks for.
	for _, moving := range []bool{true, false} {
		for _, p := range b.live {
			if p.moving() == moving && b.drawn < height {
				line(p)
				b.drawn++
			}
		}
	}
	text.WriteString(clearRest)
	_, _ = b.out.WriteString(text.String()) // to show less is no fault of the transfer
}

// moving tells whether bytes of a part are on their way.
func (p *part) moving() bool { return p.Total > 0 && p.Done > 0 && p.Done < p.Total }

// line is what is shown of a part, cut to the screen's width.
func (p *part) line(width int) string {
	front := fmt.Sprintf("%-14s %-18s ", p.Name, p.Status)
	back := p.amount()
	const (
		least = 10 // of a bar
		most  = 40
		rest  = 34 // for an amount and a rate
	)
	text := front
	if room := min(width-len(front)-rest, most); p.moving() && room >= least {
		full := int(int64(room-2) * p.Done / p.Total)
		text += "[" + strings.Repeat("=", full) + strings.Repeat(" ", room-2-full) + "] "
	}
	runes := []rune(strings.TrimRight(text+back, " "))
	return string(runes[:min(len(runes), width)])
}
