// SPDX-License-Identifier: Apache-2.0

// Package crilog writes and reads the log format of the Kubernetes CRI:
//
//	<RFC 3339 time, 9 fractional digits, numeric offset> stdout|stderr P|F <text>\n
//
// F ends a line of the container's output, P is a piece of one: a reader joins
// the pieces of a stream up to the next F. A Writer owns a log file, its
// rotation and its reopening. The package knows neither pipes nor the event
// loop: its calls block, and belong in a job.
package crilog

import (
	"bytes"
	"strconv"
	"time"

	"github.com/berthd/berth/shim/fault"
)

// Stream tells a container's output streams apart.
type Stream uint8

// The streams.
const (
	Stdout Stream = iota
	Stderr
)

var streamNames = [...]string{"stdout", "stderr"}

func (s Stream) String() string { return streamNames[s] }

// MaxPiece is how many bytes of output a line of the log holds at most. It is
// what conmon reads at once, and what readers of its logs have grown used to.
const MaxPiece = 8192

// timeLayout is RFC 3339 with all nine digits and a numeric offset, also for UTC.
const timeLayout = "2006-01-02T15:04:05.000000000-07:00"

// maxPrefix is the longest time, stream and tag, each with its space.
const maxPrefix = len(timeLayout) + len(" stdout F ")

// MaxLine is the longest line of a log, its newline included.
const MaxLine = maxPrefix + MaxPiece + 1

// piece cuts the next piece off data: its text, whether a newline ended it, and
// what is left.
func piece(data []byte) (text []byte, full bool, rest []byte) {
	head := data
	if len(head) > MaxPiece+1 { // a line of exactly MaxPiece bytes is one piece
		head = head[:MaxPiece+1]
	}
	if i := bytes.IndexByte(head, '\n'); i >= 0 {
		return data[:i], true, data[i+1:]
	}
	if len(head) > MaxPiece {
		head = head[:MaxPiece]
	}
	return head, false, data[len(head):]
}

// prefixes are what stands before the text of a line: they are the same for all
// lines of one read.
type prefixes struct {
	buf     [2 * maxPrefix]byte
	partial []byte
	full    []byte
}

func (p *prefixes) set(s Stream, at time.Time) {
	b := at.AppendFormat(p.buf[:0], timeLayout)
	b = append(b, ' ')
	b = append(b, streamNames[s]...)
	b = append(b, " P "...)
	p.partial = b
	b = append(b, p.partial...)
	p.full = b[len(p.partial):]
	p.full[len(p.full)-2] = 'F'
}

// Entry is a line of a log.
type Entry struct {
	Time    time.Time
	Stream  Stream
	Partial bool   // the output's line goes on in the stream's next entry
	Text    []byte // without newline, unless the output had none
}

// ParseLine reads one line of a log, without its newline. Text aliases line. What
// is not in the format is InvalidArgument.
func ParseLine(line []byte) (Entry, error) {
	var e Entry
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return e, malformed(line)
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return e, malformed(line)
	}
	e.Time = t
	name, rest, ok := bytes.Cut(rest, []byte{' '})
	switch {
	case !ok:
		return e, malformed(line)
	case string(name) == streamNames[Stdout]:
	case string(name) == streamNames[Stderr]:
		e.Stream = Stderr
	default:
		return e, malformed(line)
	}
	// The tag is a list with colons of which only the first item has a meaning.
	tags, text, ok := bytes.Cut(rest, []byte{' '})
	tag, _, _ := bytes.Cut(tags, []byte{':'})
	switch {
	case !ok:
		return e, malformed(line)
	case string(tag) == "F":
	case string(tag) == "P":
		e.Partial = true
	default:
		return e, malformed(line)
	}
	e.Text = text
	return e, nil
}

func malformed(line []byte) error {
	return fault.New(fault.InvalidArgument, "not a line of a CRI log: "+strconv.Quote(string(line[:min(len(line), 80)])))
}

// Read parses all lines of log, in order. An incomplete last line, one that is
// still being written, is left out.
func Read(log []byte) ([]Entry, error) {
	var entries []Entry
	for {
		line, rest, ok := bytes.Cut(log, []byte{'\n'})
		if !ok {
			return entries, nil
		}
		e, err := ParseLine(line)
		if err != nil {
			return entries, err
		}
		entries = append(entries, e)
		log = rest
	}
}
