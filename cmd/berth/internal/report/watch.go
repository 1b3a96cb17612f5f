// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/cmd/berth/internal/terminal"
)

// Watch shows a table again and again.
type Watch struct {
	Out   *os.File
	Every time.Duration
	// Changes leaves out, where there is no screen to redraw, what was shown before.
	Changes bool
}

// Run shows what rows returns until ctx ends, which is no error: on a terminal in
// one place, else as plain lines.
func (w *Watch) Run(ctx context.Context, rows func(context.Context) (*Table, error)) error {
	show := w.print(w.Out)
	if terminal.Is(w.Out) {
		show = w.draw(w.Out)
	}
	return Every(ctx, w.Every, func(ctx context.Context) error {
		t, err := rows(ctx)
		if err != nil {
			return err
		}
		return show(t.lines())
	})
}

// Every calls f at once and then at intervals, until it returns an error or ctx
// ends, which is no error.
func Every(ctx context.Context, interval time.Duration, f func(context.Context) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := f(ctx); ctx.Err() != nil {
			return nil //nolint:nilerr // the user has seen enough
		} else if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Escape sequences of every terminal there is.
const (
	clear     = "\x1b[2J"
	home      = "\x1b[H"
	clearLine = "\x1b[K" // from the cursor on
	clearRest = "\x1b[J" // below too
)

// draw returns a function that replaces what the screen shows. Nothing is blanked
// before it is written to: that would flicker.
func (w *Watch) draw(out *os.File) func([]string) error {
	start := clear + home
	return func(lines []string) error {
		if height := int(terminal.SizeOf(out).Height); height > 1 && len(lines) > height-1 {
			lines = append(lines[:height-2:height-2], fmt.Sprintf("... %d more", len(lines)-height+2))
		}
		b := bufio.NewWriter(out)
		_, _ = b.WriteString(start) // Flush returns its error
		for _, line := range lines {
			_, _ = b.WriteString(cut(line, int(terminal.SizeOf(out).Width)) + clearLine + "\r\n")
		}
		_, _ = b.WriteString(clearRest)
		start = home
		return b.Flush()
	}
}

// cut keeps a line from going over into the next.
func cut(line string, width int) string {
	runes := []rune(line)
	if width <= 0 || len(runes) <= width {
		return line
	}
	return string(runes[:width])
}

// print returns a function that writes lines: the titles once, and with Changes only
// those that were not there the last time.
func (w *Watch) print(out io.Writer) func([]string) error {
	titles := ""
	var before []string
	return func(lines []string) error {
		var now []string
		if normal(lines[0]) != titles {
			titles = normal(lines[0])
			now = append(now, lines[0])
		}
		var seen []string
		for _, line := range lines[1:] {
			seen = append(seen, normal(line))
			if !w.Changes || !slices.Contains(before, normal(line)) {
				now = append(now, line)
			}
		}
		before = seen
		if len(now) == 0 {
			return nil
		}
		_, err := fmt.Fprintln(out, strings.Join(now, "\n"))
		return err
	}
}

// normal is a line without its columns' widths, which other lines decide.
func normal(line string) string { return strings.Join(strings.Fields(line), " ") }
