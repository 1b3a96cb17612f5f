// SPDX-License-Identifier: Apache-2.0

package wire

import "github.com/berthd/berth/shim/fault"

// Request is ttrpc.Request. Service, Method and Payload alias the message.
// Metadata is skipped: no caller of a shim sends any that it would heed.
type Request struct {
	Service     []byte
	Method      []byte
	Payload     []byte
	TimeoutNano int64
}

// Decode replaces m by the message in b.
func (m *Request) Decode(b []byte) error {
	*m = Request{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			f.View(&m.Service)
		case 2:
			f.View(&m.Method)
		case 3:
			f.View(&m.Payload)
		case 4:
			if f.Type == Varint {
				m.TimeoutNano = int64(f.Value)
			}
		}
	}
	return s.Err()
}

// Append appends the message to b.
func (m *Request) Append(b []byte) []byte {
	b = AppendBytes(b, 1, m.Service)
	b = AppendBytes(b, 2, m.Method)
	b = AppendBytes(b, 3, m.Payload)
	return AppendVarint(b, 4, uint64(m.TimeoutNano))
}

// Response is ttrpc.Response. Code and Message are those of its google.rpc.Status,
// whose details are skipped. Payload aliases the message.
type Response struct {
	Code    fault.Code
	Message string
	Payload []byte
}

// Append appends the message to b.
func (m *Response) Append(b []byte) []byte {
	if m.Code != fault.OK {
		b = AppendTag(b, 1, Bytes)
		mark := Begin(b)
		b = AppendVarint(b, 1, uint64(m.Code))
		b = AppendString(b, 2, m.Message)
		b = End(b, mark)
	}
	if len(m.Payload) > 0 {
		b = AppendBytes(b, 2, m.Payload)
	}
	return b
}

// Decode replaces m by the message in b.
func (m *Response) Decode(b []byte) error {
	*m = Response{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			if f.Type == Bytes {
				s.nested(m.mergeStatus(f.Bytes))
			}
		case 2:
			f.View(&m.Payload)
		}
	}
	return s.Err()
}

func (m *Response) mergeStatus(b []byte) error {
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			f.Uint32((*uint32)(&m.Code))
		case 2:
			s.String(&f, &m.Message, "")
		}
	}
	return s.Err()
}
