// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/attach"
	"github.com/berthd/berth/shim/crilog"
	"github.com/berthd/berth/shim/fault"
)

// guest is a client of attach.
type guest struct {
	r *rig
	f *os.File
}

var (
	output = attach.Request{Stdout: true, Stderr: true}
	talk   = attach.Request{Stdin: true, Stdout: true}
	all    = attach.Request{Stdin: true, Stdout: true, Stderr: true}
)

// attach attaches a client.
func (p *proc) attach(want attach.Request) *guest {
	p.r.t.Helper()
	path := p.socket(want)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		p.r.t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		p.r.t.Fatal(err)
	}
	g := &guest{r: p.r, f: os.NewFile(uintptr(fd), path)}
	p.r.t.Cleanup(func() { g.f.Close() })
	p.r.until("the client is let in", func() bool { return os.IsNotExist(statError(path)) })
	return g
}

func statError(path string) error {
	_, err := os.Lstat(path)
	return err
}

func (p *proc) socket(want attach.Request) (path string) {
	p.r.t.Helper()
	var err error
	p.r.on(func() { path, err = p.Attach(p.r.dir+"/0123456789012345678901234567890123456789", want) })
	if err != nil {
		p.r.t.Fatal(err)
	}
	return path
}

// packet reads one packet, "" at the end.
func (g *guest) packet() string {
	g.r.t.Helper()
	_ = g.f.SetReadDeadline(time.Now().Add(patience))
	var b [8193]byte
	n, err := g.f.Read(b[:])
	if err != nil && err != io.EOF {
		g.r.t.Fatalf("%v; warnings: %s", err, g.r.warned())
	}
	return string(b[:n])
}

// rest returns what comes on stdout and stderr until the end.
func (g *guest) rest() [2]string {
	g.r.t.Helper()
	var text [2]bytes.Buffer
	for {
		p := g.packet()
		if p == "" {
			return [2]string{text[0].String(), text[1].String()}
		}
		if p[0] != 2 && p[0] != 3 {
			g.r.t.Fatalf("a packet begins with %d", p[0])
		}
		text[p[0]-2].WriteString(p[1:])
	}
}

// until reads to the end of text on stdout.
func (g *guest) until(text string) string {
	g.r.t.Helper()
	got := ""
	for !strings.HasSuffix(got, text) {
		p := g.packet()
		if p == "" {
			g.r.t.Fatalf("the end after %q", got)
		}
		got += p[1:]
	}
	return got
}

func (g *guest) say(text string) {
	g.r.t.Helper()
	_ = g.f.SetWriteDeadline(time.Now().Add(patience))
	if _, err := g.f.WriteString(text); err != nil {
		g.r.t.Error(err)
	}
}

// half ends the client's input.
func (g *guest) half() {
	raw, _ := g.f.SyscallConn()
	_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
}

func numbers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i+1)
	}
	return b.String()
}

// Whatever else takes the output, clients get the same.
func TestClientsOf(t *testing.T) {
	const n = 200_000
	for name, c := range map[string]func(r *rig, cfg *Config) (taken func() string){
		"fifo": func(r *rig, cfg *Config) func() string {
			cfg.Stdout = r.fifo("out")
			f := r.reader(cfg.Stdout)
			return func() string { return r.all(f) }
		},
		"log": func(r *rig, cfg *Config) func() string {
			cfg.Stdout = "cri://" + r.dir + "/0.log"
			return func() string { return r.logged(r.dir+"/0.log", crilog.Stdout) }
		},
		"pipe": func(_ *rig, cfg *Config) func() string {
			cfg.Stdout = "pipe://"
			return func() string { return numbers(n) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			before := fds(t)
			cfg := r.config()
			cfg.Stdin = "pipe://"
			taken := c(r, cfg)
			p := r.run(cfg, fmt.Sprintf("read x; seq %d", n))
			a, b := p.attach(attach.Request{Stdout: true}), p.attach(attach.Request{Stdin: true, Stdout: true})
			b.say("go\n")
			texts := make(chan string, 3)
			go func() { texts <- a.rest()[0] }()
			go func() { texts <- b.rest()[0] }()
			texts <- taken()
			p.exit()
			p.drained()
			for range 3 {
				if got := <-texts; name != "log" && got != numbers(n) {
					t.Errorf("got %d bytes, want %d", len(got), len(numbers(n)))
				}
			}
			if got := taken; name == "log" && got() != numbers(n) {
				t.Error("the log is not complete")
			}
			r.on(p.Close)
			a.f.Close()
			b.f.Close()
			if name == "fifo" {
				return // its reader is open
			}
			if n := fds(t); n > before {
				t.Errorf("%d descriptors instead of %d", n, before)
			}
		})
	}
}

// Both streams, marked; what was before is not shown.
func TestClientsSeeNoHistory(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout, cfg.Stderr = "pipe://", "cri://"+r.dir+"/0.log", "cri://"+r.dir+"/0.log"
	p := r.run(cfg, "echo a; echo b >&2; read x; echo c; echo d >&2; read x; echo e; echo f >&2")
	r.until("it has begun", func() bool { return !p.working && strings.Count(r.soFar(r.dir+"/0.log"), "\n") == 2 })
	first := p.attach(all)
	first.say("1\n")
	if got := []string{first.packet(), first.packet()}; strings.Join(got, "") != "\x02c\n\x03d\n" && strings.Join(got, "") != "\x03d\n\x02c\n" {
		t.Errorf("got %q", got)
	}
	second := p.attach(attach.Request{Stdin: true, Stderr: true})
	second.say("2\n")
	if got := first.rest(); got != [2]string{"e\n", "f\n"} {
		t.Errorf("the first got %q", got)
	}
	if got := second.rest(); got != [2]string{"", "f\n"} {
		t.Errorf("the second got %q", got)
	}
}

// A client that does not read is cut off; nobody else loses anything.
func TestStalledClientIsCutOff(t *testing.T) {
	const size = 200 << 20
	r := newRig(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout = "pipe://", "pipe://"
	p := r.run(cfg, fmt.Sprintf("read x; head -c %d /dev/zero; read x", size))
	stalled, well := p.attach(talk), p.attach(talk)
	well.say("go\n")
	total := 0
	for total < size {
		total += len(well.packet()) - 1
	}
	r.until("it is cut off", func() bool { return strings.Contains(r.warned(), "cut off: it does not read (1 so far)") })
	if got := len(stalled.rest()[0]); got == 0 || got >= size {
		t.Errorf("the stalled client got %d bytes", got)
	}
	well.say("end\n")
	p.exit()
	if got := well.rest(); got != [2]string{} {
		t.Errorf("%d bytes too many", len(got[0]))
	}
	if got := strings.Count(r.warned(), "cut off"); got != 1 {
		t.Errorf("%d were cut off", got)
	}
}

// What clients type comes together, and stays in its order when the process takes
// its time.
func TestInputOfClients(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout = "pipe://", "pipe://"
	p := r.run(cfg, "for i in 1 2 3 4 5; do read x; echo $x; done; sleep 0.2; wc -c")
	a := p.attach(talk)
	for i := range 5 { // one after the other, each from a client of its own that ends its input
		b := p.attach(attach.Request{Stdin: true})
		b.say(fmt.Sprintln("line", i))
		if i%2 == 0 {
			b.half()
		} else {
			b.f.Close()
		}
		a.until(fmt.Sprintln("line", i))
	}
	const size = 3 << 20
	writer := p.attach(attach.Request{Stdin: true, Once: true})
	for range size / (32 << 10) {
		writer.say(strings.Repeat("x", 32<<10))
	}
	writer.f.Close() // with input on its way
	if got := a.rest()[0]; strings.TrimSpace(got) != fmt.Sprint(size) {
		t.Errorf("got %q", got)
	}
	if e := p.exit(); e.Code != 0 {
		t.Errorf("got %+v", e)
	}
}

// 49: the end of a client's input is that of the process only if it is said.
func TestInputOnce(t *testing.T) {
	for _, source := range []string{"pipe", "fifo"} {
		for name, end := range map[string]func(g *guest){
			"half":    (*guest).half,
			"closed":  func(g *guest) { g.f.Close() },
			"too big": func(g *guest) { g.say(strings.Repeat("x", 40<<10)) },
			"empty":   func(g *guest) { g.f.Write(nil); unix.Send(int(g.f.Fd()), nil, 0) },
		} {
			t.Run(source+"/"+name, func(t *testing.T) {
				r := newRig(t)
				cfg := r.config()
				cfg.Stdin, cfg.Stdout = "pipe://", "pipe://"
				if source == "fifo" {
					cfg.Stdin = r.fifo("in")
				}
				p := r.run(cfg, "cat; echo end")
				watcher := p.attach(talk)
				p.attach(talk).half() // without once
				first := p.attach(attach.Request{Stdin: true, Once: true})
				watcher.say("a\n")
				watcher.until("a\n")
				first.say("b\n")
				watcher.until("b\n")
				end(first)
				watcher.until("end\n")
				p.exit()
				watcher.rest()
			})
		}
	}
}

// CloseIO ends the input that only clients give.
func TestCloseStdinOfAPipe(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout = "pipe://", "pipe://"
	p := r.run(cfg, "cat")
	g := p.attach(talk)
	g.say("a\n")
	g.until("a\n")
	r.on(p.CloseStdin)
	p.exit()
	if got := g.rest(); got != [2]string{} {
		t.Errorf("got %q", got)
	}
}

func TestClientsOfATerminal(t *testing.T) {
	for _, address := range []string{"pty://", "pipe://"} {
		t.Run(address, func(t *testing.T) {
			r := newRig(t)
			cfg := r.config()
			cfg.Stdin, cfg.Stdout = address, address
			p := r.runTerminal(cfg, "stty -echo; read x; stty size; read x; echo $x >&2")
			r.on(func() { p.Resize(90, 30) })
			a, b := p.attach(all), p.attach(output)
			r.until("echo is off", func() bool {
				tio, err := unix.IoctlGetTermios(p.master, unix.TCGETS)
				return err == nil && tio.Lflag&unix.ECHO == 0
			})
			a.say("\n")
			b.until("30 90\r\n")
			a.half() // without once it leaves the terminal alone
			p.attach(all).say("x\n")
			if got := b.rest(); got != [2]string{"x\r\n"} {
				t.Errorf("got %q", got)
			}
			if got := a.rest(); got != [2]string{"30 90\r\nx\r\n"} {
				t.Errorf("got %q", got)
			}
			p.exit()
		})
	}
}

func TestAttachIsRefused(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		stdin, stdout, stderr string
		direct                bool
		want                  attach.Request
		text                  string
	}{
		{"", "pipe://", "", false, attach.Request{Stdin: true}, "without stdin"},
		{"", "pipe://", "", false, output, "without stderr"},
		{"", "", "pipe://", false, output, "without stdout"},
		{"", "file://" + r.dir + "/file", "", false, output, "writes stdout itself, to file://"},
		{"", r.fifo("direct"), "", true, output, "direct output"},
	} {
		cfg := r.config()
		cfg.Stdin, cfg.Stdout, cfg.Stderr, cfg.Direct = c.stdin, c.stdout, c.stderr, c.direct
		p := r.run(cfg, "sleep 100")
		var err error
		r.on(func() { _, err = p.Attach(r.dir+"/socket", c.want) })
		if fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: got %v", c, err)
		}
		r.on(func() { _, err = p.Attach(r.dir+"/socket", attach.Request{Once: true}) })
		if fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("no stream: got %v", err)
		}
		if p.clients != nil {
			t.Error("a refused client costs memory")
		}
	}
	cfg := r.config()
	cfg.Stdin = "pipe://"
	p := r.run(cfg, "sleep 100")
	r.on(p.CloseStdin)
	var err error
	r.on(func() { _, err = p.Attach(r.dir+"/socket", talk) })
	if fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "has been closed") {
		t.Errorf("closed input: got %v", err)
	}
}

// A client that only watches does not turn the reader of a fifo into a hurried
// one, and goes on when that comes back.
func TestClientBesideASlowReader(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	p := r.run(cfg, "sleep 0.1; seq 100000; sleep 0.1; echo end")
	g := p.attach(attach.Request{Stdout: true})
	r.until("the reader is waited for", func() bool { return p.out[0].waiting == sink })
	text := make(chan string, 1)
	go func() { text <- g.rest()[0] }()
	if got := r.all(r.reader(cfg.Stdout)); got != numbers(100000)+"end\n" {
		t.Errorf("the reader got %d bytes", len(got))
	}
	if got := <-text; got != numbers(100000)+"end\n" {
		t.Errorf("the client got %d bytes", len(got))
	}
	p.exit()
}

// Clients come and go while output moves, and a pipe goes back to being spliced.
func TestClientsComeAndGo(t *testing.T) {
	const n = 2_000_000
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	out := r.reader(cfg.Stdout)
	p := r.run(cfg, fmt.Sprintf("seq %d; until [ -e %s/end ]; do sleep 0.01; done", n, r.dir))
	want := numbers(n)
	text := make(chan string, 1)
	go func() { text <- r.take(out, len(want)) }()
	for range 50 {
		g := p.attach(attach.Request{Stdout: true})
		g.packetIfAny()
		g.f.Close()
	}
	if got := <-text; got != want {
		t.Errorf("got %d bytes", len(got))
	}
	r.until("nobody is attached", func() bool { return !p.working && !p.out[0].logged() })
	if e := os.WriteFile(r.dir+"/end", nil, 0o600); e != nil {
		t.Fatal(e)
	}
	p.exit()
}

func (g *guest) packetIfAny() {
	_ = g.f.SetReadDeadline(time.Now().Add(time.Millisecond))
	var b [8193]byte
	_, _ = g.f.Read(b[:])
}

// A client whose door nobody has opened yet is there after the handover, too.
func TestHandoverOfClients(t *testing.T) {
	const n = 500
	r := newRig(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout = "pipe://", "cri://"+r.dir+"/0.log"
	p := r.run(cfg, "read x; while read x; do echo $x; done; echo end")
	watcher, typist := p.attach(attach.Request{Stdout: true}), p.attach(attach.Request{Stdin: true, Once: true})
	path := p.socket(talk)
	typist.say("go\n")
	text := make(chan string, 1)
	go func() { text <- watcher.rest()[0] }()
	go func() {
		for i := range n {
			typist.say(fmt.Sprintln(i + 1))
		}
		typist.half()
	}()
	for range 50 {
		p.handOver()
	}
	if err := statError(path); err != nil {
		t.Error(err)
	}
	p.exit()
	r.on(p.Exited) // of the present streams
	p.drained()
	if got := <-text; got != numbers(n)+"end\n" {
		t.Errorf("got %d bytes: %.200q", len(got), got)
	}
	if got := r.logged(r.dir+"/0.log", crilog.Stdout); got != numbers(n)+"end\n" {
		t.Errorf("the log has %d bytes", len(got))
	}
	if err := statError(path); !os.IsNotExist(err) {
		t.Errorf("its socket: %v", err)
	}
}

// Whoever has connected when the process ends gets an end, not an error.
func TestClientConnectsToAnEndingProcess(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = "pipe://"
	for range 20 {
		p := r.run(cfg, ":")
		var path string
		var err error
		r.on(func() { path, err = p.Attach(r.dir+"/socket", attach.Request{Stdout: true}) })
		if fault.CodeOf(err) == fault.FailedPrecondition {
			continue // it has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == nil {
			var b [10]byte
			if n, err := unix.Read(fd, b[:]); n != 0 || err != nil {
				t.Errorf("got %d, %v", n, err)
			}
		} else if err != unix.ENOENT && err != unix.ECONNREFUSED {
			t.Error(err)
		}
		unix.Close(fd)
		p.exit()
		p.end()
	}
}
