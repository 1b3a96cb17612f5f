// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"math"

	"github.com/berthd/berth/shim/wire"
)

// keyed says which field of a message the number behind a key goes to.
type keyed struct {
	key string
	num int
}

// appendKeyed appends the fields whose keys occur in text, a file of "key number"
// lines.
func appendKeyed(b, text []byte, fields []keyed) []byte {
	for len(text) > 0 {
		var line []byte
		line, text = cut(text, '\n')
		key, number := cut(line, ' ')
		for i := range fields {
			if string(key) != fields[i].key {
				continue
			}
			if v, ok := parseNumber(number); ok {
				b = wire.AppendVarint(b, fields[i].num, v)
			}
			break
		}
	}
	return b
}

// begin starts the nested message num.
func begin(b []byte, num int) ([]byte, int) {
	b = wire.AppendTag(b, num, wire.Bytes)
	return b, wire.Begin(b)
}

// appendRdma appends an RdmaEntry, the same in both versions, for each line
// "device hca_handle=N hca_object=N" of text. "max" is the greatest uint32.
func appendRdma(b []byte, num int, text []byte) []byte {
	for len(text) > 0 {
		var line []byte
		line, text = cut(text, '\n')
		device, rest := cut(line, ' ')
		if len(rest) == 0 {
			continue
		}
		var mark int
		b, mark = begin(b, num)
		b = wire.AppendBytes(b, 1, device)
		for len(rest) > 0 {
			var pair []byte
			pair, rest = cut(rest, ' ')
			key, value := cut(pair, '=')
			n, ok := parseNumber(value)
			if string(value) == "max" {
				n, ok = math.MaxUint32, true
			}
			switch {
			case !ok || n > math.MaxUint32:
			case string(key) == "hca_handle":
				b = wire.AppendVarint(b, 2, n)
			case string(key) == "hca_object":
				b = wire.AppendVarint(b, 3, n)
			}
		}
		b = wire.End(b, mark)
	}
	return b
}
