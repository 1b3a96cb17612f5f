// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// log writes to the fifo in the bundle that containerd copies to its own log.
// Nothing is kept open: a shim has little to say. Safe for concurrent use.
type log struct {
	path  string
	debug bool
	id    string
}

// warn reports that something is not as it should be, while the shim goes on.
func (l *log) warn(text string) { l.write("warning", text) }

// note reports what only matters while looking for a fault.
func (l *log) note(text string) {
	if l.debug {
		l.write("debug", text)
	}
}

// write appends a line in the form of containerd's own. Without a reader it is
// lost: the shim must not wait for one.
func (l *log) write(level, text string) {
	fd, err := unix.Open(l.path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	b := append([]byte(`time="`), time.Now().UTC().AppendFormat(nil, time.RFC3339Nano)...)
	b = append(b, `" level=`+level+` msg=`...)
	b = strconv.AppendQuote(b, text)
	b = append(b, ` container=`...)
	b = append(b, l.id...)
	_, _ = unix.Write(fd, append(b, '\n'))
}
