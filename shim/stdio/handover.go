// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/crilog"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/spool"
	"github.com/berthd/berth/shim/wire"
)

// The fields of a snapshot. Numbers are never used again for something else.
// Descriptors, which can be 0, are stored plus one; 0 is none.
const (
	fieldKeeper  = 1
	fieldKeep    = 2 // repeated: stdout, stderr
	fieldFlow    = 3 // repeated
	fieldTap     = 4 // repeated
	fieldLogger  = 5 // repeated
	fieldLinger  = 6 // repeated
	fieldExited  = 7
	fieldInput   = 8
	fieldClients = 9
	flowStream   = 1 // plus one
	flowSource   = 2
	flowSink     = 3
	flowFifo     = 4
	flowPending  = 5
	flowSpool    = 6
	flowNoSpool  = 7
	flowFed      = 8
	tapKind      = 1
	tapPath      = 2
	tapStdout    = 3
	tapStderr    = 4
	tapFile      = 5
	tapTotal     = 6
	tapMaxSize   = 7
	tapMaxFiles  = 8
	tapGlobalMax = 9
	tapNoSync    = 10
	tapRest      = 11 // repeated: stdout, stderr
	loggerPid    = 1
	loggerEnding = 2
)

// Snapshot appends the state of begun streams for Restore, in the program that
// takes this one's place. keep is called with each descriptor that must stay
// open. No job may be in flight. Calls of Drained and Reopen without an answer are
// not part of it.
func (s *Streams) Snapshot(b []byte, keep func(fd int)) []byte {
	file := func(b []byte, field, fd int) []byte {
		if fd >= 0 {
			keep(fd)
		}
		return binary.AppendUvarint(wire.AppendTag(b, field, wire.Varint), uint64(fd+1)) // none is said, too: some repeat
	}
	b = file(b, fieldKeeper, s.keeper)
	for _, fd := range s.keep {
		b = file(b, fieldKeep, fd)
	}
	for _, f := range [3]*flow{s.in, s.out[0], s.out[1]} {
		if f == nil || f.over {
			continue
		}
		b = wire.AppendTag(b, fieldFlow, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.AppendVarint(b, flowStream, uint64(f.stream+1))
		b = file(b, flowSource, f.src)
		b = file(b, flowSink, f.dst)
		b = wire.AppendBool(b, flowFifo, f.fifo)
		if len(f.pending) > 0 {
			b = wire.AppendBytes(b, flowPending, f.pending)
		}
		if f.spool != nil {
			b = wire.AppendTag(b, flowSpool, wire.Bytes)
			mark := wire.Begin(b)
			b = wire.End(f.spool.Append(b, keep), mark)
		}
		b = wire.AppendBool(b, flowNoSpool, f.noSpool)
		b = wire.AppendBool(b, flowFed, f.fed)
		b = wire.End(b, mark)
	}
	for i := range s.logs {
		b = wire.AppendTag(b, fieldTap, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.End(s.logs[i].snapshot(b, file), mark)
	}
	for _, lg := range s.loggers {
		if lg.pid > 0 {
			b = wire.AppendTag(b, fieldLogger, wire.Bytes)
			mark := wire.Begin(b)
			b = wire.AppendVarint(b, loggerPid, uint64(lg.pid))
			b = wire.AppendBool(b, loggerEnding, lg.ending)
			b = wire.End(b, mark)
		}
	}
	for _, g := range s.lingers {
		b = file(b, fieldLinger, g.fd)
	}
	if s.inputPath != "" {
		b = wire.AppendBytes(b, fieldInput, []byte(s.inputPath))
	}
	if s.clients != nil {
		b = wire.AppendTag(b, fieldClients, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.End(s.clients.Snapshot(b, keep), mark)
	}
	return wire.AppendBool(b, fieldExited, s.exited)
}

func (t *tap) snapshot(b []byte, file func(b []byte, field, fd int) []byte) []byte {
	b = wire.AppendVarint(b, tapKind, uint64(t.kind))
	b = wire.AppendBytes(b, tapPath, []byte(t.path))
	b = wire.AppendBool(b, tapStdout, t.streams[0])
	b = wire.AppendBool(b, tapStderr, t.streams[1])
	switch g := t.log.(type) {
	case *crilog.Writer:
		h, o := g.Handle(), g.Options()
		b = file(b, tapFile, h.FD)
		b = wire.AppendVarint(b, tapTotal, uint64(h.Total))
		b = wire.AppendVarint(b, tapMaxSize, uint64(o.MaxSize))
		b = wire.AppendVarint(b, tapMaxFiles, uint64(o.MaxFiles))
		b = wire.AppendVarint(b, tapGlobalMax, uint64(o.GlobalMax))
		b = wire.AppendBool(b, tapNoSync, o.NoSync)
	case *rawFile:
		b = file(b, tapFile, g.fd)
	case *journal:
		for _, rest := range g.rest {
			b = wire.AppendBytes(b, tapRest, rest)
		}
	}
	return b
}

// Restore goes on with the streams whose Snapshot is b. cfg is what Open was
// given. Loop only, or before it runs.
func Restore(l *loop.Loop, t *process.Table, cfg *Config, b []byte) (*Streams, error) {
	s := newStreams(l, t, cfg)
	keep := 0
	sc := wire.Scan(b)
	for f := (wire.Field{}); sc.Next(&f); {
		var err error
		switch f.Num {
		case fieldKeeper:
			s.keeper = inherit(&f)
		case fieldKeep:
			if keep < len(s.keep) {
				s.keep[keep] = inherit(&f)
				keep++
			}
		case fieldFlow:
			err = s.restoreFlow(f.Bytes)
		case fieldTap:
			err = s.restoreTap(f.Bytes)
		case fieldLogger:
			err = s.restoreLogger(f.Bytes)
		case fieldLinger:
			g := &linger{s: s, fd: inherit(&f), pause: lingerPause}
			s.lingers = append(s.lingers, g)
		case fieldExited:
			f.Bool(&s.exited)
		case fieldInput:
			s.inputPath = string(f.Bytes)
		case fieldClients: // behind the flows, which tell whether there is room for input
			err = s.restoreClients(f.Bytes)
		}
		if err != nil {
			return nil, fault.In("streams", err)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fault.In("streams", err)
	}
	for _, g := range append([]*linger(nil), s.lingers...) { // check takes some out
		g.check()
	}
	for _, f := range [3]*flow{s.in, s.out[0], s.out[1]} {
		if f != nil {
			f.start()
		}
	}
	s.settle() // logs may be all that is left
	return s, nil
}

// inherit returns a descriptor of a snapshot, which must not go on to children.
func inherit(f *wire.Field) int {
	fd := int(f.Value) - 1
	if fd >= 0 {
		unix.CloseOnExec(fd)
	}
	return fd
}

func (s *Streams) restoreFlow(b []byte) error {
	f := s.newFlow(-1)
	sc := wire.Scan(b)
	for v := (wire.Field{}); sc.Next(&v); {
		switch v.Num {
		case flowStream:
			f.stream = int(v.Value) - 1
		case flowSource:
			f.src = inherit(&v)
		case flowSink:
			f.dst = inherit(&v)
		case flowFifo:
			v.Bool(&f.fifo)
		case flowPending:
			f.hold(v.Bytes)
		case flowSpool:
			sp, err := spool.Restore(v.Bytes)
			if err != nil {
				return err
			}
			f.spool, f.spooling = sp, true
		case flowNoSpool:
			v.Bool(&f.noSpool)
		case flowFed:
			v.Bool(&f.fed)
		}
	}
	switch f.stream {
	case -1:
		s.in = f
	case 0, 1:
		s.out[f.stream] = f
		if s.cfg.Terminal {
			s.master = f.src
		}
	default:
		return wire.ErrMalformed
	}
	return sc.Err()
}

func (s *Streams) restoreTap(b []byte) error {
	var t tap
	o := fileOptions(&s.cfg, "")
	h := crilog.Handle{FD: -1}
	var rest [][]byte
	sc := wire.Scan(b)
	for v := (wire.Field{}); sc.Next(&v); {
		switch v.Num {
		case tapKind:
			t.kind = uint8(v.Value)
		case tapPath:
			t.path = string(v.Bytes)
		case tapStdout:
			v.Bool(&t.streams[0])
		case tapStderr:
			v.Bool(&t.streams[1])
		case tapFile:
			h.FD = inherit(&v)
		case tapTotal:
			h.Total = int64(v.Value)
		case tapMaxSize:
			o.MaxSize = int64(v.Value)
		case tapMaxFiles:
			o.MaxFiles = int(v.Value)
		case tapGlobalMax:
			o.GlobalMax = int64(v.Value)
		case tapNoSync:
			v.Bool(&o.NoSync)
		case tapRest:
			rest = append(rest, append([]byte(nil), v.Bytes...))
		}
	}
	if err := sc.Err(); err != nil {
		return err
	}
	switch t.kind {
	case tapCRI:
		o.Path = t.path
		w, err := crilog.Resume(o, h)
		if err != nil {
			return err
		}
		t.log = w
	case tapRaw:
		t.log = &rawFile{path: t.path, fd: h.FD, warn: s.cfg.Warn}
	case tapJournal:
		j, err := openJournal(&s.cfg)
		if err != nil {
			return err
		}
		copy(j.rest[:], rest)
		t.log = j
	default:
		return wire.ErrMalformed
	}
	s.logs = append(s.logs, t)
	return nil
}

func (s *Streams) restoreLogger(b []byte) error {
	lg := &logger{s: s, onEnd: s.settle}
	ending := false
	sc := wire.Scan(b)
	for v := (wire.Field{}); sc.Next(&v); {
		switch v.Num {
		case loggerPid:
			lg.pid = int(v.Value)
		case loggerEnding:
			v.Bool(&ending)
		}
	}
	if err := sc.Err(); err != nil {
		return err
	}
	s.loggers = append(s.loggers, lg)
	s.t.Adopt(lg.pid, func(process.Exit) { lg.exited() })
	if ending {
		lg.end()
	}
	return nil
}
