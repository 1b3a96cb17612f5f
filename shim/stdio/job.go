// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"bytes"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/crilog"
	"github.com/berthd/berth/shim/spool"
)

const (
	// readBytes is what the job reads at once.
	readBytes = 64 << 10
	// scratchBytes is where logs put their lines together: enough for a read's
	// worth of lines of usual length.
	scratchBytes = 128 << 10
	// readRounds bounds what one flow copies before the other gets its turn.
	readRounds = 8
	// jobBudget bounds a job. With one P a goroutine that is never idle lets the
	// loop see its events only when Go's monitor thread looks, every 10 ms.
	jobBudget = 2 * time.Millisecond
	// quietRetry is when work is looked at again that came while the loop wanted a
	// moment without jobs. That moment ends in an exec, or has failed by then.
	quietRetry = 10 * time.Millisecond
)

// memory is the job's buffers. They are mapped while there is work for one job
// after the other: an idle stream holds none, and the heap never sees them.
type memory struct {
	all     []byte
	in      []byte
	scratch []byte
}

// open maps the buffers, unless they are.
func (m *memory) open() error {
	if m.all != nil {
		return nil
	}
	p, err := unix.MmapPtr(-1, 0, nil, readBytes+scratchBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	m.all = unsafe.Slice((*byte)(p), readBytes+scratchBytes)
	m.in, m.scratch = m.all[:readBytes:readBytes], m.all[readBytes:]
	return nil
}

// close unmaps the buffers, if they are mapped.
func (m *memory) close() {
	if m.all != nil {
		_ = unix.MunmapPtr(unsafe.Pointer(&m.all[0]), uintptr(len(m.all)))
		*m = memory{}
	}
}

// work starts the job for all flows that need it, or makes a running one look
// again. Loop only.
func (s *Streams) work() {
	if s.working {
		s.again = true
		return
	}
	if s.closed {
		return
	}
	s.retry.Stop()
	if s.copyJob == nil {
		s.copyJob, s.copied = s.copyFlows, s.afterCopy
	}
	for i, f := range s.out {
		s.jobFlows[i] = nil
		if f != nil && !f.over && f.byJob() {
			f.waitFor(nothing)
			f.mayFill, f.shown = f.canSpool(), f.logged()
			s.jobFlows[i] = f
		}
	}
	if s.l.Quiescing() {
		s.retry = s.l.After(quietRetry, s.work)
		return
	}
	s.working, s.again = true, false
	s.jobClients = s.clients
	s.jobClients.Lend()
	s.yield.Store(false)
	s.reopening, s.reopens = s.reopens, nil
	s.l.GoOn(s.copyJob, s.copied)
}

// copyFlows is the job. It ends when no flow can go on, or its time is over.
func (s *Streams) copyFlows() {
	if len(s.reopening) > 0 {
		s.reopenErr = s.reopenLogs()
	}
	if err := s.memory.open(); err != nil {
		for _, f := range s.jobFlows {
			if f != nil {
				f.failure = err
			}
		}
		return
	}
	for began := time.Now(); time.Since(began) < jobBudget && !s.yield.Load() && !s.l.Quiescing(); {
		progress := false
		for _, f := range s.jobFlows {
			if f != nil && f.failure == nil && f.step(&s.memory) {
				progress = true
			}
		}
		if !progress {
			s.memory.close()
			return
		}
	}
}

func (s *Streams) reopenLogs() error {
	var first error
	for i := range s.logs {
		if err := s.logs[i].log.Reopen(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// afterCopy is called on the loop when the job has ended.
func (s *Streams) afterCopy() {
	s.working = false
	done, err := s.reopening, s.reopenErr
	s.reopening = nil
	s.jobClients.Return()
	if s.closed {
		s.closeFlows()
	} else {
		for _, f := range s.jobFlows {
			if f != nil {
				f.afterStep()
			}
		}
		if s.again {
			s.work()
		}
		s.settle()
	}
	for _, f := range done {
		f(err)
	}
}

// afterStep decides what the flow waits for after the job.
func (f *flow) afterStep() {
	f.spooling = f.spool != nil
	switch {
	case f.over:
	case f.failure != nil:
		err := f.failure
		f.failure = nil
		f.fail(err)
	case f.srcEnded && f.src >= 0:
		f.sourceEnded()
	case f.src < 0 && !f.holds():
		f.finish()
	case f.src < 0:
		f.stall()
	case f.holds():
		what := sink
		if f.spool != nil && len(f.pending) == 0 && !f.srcHung && !f.spool.Full() && f.canSpool() {
			what |= source
		}
		f.waitFor(what)
		f.spoolOn()
	case f.srcHung:
		f.srcHung = false
		if f.hung == nil {
			f.hangUp()
		}
	case f.logged():
		f.waitFor(source)
	default:
		f.rest()
	}
}

// step moves what can be moved, in the job, and tells whether anything was.
func (f *flow) step(m *memory) bool {
	progress := f.deliver(m)
	switch {
	case f.failure != nil, len(f.pending) > 0, f.src < 0, f.srcEnded, f.srcHung:
		return progress
	case f.shown:
		return f.read(m, readRounds) || progress
	case f.spool == nil && (!f.mayFill || f.sinkReady()):
		return false // the loop goes on with it
	case f.copying:
		return f.read(m, 1) || progress
	}
	return f.fill() || progress
}

// deliver hands what is held back to the sink, oldest first.
func (f *flow) deliver(m *memory) bool {
	progress := false
	if f.spool != nil {
		n, err := f.spool.Replay(f.dst, m.in)
		progress = n > 0
		if err != nil && err != unix.EAGAIN {
			f.sinkBroken, f.failure = true, err
			return progress
		}
		if f.spool.Len() == 0 {
			f.spool.Remove()
			f.spool = nil
		}
	}
	if len(f.pending) == 0 {
		return progress
	}
	rest := f.put(f.pending)
	progress = progress || len(rest) < len(f.pending)
	f.pending = rest
	return progress
}

// put gives p to the sink, or to the spool in front of it, and returns what
// neither takes.
func (f *flow) put(p []byte) []byte {
	if f.dst < 0 {
		return nil
	}
	for f.spool == nil && len(p) > 0 {
		n, err := unix.Write(f.dst, p)
		if n > 0 {
			p = p[n:]
			continue
		}
		if err == unix.EINTR {
			continue
		}
		if err != unix.EAGAIN {
			f.sinkBroken, f.failure = true, err
			return p
		}
		if !f.mayFill || !f.openSpool() {
			return p
		}
	}
	if len(p) == 0 || !f.mayFill {
		return p
	}
	n, _ := f.spool.Write(p) // a full spool is no error: what it leaves is held
	return p[n:]
}

// fill moves the source, a pipe, into the spool.
func (f *flow) fill() bool {
	if !f.mayFill || f.spool == nil && !f.openSpool() {
		return false
	}
	n, err := f.spool.Fill(f.src)
	switch {
	case n > 0:
		return true
	case err == nil:
		f.srcEnded = true
	case err != unix.EAGAIN && err != unix.ENOSPC:
		f.s.warn(f.name()+" is not spooled", err) // and so blocks
	}
	return false
}

func (f *flow) openSpool() bool {
	limit := f.s.cfg.SpoolMax
	if limit == 0 {
		limit = DefaultSpoolMax
	}
	sp, err := spool.Create(f.s.spoolPath(f.stream), limit)
	if err != nil {
		f.noSpool, f.mayFill = true, false
		f.s.warn(f.name()+" is not spooled", err)
		return false
	}
	f.spool = sp
	return true
}

// sinkReady tells whether dst takes something.
func (f *flow) sinkReady() bool {
	fds := [1]unix.PollFd{{Fd: int32(f.dst), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds[:], 0)
	return err == nil && n > 0
}

// read copies from the source to the logs and to the sink, until the source is
// empty, the sink full, or rounds are over.
func (f *flow) read(m *memory, rounds int) bool {
	progress := false
	kept := 0 // bytes at the start of m.in that the logs have not seen
	for round := 1; round <= rounds && len(f.pending) == 0 && f.failure == nil; {
		n, err := unix.Read(f.src, m.in[kept:])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			f.noteRead(err)
			break
		}
		round++
		progress = true
		fresh, seen := m.in[kept:kept+n], m.in[:kept+n]
		if rest := f.put(fresh); len(rest) > 0 && f.failure == nil {
			f.hold(rest)
		}
		// A line that was cut by the buffer's end, not by its writer, is not logged
		// in pieces.
		cut := len(seen)
		if len(seen) == len(m.in) && round <= rounds {
			if i := bytes.LastIndexByte(seen, '\n'); i >= 0 {
				cut = i + 1
			}
		}
		f.log(seen[:cut], m.scratch)
		kept = copy(m.in, seen[cut:])
	}
	f.log(m.in[:kept], m.scratch)
	return progress
}

// noteRead remembers why a read gave nothing.
func (f *flow) noteRead(err error) {
	switch {
	case err == nil:
		f.srcEnded = true
	case err == unix.EAGAIN:
	case err == unix.EIO && f.copying:
		f.srcHung = true
	default:
		f.failure = err
	}
}

// log shows data to the stream's logs and clients.
func (f *flow) log(data, scratch []byte) {
	if len(data) == 0 {
		return
	}
	now := time.Now()
	for i := range f.s.logs {
		if t := &f.s.logs[i]; t.streams[f.stream] {
			t.log.Write(crilog.Stream(f.stream), data, now, scratch)
		}
	}
	f.s.jobClients.Write(f.stream, data, scratch)
}
