// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

func TestNothingAskedForCostsNothing(t *testing.T) {
	r := newRig(t)
	before := fds(t)
	s := r.open(r.config())
	if s.Files() != [3]int{-1, -1, -1} || fds(t) != before {
		t.Errorf("got files %v, and %d descriptors instead of %d", s.Files(), fds(t), before)
	}
	p := r.attach(s, "echo x; cat")
	if e := p.exit(); e.Code != 0 {
		t.Errorf("got %+v", e)
	}
	p.drained()
}

func TestFifos(t *testing.T) {
	r := newRig(t)
	before := fds(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout, cfg.Stderr = r.fifo("in"), "fifo://"+r.fifo("out"), r.fifo("err")
	out, errs := r.reader(r.dir+"/out"), r.reader(r.dir+"/err")
	p := r.run(cfg, "cat; echo error >&2; exit 3")
	in, err := os.OpenFile(cfg.Stdin, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("0123456789abcde\n", 1<<16) // 1 MiB
	go func() {
		io.WriteString(in, want)
		p.r.l.Post(p.CloseStdin)
		p.r.l.Post(p.CloseStdin) // twice is fine
		in.Close()
	}()
	if got := r.all(out); got != want {
		t.Errorf("stdout: got %d bytes, want %d", len(got), len(want))
	}
	if got := r.all(errs); got != "error\n" {
		t.Errorf("stderr: got %q", got)
	}
	if e := p.exit(); e.Code != 3 {
		t.Errorf("got %+v", e)
	}
	p.drained()
	r.on(p.Close)
	out.Close()
	errs.Close()
	if got := fds(t); got != before {
		t.Errorf("%d descriptors instead of %d", got, before)
	}
	if w := r.warned(); w != "" {
		t.Errorf("got warnings: %s", w)
	}
}

func TestStdinSurvivesClientsUntilClosed(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout = r.fifo("in"), r.fifo("out")
	out := r.reader(cfg.Stdout)
	p := r.run(cfg, "cat; echo end")
	for i := range 3 {
		in, err := os.OpenFile(cfg.Stdin, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(in, "client %d\n", i)
		in.Close()
		r.take(out, len("client 0\n"))
	}
	r.on(p.CloseStdin)
	if got := r.all(out); got != "end\n" {
		t.Errorf("got %q", got)
	}
}

func TestMissingStdinIsNone(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdin = r.dir + "/none"
	if p := r.run(cfg, "cat"); p.exit().Code != 0 {
		t.Error("cat failed")
	}
}

func TestUnreadStdinStopsNothingElse(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout = r.fifo("in"), r.fifo("out")
	out := r.reader(cfg.Stdout)
	p := r.run(cfg, "while :; do echo tick; done")
	in, err := os.OpenFile(cfg.Stdin, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	in.SetWriteDeadline(time.Now().Add(time.Second))
	n, err := in.Write(make([]byte, 1<<20))
	if err == nil {
		t.Errorf("all of %d bytes were taken", n)
	}
	r.take(out, 1<<20)
	_ = p
}

// A process that closes its input must not leave the flow behind, nor a report.
func TestClosedInput(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout = r.fifo("in"), r.fifo("out")
	out := r.reader(cfg.Stdout)
	p := r.run(cfg, "exec <&-; echo closed; sleep 60")
	r.take(out, len("closed\n"))
	in, err := os.OpenFile(cfg.Stdin, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	in.WriteString("x")
	r.until("input is over", func() bool { return p.in.over })
	if w := r.warned(); w != "" {
		t.Errorf("got warnings: %s", w)
	}
}

func TestReaderThatRestarts(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	p := r.run(cfg, "i=0; while [ $i -lt 200000 ]; do echo $i; i=$((i+1)); done")
	sum := sha256.New()
	for i := range 200000 {
		fmt.Fprintln(sum, i)
	}
	want := sum.Sum(nil)
	sum.Reset()
	for eof := false; !eof; {
		out := r.reader(cfg.Stdout)
		b := make([]byte, 100_000)
		out.SetReadDeadline(time.Now().Add(patience))
		for range 3 { // then it restarts
			n, err := out.Read(b)
			sum.Write(b[:n])
			if eof = err == io.EOF; eof {
				break
			}
		}
		out.Close()
	}
	if string(sum.Sum(nil)) != string(want) {
		t.Error("output is not what was written")
	}
	if e := p.exit(); e.Code != 0 {
		t.Errorf("got %+v", e)
	}
	p.drained()
}

// A reader that comes after everything has ended gets all, then the end.
func TestReaderThatComesLate(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	p := r.run(cfg, "echo last words")
	p.exit()
	p.drained()
	r.on(func() {
		if len(p.lingers) != 1 {
			t.Errorf("got %d lingering fifos", len(p.lingers))
		}
	})
	out := r.reader(cfg.Stdout)
	if got := r.all(out); got != "last words\n" {
		t.Errorf("got %q", got)
	}
	r.until("the fifo is given up", func() bool { return len(p.lingers) == 0 })
}

// So does one that waits for a writer, as containerd's does: not for ever, though
// the process has ended without a word.
func TestReaderOfNothingThatComesLate(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	p := r.run(cfg, "true")
	p.exit()
	p.drained()
	f, err := os.Open(cfg.Stdout) // blocks until there is a writer
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || len(b) > 0 {
		t.Errorf("got %q, %v", b, err)
	}
	r.until("the fifo is given up", func() bool { return len(p.lingers) == 0 })
}

func TestCloseWithAFullFifoAndNoReader(t *testing.T) {
	r := newRig(t)
	before := fds(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	p := r.run(cfg, "head -c 100000 /dev/zero")
	p.exit()
	got := make(chan bool, 1)
	began := time.Now()
	r.on(func() { p.Drained(200*time.Millisecond, func(c bool) { got <- c }) })
	if <-got || time.Since(began) > 10*time.Second {
		t.Error("drained into nothing, or too late")
	}
	r.on(p.Close)
	if n := fds(t); n > before {
		t.Errorf("%d descriptors instead of %d", n, before)
	}
}

// A child that keeps the pipe holds back the end of the output, not more.
func TestChildThatKeepsThePipe(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	out := r.reader(cfg.Stdout)
	p := r.run(cfg, "sleep 60 & echo x")
	p.exit()
	r.take(out, 2)
	got := make(chan bool, 1)
	r.on(func() { p.Drained(50*time.Millisecond, func(c bool) { got <- c }) })
	if <-got {
		t.Error("drained although the pipe is open")
	}
	r.on(p.Close)
	if rest := r.all(out); rest != "" {
		t.Errorf("got %q", rest)
	}
}

func TestSpool(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	s := r.open(cfg)
	r.on(func() { s.SetConnected(false) })
	p := r.attach(s, "i=0; while [ $i -lt 100000 ]; do echo $i; i=$((i+1)); done")
	// Far more than pipe and fifo hold, and nobody reads: only the spool lets it end.
	if e := p.exit(); e.Code != 0 {
		t.Fatalf("got %+v", e)
	}
	if _, err := os.Stat(r.dir + "/spool-stdout"); err != nil {
		t.Errorf("no spool: %v", err)
	}
	r.on(func() { p.SetConnected(true) })
	var want strings.Builder
	for i := range 100000 {
		fmt.Fprintln(&want, i)
	}
	if got := r.all(r.reader(cfg.Stdout)); got != want.String() {
		t.Errorf("got %d bytes, want %d", len(got), want.Len())
	}
	p.drained()
	if _, err := os.Stat(r.dir + "/spool-stdout"); !os.IsNotExist(err) {
		t.Errorf("the spool is left: %v", err)
	}
}

// While the process writes on, the reader goes and comes, containerd with it.
func TestSpoolInBetween(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	out := r.reader(cfg.Stdout)
	p := r.run(cfg, "seq 300000")
	first := r.take(out, 1000)
	r.until("the reader is waited for", func() bool { return p.out[0].waiting == sink })
	out.Close()
	r.on(func() { p.SetConnected(false) })
	if e := p.exit(); e.Code != 0 {
		t.Fatalf("got %+v", e)
	}
	r.on(func() { p.SetConnected(true) })
	got := first + r.all(r.reader(cfg.Stdout))
	var want strings.Builder
	for i := range 300000 {
		fmt.Fprintln(&want, i+1)
	}
	if got != want.String() {
		t.Errorf("got %d bytes, want %d", len(got), want.Len())
	}
	p.drained()
}

// containerd comes, takes nothing, and goes again: what is written then is spooled, too.
func TestSpoolOfASecondAbsence(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	s := r.open(cfg)
	r.on(func() { s.SetConnected(false) })
	p := r.attach(s, "seq 50000; read x < "+r.fifo("go")+"; seq 50000")
	goOn := -1
	r.until("the first half is written", func() bool {
		var err error
		goOn, err = unix.Open(r.dir+"/go", unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err == nil // somebody reads
	})
	defer unix.Close(goOn)
	r.until("the first half is spooled", func() bool { return p.out[0].waiting == source|sink && p.out[0].spool.Len() > 100000 })
	r.on(func() { p.SetConnected(true) })
	// The second half fills the pipe, and waits.
	if _, err := unix.Write(goOn, []byte("on\n")); err != nil {
		t.Fatal(err)
	}
	r.until("the reader is waited for", func() bool { return !p.working && p.out[0].waiting == sink })
	r.on(func() { p.SetConnected(false) })
	if e := p.exit(); e.Code != 0 {
		t.Fatalf("got %+v", e)
	}
	var want strings.Builder
	for range 2 {
		for i := range 50000 {
			fmt.Fprintln(&want, i+1)
		}
	}
	if got := r.all(r.reader(cfg.Stdout)); got != want.String() {
		t.Errorf("got %d bytes, want %d", len(got), want.Len())
	}
	p.drained()
}

func TestSpoolIsBounded(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout, cfg.SpoolMax = r.fifo("out"), 100_000
	s := r.open(cfg)
	r.on(func() { s.SetConnected(false) })
	p := r.attach(s, "seq 200000")
	r.until("the spool is full", func() bool {
		f := p.out[0]
		return !p.working && f.spool != nil && f.spool.Full()
	})
	if st, err := os.Stat(r.dir + "/spool-stdout"); err != nil || st.Size() > cfg.SpoolMax {
		t.Errorf("got %v, %v", st, err)
	}
	got := r.all(r.reader(cfg.Stdout))
	if n := strings.Count(got, "\n"); n != 200000 || !strings.HasPrefix(got, "1\n2\n") || !strings.HasSuffix(got, "\n200000\n") {
		t.Errorf("got %d lines", n)
	}
	if e := p.exit(); e.Code != 0 {
		t.Errorf("got %+v", e)
	}
	p.drained()
}

// Without containerd's absence a slow reader is ordinary back-pressure.
func TestNoSpoolWhileConnected(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	p := r.run(cfg, "head -c 1000000 /dev/zero")
	r.until("the reader is waited for", func() bool { return p.out[0].waiting == sink })
	if _, err := os.Stat(r.dir + "/spool-stdout"); !os.IsNotExist(err) {
		t.Errorf("spooled: %v", err)
	}
	if got := r.all(r.reader(cfg.Stdout)); len(got) != 1000000 {
		t.Errorf("got %d bytes", len(got))
	}
	p.drained()
}

func TestSpoolThatCannotBeMadeBlocks(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout, cfg.Work = r.fifo("out"), r.dir+"/missing"
	s := r.open(cfg)
	r.on(func() { s.SetConnected(false) })
	p := r.attach(s, "head -c 1000000 /dev/zero")
	r.until("it is reported", func() bool { return strings.Contains(r.warned(), "missing") && !p.working && p.out[0].waiting == sink })
	if got := r.all(r.reader(cfg.Stdout)); len(got) != 1000000 {
		t.Errorf("got %d bytes", len(got))
	}
	p.drained()
	if n := strings.Count(r.warned(), "\n"); n > 0 {
		t.Errorf("got warnings: %s", r.warned())
	}
}

func TestDirect(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout, cfg.Stderr, cfg.Direct = r.fifo("out"), r.fifo("err"), true
	p := r.run(cfg, "head -c 900000 /dev/zero; echo x >&2") // fits the grown pipe, nobody reads
	if e := p.exit(); e.Code != 0 {
		t.Fatalf("got %+v", e)
	}
	if p.out[0] != nil {
		t.Error("the shim copies")
	}
	p.drained()
	if got := r.all(r.reader(cfg.Stdout)); len(got) != 900000 {
		t.Errorf("got %d bytes", len(got))
	}
	if got := r.all(r.reader(cfg.Stderr)); got != "x\n" {
		t.Errorf("got %q", got)
	}
	r.until("the fifos are given up", func() bool { return len(p.lingers) == 0 })
}

func TestFilesAreGivenToTheProcess(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	path := r.dir + "/a/b/log file"
	cfg.Stdout = "file://" + r.dir + "/a/b/log%20file"
	cfg.Stderr = cfg.Stdout
	s := r.open(cfg)
	if f := s.Files(); f[1] != f[2] {
		t.Errorf("got files %v", f)
	}
	p := r.attach(s, "for i in 1 2 3 4; do (j=0; while [ $j -lt 200 ]; do echo out-$i-$j; echo err-$i-$j >&2; j=$((j+1)); done) & done; wait")
	p.exit()
	p.drained()
	lines := strings.Split(strings.TrimSuffix(r.contents(path), "\n"), "\n")
	seen := map[string]bool{}
	for _, l := range lines {
		seen[l] = true
	}
	for _, l := range []string{"out-1-0", "err-4-199"} {
		if !seen[l] {
			t.Errorf("%q is missing", l)
		}
	}
	if len(lines) != 1600 || len(seen) != 1600 {
		t.Errorf("got %d lines, %d different ones", len(lines), len(seen))
	}
	for path, want := range map[string]os.FileMode{r.dir + "/a": 0o755, r.dir + "/a/b": 0o755, path: 0o644} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: got %v, %v", path, st.Mode(), err)
		}
	}
	// Appended to.
	p = r.run(cfg, "echo more")
	p.exit()
	if got := r.contents(path); !strings.HasSuffix(got, "\nmore\n") || len(got) < 1600 {
		t.Errorf("the file ends with %q", got[max(0, len(got)-20):])
	}
}

func TestPlainPathOfAFile(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout, cfg.Stderr = r.dir+"/log", "/dev/null"
	os.WriteFile(cfg.Stdout, []byte("first\n"), 0o600)
	r.run(cfg, "echo second; echo x >&2").exit()
	if got := r.contents(cfg.Stdout); got != "first\nsecond\n" {
		t.Errorf("got %q", got)
	}
}

func TestOtherUsersCanOpenTheStreamsAgain(t *testing.T) {
	r := newRig(t)
	os.Chmod(r.dir, 0o755)
	cfg := r.config()
	cfg.UID, cfg.GID = 1000, 1000
	cfg.Stdin, cfg.Stdout, cfg.Stderr = r.fifo("in"), r.fifo("out"), r.fifo("err")
	out, errs := r.reader(cfg.Stdout), r.reader(cfg.Stderr)
	p := r.run(cfg, "setpriv --reuid=1000 --regid=1000 --clear-groups sh -c 'echo a >/dev/stdout; echo b >/proc/self/fd/2; cat </dev/stdin'")
	in, err := os.OpenFile(cfg.Stdin, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	in.WriteString("c\n")
	in.Close()
	r.on(p.CloseStdin)
	if got := r.all(out) + r.all(errs); got != "a\nc\nb\n" {
		t.Errorf("got %q", got)
	}
	if e := p.exit(); e.Code != 0 {
		t.Errorf("got %+v", e)
	}
}

func TestTerminal(t *testing.T) {
	r := newRig(t)
	before := fds(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout, cfg.Stderr = r.fifo("in"), r.fifo("out"), r.fifo("err")
	out := r.reader(cfg.Stdout)
	p := r.runTerminal(cfg, "read x; stty size; echo got $x; echo error >&2")
	r.on(func() {
		if err := p.Resize(100, 40); err != nil {
			t.Error(err)
		}
	})
	in, err := os.OpenFile(cfg.Stdin, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	in.WriteString("input\n")
	if got, want := r.all(out), "input\r\n40 100\r\ngot input\r\nerror\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	p.exit()
	p.drained()
	r.on(func() {
		if err := p.Resize(1, 1); err != nil {
			t.Errorf("resize after the end: %v", err)
		}
		p.Close()
	})
	in.Close()
	out.Close()
	if n := fds(t); n > before {
		t.Errorf("%d descriptors instead of %d", n, before)
	}
	if w := r.warned(); w != "" {
		t.Errorf("got warnings: %s", w)
	}
}

func TestResizeWithoutTerminal(t *testing.T) {
	r := newRig(t)
	if err := r.open(r.config()).Resize(80, 25); err != nil {
		t.Error(err)
	}
}

// A terminal nobody has open is read again when somebody opens it.
func TestTerminalThatHangsUp(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	out := r.reader(cfg.Stdout)
	p := r.runTerminal(cfg, "tty; exec <&- >&- 2>&-; sleep 60")
	name := ""
	for !strings.HasSuffix(name, "\r\n") {
		name += r.take(out, 1)
	}
	r.until("it hung up", func() bool { return p.out[0].hung != nil })
	tty, err := os.OpenFile(strings.TrimSpace(name), os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	tty.WriteString("later\n")
	if got := r.take(out, 7); got != "later\r\n" {
		t.Errorf("got %q", got)
	}
	tty.Close()
	r.until("it hung up again", func() bool { return p.out[0].hung != nil })
	unix.Kill(p.pid, unix.SIGKILL)
	p.exit()
	p.drained()
	if got := r.all(out); got != "" {
		t.Errorf("got %q", got)
	}
}

// Much output, a slow reader, then none: nothing is lost, and the spool takes what
// the fifo does not.
func TestTerminalSpool(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	p := r.runTerminal(cfg, "seq 100000")
	r.until("the reader is waited for", func() bool { return p.out[0].waiting == sink })
	r.on(func() { p.SetConnected(false) })
	if e := p.exit(); e.Code != 0 {
		t.Fatalf("got %+v", e)
	}
	r.on(func() { p.SetConnected(true) })
	var want strings.Builder
	for i := range 100000 {
		fmt.Fprint(&want, i+1, "\r\n")
	}
	if got := r.all(r.reader(cfg.Stdout)); got != want.String() {
		t.Errorf("got %d bytes, want %d", len(got), want.Len())
	}
	p.drained()
}

func TestTerminalWithoutClient(t *testing.T) {
	for _, address := range []string{"pty://", ""} {
		t.Run(address, func(t *testing.T) {
			r := newRig(t)
			cfg := r.config()
			cfg.Stdin, cfg.Stdout = address, address
			p := r.runTerminal(cfg, "seq 100000; test -t 1")
			if e := p.exit(); e.Code != 0 {
				t.Errorf("got %+v", e)
			}
			p.drained()
		})
	}
}

func TestTerminalToFile(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = "file://" + r.dir + "/log"
	p := r.runTerminal(cfg, "echo a; echo b >&2")
	p.exit()
	p.drained()
	if got := r.contents(r.dir + "/log"); got != "a\r\nb\r\n" {
		t.Errorf("got %q", got)
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	r := newRig(t)
	before := fds(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout, cfg.Stderr = r.fifo("in"), r.fifo("out"), "cri://"+r.dir+"/log"
	r.open(cfg).Abort()
	cfg.Direct = true
	r.open(cfg).Abort()
	cfg.Stdout = "file://" + r.dir + "/log"
	r.open(cfg).Abort()
	if n := fds(t); n > before {
		t.Errorf("%d descriptors instead of %d", n, before)
	}
	// A failed Open neither.
	cfg.Stdout, cfg.Stderr = "file://"+r.dir+"/x", r.dir+"/missing"
	if _, err := Open(r.l, r.table, cfg); fault.CodeOf(err) != fault.NotFound || !strings.Contains(err.Error(), "stderr") {
		t.Errorf("got %v", err)
	}
	if n := fds(t); n > before {
		t.Errorf("%d descriptors instead of %d", n, before)
	}
}
