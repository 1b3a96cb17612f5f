// SPDX-License-Identifier: Apache-2.0

package event

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	events "github.com/containerd/containerd/api/events"
	forward "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/wire"
)

// containerd is the library's server with containerd's event service, which
// keeps what it gets. It can be stopped and started again.
type containerd struct {
	t      *testing.T
	path   string
	server *ttrpc.Server
	ended  chan error

	mu     sync.Mutex
	got    []*types.Envelope           // guarded by mu
	answer func(*types.Envelope) error // guarded by mu; or nil
	hold   func()                      // guarded by mu; or nil
}

func (c *containerd) Forward(_ context.Context, r *forward.ForwardRequest) (*emptypb.Empty, error) {
	c.mu.Lock()
	hold := c.hold
	c.mu.Unlock()
	if hold != nil {
		hold()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answer != nil {
		if err := c.answer(r.Envelope); err != nil {
			return nil, err
		}
	}
	c.got = append(c.got, r.Envelope)
	return &emptypb.Empty{}, nil
}

func (c *containerd) start() {
	c.t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		c.t.Fatal(err)
	}
	forward.RegisterTTRPCEventsService(server, c)
	listener, err := net.Listen("unix", c.path)
	if err != nil {
		c.t.Fatal(err)
	}
	c.server, c.ended = server, make(chan error, 1)
	go func() { c.ended <- server.Serve(context.Background(), listener) }()
}

func (c *containerd) stop() {
	c.t.Helper()
	if err := c.server.Close(); err != nil {
		c.t.Error(err)
	}
	<-c.ended
}

// answers sets what runs before an event is taken; it is called with c.mu held.
func (c *containerd) answers(answer func(*types.Envelope) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = answer
}

// holds sets what runs before that, without c.mu.
func (c *containerd) holds(hold func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = hold
}

// ids returns the container ids of the events received.
func (c *containerd) ids() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for _, e := range c.got {
		var start events.TaskStart
		if err := e.Event.UnmarshalTo(&start); err != nil {
			// The URL has no host, as containerd's typeurl writes it.
			c.t.Errorf("%v: %v", e, err)
		}
		ids = append(ids, start.ContainerID)
	}
	return ids
}

func (c *containerd) eventually(what string, ok func([]string) bool) {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		ids := c.ids()
		if ok(ids) {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("never: %s; have %d: %v", what, len(ids), ids[:min(len(ids), 20)])
		}
	}
}

// count waits for n events.
func (c *containerd) count(n int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%d events", n), func(ids []string) bool { return len(ids) >= n })
}

type fixture struct {
	t          *testing.T
	containerd *containerd
	loop       *loop.Loop
	publisher  *Publisher
	ended      chan error

	mu  sync.Mutex
	log []string // guarded by mu
}

func start(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, containerd: &containerd{t: t, path: filepath.Join(t.TempDir(), "c.sock")}}
	f.containerd.start()
	f.run()
	t.Cleanup(func() {
		f.stop()
		f.containerd.stop()
	})
	return f
}

func (f *fixture) run() {
	f.t.Helper()
	l, err := loop.New()
	if err != nil {
		f.t.Fatal(err)
	}
	f.loop, f.ended = l, make(chan error, 1)
	f.publisher = New(l, f.containerd.path, "ns", f.logf)
	go func() { f.ended <- l.Run() }()
}

func (f *fixture) stop() {
	f.do(func() { f.publisher.client.end(nil) })
	f.loop.Post(f.loop.Stop)
	<-f.ended
}

func (f *fixture) logf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

func (f *fixture) logged(text string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, line := range f.log {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (f *fixture) do(step func()) {
	done := make(chan struct{})
	f.loop.Post(func() {
		step()
		close(done)
	})
	<-done
}

// publish publishes events whose container ids count from..to-1.
func (f *fixture) publish(from, to int) {
	f.do(func() {
		for i := from; i < to; i++ {
			f.publishOne(fmt.Sprint(i))
		}
	})
}

func (f *fixture) publishOne(id string) {
	e := wire.TaskStart{ContainerID: id, Pid: 7}
	f.publisher.Publish(e.Topic(), e.TypeURL(), e.Append(nil))
}

func numbers(from, to int) []string {
	var want []string
	for i := from; i < to; i++ {
		want = append(want, fmt.Sprint(i))
	}
	return want
}

func TestPublish(t *testing.T) {
	f := start(t)
	before := time.Now()
	f.publish(0, 100)
	f.containerd.count(100)
	if got := f.containerd.ids(); !slices.Equal(got, numbers(0, 100)) {
		t.Errorf("got %v", got)
	}
	e := f.containerd.got[0]
	if e.Namespace != "ns" || e.Topic != "/tasks/start" || e.Event.TypeUrl != "containerd.events.TaskStart" {
		t.Errorf("envelope: %v", e)
	}
	if at := e.Timestamp.AsTime(); at.Before(before) || at.After(time.Now()) {
		t.Errorf("at %v", at)
	}
	if len(f.log) != 0 {
		t.Errorf("logged %v", f.log)
	}
}

func TestBigEvent(t *testing.T) {
	f := start(t)
	id := strings.Repeat("x", 3<<20) // more than a socket takes at once
	f.do(func() { f.publishOne(id); f.publishOne("after") })
	f.containerd.count(2)
	if got := f.containerd.ids(); got[0] != id || got[1] != "after" {
		t.Error("changed on the way")
	}
}

// containerd restarts again and again under a stream of events: none is lost and
// the order is kept. One whose answer was lost may come twice.
func TestRestarts(t *testing.T) {
	f := start(t)
	const rounds, each = 8, 60
	for i := range rounds {
		f.publish(i*each, i*each+each/2)
		f.containerd.stop()
		f.publish(i*each+each/2, (i+1)*each)
		f.containerd.start()
	}
	f.containerd.eventually("the last event", func(ids []string) bool {
		return slices.Contains(ids, fmt.Sprint(rounds*each-1))
	})
	got := slices.Compact(f.containerd.ids())
	if !slices.Equal(got, numbers(0, rounds*each)) {
		t.Errorf("got %d: %v", len(got), got)
	}
}

// While containerd is away nothing is given up, however often it is tried.
func TestAway(t *testing.T) {
	f := start(t)
	f.containerd.stop()
	f.publish(0, 100)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		var delay time.Duration
		f.do(func() { delay = f.publisher.delay })
		if delay >= 400*time.Millisecond { // the fourth failure
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the delay does not grow")
		}
	}
	f.do(func() {
		if n := f.publisher.Pending(); n != 100 {
			t.Errorf("%d are pending", n)
		}
	})
	f.containerd.start()
	f.containerd.count(100)
	if got := f.containerd.ids(); !slices.Equal(got, numbers(0, 100)) {
		t.Errorf("got %v", got)
	}
	f.do(func() {}) // the last answer may still be on its way, but not these lines
	if f.logged("is away") != 1 || f.logged("takes events again") != 1 {
		t.Errorf("logged %v", f.log)
	}
}

// An error answer is tried five times, then the next events follow.
func TestRefused(t *testing.T) {
	f := start(t)
	tries := map[string]int{}
	f.containerd.answers(func(e *types.Envelope) error {
		var m events.TaskStart
		_ = e.Event.UnmarshalTo(&m)
		switch tries[m.ContainerID]++; {
		case m.ContainerID == "1":
			return status.Error(codes.InvalidArgument, "bad topic")
		case m.ContainerID == "2" && tries["2"] < 4:
			return status.Error(codes.Unknown, "hiccup")
		case m.ContainerID == "3" && tries["3"] < 8:
			return status.Error(codes.Unavailable, "shutting down")
		}
		return nil
	})
	f.publish(0, 5)
	f.containerd.count(4)
	if got := f.containerd.ids(); !slices.Equal(got, []string{"0", "2", "3", "4"}) {
		t.Errorf("got %v", got)
	}
	f.containerd.mu.Lock()
	defer f.containerd.mu.Unlock()
	if tries["1"] != 5 || tries["2"] != 4 || tries["3"] != 8 {
		t.Errorf("tries: %v", tries)
	}
	if f.logged("refused /tasks/start: bad topic: dropped") != 1 {
		t.Errorf("logged %v", f.log)
	}
}

// The queue is bounded: the oldest go, but never the one in flight.
func TestBound(t *testing.T) {
	f := start(t)
	release := make(chan struct{})
	f.containerd.holds(func() { <-release })
	f.publish(0, 1)
	f.publish(1, maxQueue+100)
	f.do(func() {
		if n := f.publisher.Pending(); n != maxQueue {
			t.Errorf("%d are pending", n)
		}
	})
	close(release)
	f.containerd.count(maxQueue)
	want := append([]string{"0"}, numbers(101, maxQueue+100)...)
	if got := f.containerd.ids(); !slices.Equal(got, want) {
		t.Errorf("got %d, %v...", len(got), got[:3])
	}
	done := make(chan struct{})
	f.do(func() { f.publisher.Flush(10*time.Second, func() { close(done) }) })
	<-done
	if f.logged("dropping the oldest") != 1 || f.logged("100 events were dropped") != 1 {
		t.Errorf("logged %v", f.log)
	}
}

func TestFlush(t *testing.T) {
	f := start(t)
	flush := func(limit time.Duration) (pending int) {
		done := make(chan int)
		f.do(func() { f.publisher.Flush(limit, func() { go func(n int) { done <- n }(f.publisher.Pending()) }) })
		return <-done
	}
	if n := flush(time.Hour); n != 0 {
		t.Errorf("%d without any event", n)
	}
	f.publish(0, 50)
	if n := flush(time.Hour); n != 0 || len(f.containerd.ids()) != 50 {
		t.Errorf("%d are left, %d arrived", n, len(f.containerd.ids()))
	}
	f.containerd.stop()
	f.publish(50, 60)
	if n := flush(20 * time.Millisecond); n != 10 {
		t.Errorf("%d are left without containerd", n)
	}
	f.containerd.start()
	if n := flush(time.Hour); n != 0 {
		t.Errorf("%d are left", n)
	}
}

// An idle connection that containerd closed does not cost a failed try.
func TestIdleConnection(t *testing.T) {
	f := start(t)
	f.publish(0, 1)
	f.containerd.count(1)
	f.containerd.stop()
	f.containerd.start()
	for connected := true; connected; time.Sleep(time.Millisecond) {
		f.do(func() { connected = f.publisher.client.fd >= 0 })
	}
	f.publish(1, 2)
	f.containerd.count(2)
	if len(f.log) != 0 {
		t.Errorf("logged %v", f.log)
	}
}

func TestNoAddress(t *testing.T) {
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	p := New(l, "", "ns", nil)
	p.Publish("/t", "u", nil)
	if p.Pending() != 0 {
		t.Error("an event waits for nobody")
	}
}

func TestAddressTooLong(t *testing.T) {
	f := start(t)
	f.do(func() {
		f.publisher.address = strings.Repeat("x", 200)
		f.publishOne("0")
		if f.publisher.Pending() != 1 || f.logged("is away") != 1 {
			t.Errorf("%d pending, logged %v", f.publisher.Pending(), f.log)
		}
	})
}

// The state moves to another publisher, as through an exec, with an event in
// flight: it is neither lost nor sent twice.
func TestSnapshot(t *testing.T) {
	f := start(t)
	entered, release := make(chan struct{}, 64), make(chan struct{})
	f.containerd.holds(func() {
		entered <- struct{}{}
		<-release
	})
	f.publish(0, 30)
	<-entered

	var snapshot []byte
	dup := map[int]int{}
	f.do(func() {
		snapshot = f.publisher.Snapshot(nil, func(fd int) {
			n, err := unix.Dup(fd)
			if err != nil {
				t.Error(err)
			}
			dup[fd] = n
		})
	})
	f.stop()
	for fd, n := range dup { // the next program has the same numbers
		if err := unix.Dup3(n, fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		unix.Close(n)
	}
	if len(dup) != 1 {
		t.Errorf("%d descriptors are kept", len(dup))
	}
	f.run()
	f.do(func() {
		if err := f.publisher.Restore(snapshot); err != nil {
			t.Error(err)
		}
	})
	f.publish(30, 40)
	close(release)
	f.containerd.count(40)
	if got := f.containerd.ids(); !slices.Equal(got, numbers(0, 40)) {
		t.Errorf("got %v", got)
	}
}

// Without a connection, too.
func TestSnapshotAway(t *testing.T) {
	f := start(t)
	f.containerd.stop()
	f.publish(0, 30)
	var snapshot []byte
	f.do(func() {
		snapshot = f.publisher.Snapshot(nil, func(fd int) { t.Errorf("descriptor %d", fd) })
	})
	f.stop()
	f.run()
	f.do(func() {
		if err := f.publisher.Restore(snapshot); err != nil {
			t.Error(err)
		}
	})
	f.containerd.start()
	f.containerd.count(30)
	if got := f.containerd.ids(); !slices.Equal(got, numbers(0, 30)) {
		t.Errorf("got %v", got)
	}
}

func TestRestoreMalformed(t *testing.T) {
	f := start(t)
	f.do(func() {
		for _, b := range []string{"\x0a", "\x0a\x01\x12", "\x10"} {
			if err := New(f.loop, "/nowhere", "ns", f.logf).Restore([]byte(b)); fault.CodeOf(err) != fault.InvalidArgument {
				t.Errorf("%q: %v", b, err)
			}
		}
	})
}
