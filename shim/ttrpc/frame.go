// SPDX-License-Identifier: Apache-2.0

package ttrpc

import "encoding/binary"

// The frame of ttrpc's protocol: a header of ten bytes (length of the data,
// stream, type, flags; numbers are big-endian), then the data.
const (
	// HeaderBytes is the size of a frame's header.
	HeaderBytes = 10
	// MaxMessageBytes is the protocol's limit for the data of a frame.
	MaxMessageBytes = 4 << 20
)

// Types of frames. Data belongs to streaming calls, which no service of a shim
// has.
const (
	TypeRequest  byte = 1
	TypeResponse byte = 2
	TypeData     byte = 3
)

// Header is the header of a frame without its flags, which matter to streaming
// calls only.
type Header struct {
	Length uint32 // of the data
	Stream uint32
	Type   byte
}

// ParseHeader reads the header at the start of b, which holds at least
// HeaderBytes.
func ParseHeader(b []byte) Header {
	return Header{
		Length: binary.BigEndian.Uint32(b),
		Stream: binary.BigEndian.Uint32(b[4:]),
		Type:   b[8],
	}
}

// Put writes the header to the start of b, which holds at least HeaderBytes.
func (h Header) Put(b []byte) {
	binary.BigEndian.PutUint32(b, h.Length)
	binary.BigEndian.PutUint32(b[4:], h.Stream)
	b[8], b[9] = h.Type, 0
}
