// SPDX-License-Identifier: Apache-2.0

// Package mountinfo reads /proc/PID/mountinfo (proc_pid_mountinfo(5)) line by
// line. The file of a busy node has megabytes: it is never held as a whole.
package mountinfo

import (
	"bytes"
	"io"
	"os"
)

// lineBytes is the part of a line that is looked at. Only the options of the
// file system come so late in it that they can be cut off; they are short where
// anyone asks for them (cgroups).
const lineBytes = 8 << 10

// Mount is one line. Its fields are valid until the callback returns.
type Mount struct {
	Root    []byte // path within the file system that is mounted
	Point   []byte // where, seen from the process's root
	FSType  []byte
	Options []byte // of the file system, comma separated
}

// Self is the mount table of the calling process.
const Self = "/proc/self/mountinfo"

// Each calls f for each mount of the table at path, parents first, until f
// returns false. Lines that are malformed are skipped. It blocks, and returns
// the error of opening or reading the table.
func Each(path string, f func(m *Mount) bool) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	var m Mount
	buf := make([]byte, lineBytes)
	held, cut := 0, false // bytes in buf; whether they continue a line that did not fit
	for {
		n, err := file.Read(buf[held:])
		held += n
		text := buf[:held]
		for {
			i := bytes.IndexByte(text, '\n')
			if i < 0 {
				break
			}
			if !cut && parse(&m, text[:i]) && !f(&m) {
				return nil
			}
			cut = false
			text = text[i+1:]
		}
		switch {
		case len(text) == len(buf):
			if !cut && parse(&m, text) && !f(&m) {
				return nil
			}
			held, cut = 0, true
		case cut:
			held = 0
		default:
			held = copy(buf, text)
		}
		if n == 0 {
			if err == io.EOF {
				err = nil
			}
			return err
		}
	}
}

// parse splits a line:
//
//	36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/sda1 rw,errors=x
func parse(m *Mount, line []byte) bool {
	var field []byte
	for i := range 5 {
		field, line, _ = bytes.Cut(line, []byte{' '})
		switch i {
		case 3:
			m.Root = unescape(field)
		case 4:
			m.Point = unescape(field)
		}
	}
	_, line, found := bytes.Cut(line, []byte(" - "))
	if !found || len(m.Point) == 0 {
		return false
	}
	m.FSType, line, _ = bytes.Cut(line, []byte{' '})
	_, m.Options, _ = bytes.Cut(line, []byte{' '})
	return true
}

// unescape replaces, in place, the octal escapes that the kernel writes for
// white space and the backslash.
func unescape(b []byte) []byte {
	if bytes.IndexByte(b, '\\') < 0 {
		return b
	}
	out := b[:0]
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+3 < len(b) && octal(b[i+1]) && octal(b[i+2]) && octal(b[i+3]) {
			out = append(out, (b[i+1]-'0')<<6|(b[i+2]-'0')<<3|(b[i+3]-'0'))
			i += 3
			continue
		}
		out = append(out, b[i])
	}
	return out
}

func octal(c byte) bool { return c >= '0' && c <= '7' }
