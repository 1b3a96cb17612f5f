// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"math"
	"unicode/utf8"
)

// The methods below store a field into a message. A field of another wire type
// than the message declares counts as unknown and is skipped, as protobuf's
// readers do.

// String stores a string field. before is what dst held before this Decode: equal
// text keeps that memory. It may be "".
func (s *Scanner) String(f *Field, dst *string, before string) {
	if f.Type != Bytes {
		return
	}
	if before == string(f.Bytes) { // compared without a copy
		*dst = before
		return
	}
	if !utf8.Valid(f.Bytes) {
		s.fail(ErrText)
		return
	}
	*dst = string(f.Bytes)
}

// Strings adds an element of a repeated string field.
func (s *Scanner) Strings(f *Field, dst *[]string) {
	if f.Type != Bytes {
		return
	}
	var text string
	s.String(f, &text, "")
	*dst = append(*dst, text)
}

// Time stores a google.protobuf.Timestamp field as Unix nanoseconds. What an
// int64 cannot hold becomes the nearest time that it can.
func (s *Scanner) Time(f *Field, dst *int64) {
	if f.Type != Bytes {
		return
	}
	var sec, nanos int64
	t := Scan(f.Bytes)
	for g := (Field{}); t.Next(&g); {
		switch {
		case g.Type != Varint:
		case g.Num == 1:
			sec = int64(g.Value)
		case g.Num == 2:
			nanos = int64(int32(g.Value))
		}
	}
	s.nested(t.err)
	*dst = unixNano(sec, nanos)
}

func unixNano(sec, nanos int64) int64 {
	const limit = math.MaxInt64/1_000_000_000 - 3 // nanos is less than 3 seconds
	switch {
	case sec > limit:
		return math.MaxInt64
	case sec < -limit:
		return math.MinInt64
	}
	return sec*1e9 + nanos
}

// Any stores an Any field. Its value aliases the message.
func (s *Scanner) Any(f *Field, dst *Any) {
	if f.Type == Bytes {
		s.nested(dst.merge(f.Bytes, dst.TypeURL))
	}
}

// nested ends the scan when a nested message had a fault.
func (s *Scanner) nested(err error) {
	if err != nil && s.err == nil {
		s.err = err
	}
}

// Uint32 stores a uint32 field.
func (f *Field) Uint32(dst *uint32) {
	if f.Type == Varint {
		*dst = uint32(f.Value)
	}
}

// Int32 stores an int32 or enum field.
func (f *Field) Int32(dst *int32) {
	if f.Type == Varint {
		*dst = int32(f.Value)
	}
}

// Bool stores a bool field.
func (f *Field) Bool(dst *bool) {
	if f.Type == Varint {
		*dst = f.Value != 0
	}
}

// View stores a bytes field without copying it.
func (f *Field) View(dst *[]byte) {
	if f.Type == Bytes {
		*dst = f.Bytes
	}
}
