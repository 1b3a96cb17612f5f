// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bytes"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

// textBytes is enough for any file of a usual host: memory.stat has about 1.8 KiB,
// cpuacct.usage_percpu 2.5 KiB with 256 CPUs. A longer file makes the buffer grow.
const textBytes = 4 << 10

// reader reads small files by path without allocating. The files are opened anew
// each time: with descriptors kept open they would have to be handed over, and
// would keep a removed cgroup in the kernel's memory.
type reader struct {
	path  []byte
	text  []byte
	found bool  // a file has been there since this was cleared
	err   error // the first error other than "not there" since this was cleared
}

// read returns the content of the file dir/name..., nil if it is not there. It is
// valid until the next read.
func (r *reader) read(dir string, name ...string) []byte {
	if dir == "" {
		return nil
	}
	r.setPath(dir, name)
	if r.text == nil {
		r.text = make([]byte, textBytes)
	}
	fd, err := r.open()
	if err != nil {
		r.fail(err)
		return nil
	}
	n := 0
	for {
		if n == len(r.text) {
			r.text = append(r.text, make([]byte, len(r.text))...)
		}
		m, err := unix.Read(fd, r.text[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			r.fail(err)
			n = -1
			break
		}
		if m == 0 {
			break
		}
		n += m
	}
	_ = unix.Close(fd) // it was only read
	if n < 0 {
		return nil
	}
	r.found = true
	return r.text[:n]
}

func (r *reader) setPath(dir string, name []string) {
	b := append(r.path[:0], dir...)
	b = append(b, '/')
	for _, s := range name {
		b = append(b, s...)
	}
	r.path = append(b, 0)
}

// open opens the file at path. unix.Open would copy the path to the heap.
func (r *reader) open() (int, error) {
	at := unix.AT_FDCWD
	for {
		fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(at),
			uintptr(unsafe.Pointer(&r.path[0])), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EINTR:
		default:
			return -1, errno
		}
	}
}

// fail keeps an error that is not the absence of a file, a controller or a kernel
// feature: pressure files of a kernel with psi=0 answer EOPNOTSUPP.
func (r *reader) fail(err error) {
	if r.err == nil && !gone(err) && err != unix.EOPNOTSUPP {
		r.err = err
	}
}

// number reads a file with one number: 0 if it is not there or says "max".
func (r *reader) number(dir string, name ...string) uint64 {
	n, _ := parseNumber(bytes.TrimSpace(r.read(dir, name...)))
	return n
}

// limit reads a file with one number or "max", which is the greatest number.
func (r *reader) limit(dir string, name ...string) uint64 {
	text := bytes.TrimSpace(r.read(dir, name...))
	if string(text) == "max" {
		return math.MaxUint64
	}
	n, _ := parseNumber(text)
	return n
}

// value reads the number behind key in a file of "key number" lines: 0 if there
// is none.
func (r *reader) value(key, dir string, name ...string) uint64 {
	v, _ := valueIn(r.read(dir, name...), key)
	return v
}

// valueIn returns the number of the line "key number" in text.
func valueIn(text []byte, key string) (uint64, bool) {
	for len(text) > 0 {
		var line []byte
		line, text = cut(text, '\n')
		name, number := cut(line, ' ')
		if string(name) == key {
			return parseNumber(number)
		}
	}
	return 0, false
}

// cut returns what is before and behind the first sep in b, all of b and nothing
// if there is none.
func cut(b []byte, sep byte) (before, after []byte) {
	if i := bytes.IndexByte(b, sep); i >= 0 {
		return b[:i], b[i+1:]
	}
	return b, nil
}

// parseNumber reads decimal digits. A negative number is 0: the kernel has shown
// counters that went below zero.
func parseNumber(b []byte) (uint64, bool) {
	negative := len(b) > 1 && b[0] == '-'
	if negative {
		b = b[1:]
	}
	if len(b) == 0 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		d := uint64(c - '0')
		if d > 9 || n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	if negative {
		return 0, true
	}
	return n, true
}

// parseDecimal reads digits with a fraction, as in "12.34".
func parseDecimal(b []byte) float64 {
	whole, fraction := cut(b, '.')
	n, _ := parseNumber(whole)
	scale := uint64(1)
	for _, c := range fraction {
		// 15 digits are exact in a float64, so the one division rounds correctly.
		if c < '0' || c > '9' || scale >= 1e9 || n >= 1e14 {
			break
		}
		n = n*10 + uint64(c-'0')
		scale *= 10
	}
	return float64(n) / float64(scale)
}
