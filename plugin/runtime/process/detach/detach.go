// SPDX-License-Identifier: Apache-2.0

// Package detach recognises the keys by which the user of a terminal leaves a
// process alone. That is a matter of the client: nobody else knows of it.
package detach

import (
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
)

// Default is what Parse is given if the user does not say anything else.
const Default = "ctrl-p,ctrl-q"

// bufferBytes is what is read at once.
const bufferBytes = 32 << 10

// Err is returned when the keys have been typed.
var Err = errdefs.ErrAborted.WithMessage("detached")

// Parse reads keys as docker and kubectl write them: characters, or
// ctrl- and one of a-z @ [ \ ] ^ _, with commas between. Empty is none.
func Parse(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	var keys []byte
	for key := range strings.SplitSeq(text, ",") {
		ctrl, is := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case is && len(ctrl) == 1 && (ctrl[0] >= 'a' && ctrl[0] <= 'z' || strings.Contains("@[\\]^_", ctrl)):
			const mask = 0x1f // what the control key leaves of a character
			keys = append(keys, ctrl[0]&mask)
		case !is && len(key) == 1:
			keys = append(keys, key[0])
		default:
			return nil, fmt.Errorf("detach key %q: %w", key, errdefs.ErrInvalidArgument)
		}
	}
	return keys, nil
}

// detacher reads from r until the keys come one after the other.
type detacher struct {
	r       io.Reader
	keys    []byte
	matched int // of keys, held back
	buffer  []byte
	out     []byte // ready to be read
	err     error  // after out
}

// Reader returns what r does until the keys have been typed, then Err. Keys that
// are not followed by the rest are passed on. Without keys it is r itself.
func Reader(r io.Reader, keys []byte) io.Reader {
	if len(keys) == 0 {
		return r
	}
	return &detacher{r: r, keys: keys, buffer: make([]byte, bufferBytes)}
}

func (d *detacher) Read(p []byte) (int, error) {
	for len(d.out) == 0 && d.err == nil {
		n, err := d.r.Read(d.buffer)
		d.take(d.buffer[:n])
		if err != nil && d.err == nil {
			d.out, d.matched = append(d.out, d.keys[:d.matched]...), 0
			d.err = err
		}
	}
	n := copy(p, d.out)
	d.out = d.out[n:]
	if n == 0 {
		return 0, d.err
	}
	return n, nil
}

func (d *detacher) take(p []byte) {
	for _, b := range p {
		if b != d.keys[d.matched] { // what was held back were no keys; this may be the first
			d.out, d.matched = append(d.out, d.keys[:d.matched]...), 0
		}
		if b != d.keys[d.matched] {
			d.out = append(d.out, b)
			continue
		}
		if d.matched++; d.matched == len(d.keys) {
			d.err = Err
			return
		}
	}
}
