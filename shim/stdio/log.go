// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/crilog"
)

// log is what the shim shows output to. Its methods are called by the job, one at
// a time, and may block. A log that cannot be written says so once and lets the
// output pass.
type log interface {
	Write(s crilog.Stream, data []byte, at time.Time, scratch []byte)
	Reopen() error
	Close()
}

var (
	_ log = (*crilog.Writer)(nil)
	_ log = (*rawFile)(nil)
	_ log = (*journal)(nil)
)

// tap is a log and the streams that it sees.
type tap struct {
	log     log
	kind    uint8
	path    string // of a file: two streams with one path share the log
	streams [2]bool
}

// The kinds of logs, as they stand in a snapshot.
const (
	tapCRI     uint8 = 1
	tapRaw     uint8 = 2
	tapJournal uint8 = 3
)

// rawFile is file:// where the process cannot have the file itself.
type rawFile struct {
	path   string
	fd     int
	broken bool
	warn   func(string)
}

func (r *rawFile) Write(_ crilog.Stream, data []byte, _ time.Time, _ []byte) {
	for len(data) > 0 {
		n, err := unix.Write(r.fd, data)
		if n > 0 {
			data = data[n:]
			continue
		}
		if err == unix.EINTR {
			continue
		}
		if !r.broken && r.warn != nil {
			r.broken = true
			r.warn("output is lost while its file cannot be written: " + pathError("write", r.path, err).Error())
		}
		return
	}
}

func (r *rawFile) Reopen() error {
	fd, err := openFile(r.path)
	if err != nil {
		return err
	}
	_ = unix.Close(r.fd)
	r.fd = fd
	return nil
}

func (r *rawFile) Close() { closeFD(&r.fd) }
