// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"bytes"
	"fmt"
	"os"
	"time"
)

// Piece is one line of a log file.
type Piece struct {
	Time    time.Time
	Stream  string // stdout or stderr
	Partial bool   // the written line goes on in the stream's next piece
	Text    string // without the newline
}

// ReadLog reads log files, oldest first. It is strict: every byte must belong to
// a well-formed line, except that the last line of the last file may still be
// being written.
func ReadLog(paths ...string) ([]Piece, error) {
	var pieces []Piece
	for i, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(text) {
			if line[len(line)-1] != '\n' && i == len(paths)-1 {
				break
			}
			p, err := parse(line)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			pieces = append(pieces, p)
		}
	}
	return pieces, nil
}

func parse(line []byte) (Piece, error) {
	words := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(" "), 4)
	if len(words) != 4 || line[len(line)-1] != '\n' {
		return Piece{}, fmt.Errorf("bad log line %q", line)
	}
	at, err := time.Parse(time.RFC3339Nano, string(words[0]))
	if err != nil {
		return Piece{}, fmt.Errorf("bad log line %q: %w", line, err)
	}
	p := Piece{Time: at, Stream: string(words[1]), Text: string(words[3])}
	if p.Stream != "stdout" && p.Stream != "stderr" {
		return Piece{}, fmt.Errorf("bad log line %q: stream", line)
	}
	switch string(words[2]) {
	case "P":
		p.Partial = true
	case "F":
	default:
		return Piece{}, fmt.Errorf("bad log line %q: tag", line)
	}
	return p, nil
}

// Text puts the pieces of a stream together to what was written.
func Text(pieces []Piece, stream string) string {
	var text bytes.Buffer
	for _, p := range pieces {
		if p.Stream != stream {
			continue
		}
		text.WriteString(p.Text)
		if !p.Partial {
			text.WriteByte('\n')
		}
	}
	return text.String()
}
