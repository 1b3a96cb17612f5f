// SPDX-License-Identifier: Apache-2.0

package ttrpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/wire"
)

// fixture is a server on a loop of its own.
type fixture struct {
	t      *testing.T
	loop   *loop.Loop
	server *Server
	path   string
	ended  chan error
}

// serveTasks is a small Task service: State echoes its id in the response,
// Connect fails, Wait puts its call off, Pids answers with as many processes as
// the id has bytes.
type serveTasks struct {
	waiting []*Call
	put     chan int // the number of waiting calls, when not nil
	state   wire.StateRequest
	pids    wire.PidsResponse
}

func (s *serveTasks) serve(c *Call) {
	if string(c.Service) != wire.TaskService {
		c.Fail(fault.New(fault.Unimplemented, "service "+string(c.Service)))
		return
	}
	switch string(c.Method) {
	case "State":
		if err := s.state.Decode(c.Payload); err != nil {
			c.Fail(err)
			return
		}
		r := wire.StateResponse{ID: s.state.ID, Pid: 7, Status: wire.StatusRunning, ExitedAt: 1}
		c.Reply(r.Append(c.Buffer()))
	case "Connect":
		c.Fail(fault.New(fault.NotFound, "no such container"))
	case "Wait":
		s.waiting = append(s.waiting, c.Later())
		if s.put != nil {
			s.put <- len(s.waiting)
		}
	case "Pids":
		var m wire.PidsRequest
		_ = m.Decode(c.Payload)
		s.pids.Processes = make([]wire.ProcessInfo, len(m.ID))
		for i := range s.pids.Processes {
			s.pids.Processes[i].Pid = uint32(i + 1)
		}
		c.Reply(s.pids.Append(c.Buffer()))
	case "Pause":
		c.Reply(nil)
	case "Resume": // not even a slice of Buffer
		c.Reply([]byte{})
	case "Stats": // an answer that was not made in Buffer
		m := wire.StatsResponse{Stats: wire.Any{TypeURL: "x", Value: c.Payload}}
		c.Reply(m.Append(nil))
	case "Kill": // forgets to answer
	case "Shutdown": // answers too much
		c.Reply(nil)
		c.Reply(nil)
		c.Fail(fault.New(fault.Internal, "too late"))
	default:
		c.Fail(fault.New(fault.Unimplemented, "method "+string(c.Method)))
	}
}

func start(t *testing.T, serve func(*Call)) *fixture {
	t.Helper()
	f := &fixture{t: t, path: filepath.Join(t.TempDir(), "s"), ended: make(chan error, 1)}
	f.run(serve, func(s *Server) error { return s.Listen(listen(t, f.path)) })
	t.Cleanup(func() {
		f.do(f.server.Close)
		f.stop()
	})
	return f
}

func listen(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		t.Fatal(err)
	}
	return fd
}

func (f *fixture) run(serve func(*Call), setup func(*Server) error) {
	f.t.Helper()
	l, err := loop.New()
	if err != nil {
		f.t.Fatal(err)
	}
	f.loop, f.server = l, NewServer(l, serve)
	if err := setup(f.server); err != nil {
		f.t.Fatal(err)
	}
	go func() { f.ended <- l.Run() }()
}

func (f *fixture) stop() {
	f.t.Helper()
	f.loop.Post(f.loop.Stop)
	if err := <-f.ended; err != nil {
		f.t.Error(err)
	}
}

// do runs a step on the loop and waits for it.
func (f *fixture) do(step func()) {
	done := make(chan struct{})
	f.loop.Post(func() {
		step()
		close(done)
	})
	<-done
}

// eventually polls a condition, on the loop.
func (f *fixture) eventually(what string, ok func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		var yes bool
		f.do(func() { yes = ok() })
		if yes {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("never: %s", what)
		}
	}
}

func (f *fixture) dial() net.Conn {
	f.t.Helper()
	conn, err := net.Dial("unix", f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	return conn
}

func (f *fixture) client() (taskapi.TTRPCTaskService, *ttrpc.Client) {
	f.t.Helper()
	c := ttrpc.NewClient(f.dial())
	f.t.Cleanup(func() { c.Close() })
	return taskapi.NewTTRPCTaskClient(c), c
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestCalls(t *testing.T) {
	f := start(t, (&serveTasks{}).serve)
	task, client := f.client()
	ctx := testContext(t)

	state, err := task.State(ctx, &taskapi.StateRequest{ID: "one"})
	if err != nil || state.ID != "one" || state.Pid != 7 {
		t.Errorf("State: %v, %v", state, err)
	}
	for name, call := range map[string]func() error{
		"no bytes":    func() error { _, err := task.Pause(ctx, &taskapi.PauseRequest{ID: "a"}); return err },
		"empty slice": func() error { _, err := task.Resume(ctx, &taskapi.ResumeRequest{ID: "a"}); return err },
		"twice":       func() error { _, err := task.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "a"}); return err },
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = task.Connect(ctx, &taskapi.ConnectRequest{ID: "a"})
	if s := status.Convert(err); s.Code() != codes.NotFound || s.Message() != "no such container" {
		t.Errorf("Connect: %v", err)
	}
	_, err = task.Kill(ctx, &taskapi.KillRequest{ID: "a"})
	if status.Code(err) != codes.Internal {
		t.Errorf("forgotten answer: %v", err)
	}
	_, err = task.Update(ctx, &taskapi.UpdateTaskRequest{ID: "a"})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("unknown method: %v", err)
	}
	err = client.Call(ctx, "no.Service", "State", &taskapi.StateRequest{}, &taskapi.StateResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("unknown service: %v", err)
	}
}

// Responses larger than the scratch buffer, and than what it may grow to.
func TestResponseSizes(t *testing.T) {
	f := start(t, (&serveTasks{}).serve)
	task, _ := f.client()
	for _, n := range []int{0, 1, 200, 2000, scratchBytes, keepBytes, 300_000, 1} {
		id := strings.Repeat("x", n)
		pids, err := task.Pids(testContext(t), &taskapi.PidsRequest{ID: id})
		if err != nil || len(pids.Processes) != n {
			t.Fatalf("%d processes: got %d, %v", n, len(pids.GetProcesses()), err)
		}
		stats, err := task.Stats(testContext(t), &taskapi.StatsRequest{ID: id})
		if err != nil || len(stats.Stats.Value) < n {
			t.Fatalf("%d bytes: got %d, %v", n, len(stats.GetStats().GetValue()), err)
		}
	}
	_, err := task.Pids(testContext(t), &taskapi.PidsRequest{ID: strings.Repeat("x", 1<<20)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("oversized response: %v", err)
	}
}

func TestConcurrentClients(t *testing.T) {
	f := start(t, (&serveTasks{}).serve)
	var group sync.WaitGroup
	for c := range 5 {
		task, _ := f.client()
		for g := range 4 {
			group.Go(func() {
				for i := range 100 {
					id := fmt.Sprintf("%d-%d-%d-%s", c, g, i, strings.Repeat("y", i*37))
					got, err := task.State(testContext(t), &taskapi.StateRequest{ID: id})
					if err != nil || got.ID != id {
						t.Errorf("%s: %v, %v", id, got, err)
						return
					}
				}
			})
		}
	}
	group.Wait()
}

func TestLater(t *testing.T) {
	tasks := &serveTasks{put: make(chan int, 8)}
	f := start(t, tasks.serve)
	task, _ := f.client()
	gone, goneClient := f.client()

	got := make(chan *taskapi.WaitResponse, 2)
	go func() {
		r, _ := task.Wait(testContext(t), &taskapi.WaitRequest{ID: "a", ExecID: "e"})
		got <- r
	}()
	<-tasks.put
	go func() { _, _ = gone.Wait(testContext(t), &taskapi.WaitRequest{ID: "b"}) }()
	<-tasks.put
	// Other calls go on meanwhile, on the same connection too.
	if _, err := task.State(testContext(t), &taskapi.StateRequest{ID: "x"}); err != nil {
		t.Fatal(err)
	}
	goneClient.Close()
	f.eventually("the second client is gone", func() bool { return f.server.Conns() == 1 && f.server.Pending() == 1 })

	f.do(func() {
		if tasks.waiting[0].Gone() || !tasks.waiting[1].Gone() {
			t.Errorf("gone: %v, %v", tasks.waiting[0].Gone(), tasks.waiting[1].Gone())
		}
		for _, c := range tasks.waiting {
			var m wire.WaitRequest
			if err := m.Decode(c.Payload); err != nil || m.ID == "" {
				t.Errorf("the request is lost: %v, %v", m, err)
			}
			c.Reply((&wire.WaitResponse{ExitStatus: 3}).Append(c.Buffer()))
		}
	})
	if r := <-got; r.GetExitStatus() != 3 {
		t.Errorf("Wait: %v", r)
	}
	f.eventually("nothing is pending", func() bool { return f.server.Pending() == 0 })
}

func TestConnsChanged(t *testing.T) {
	f := start(t, (&serveTasks{}).serve)
	changes := make(chan int, 8)
	f.do(func() { f.server.ConnsChanged = func(n int) { changes <- n } })
	conn := f.dial()
	if n := <-changes; n != 1 {
		t.Errorf("after a connection: %d", n)
	}
	conn.Close()
	if n := <-changes; n != 0 {
		t.Errorf("after its end: %d", n)
	}
}

// Without descriptors for new connections the server looks away, and comes back.
func TestPauseAccepting(t *testing.T) {
	f := start(t, (&serveTasks{}).serve)
	f.do(f.server.pauseAccepting)
	task, _ := f.client()
	if _, err := task.State(testContext(t), &taskapi.StateRequest{ID: "x"}); err != nil {
		t.Error(err)
	}
}

// A peer that is not root is turned away.
func TestPeerMustBeRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(l, (&serveTasks{}).serve)
	name := fmt.Sprintf("@berth-ttrpc-test-%d", os.Getpid())
	if err := s.Listen(listen(t, name)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	defer func() {
		l.Post(func() { s.Close(); l.Stop() })
		<-ended
	}()

	result := make(chan error, 1)
	go func() {
		// The thread keeps the other uid, so it must end with this goroutine.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)); errno != 0 {
			result <- errno
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: name})
		}
		if err == nil {
			var b [1]byte
			var n int
			if n, err = unix.Read(fd, b[:]); err == nil && n != 0 {
				err = fmt.Errorf("read %d bytes", n)
			}
			unix.Close(fd)
		}
		result <- err
	}()
	if err := <-result; err != nil && err != unix.ECONNRESET {
		t.Error(err)
	}
}

// A poll over a connected socket must not allocate, on the whole way from the
// socket and back.
func TestPollDoesNotAllocate(t *testing.T) {
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	tasks := &serveTasks{}
	s := NewServer(l, tasks.serve)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	c, err := s.adopt(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	request := rawRequest(t, "State", &taskapi.StateRequest{ID: "0123456789abcdef", ExecID: "e"})
	frame := frameOf(1, TypeRequest, request)
	var answer [4096]byte
	stream := uint32(1)
	poll := func() {
		binary.BigEndian.PutUint32(frame[4:], stream)
		stream += 2
		if _, err := unix.Write(pair[0], frame); err != nil {
			t.Fatal(err)
		}
		c.ready(unix.EPOLLIN)
		if n, err := unix.Read(pair[0], answer[:]); err != nil || n < HeaderBytes {
			t.Fatal(n, err)
		}
	}
	if n := testing.AllocsPerRun(1000, poll); n != 0 {
		t.Errorf("%v allocations per poll", n)
	}
	var r wire.Response
	if err := r.Decode(answer[HeaderBytes : HeaderBytes+binary.BigEndian.Uint32(answer[:])]); err != nil || r.Code != 0 {
		t.Errorf("%v, %v", r, err)
	}
}

func rawRequest(t *testing.T, method string, m proto.Message) []byte {
	t.Helper()
	payload, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(&ttrpc.Request{
		Service: wire.TaskService, Method: method, Payload: payload, TimeoutNano: 5e9,
		Metadata: []*ttrpc.KeyValue{{Key: "k", Value: "v"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func frameOf(stream uint32, typ byte, data []byte) []byte {
	b := make([]byte, HeaderBytes, HeaderBytes+len(data))
	Header{Length: uint32(len(data)), Stream: stream, Type: typ}.Put(b)
	return append(b, data...)
}

// readFrame reads one frame from a connection.
func readFrame(t *testing.T, conn net.Conn) (Header, *ttrpc.Response) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, HeaderBytes)
	if err := readFull(conn, b); err != nil {
		t.Fatal(err)
	}
	h := ParseHeader(b)
	data := make([]byte, h.Length)
	if err := readFull(conn, data); err != nil {
		t.Fatal(err)
	}
	r := &ttrpc.Response{}
	if err := proto.Unmarshal(data, r); err != nil {
		t.Fatal(err)
	}
	return h, r
}

func readFull(conn net.Conn, b []byte) error {
	for len(b) > 0 {
		n, err := conn.Read(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func TestFrames(t *testing.T) {
	f := start(t, (&serveTasks{}).serve)
	state := rawRequest(t, "State", &taskapi.StateRequest{ID: "x"})
	big := make([]byte, MaxMessageBytes+1)
	cases := []struct {
		name   string
		send   []byte
		stream uint32
		code   codes.Code
	}{
		{"even stream", frameOf(2, TypeRequest, state), 2, codes.InvalidArgument},
		{"data without a stream", frameOf(1, TypeData, nil), 1, codes.InvalidArgument},
		{"malformed request", frameOf(1, TypeRequest, []byte("\xff\xff")), 1, codes.InvalidArgument},
		{"empty request", frameOf(1, TypeRequest, nil), 1, codes.Unimplemented},
		{"reused stream", append(frameOf(3, 9, nil), frameOf(0xffffffff, TypeRequest, state)...), 0xffffffff, codes.OK},
		{"oversized", frameOf(5, TypeRequest, big), 5, codes.ResourceExhausted},
		{"unknown type, then a call", append(frameOf(1, 9, []byte("later")), frameOf(1, TypeRequest, state)...), 1, codes.OK},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			conn := f.dial()
			go func() {
				_, _ = conn.Write(c.send)
				_, _ = conn.Write(frameOf(0xffffffff, TypeRequest, state))
			}()
			h, r := readFrame(t, conn)
			if h.Type != TypeResponse || h.Stream != c.stream || codes.Code(r.GetStatus().GetCode()) != c.code {
				t.Errorf("got %+v %v", h, r)
			}
			// The connection is still good for the largest stream, unless that was used.
			want := codes.OK
			if c.stream == 0xffffffff {
				want = codes.InvalidArgument
			}
			h, r = readFrame(t, conn)
			if h.Stream != 0xffffffff || codes.Code(r.GetStatus().GetCode()) != want {
				t.Errorf("next call: %+v %v", h, r)
			}
		})
	}
}

// Frames cut at every place, and many in one piece.
func TestPartialFrames(t *testing.T) {
	f := start(t, (&serveTasks{}).serve)
	conn := f.dial()
	var all []byte
	for i := range 3 {
		request := rawRequest(t, "State", &taskapi.StateRequest{ID: strings.Repeat("z", i*40)})
		all = append(all, frameOf(uint32(2*i+1), TypeRequest, request)...)
	}
	go func() {
		for i := range all {
			_, _ = conn.Write(all[i : i+1])
		}
	}()
	for i := range 3 {
		if h, r := readFrame(t, conn); h.Stream != uint32(2*i+1) || r.Status != nil {
			t.Errorf("byte by byte: %+v %v", h, r)
		}
	}
	all = nil
	for i := range 500 { // more than one receive buffer
		request := rawRequest(t, "State", &taskapi.StateRequest{ID: strings.Repeat("z", i)})
		all = append(all, frameOf(uint32(2*i+11), TypeRequest, request)...)
	}
	go func() { _, _ = conn.Write(all) }()
	for i := range 500 {
		h, r := readFrame(t, conn)
		var s taskapi.StateResponse
		err := proto.Unmarshal(r.Payload, &s)
		if h.Stream != uint32(2*i+11) || err != nil || len(s.ID) != i {
			t.Fatalf("in one piece, %d: %+v %v %v", i, h, len(s.ID), err)
		}
	}
}

// A client that does not read holds up nobody, and gets everything in the end.
func TestSlowReader(t *testing.T) {
	f := start(t, (&serveTasks{}).serve)
	slow := f.dial()
	const calls = 3000
	id := strings.Repeat("s", 2000)
	go func() {
		request := rawRequest(t, "State", &taskapi.StateRequest{ID: id})
		for i := range calls {
			_, _ = slow.Write(frameOf(uint32(2*i+1), TypeRequest, request))
		}
	}()
	f.eventually("output is queued", func() bool { return len(f.server.conns) > 0 && len(f.server.conns[0].queue) > 0 })
	task, _ := f.client()
	for range 50 {
		if _, err := task.State(testContext(t), &taskapi.StateRequest{ID: "quick"}); err != nil {
			t.Fatal(err)
		}
	}
	f.do(func() {
		if n := len(f.server.conns[0].queue); n > receiveBytes*2 {
			t.Errorf("%d bytes are queued: requests are still read", n)
		}
	})
	for i := range calls {
		if h, r := readFrame(t, slow); h.Stream != uint32(2*i+1) || len(r.Payload) < len(id) {
			t.Fatalf("answer %d: %+v", i, h)
		}
	}
}

// Answers to calls put off cannot be held back by not reading requests: they are
// bounded.
func TestQueueBound(t *testing.T) {
	tasks := &serveTasks{put: make(chan int, 16)}
	f := start(t, tasks.serve)
	slow := f.dial()
	request := rawRequest(t, "Wait", &taskapi.WaitRequest{ID: "w"})
	for i := range 4 {
		_, _ = slow.Write(frameOf(uint32(2*i+1), TypeRequest, request))
		<-tasks.put
	}
	f.do(func() {
		body := bytes.Repeat([]byte{0}, MaxMessageBytes-100)
		for _, c := range tasks.waiting {
			c.Reply(body)
		}
		if f.server.Conns() != 0 {
			t.Error("the connection is still there")
		}
	})
}

// The server's state moves to another one, as through an exec: in the middle of
// a frame, of an answer and of a call.
func TestSnapshot(t *testing.T) {
	tasks := &serveTasks{put: make(chan int, 8)}
	f := start(t, tasks.serve)
	task, _ := f.client()
	got := make(chan uint32, 1)
	go func() {
		r, err := task.Wait(testContext(t), &taskapi.WaitRequest{ID: "a"})
		if err != nil {
			t.Error(err)
		}
		got <- r.GetExitStatus()
	}()
	<-tasks.put

	half := f.dial() // has sent half a request
	request := frameOf(1, TypeRequest, rawRequest(t, "State", &taskapi.StateRequest{ID: "half"}))
	_, _ = half.Write(request[:len(request)-5])

	skipping := f.dial() // is in the middle of a message that was refused
	big := frameOf(1, TypeRequest, make([]byte, MaxMessageBytes+1))
	_, _ = skipping.Write(big[:1000])
	if _, r := readFrame(t, skipping); codes.Code(r.GetStatus().GetCode()) != codes.ResourceExhausted {
		t.Errorf("oversized: %v", r)
	}

	slow := f.dial() // has not read its answers
	id := strings.Repeat("s", 4000)
	go func() {
		request := rawRequest(t, "State", &taskapi.StateRequest{ID: id})
		for i := range 500 {
			_, _ = slow.Write(frameOf(uint32(2*i+1), TypeRequest, request))
		}
	}()
	f.eventually("all are in the state wanted", func() bool {
		parts, queues, skips := 0, 0, 0
		for _, c := range f.server.conns {
			parts += min(len(c.part), 1)
			queues += min(len(c.queue), 1)
			skips += int(min(c.skip, 1))
		}
		return parts >= 1 && queues >= 1 && skips >= 1 && f.server.Conns() == 4
	})

	var snapshot []byte
	dup := map[int]int{}
	f.do(func() {
		snapshot = f.server.Snapshot(nil, func(fd int) {
			// The next program has the same numbers; here the old server's descriptors
			// are closed and their copies moved to the old numbers.
			n, err := unix.Dup(fd)
			if err != nil {
				t.Error(err)
			}
			dup[fd] = n
		})
		f.server.Close()
	})
	f.stop()
	for fd, n := range dup {
		if err := unix.Dup3(n, fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		unix.Close(n)
	}
	next := &serveTasks{put: make(chan int, 8)}
	f.run(next.serve, func(s *Server) error { return s.Restore(snapshot) })

	if n := <-next.put; n != 1 {
		t.Errorf("%d calls wait", n)
	}
	f.do(func() {
		for _, c := range next.waiting {
			c.Reply((&wire.WaitResponse{ExitStatus: 9}).Append(c.Buffer()))
		}
	})
	if code := <-got; code != 9 {
		t.Errorf("Wait: %d", code)
	}
	if _, err := task.State(testContext(t), &taskapi.StateRequest{ID: "same client"}); err != nil {
		t.Error(err)
	}
	_, _ = half.Write(request[len(request)-5:])
	if h, r := readFrame(t, half); h.Stream != 1 || r.Status != nil {
		t.Errorf("half: %+v %v", h, r)
	}
	go func() {
		_, _ = skipping.Write(big[1000:])
		_, _ = skipping.Write(frameOf(3, TypeRequest, rawRequest(t, "Pause", &taskapi.PauseRequest{ID: "a"})))
	}()
	if h, r := readFrame(t, skipping); h.Stream != 3 || r.Status != nil {
		t.Errorf("skipping: %+v %v", h, r)
	}
	for i := range 500 {
		if h, r := readFrame(t, slow); h.Stream != uint32(2*i+1) || len(r.Payload) < len(id) {
			t.Fatalf("slow, answer %d: %+v", i, h)
		}
	}
	// New clients are welcome.
	fresh, _ := f.client()
	if _, err := fresh.State(testContext(t), &taskapi.StateRequest{ID: "new"}); err != nil {
		t.Error(err)
	}
}

func TestRestoreMalformed(t *testing.T) {
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{"\x12", "\x12\x02\x08", "\x12\x05\x32\x03\x08\x01\x12"} {
		if err := NewServer(l, nil).Restore([]byte(b)); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%q: %v", b, err)
		}
	}
}
