// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/spool"
)

const (
	// burstBytes is what a flow moves before other events get their turn.
	burstBytes = 1 << 20
	// spliceBytes is what one splice moves at most: a pipe's usual capacity.
	spliceBytes = 64 << 10
	// hangUpPause is how long a terminal that nobody has open is left alone before
	// it is read again: a later process may open it (conmon does the same).
	hangUpPause = 100 * time.Millisecond
)

// loopBuffer is where terminals are read on the loop. 4096 is what a terminal
// returns at most.
var loopBuffer [4096]byte

// What a flow waits for.
const (
	nothing uint8 = 0
	source  uint8 = 1
	sink    uint8 = 2
)

// flow moves bytes from a source to a sink: stdin from a fifo to the process,
// output from the process to a fifo or a logger's pipe. With logs it also shows
// each byte to them. Exactly one of the loop and the streams' job works on it.
type flow struct {
	s      *Streams
	stream int  // stdout or stderr, or -1 for stdin
	src    int  // owned; -1: none (yet), or ended
	dst    int  // owned; -1: the bytes are dropped, or only logged
	fifo   bool // dst is a fifo for output
	// copying: one end is a terminal, which splice does not serve on all kernels.
	copying bool
	bulk    bool // the last piece was large: so will the next one be
	fed     bool // input that clients give, and nobody else

	waiting uint8 // what the loop watches
	onEvent func(ev uint32)
	hung    *loop.Timer // set while a terminal without a process is left alone
	over    bool

	buffer   []byte // room for pending, kept
	pending  []byte // read, logged, but not taken by dst
	spool    *spool.File
	spooling bool // the job sees to the flow because of a spool, or for one
	noSpool  bool // it could not be made: tried again when containerd has come and gone
	mayFill  bool // the job may add to the spool
	shown    bool // the job shows its bytes to logs and clients

	// What the job found.
	srcEnded   bool
	srcHung    bool
	sinkBroken bool // failure is dst's
	failure    error
}

func (s *Streams) newFlow(stream int) *flow {
	f := &flow{s: s, stream: stream, src: -1, dst: -1, copying: s.cfg.Terminal}
	f.onEvent = f.ready
	return f
}

func (f *flow) name() string {
	if f.stream < 0 {
		return "stdin"
	}
	return streamName(f.stream)
}

func (f *flow) start() {
	switch {
	case f.over:
	case f.src < 0 && !f.holds():
		if !f.expects() {
			f.finish()
		}
	case f.byJob():
		f.s.work()
	case f.src < 0 || len(f.pending) > 0:
		f.waitFor(sink)
	default:
		f.waitFor(source)
	}
}

// byJob tells whether the flow is work for the job instead of the loop.
func (f *flow) byJob() bool { return f.spooling || f.logged() }

// logged tells whether logs or clients see the flow's bytes.
func (f *flow) logged() bool {
	if f.s.clients.Wants(f.stream) {
		return true
	}
	for i := range f.s.logs {
		if f.stream >= 0 && f.s.logs[i].streams[f.stream] {
			return true
		}
	}
	return false
}

// expects tells whether there may be input without a source.
func (f *flow) expects() bool { return f.fed || f.stream < 0 && f.s.inputPath != "" }

// holds tells whether bytes wait for the sink.
func (f *flow) holds() bool { return len(f.pending) > 0 || f.spool != nil }

// waitFor makes the loop watch for what, and nothing else.
func (f *flow) waitFor(what uint8) {
	f.watch(f.src, what&source, f.waiting&source, unix.EPOLLIN)
	f.watch(f.dst, what&sink, f.waiting&sink, unix.EPOLLOUT)
	f.waiting = what
}

func (f *flow) watch(fd int, want, have uint8, ev uint32) {
	switch {
	case want == have:
	case want == 0:
		f.s.l.Unwatch(fd)
	default:
		if err := f.s.l.Watch(fd, ev, f.onEvent); err != nil {
			// The stream cannot go on. Not from here: the caller is in the middle of it.
			f.s.l.Post(func() { f.fail(err) })
		}
	}
}

func (f *flow) ready(uint32) {
	if f.byJob() {
		f.s.work()
		return
	}
	f.pump()
}

// pump moves what it can, a burst at most, and then waits for the end that is not
// ready.
func (f *flow) pump() {
	for moved := 0; moved < burstBytes; {
		n, err := f.move()
		switch {
		case n > 0:
			moved += n
			f.bulk = n >= len(loopBuffer)
		case err == nil:
			f.sourceEnded()
			return
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			f.rest()
			return
		case err == unix.EIO && f.copying && f.stream >= 0:
			f.hangUp()
			return
		case err == unix.EIO && f.copying: // nobody is there to read the input
			f.pending = nil
			f.roomForInput()
		default:
			f.fail(err)
			return
		}
	}
	// The loop is level triggered: it comes back here after the others.
}

// move moves one piece. 0 and no error is the end of the source.
func (f *flow) move() (int, error) {
	if len(f.pending) > 0 {
		n, err := unix.Write(f.dst, f.pending)
		if n > 0 {
			f.pending = f.pending[n:]
			f.roomForInput()
		}
		f.sinkBroken = n < 0
		return n, err
	}
	if f.src < 0 {
		return 0, nil
	}
	if !f.copying && f.dst >= 0 && (f.bulk || !f.small()) {
		n, err := unix.Splice(f.src, nil, f.dst, nil, spliceBytes, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		return int(n), err
	}
	n, err := unix.Read(f.src, loopBuffer[:])
	if n <= 0 || f.dst < 0 {
		return n, err
	}
	m, err := unix.Write(f.dst, loopBuffer[:n])
	f.hold(loopBuffer[max(m, 0):n])
	if m < 0 && err != unix.EAGAIN && err != unix.EINTR {
		f.sinkBroken = true
		return 0, err
	}
	return n, nil
}

// small tells whether what the source has is better copied. Spliced data takes a
// whole slot of the sink's pipe, of which there are 16, however short it is;
// written data shares slots. So a few short lines that nobody reads yet would
// fill the sink.
func (f *flow) small() bool {
	n, err := unix.IoctlGetInt(f.src, unix.TIOCINQ)
	return err == nil && n < len(loopBuffer)
}

// hold keeps what dst has not taken.
func (f *flow) hold(rest []byte) {
	if len(rest) > 0 {
		f.buffer = append(f.buffer[:0], rest...)
		f.pending = f.buffer
	}
}

// rest finds out which end is not ready and waits for it.
func (f *flow) rest() {
	fds := [2]unix.PollFd{{Fd: int32(f.src), Events: unix.POLLIN}, {Fd: int32(f.dst), Events: unix.POLLOUT}}
	if _, err := unix.Poll(fds[:], 0); err != nil && err != unix.EINTR {
		f.fail(err)
		return
	}
	in, out := fds[0].Revents, fds[1].Revents
	switch {
	case len(f.pending) > 0:
		f.stall()
	case in&unix.POLLIN == 0 && in&unix.POLLHUP != 0 && !f.copying:
		// The source is at its end, but a full sink is what splice looks at first.
		f.sourceEnded()
	case in&unix.POLLIN != 0 && f.dst >= 0 && out&unix.POLLOUT == 0:
		f.stall()
	default:
		f.waitFor(source)
	}
}

// stall waits for the sink: ordinary back-pressure, unless output can be spooled.
func (f *flow) stall() {
	f.waitFor(sink)
	f.spoolOn()
}

// canSpool tells whether the flow may have a spool now.
func (f *flow) canSpool() bool {
	c := &f.s.cfg
	return f.fifo && !f.over && !f.s.connected && c.Work != "" && c.SpoolMax >= 0 && !f.noSpool
}

// spoolOn makes the job take the flow over, with a spool, if it may have one.
func (f *flow) spoolOn() {
	if f.spool == nil && f.canSpool() {
		f.spooling = true
		f.s.work()
	}
}

// sourceEnded is called at the end of the source, on the loop.
func (f *flow) sourceEnded() {
	if f.expects() {
		f.waitFor(nothing)
		return
	}
	if f.src >= 0 {
		f.waitFor(f.waiting &^ source)
		if f.src == f.s.master && f.stream >= 0 {
			f.s.master = -1
		}
		closeFD(&f.src)
	}
	if f.holds() {
		f.stall()
		return
	}
	f.finish()
}

// hangUp is called when no process has the terminal open.
func (f *flow) hangUp() {
	if f.s.exited {
		f.sourceEnded()
		return
	}
	f.waitFor(nothing)
	f.hung = f.s.l.After(hangUpPause, func() {
		f.hung = nil
		if !f.over && !f.s.working {
			f.waitFor(source)
		}
	})
}

// fail ends the stream because of err.
func (f *flow) fail(err error) {
	if f.over {
		return
	}
	// A process that has closed its input, or has ended, needs no report.
	if f.stream >= 0 || err != unix.EPIPE {
		f.s.warn(f.name(), err)
	}
	if f.sinkBroken && f.stream >= 0 && (f.copying || f.logged()) {
		// A terminal, and logs, outlive who else was reading.
		f.discard()
		return
	}
	f.finish()
}

// discard goes on without the sink.
func (f *flow) discard() {
	f.waitFor(nothing)
	closeFD(&f.dst)
	f.fifo, f.sinkBroken, f.pending = false, false, nil
	f.dropSpool()
	f.start()
}

// finish ends the flow: what was read has been taken, or never will be.
func (f *flow) finish() {
	if f.over {
		return
	}
	if f.fifo && f.dst >= 0 {
		f.waitFor(f.waiting &^ sink)
		f.s.linger(f.dst)
		f.dst = -1
	}
	f.close()
	f.s.settle()
}

// close ends the flow as it is.
func (f *flow) close() {
	if f.over {
		return
	}
	f.over = true
	f.hung.Stop()
	f.waitFor(nothing)
	if f.stream >= 0 && f.src == f.s.master {
		f.s.master = -1
	}
	if f.stream < 0 {
		closeFD(&f.s.keeper)
	}
	closeFD(&f.src)
	closeFD(&f.dst)
	f.dropSpool()
	f.buffer, f.pending = nil, nil
	f.roomForInput()
}

// dropSpool gives up the spool. It is one unlink, and only when a stream is given
// up with data in it.
func (f *flow) dropSpool() {
	if f.spool != nil {
		f.spool.Remove()
		f.spool = nil
	}
	f.spooling = false
}
