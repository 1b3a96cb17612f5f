// SPDX-License-Identifier: Apache-2.0

// Package attach lets any number of clients follow the output of a process and
// type its input, each over a unix socket of packets that it connects to once.
//
// It owns those sockets and what belongs to a client: which streams it wants,
// what it has not read, and when it has lost its place. What a client has not
// read waits in its socket, in the kernel, up to a bound, so that this program
// holds nothing of it and hands it to its successor with the descriptor. A client
// that would have to be waited for is cut off. The package does not know where
// output comes from and where input goes: shim/stdio does.
package attach

import (
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
)

const (
	// The first byte of a packet of output. 1, stdin's, is not used: input is raw.
	markStdout = 2
	markStderr = 3
	// maxData is what follows it at most. 8192, as clients expect, would take twice
	// the memory of this in the kernel, which adds its own to a packet and rounds up
	// to a power of two.
	maxData = 7680
	// maxInput is the longest packet of input.
	maxInput = 32 << 10
	// queueBytes is the kernel's memory that may hold what a client has not read: a
	// client in good health must get over 100 ms without a processor, in which a
	// container prints 20 to 40 MB. The more clients there are, the less a new one
	// gets, so that all together have 550 MiB at most.
	queueBytes    = 64 << 20
	queueMinBytes = 1 << 20
	fullQueues    = 4 // clients that get all of it, as many half of it, and so on
	// connectLimit is how long a socket waits for its client.
	connectLimit = 10 * time.Second
	// maxClients bounds what the clients of a process can take of the host.
	maxClients = 64
)

// inputBuffer is where input is read, on the loop. Its pages cost nothing until
// somebody types.
var inputBuffer [maxInput]byte

// Request is what a client wants.
type Request struct {
	Stdin, Stdout, Stderr bool
	// Once: when this client's input ends, that of the process does.
	Once bool
}

// Hub is the clients of one process. Its methods are for the loop, except Write.
type Hub struct {
	// Input takes a packet of input, which it must not keep. If there is no room
	// for more, it calls Hold.
	Input func(p []byte)
	// InputEnded is called when the input of a client with Once has ended.
	InputEnded func()
	// Warn reports what a person may want to know.
	Warn func(text string)

	l       *loop.Loop
	doors   []*door
	clients []*client
	held    bool // input is left where it is

	lent    []*client // what the job serves
	working bool      // between Lend and Return
	cut     int       // clients that were too slow, so far
}

// door is a socket that waits for its client.
type door struct {
	fd    int
	path  string
	want  Request
	timer *loop.Timer
}

// client is a connection. What the job sets it sets before Return.
type client struct {
	fd     int
	want   Request // Stdin: until its end
	gone   bool    // it has closed the connection
	asleep bool    // not watched, though it is there: its hang-up came while input is held

	deaf bool // by the job: it does not take output any more
	slow bool // by the job: it has lost output
}

// New returns a hub without clients.
func New(l *loop.Loop) *Hub { return &Hub{l: l} }

// Open makes a socket for one client of a process of the shim at socket, and
// returns its path. It stays for connectLimit, or until the client has connected.
func (h *Hub) Open(socket string, want Request) (path string, err error) {
	if len(h.doors)+len(h.clients) >= maxClients {
		return "", fault.New(fault.ResourceExhausted, strconv.Itoa(maxClients)+" clients are attached")
	}
	fd, path, err := listen(socket)
	if err != nil {
		return "", err
	}
	d := &door{fd: fd, path: path, want: want}
	if err := h.open(d); err != nil {
		h.shut(d)
		return "", err
	}
	return path, nil
}

func (h *Hub) open(d *door) error {
	h.doors = append(h.doors, d)
	d.timer = h.l.After(connectLimit, func() { h.shut(d) })
	return h.l.Watch(d.fd, unix.EPOLLIN, func(uint32) { h.accept(d) })
}

// shut takes a door away.
func (h *Hub) shut(d *door) {
	d.timer.Stop()
	h.l.Unwatch(d.fd)
	_ = unix.Close(d.fd)
	_ = unix.Unlink(d.path) // Remove comes by
	if i := slices.Index(h.doors, d); i >= 0 {
		h.doors = slices.Delete(h.doors, i, i+1)
	}
}

// accept lets the client in and shuts its door.
func (h *Hub) accept(d *door) {
	fd, _, err := unix.Accept4(d.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err == unix.EMFILE || err == unix.ENFILE || err == unix.ENOBUFS || err == unix.ENOMEM {
		h.Warn("attach: " + err.Error())
		h.shut(d)
		return
	}
	if err != nil {
		return // the peer gave up
	}
	if !root(fd) {
		_ = unix.Close(fd)
		return
	}
	h.shut(d)
	// The kernel counts twice what it is told. Without the privilege the host's
	// limit holds (socket(7)).
	size := max(queueBytes>>(len(h.clients)/fullQueues), queueMinBytes)
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size/2) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size/2)
	}
	if err := h.add(&client{fd: fd, want: d.want}); err != nil {
		h.Warn("attach: " + err.Error())
	}
}

// add makes c one of the clients, or closes it.
func (h *Hub) add(c *client) error {
	if err := h.l.Watch(c.fd, h.events(c), func(ev uint32) { h.ready(c, ev) }); err != nil {
		closeSocket(c.fd)
		return err
	}
	h.clients = append(h.clients, c)
	return nil
}

// events is what the loop watches for. The end of a connection it always tells.
func (h *Hub) events(c *client) uint32 {
	if c.want.Stdin && !h.held {
		return unix.EPOLLIN
	}
	return 0
}

// Wants tells whether a client follows stream, 0 for stdout and 1 for stderr.
func (h *Hub) Wants(stream int) bool {
	if h == nil {
		return false
	}
	for _, c := range h.clients {
		if c.follows(stream) && !c.gone {
			return true
		}
	}
	return false
}

func (c *client) follows(stream int) bool {
	return stream == 0 && c.want.Stdout || stream == 1 && c.want.Stderr
}

// ready reads input, or takes notice of the end of the connection.
func (h *Hub) ready(c *client, ev uint32) {
	if !c.want.Stdin {
		h.leave(c)
		return
	}
	if h.held {
		// What it has typed before it left comes when there is room.
		h.l.Unwatch(c.fd)
		c.asleep = true
		return
	}
	// With MSG_TRUNC the result is the packet's length, even if it has no room.
	n, _, err := unix.Recvfrom(c.fd, inputBuffer[:], unix.MSG_TRUNC)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR || err == unix.ECONNRESET:
		// The last tells that it left without having read everything. Its own words
		// are still there.
	case n > maxInput:
		h.Warn("attach: a client is cut off: its packet of input has " + strconv.Itoa(n) + " bytes, above " + strconv.Itoa(maxInput))
		h.leave(c)
	case n > 0:
		h.Input(inputBuffer[:n])
	case err != nil || ev&(unix.EPOLLHUP|unix.EPOLLERR) != 0:
		h.leave(c)
	default: // half of the connection has ended
		h.inputEnds(c)
		h.watchAgain(c)
	}
}

// watchAgain makes the loop watch for what is wanted of c now.
func (h *Hub) watchAgain(c *client) {
	switch {
	case c.gone:
	case c.asleep:
		c.asleep = false
		if err := h.l.Watch(c.fd, h.events(c), func(ev uint32) { h.ready(c, ev) }); err != nil {
			h.Warn("attach: " + err.Error())
			h.leave(c)
		}
	default:
		// It can fail only for a descriptor that is not watched.
		_ = h.l.Rearm(c.fd, h.events(c))
	}
}

// inputEnds is called when c types no more.
func (h *Hub) inputEnds(c *client) {
	typed := c.want.Stdin
	c.want.Stdin = false
	if typed && c.want.Once {
		h.InputEnded()
	}
}

// leave ends a client's connection.
func (h *Hub) leave(c *client) {
	if c.gone {
		return
	}
	c.gone = true
	h.l.Unwatch(c.fd)
	h.inputEnds(c)
	h.sweep()
}

// sweep closes the connections that have ended, unless the job may use them.
func (h *Hub) sweep() {
	if h.working {
		return
	}
	h.clients = slices.DeleteFunc(h.clients, func(c *client) bool {
		if c.gone {
			closeSocket(c.fd)
		}
		return c.gone
	})
}

// Hold leaves input where it is, until Resume.
func (h *Hub) Hold() { h.hold(true) }

// Resume goes on with input.
func (h *Hub) Resume() { h.hold(false) }

func (h *Hub) hold(yes bool) {
	if h == nil || h.held == yes {
		return
	}
	h.held = yes
	for _, c := range slices.Clone(h.clients) { // one may leave
		if c.want.Stdin {
			h.watchAgain(c)
		}
	}
}

// Lend gives the present clients to Write, until Return.
func (h *Hub) Lend() {
	if h != nil {
		h.working, h.lent = true, h.clients
	}
}

// Write sends output of stream to the clients that Lend has found. It does not
// wait for any of them. It is called by a job, with a buffer to put packets
// together in.
func (h *Hub) Write(stream int, data, scratch []byte) {
	if h == nil {
		return
	}
	for len(data) > 0 {
		n := min(len(data), maxData, len(scratch)-1)
		scratch[0] = byte(markStdout + stream)
		packet := scratch[:1+copy(scratch[1:], data[:n])]
		data = data[n:]
		for _, c := range h.lent {
			if c.follows(stream) && !c.deaf && !c.slow {
				c.send(packet)
			}
		}
	}
}

func (c *client) send(packet []byte) {
	for {
		switch err := unix.Send(c.fd, packet, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err {
		case nil:
			return
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
			c.slow = true
			return
		default: // it has closed the connection: the loop hears of it, too
			c.deaf = true
			return
		}
	}
}

// Return ends what Lend began, and cuts off who was too slow.
func (h *Hub) Return() {
	if h == nil {
		return
	}
	h.working, h.lent = false, nil
	for _, c := range slices.Clone(h.clients) {
		if c.deaf {
			c.want.Stdout, c.want.Stderr = false, false
		}
		if c.slow && !c.gone {
			h.cut++
			h.Warn("attach: a client is cut off: it does not read (" + strconv.Itoa(h.cut) + " so far)")
			h.leave(c)
		}
	}
	h.sweep()
}

// Close ends all connections: clients get what they have not read, and then the
// end. Who has connected and was not let in yet gets an end, too, not an error.
func (h *Hub) Close() {
	if h == nil {
		return
	}
	for len(h.doors) > 0 {
		d := h.doors[0]
		_ = unix.Unlink(d.path) // before: who has found it is to be accepted
		if fd, _, err := unix.Accept4(d.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK); err == nil {
			closeSocket(fd)
		}
		h.shut(d)
	}
	for _, c := range h.clients {
		if !c.gone {
			h.l.Unwatch(c.fd)
		}
		closeSocket(c.fd)
	}
	h.clients = nil
}

// closeSocket ends a connection. Input that nobody has read is taken out before:
// with it the kernel would turn the peer's end into an error.
func closeSocket(fd int) {
	_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	for {
		n, _, err := unix.Recvfrom(fd, inputBuffer[:], 0)
		if err != unix.EINTR && n <= 0 {
			break
		}
	}
	_ = unix.Close(fd)
}
