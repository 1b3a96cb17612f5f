// SPDX-License-Identifier: Apache-2.0

// Package wire encodes and decodes the messages that a shim exchanges with
// containerd: Task v2, events, bootstrap, runtime options and ttrpc's own. It is
// protobuf's binary format written by hand, because the resident shim must
// answer polls without allocating and cannot afford a reflecting library
// (docs/design.md, "Memory"). Names of messages and fields are those of
// containerd's Go API; its tests hold the two against each other.
//
// Conventions:
//
//   - Append writes a message behind b and returns the longer slice, like the
//     built-in append. It allocates only when b is too small.
//   - Decode replaces the whole message. It refuses malformed bytes with
//     fault.InvalidArgument, skips fields it does not know, and takes the last of
//     a repeated single value. Strings are copies; a string whose text did not
//     change since the last Decode keeps its memory, so a poll that is decoded
//     into the same variable does not allocate. []byte fields alias b.
//   - Times are Unix nanoseconds, 0 where protobuf has no message.
//
// The package knows neither services nor transports.
package wire

import (
	"encoding/binary"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/berthd/berth/shim/fault"
)

// Wire types of protobuf's encoding. Groups (3 and 4) are refused: no proto3
// writer makes them.
const (
	Varint  byte = 0
	Fixed64 byte = 1
	Bytes   byte = 2
	Fixed32 byte = 5
)

// maxFieldNumber is protobuf's limit.
const maxFieldNumber = 1<<29 - 1

// AppendTag appends the key of a field.
func AppendTag(b []byte, num int, typ byte) []byte {
	return binary.AppendUvarint(b, uint64(num)<<3|uint64(typ))
}

// AppendVarint appends an integer field. Zero is the absence of the field.
// A signed number is converted with uint64, which is protobuf's int32 and int64.
func AppendVarint(b []byte, num int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(AppendTag(b, num, Varint), v)
}

// AppendBool appends a boolean field. False is the absence of the field.
func AppendBool(b []byte, num int, v bool) []byte {
	if !v {
		return b
	}
	return append(AppendTag(b, num, Varint), 1)
}

// AppendFloat64 appends a double field. Positive zero is its absence.
func AppendFloat64(b []byte, num int, v float64) []byte {
	bits := math.Float64bits(v)
	if bits == 0 {
		return b
	}
	return binary.LittleEndian.AppendUint64(AppendTag(b, num, Fixed64), bits)
}

// AppendBytes appends a length-delimited field, an empty one too.
func AppendBytes(b []byte, num int, v []byte) []byte {
	b = binary.AppendUvarint(AppendTag(b, num, Bytes), uint64(len(v)))
	return append(b, v...)
}

// AppendString appends a string field. The empty string is its absence. What is
// not UTF-8 is replaced by U+FFFD, since a reader would refuse the whole message.
func AppendString(b []byte, num int, s string) []byte {
	if s == "" {
		return b
	}
	return appendText(b, num, s)
}

// AppendStrings appends a repeated string field, with its empty elements.
func AppendStrings(b []byte, num int, list []string) []byte {
	for _, s := range list {
		b = appendText(b, num, s)
	}
	return b
}

func appendText(b []byte, num int, s string) []byte {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, string(utf8.RuneError))
	}
	b = binary.AppendUvarint(AppendTag(b, num, Bytes), uint64(len(s)))
	return append(b, s...)
}

// AppendTime appends a google.protobuf.Timestamp field. 0 is its absence.
func AppendTime(b []byte, num int, ns int64) []byte {
	if ns == 0 {
		return b
	}
	b = AppendTag(b, num, Bytes)
	mark := Begin(b)
	sec, nanos := ns/1e9, ns%1e9
	if nanos < 0 { // a Timestamp counts its nanoseconds forward
		sec, nanos = sec-1, nanos+1e9
	}
	b = AppendVarint(b, 1, uint64(sec))
	b = AppendVarint(b, 2, uint64(nanos))
	return End(b, mark)
}

// Begin starts a nested message whose tag has just been appended to b:
//
//	b = wire.AppendTag(b, 4, wire.Bytes)
//	mark := wire.Begin(b)
//	b = inner.Append(b)
//	b = wire.End(b, mark)
//
// It returns where the message begins, for End.
func Begin(b []byte) int { return len(b) }

// End finishes the nested message that began at mark: it moves what was appended
// since and puts the length in front. Messages are short, so moving them is
// cheaper than measuring them first.
func End(b []byte, mark int) []byte {
	size := len(b) - mark
	var length [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(length[:], uint64(size))
	b = append(b, length[:n]...)
	copy(b[mark+n:], b[mark:mark+size])
	copy(b[mark:], length[:n])
	return b
}

// Field is one field of a message as it stands in the encoding.
type Field struct {
	Num   int
	Type  byte
	Value uint64 // of Varint, Fixed64 and Fixed32
	Bytes []byte // of Bytes; aliases the message
}

// Scanner reads a message field by field.
//
//	s := wire.Scan(b)
//	for f := (wire.Field{}); s.Next(&f); {
//		switch f.Num { ... }
//	}
//	return s.Err()
type Scanner struct {
	rest []byte
	err  error
}

// Scan returns a Scanner for the message b.
func Scan(b []byte) Scanner { return Scanner{rest: b} }

// ErrMalformed is why a message was refused. Its class is InvalidArgument.
var ErrMalformed = fault.New(fault.InvalidArgument, "malformed protobuf message")

// ErrText is why a message was refused whose text is not UTF-8, as protobuf
// demands. Its class is InvalidArgument.
var ErrText = fault.New(fault.InvalidArgument, "protobuf string is not valid UTF-8")

// Err returns why Next ended: nil at the end of the message, else ErrMalformed or
// ErrText.
func (s *Scanner) Err() error { return s.err }

// Next reads the next field into f. It returns false at the end of the message
// and at its first fault, which Err tells apart.
func (s *Scanner) Next(f *Field) bool {
	if s.err != nil || len(s.rest) == 0 {
		return false
	}
	key, ok := s.varint()
	num := key >> 3
	if !ok || num == 0 || num > maxFieldNumber {
		return s.fail(ErrMalformed)
	}
	*f = Field{Num: int(num), Type: byte(key & 7)}
	switch f.Type {
	case Varint:
		f.Value, ok = s.varint()
	case Fixed64:
		if ok = len(s.rest) >= 8; ok {
			f.Value, s.rest = binary.LittleEndian.Uint64(s.rest), s.rest[8:]
		}
	case Fixed32:
		if ok = len(s.rest) >= 4; ok {
			f.Value, s.rest = uint64(binary.LittleEndian.Uint32(s.rest)), s.rest[4:]
		}
	case Bytes:
		var size uint64
		size, ok = s.varint()
		if ok = ok && size <= uint64(len(s.rest)); ok {
			f.Bytes, s.rest = s.rest[:size:size], s.rest[size:]
		}
	default:
		ok = false
	}
	return ok || s.fail(ErrMalformed)
}

func (s *Scanner) varint() (uint64, bool) {
	v, n := binary.Uvarint(s.rest)
	if n <= 0 {
		return 0, false
	}
	s.rest = s.rest[n:]
	return v, true
}

// fail ends the scan and returns false.
func (s *Scanner) fail(err error) bool {
	s.err = err
	return false
}
