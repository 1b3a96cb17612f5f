// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"bytes"
	"encoding/binary"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/crilog"
	"github.com/berthd/berth/shim/fault"
)

// JournalSocket is where systemd's journal listens for its native protocol
// (systemd.io/JOURNAL_NATIVE_PROTOCOL).
const JournalSocket = "/run/systemd/journal/socket"

const (
	// shortID is the length of CONTAINER_ID.
	shortID = 12
	// journalPatience is how long the journal may leave an entry waiting before it
	// is given up: a log never blocks the container for long.
	journalPatience = time.Second
)

// The priorities of syslog(3) that output has if it does not say otherwise.
const (
	priorityInfo = '6'
	priorityErr  = '3'
)

// isField tells whether the journal takes s as the name of a field. It would drop
// others silently, those of its own among them, which begin with _.
func isField(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '_' || s[0] >= '0' && s[0] <= '9' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// journal sends lines to systemd's journal.
type journal struct {
	fd      int
	address unix.SockaddrUnix
	fixed   []byte    // the fields that are the same in all entries
	plain   bool      // incomplete lines are not marked
	rest    [2][]byte // the beginning of a line that has not ended; nil: none
	broken  bool
	warn    func(string)
}

func openJournal(cfg *Config) (*journal, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fault.Wrap(fault.Unknown, "journald: socket", err)
	}
	return journalOn(cfg, fd), nil
}

func journalOn(cfg *Config, fd int) *journal {
	patience := unix.NsecToTimeval(int64(journalPatience))
	// Without a limit the journal would only be waited for longer.
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience)
	j := &journal{fd: fd, plain: cfg.Log.PlainPartial, warn: cfg.Warn}
	j.address.Name = cfg.Log.JournalSocket
	if j.address.Name == "" {
		j.address.Name = JournalSocket
	}
	identifier := cfg.Log.Tag
	if identifier == "" {
		identifier = cfg.ID[:shortID]
	}
	j.fixed = appendField(j.fixed, "CONTAINER_ID_FULL", cfg.ID)
	j.fixed = appendField(j.fixed, "CONTAINER_ID", cfg.ID[:shortID])
	j.fixed = appendField(j.fixed, "SYSLOG_IDENTIFIER", identifier)
	if cfg.Log.Name != "" {
		j.fixed = appendField(j.fixed, "CONTAINER_NAME", cfg.Log.Name)
	}
	if cfg.Log.Tag != "" {
		j.fixed = appendField(j.fixed, "CONTAINER_TAG", cfg.Log.Tag)
	}
	for _, label := range cfg.Log.Labels {
		key, value, _ := strings.Cut(label, "=")
		j.fixed = appendField(j.fixed, key, value)
	}
	return j
}

// appendField appends a field of an entry. A value with a newline has its length
// in front.
func appendField[T string | []byte](b []byte, key string, value T) []byte {
	b = append(b, key...)
	for i := range len(value) {
		if value[i] == '\n' {
			b = append(b, '\n')
			b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
			return append(append(b, value...), '\n')
		}
	}
	return append(append(append(b, '='), value...), '\n')
}

// Write sends the lines in data. The beginning of a line is kept until the line
// ends or is longer than an entry may be.
func (j *journal) Write(s crilog.Stream, data []byte, _ time.Time, scratch []byte) {
	for len(data) > 0 {
		room := crilog.MaxPiece - len(j.rest[s])
		i := bytes.IndexByte(data[:min(len(data), room+1)], '\n')
		switch {
		case i >= 0:
			j.sendKept(s, data[:i], true, scratch)
			data = data[i+1:]
		case len(data) > room:
			j.sendKept(s, data[:room], false, scratch)
			data = data[room:]
		default:
			j.rest[s] = append(j.rest[s], data...)
			return
		}
	}
}

func (j *journal) sendKept(s crilog.Stream, text []byte, whole bool, scratch []byte) {
	if len(j.rest[s]) > 0 {
		text = append(j.rest[s], text...)
		j.rest[s] = nil
	}
	j.send(s, text, whole, scratch)
}

// send sends an entry.
func (j *journal) send(s crilog.Stream, text []byte, whole bool, scratch []byte) {
	priority := byte(priorityInfo)
	if s == crilog.Stderr {
		priority = priorityErr
	}
	if len(text) >= 3 && text[0] == '<' && text[1] >= '0' && text[1] <= '7' && text[2] == '>' {
		priority, text = text[1], text[3:]
	}
	b := append(scratch[:0], "PRIORITY="...)
	b = append(b, priority, '\n')
	b = append(b, j.fixed...)
	if !whole && !j.plain {
		b = append(b, "CONTAINER_PARTIAL_MESSAGE=true\n"...)
	}
	b = appendField(b, "MESSAGE", text)
	for {
		err := unix.Sendto(j.fd, b, unix.MSG_NOSIGNAL, &j.address)
		if err == unix.EINTR {
			continue
		}
		if err != nil && !j.broken && j.warn != nil {
			j.warn("output is lost while the journal does not take it: " + pathError("send", j.address.Name, err).Error())
		}
		j.broken = err != nil
		return
	}
}

// Reopen does nothing: there is no file.
func (j *journal) Reopen() error { return nil }

// Close sends what is left of unfinished lines.
func (j *journal) Close() {
	for s, rest := range j.rest {
		if len(rest) > 0 {
			j.send(crilog.Stream(s), rest, false, nil)
		}
	}
	closeFD(&j.fd)
}
