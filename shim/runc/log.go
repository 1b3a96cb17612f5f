// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/berthd/berth/shim/fault"
)

// failure is the error of a call that exited with code and left output: the
// last error of its log, else what it printed, else the code alone.
func failure(verb string, code int, output []byte) error {
	msg := lastError(output)
	if msg == "" {
		msg = "exit status " + strconv.Itoa(code)
	}
	return fault.New(classify(msg), "OCI runtime "+verb+" failed: "+msg)
}

// lastError returns the message of the last line of a runtime's JSON log that
// is an error. Lines that are not JSON are what the runtime, or a loader in
// front of it, printed to stderr: they count when the log has no error.
func lastError(output []byte) string {
	var last, plain string
	for line := range bytes.Lines(output) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		level, msg, ok := entry(line)
		switch {
		case !ok:
			plain = string(line)
		case msg != "" && (level == "error" || level == "fatal" || level == "panic"):
			last = msg
		}
	}
	if last == "" {
		last = plain
	}
	return strings.TrimSpace(last)
}

// classify finds the class of a message. This is the one place that knows the
// runtimes' words; golden samples are in the test. What a client must be able
// to tell apart has a class, the rest stays Unknown as with containerd's own
// shim, whose texts end in ": unknown".
func classify(msg string) fault.Code {
	switch {
	case has(msg, "container does not exist"),
		has(msg, "container not running"),
		crun(msg, "error opening file `", "/status`: No such file or directory"),
		crun(msg, "cannot open directory `", "`: No such file or directory"),
		crun(msg, "container `", "` is not running"),
		has(msg, "kill container: No such process"),
		has(msg, "process already finished"):
		return fault.NotFound
	case has(msg, "container with given ID already exists"),
		crun(msg, "container `", "` already exists"):
		return fault.AlreadyExists
	case has(msg, "cannot start a container that has stopped"),
		has(msg, "cannot start an already running container"),
		has(msg, "cannot delete container"),
		has(msg, "container not paused"),
		has(msg, "cannot exec in a paused container"),
		has(msg, "cannot exec in a stopped container"),
		crun(msg, "cannot open `", "/exec.fifo`: No such file or directory"),
		crun(msg, "the container `", "` is paused"),
		crun(msg, "the container `", " state"):
		return fault.FailedPrecondition
	}
	return fault.Unknown
}

// crun's messages name the container, or its files, in their middle.
func crun(msg, begin, end string) bool {
	return strings.HasPrefix(msg, begin) && strings.HasSuffix(msg, end)
}

func has(s, part string) bool { return strings.Contains(s, part) }

// entry reads one line of a log: a flat JSON object, of which level and msg are
// wanted. encoding/json is not for the resident process.
func entry(line []byte) (level, msg string, ok bool) {
	s := scanner{b: line}
	if !s.next('{') {
		return "", "", false
	}
	for !s.next('}') {
		key, ok := s.text()
		if !ok || !s.next(':') {
			return "", "", false
		}
		value, ok := s.value()
		if !ok {
			return "", "", false
		}
		switch key {
		case "level":
			level = value
		case "msg":
			msg = value
		}
		if !s.next(',') && !s.peek('}') {
			return "", "", false
		}
	}
	return level, msg, true
}

// scanner reads JSON from b. It accepts more than JSON is: it must find two
// strings, not judge the writer.
type scanner struct{ b []byte }

func (s *scanner) peek(c byte) bool {
	s.b = bytes.TrimLeft(s.b, " \t\r\n")
	return len(s.b) > 0 && s.b[0] == c
}

func (s *scanner) next(c byte) bool {
	if !s.peek(c) {
		return false
	}
	s.b = s.b[1:]
	return true
}

// value reads a value. Of one that is no string the text is not wanted.
func (s *scanner) value() (string, bool) {
	switch {
	case s.peek('"'):
		return s.text()
	case s.peek('{'), s.peek('['):
		return "", s.skip()
	}
	n := bytes.IndexAny(s.b, ",}")
	if n <= 0 {
		return "", false
	}
	s.b = s.b[n:]
	return "", true
}

// skip passes an object or an array.
func (s *scanner) skip() bool {
	depth := 0
	for len(s.b) > 0 {
		switch s.b[0] {
		case '"':
			if _, ok := s.text(); !ok {
				return false
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		s.b = s.b[1:]
		if depth == 0 {
			return true
		}
	}
	return false
}

// text reads a string with its escapes.
func (s *scanner) text() (string, bool) {
	if !s.next('"') {
		return "", false
	}
	var out []byte
	for len(s.b) > 0 {
		c := s.b[0]
		s.b = s.b[1:]
		switch c {
		case '"':
			return string(out), true
		case '\\':
			var ok bool
			if out, ok = s.escape(out); !ok {
				return "", false
			}
		default:
			out = append(out, c)
		}
	}
	return "", false
}

// escape appends what the escape after a backslash stands for.
func (s *scanner) escape(out []byte) ([]byte, bool) {
	if len(s.b) == 0 {
		return out, false
	}
	c := s.b[0]
	s.b = s.b[1:]
	switch c {
	case 'n':
		return append(out, '\n'), true
	case 't':
		return append(out, '\t'), true
	case 'r':
		return append(out, '\r'), true
	case 'b':
		return append(out, '\b'), true
	case 'f':
		return append(out, '\f'), true
	case 'u':
		r, ok := s.hex4()
		if ok && utf16.IsSurrogate(r) && bytes.HasPrefix(s.b, []byte(`\u`)) {
			s.b = s.b[2:]
			var low rune
			low, ok = s.hex4()
			r = utf16.DecodeRune(r, low)
		}
		return utf8.AppendRune(out, r), ok
	}
	return append(out, c), true // " \ /
}

func (s *scanner) hex4() (rune, bool) {
	if len(s.b) < 4 {
		return 0, false
	}
	v, err := strconv.ParseUint(string(s.b[:4]), 16, 16)
	s.b = s.b[4:]
	return rune(v), err == nil
}
