// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"
)

// attachment is what a client of Attach asks for.
type attachment struct {
	exec                        string
	stdin, stdout, stderr, once bool
}

var (
	watching = attachment{stdout: true}
	talking  = attachment{stdin: true, stdout: true}
)

// control calls the shim's own service with the fields of a request, which are
// strings and flags in the order of their numbers. It returns the first field of
// the answer.
func (s *shim) control(t *testing.T, method string, fields ...any) (string, error) {
	t.Helper()
	var b []byte
	for i, field := range fields {
		num := protowire.Number(i + 1)
		switch v := field.(type) {
		case string:
			b = protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), v)
		case bool:
			b = protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), protowire.EncodeBool(v))
		}
	}
	var request emptypb.Empty
	request.ProtoReflect().SetUnknown(b)
	var answer taskapi.ConnectRequest
	err := class(s.conn.Call(s.e.ctx(t), "berth.shim.v1.Control", method, &request, &answer))
	return answer.ID, err
}

func (s *shim) attachPath(t *testing.T, a attachment) (string, error) {
	t.Helper()
	return s.control(t, "Attach", s.id, a.exec, a.stdin, a.stdout, a.stderr, a.once)
}

// guest is an attached client.
type guest struct {
	t testing.TB
	f *os.File
}

func (s *shim) attach(t *testing.T, a attachment) *guest {
	t.Helper()
	path, err := s.attachPath(t, a)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	if st, err := os.Lstat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("%s: got %v, %v", path, st, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		t.Fatalf("connect to %s: %v", path, err)
	}
	g := &guest{t, os.NewFile(uintptr(fd), path)}
	t.Cleanup(func() { g.f.Close() })
	// A socket is for one client: it goes when that is in.
	eventually(t, patience, func() string {
		if _, err := os.Lstat(path); err == nil {
			return path + " is there"
		}
		return ""
	})
	return g
}

// packet reads a packet into b, and returns its stream, 2 or 3, and its data. 0 is
// the end.
func (g *guest) packet(b []byte) (byte, []byte) {
	_ = g.f.SetReadDeadline(time.Now().Add(patience))
	n, err := g.f.Read(b)
	switch {
	case errors.Is(err, io.EOF):
		return 0, nil
	case err != nil:
		g.t.Errorf("attached client: %v", err)
		return 0, nil
	case b[0] != 2 && b[0] != 3 || n > 8193:
		g.t.Errorf("attached client: a packet of %d bytes that begins with %d", n, b[0])
	}
	return b[0], b[1:n]
}

// rest returns all output until the end, by stream.
func (g *guest) rest() (stdout, stderr string) {
	var text [2]bytes.Buffer
	b := make([]byte, 8193)
	for {
		stream, data := g.packet(b)
		if stream == 0 {
			return text[0].String(), text[1].String()
		}
		text[stream-2].Write(data)
	}
}

// background is rest, for later.
func (g *guest) background() func() string {
	done := make(chan string, 1)
	go func() {
		stdout, _ := g.rest()
		done <- stdout
	}()
	return func() string { return <-done }
}

// until reads to the end of text.
func (g *guest) until(text string) string {
	g.t.Helper()
	b := make([]byte, 8193)
	got := ""
	for !strings.HasSuffix(got, text) {
		stream, data := g.packet(b)
		if stream == 0 {
			g.t.Fatalf("the end after %q, want %q", got, text)
		}
		got += string(data)
	}
	return got
}

func (g *guest) say(text string) {
	g.t.Helper()
	_ = g.f.SetWriteDeadline(time.Now().Add(patience))
	if _, err := g.f.WriteString(text); err != nil {
		g.t.Error(err)
	}
}

// half ends the client's input.
func (g *guest) half() {
	raw, _ := g.f.SyscallConn()
	_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
}

// 47, 48, 51: streams are marked, there is no history, output comes before the
// end, and nothing is left.
func TestAttach(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh(`echo a; echo b >&2; read x; echo c; echo d >&2; read x; echo e; echo f >&2; exit 3`))
		log := t.TempDir() + "/0.log"
		s.run(t, stdio{In: "pipe://", Out: "cri://" + log, Err: "cri://" + log})
		eventually(t, patience, func() string {
			if b, _ := os.ReadFile(log); bytes.Count(b, []byte("\n")) != 2 {
				return "the log is " + string(b)
			}
			return ""
		})
		both := s.attach(t, attachment{stdin: true, stdout: true, stderr: true})
		both.say("1\n")
		if got := both.until("\n") + both.until("\n"); got != "c\nd\n" && got != "d\nc\n" {
			t.Errorf("got %q", got)
		}
		errs := s.attach(t, attachment{stderr: true})
		killed := s.attach(t, talking)
		killed.f.Close()
		late, err := s.attachPath(t, talking) // nobody comes
		if err != nil {
			t.Fatal(err)
		}
		both.say("2\n")
		if got := s.wait(t, ""); got != 3 {
			t.Errorf("exit status %d", got)
		}
		if out, err := both.rest(); out != "e\n" || err != "f\n" {
			t.Errorf("got %q and %q", out, err)
		}
		if out, err := errs.rest(); out != "" || err != "f\n" {
			t.Errorf("got %q and %q", out, err)
		}
		if _, err := os.Lstat(late); !os.IsNotExist(err) {
			t.Errorf("%s: %v", late, err)
		}
		s.delete(t, "")
		lines := readLog(t, log)
		if joined(lines, "stdout") != "a\nc\ne\n" || joined(lines, "stderr") != "b\nd\nf\n" {
			t.Errorf("log: %v", lines)
		}
	})
}

// Attaching before Start misses nothing.
func TestAttachBeforeStart(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh(`cat; echo end >&2`))
		if _, err := s.create(e.ctx(t), stdio{In: "pipe://", Out: "pipe://", Err: "pipe://"}); err != nil {
			t.Fatal(err)
		}
		g := s.attach(t, attachment{stdin: true, stdout: true, stderr: true, once: true})
		g.say("early\n")
		g.half()
		if _, err := s.Start(e.ctx(t), &taskapi.StartRequest{ID: s.id}); err != nil {
			t.Fatal(err)
		}
		if out, err := g.rest(); out != "early\n" || err != "end\n" {
			t.Errorf("got %q and %q", out, err)
		}
	})
}

// 47: who stops reading is cut off; the log, the others and the container do not
// notice.
func TestStalledClient(t *testing.T) {
	const text = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all"
	// More than may wait for a client, in pieces of whole lines, with pauses: one that
	// reads must keep up, on a busy machine and under the race detector.
	const pieces, piece = 26, 50_000 * (len(text) + 1)
	const size = pieces * piece
	pattern := bytes.Repeat([]byte(text+"\n"), 200)
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		run := func(t *testing.T, stalled bool) time.Duration {
			s := e.shimNamed(t, strings.ReplaceAll(id(t), "=", "-"), nil, sh(fmt.Sprintf(
				"read x; i=0; while [ $i -lt %d ]; do yes %q | head -c %d; i=$((i+1)); usleep 50000; done; exit 5", pieces, text, piece)))
			log := t.TempDir() + "/0.log"
			s.run(t, stdio{In: "pipe://", Out: "cri://" + log + "?sync=false"})
			var victim *guest
			if stalled {
				victim = s.attach(t, talking)
			}
			type result struct {
				bytes int
				wrong bool
			}
			results := make(chan result, 2)
			clients := [2]*guest{s.attach(t, talking), s.attach(t, talking)}
			for _, g := range clients {
				go func() {
					var r result
					for b := make([]byte, 8193); ; {
						stream, data := g.packet(b)
						if stream == 0 {
							results <- r
							return
						}
						at := r.bytes % (len(text) + 1)
						r.wrong = r.wrong || !bytes.Equal(data, pattern[at:at+len(data)])
						r.bytes += len(data)
					}
				}()
			}
			began := time.Now()
			clients[0].say("go\n")
			if got := s.wait(t, ""); got != 5 {
				t.Errorf("exit status %d", got)
			}
			took := time.Since(began)
			for range clients {
				if r := <-results; r.bytes != size || r.wrong {
					t.Errorf("a client that reads got %d bytes of %d, wrong ones: %v", r.bytes, size, r.wrong)
				}
			}
			s.delete(t, "")
			if stalled {
				out, _ := victim.rest()
				if n := len(out); n == 0 || n >= size {
					t.Errorf("the stalled client got %d bytes", n)
				}
			}
			n := loggedBytes(t, log)
			if n != size {
				t.Errorf("the log has %d bytes", n)
			}
			return took
		}
		var times [2]time.Duration
		for i, stalled := range []bool{false, true} {
			t.Run(fmt.Sprintf("stalled=%v", stalled), func(t *testing.T) { times[i] = run(t, stalled) })
		}
		t.Logf("%d bytes with two clients: %v; with a third that is stalled: %v", size, times[0], times[1])
	})
}

// loggedBytes is the length of joined for one stream, of a long log.
func loggedBytes(t *testing.T, path string) (n int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := bufio.NewReaderSize(f, 64<<10); ; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			if !errors.Is(err, io.EOF) || len(line) > 0 {
				t.Errorf("%s: %d bytes behind the last line, %v", path, len(line), err)
			}
			return n
		}
		parts := bytes.SplitN(line, []byte(" "), 4) // time, stream, tag, text
		if n += len(parts[3]); parts[2][0] == 'P' {
			n-- // the end of the line is the log's
		}
	}
}

// 49, 50: what ends input.
func TestAttachStdin(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh(`cat; echo end`))
		s.run(t, stdio{In: "pipe://", Out: "pipe://"})
		watcher := s.attach(t, watching)
		for i := range 3 {
			g := s.attach(t, talking)
			g.say(fmt.Sprintln("half", i))
			g.half() // only the client's own input ends
			watcher.until(fmt.Sprintln("half", i))
			g.until(fmt.Sprintln("half", i))
			g.f.Close()
		}
		a, b := s.attach(t, talking), s.attach(t, attachment{stdin: true, once: true})
		a.say("a\n")
		watcher.until("a\n")
		b.say("b\n")
		watcher.until("b\n")
		b.f.Close()
		watcher.until("end\n")
		if got := s.wait(t, ""); got != 0 {
			t.Errorf("exit status %d", got)
		}
		if out, _ := watcher.rest(); out != "" {
			t.Errorf("got %q", out)
		}
		if out, _ := a.rest(); out != "a\nb\nend\n" {
			t.Errorf("got %q", out)
		}
	})
}

// CloseIO ends the input of a pipe that only clients feed.
func TestAttachCloseIO(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh(`cat; echo end`))
		s.run(t, stdio{In: "pipe://", Out: "pipe://"})
		g := s.attach(t, talking)
		g.say("a\n")
		g.until("a\n")
		for range 2 {
			if _, err := s.CloseIO(e.ctx(t), &taskapi.CloseIORequest{ID: s.id, Stdin: true}); err != nil {
				t.Fatal(err)
			}
		}
		if out, _ := g.rest(); out != "end\n" {
			t.Errorf("got %q", out)
		}
	})
}

func TestAttachTerminal(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, oci.WithTTY, sh(`stty -echo; echo ready; read x; stty size; read x; echo got $x >&2`))
		s.run(t, stdio{In: "pty://", Out: "pty://", Terminal: true})
		a := s.attach(t, attachment{stdin: true, stdout: true, stderr: true, once: false})
		b := s.attach(t, watching)
		if _, err := s.ResizePty(e.ctx(t), &taskapi.ResizePtyRequest{ID: s.id, Width: 100, Height: 40}); err != nil {
			t.Fatal(err)
		}
		a.say("\n")
		b.until("40 100\r\n")
		a.f.Close()
		c := s.attach(t, talking)
		c.say("this\n")
		if out, _ := c.rest(); !strings.HasSuffix(out, "got this\r\n") {
			t.Errorf("got %q", out)
		}
		if out, _ := b.rest(); !strings.HasSuffix(out, "got this\r\n") {
			t.Errorf("got %q", out)
		}
		if got := s.wait(t, ""); got != 0 {
			t.Errorf("exit status %d", got)
		}
	})
}

// An exec is attached to as init is; beside a fifo's reader and a terminal.
func TestAttachExec(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh("sleep 1000"))
		s.run(t, stdio{})
		out := fifo(t)
		text := collect(t, out)
		s.runExec(t, "piped", stdio{In: "pipe://", Out: out}, "sh", "-c", "read x; echo got $x")
		s.runExec(t, "tty", stdio{In: "pty://", Terminal: true}, "sh", "-c", "read x; echo got $x")
		for exec, newline := range map[string]string{"piped": "\n", "tty": "\r\n"} {
			g := s.attach(t, attachment{exec: exec, stdin: true, stdout: true})
			g.say("it\n")
			if got, _ := g.rest(); !strings.HasSuffix(got, "got it"+newline) {
				t.Errorf("%s: got %q", exec, got)
			}
			if got := s.wait(t, exec); got != 0 {
				t.Errorf("%s ended with %d", exec, got)
			}
			s.delete(t, exec)
		}
		if got := text(); got != "got it\n" {
			t.Errorf("the fifo: got %q", got)
		}
	})
}

func TestAttachIsRefused(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh("sleep 1000"))
		refused := func(what string, a attachment, is func(error) bool, text string) {
			t.Helper()
			if path, err := s.attachPath(t, a); !is(err) || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: got %q, %v; want %q", what, path, err, text)
			}
		}
		refused("no container", watching, errdefs.IsNotFound, s.id)
		uri, _ := file(t)
		s.run(t, stdio{Out: uri, Err: "pipe://"})
		refused("no exec", attachment{exec: "x", stdout: true}, errdefs.IsNotFound, "no such exec")
		refused("no stream", attachment{}, errdefs.IsInvalidArgument, "no stream")
		refused("no stdin", talking, errdefs.IsFailedPrecondition, "created without stdin")
		refused("a file", watching, errdefs.IsFailedPrecondition, "writes stdout itself")
		if err := s.exec(t, "waiting", stdio{Out: "pipe://"}, nil, "true"); err != nil {
			t.Fatal(err)
		}
		refused("exec not started", attachment{exec: "waiting", stdout: true}, errdefs.IsFailedPrecondition, "not started")
		if _, err := s.control(t, "Attach", s.id+"x"); !errdefs.IsNotFound(err) {
			t.Errorf("another container: got %v", err)
		}
		s.kill(t, unix.SIGKILL)
		s.wait(t, "")
		refused("stopped", attachment{stderr: true}, errdefs.IsFailedPrecondition, "has ended")
		s.delete(t, "")
		refused("deleted", watching, errdefs.IsNotFound, s.id)
	})
}

// Once killing has begun there is no exec, and none comes.
func TestStopExecs(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh("sleep 1000"))
		if _, err := s.control(t, "StopExecs", s.id); !errdefs.IsNotFound(err) {
			t.Errorf("no container: got %v", err)
		}
		s.run(t, stdio{})
		for _, exec := range []string{"a", "b"} {
			s.runExec(t, exec, stdio{}, "sh", "-c", "trap '' TERM INT; sleep 1000")
		}
		if err := s.exec(t, "waiting", stdio{}, nil, "sleep", "1000"); err != nil {
			t.Fatal(err)
		}
		// One whose start is on its way is killed, or refused.
		if err := s.exec(t, "hurried", stdio{}, nil, "sleep", "1000"); err != nil {
			t.Fatal(err)
		}
		hurried := make(chan error, 1)
		go func() {
			_, err := s.Start(e.ctx(t), &taskapi.StartRequest{ID: s.id, ExecID: "hurried"})
			hurried <- class(err)
		}()
		for range 2 {
			if _, err := s.control(t, "StopExecs", s.id); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-hurried; err == nil {
			if got := s.wait(t, "hurried"); got != 137 {
				t.Errorf("hurried ended with %d", got)
			}
		} else if !errdefs.IsFailedPrecondition(err) {
			t.Error(err)
		}
		for _, exec := range []string{"a", "b"} {
			if got := s.wait(t, exec); got != 137 {
				t.Errorf("%s ended with %d", exec, got)
			}
		}
		if err := requestUpgrade(e.ctx(t), s, e.rt.Binary()); err != nil { // it is not forgotten
			t.Fatal(err)
		}
		if err := class(s.exec(t, "new", stdio{}, nil, "true")); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("a new exec: got %v", err)
		}
		_, err := s.Start(e.ctx(t), &taskapi.StartRequest{ID: s.id, ExecID: "waiting"})
		if err = class(err); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "being stopped") {
			t.Errorf("start: got %v", err)
		}
		for _, exec := range []string{"a", "b", "waiting"} {
			s.delete(t, exec)
		}
	})
}

// An exec that its client has left is there until it has ended, and then no more.
func TestAbandon(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh("sleep 1000"))
		s.run(t, stdio{})
		if err := s.exec(t, "waiting", stdio{}, nil, "true"); err != nil {
			t.Fatal(err)
		}
		for exec, is := range map[string]func(error) bool{"": errdefs.IsFailedPrecondition, "waiting": errdefs.IsFailedPrecondition, "x": errdefs.IsNotFound} {
			if _, err := s.control(t, "Abandon", s.id, exec); !is(err) {
				t.Errorf("exec %q: got %v", exec, err)
			}
		}
		s.delete(t, "waiting")
		s.runExec(t, "left", stdio{}, "sh", "-c", "until [ -e /go ]; do sleep 0.05; done")
		s.runExec(t, "over", stdio{}, "true")
		s.wait(t, "over")
		for _, exec := range []string{"left", "over", "left"} {
			if _, err := s.control(t, "Abandon", s.id, exec); err != nil {
				t.Errorf("%s: %v", exec, err)
			}
		}
		if got, err := s.State(e.ctx(t), &taskapi.StateRequest{ID: s.id, ExecID: "left"}); err != nil || got.Status != tasktypes.Status_RUNNING {
			t.Errorf("left alone: %v, %v", got, err)
		}
		s.runExec(t, "go", stdio{}, "touch", "/go")
		s.wait(t, "go")
		s.delete(t, "go")
		for _, exec := range []string{"left", "over"} {
			eventually(t, patience, func() string {
				if _, err := s.State(e.ctx(t), &taskapi.StateRequest{ID: s.id, ExecID: exec}); !errdefs.IsNotFound(class(err)) {
					return fmt.Sprintf("exec %s is there: %v", exec, err)
				}
				return ""
			})
		}
	})
}

// Clients, one that types and one whose socket waits, do not notice that the
// program changes 50 times.
func TestUpgradeWithClients(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh(`i=0; while [ ! -e /end ]; do echo $i; i=$((i+1)); usleep 300; done; echo end`))
		if _, err := s.create(e.ctx(t), stdio{Out: "pipe://"}); err != nil {
			t.Fatal(err)
		}
		lines := s.attach(t, watching).background()
		if _, err := s.Start(e.ctx(t), &taskapi.StartRequest{ID: s.id}); err != nil {
			t.Fatal(err)
		}
		s.runExec(t, "cat", stdio{In: "pipe://", Out: "pipe://"}, "cat")
		reader := s.attach(t, attachment{exec: "cat", stdout: true})
		typist := s.attach(t, attachment{exec: "cat", stdin: true, stdout: true, once: true})
		drained := typist.background()
		echoed := reader.background()
		waiting, err := s.attachPath(t, watching)
		if err != nil {
			t.Fatal(err)
		}
		binaries := [2]string{e.rt.Binary(), e.copyOf(t)}
		typed := 0
		for i := range 50 {
			for range 20 {
				typist.say(strconv.Itoa(typed) + "\n")
				typed++
			}
			if err := requestUpgrade(e.ctx(t), s, binaries[(i+1)%2]); err != nil {
				t.Fatalf("upgrade %d: %v", i, err)
			}
		}
		if _, err := os.Lstat(waiting); err != nil {
			t.Error(err)
		}
		typist.half()
		if got := s.wait(t, "cat"); got != 0 {
			t.Errorf("cat ended with %d", got)
		}
		for _, text := range []string{echoed(), drained()} {
			inOrder(t, "what is typed", text, "\n", "")
			if got := strings.Count(text, "\n"); got != typed {
				t.Errorf("%d lines of %d", got, typed)
			}
		}
		r, err := s.State(e.ctx(t), &taskapi.StateRequest{ID: s.id})
		if err != nil {
			t.Fatal(err)
		}
		touch(t, int(r.Pid), "end")
		inOrder(t, "init", lines(), "\n", "end")
		s.delete(t, "cat")
		s.delete(t, "")
	})
}

// A killed shim leaves the sockets of clients that have not come; delete takes
// them away. 51
func TestAttachSocketsOfAKilledShim(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, sh("sleep 1000"))
		s.run(t, stdio{Out: "pipe://"})
		path, err := s.attachPath(t, watching)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if out, err := e.command(s.id, s.bundle, "-bundle", s.bundle, "delete").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, path := range []string{path, s.socket()} {
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("%s: %v", filepath.Base(path), err)
			}
		}
	})
}
