// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/crilog"
)

// handOver replaces the process's streams by what Restore makes of their
// snapshot, with copies of the descriptors, as an exec would.
func (p *proc) handOver() {
	p.r.t.Helper()
	done := make(chan error, 1)
	p.r.l.Post(func() {
		p.r.l.Quiesce(func() {
			var kept []int
			b := p.Snapshot(nil, func(fd int) { kept = append(kept, fd) })
			// The old ones forget their descriptors without closing them.
			old := p.Streams
			for _, f := range [3]*flow{old.in, old.out[0], old.out[1]} {
				if f != nil && !f.over {
					f.waitFor(nothing)
					f.hung.Stop()
					f.src, f.dst, f.spool, f.over = -1, -1, nil, true
				}
			}
			for _, g := range old.lingers {
				g.timer.Stop()
			}
			for _, lg := range old.loggers {
				lg.onEnd = nil
			}
			old.logs, old.clients = nil, nil
			for _, fd := range kept {
				p.r.l.Unwatch(fd) // what the old ones' clients watch
				if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
					p.r.t.Errorf("descriptor %d: %v", fd, err)
				}
			}
			s, err := Restore(p.r.l, p.r.table, &old.cfg, b)
			for _, fd := range kept {
				if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
					p.r.t.Errorf("descriptor %d would go on to children", fd)
				}
			}
			if err == nil {
				s.SetConnected(old.connected)
				p.Streams = s
			}
			done <- err
		})
	})
	if err := <-done; err != nil {
		p.r.t.Fatal(err)
	}
}

func TestHandoverOfFifos(t *testing.T) {
	r := newRig(t)
	before := fds(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout, cfg.Stderr = r.fifo("in"), r.fifo("out"), r.fifo("err")
	out, errs := r.reader(cfg.Stdout), r.reader(cfg.Stderr)
	p := r.run(cfg, "cat; echo error >&2")
	in, err := os.OpenFile(cfg.Stdin, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		p.handOver()
		fmt.Fprintln(in, i)
		if got := r.take(out, 2); got != fmt.Sprintln(i) {
			t.Errorf("got %q", got)
		}
	}
	in.Close()
	r.on(p.CloseStdin)
	if got := r.all(out) + r.all(errs); got != "error\n" {
		t.Errorf("got %q", got)
	}
	p.exit()
	p.drained()
	r.on(p.Close)
	out.Close()
	errs.Close()
	if n := fds(t); n > before {
		t.Errorf("%d descriptors instead of %d", n, before)
	}
}

func TestHandoverWithSpool(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	p := r.run(cfg, "seq 300000")
	r.until("the reader is waited for", func() bool { return p.out[0].waiting == sink })
	r.on(func() { p.SetConnected(false) })
	for range 5 {
		p.handOver()
	}
	if e := p.exit(); e.Code != 0 {
		t.Fatalf("got %+v", e)
	}
	r.on(p.Exited)
	p.handOver()
	out := r.reader(cfg.Stdout)
	got := r.take(out, 100_000)
	p.handOver()
	got += r.all(out)
	var want strings.Builder
	for i := range 300000 {
		fmt.Fprintln(&want, i+1)
	}
	if got != want.String() {
		t.Errorf("got %d bytes, want %d", len(got), want.Len())
	}
	p.drained()
}

func TestHandoverOfLogs(t *testing.T) {
	r := newRig(t)
	journal, receive := r.receiver()
	cfg := r.config()
	cfg.Stdout = "cri://" + r.dir + "/0.log?max-size=1GiB"
	cfg.Stderr = "file://" + r.dir + "/raw"
	cfg.Log = LogConfig{Drivers: []string{"k8s-file:" + r.dir + "/k8s", "journald"}, JournalSocket: journal}
	p := r.run(cfg, "cd "+r.dir+"; printf be; echo x >&2; until [ -e go ]; do sleep 0.01; done; printf 'gin\\n'; echo y >&2")
	r.until("the beginning is logged", func() bool { return !p.working && len(r.soFar(r.dir+"/raw")) == 2 })
	for range 3 {
		p.handOver()
	}
	os.WriteFile(r.dir+"/go", nil, 0o600)
	p.exit()
	r.on(p.Exited)
	p.drained()
	if got := r.logged(r.dir+"/0.log", crilog.Stdout); got != "begin\n" {
		t.Errorf("cri: got %q", got)
	}
	if got := r.logged(r.dir+"/k8s", crilog.Stdout) + r.logged(r.dir+"/k8s", crilog.Stderr); got != "begin\nx\ny\n" {
		t.Errorf("k8s-file: got %q", got)
	}
	if got := r.contents(r.dir + "/raw"); got != "x\ny\n" {
		t.Errorf("file: got %q", got)
	}
	messages := map[string]bool{}
	for range 3 {
		messages[receive()["MESSAGE"]] = true
	}
	if !messages["x"] || !messages["y"] || !messages["begin"] {
		t.Errorf("journal: got %v", messages)
	}
}

func TestHandoverOfATerminalAndALogger(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdin, cfg.Stdout = r.fifo("in"), "binary://"+r.script("exec 5>&-; cat <&3 >$0.out")
	p := r.runTerminal(cfg, "stty -echo; echo a; read x; stty size; echo $x")
	for range 3 {
		p.handOver()
	}
	r.on(func() { p.Resize(90, 30) })
	in, err := os.OpenFile(cfg.Stdin, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.until("the terminal is quiet", func() bool { return strings.HasPrefix(r.soFar(r.dir+"/logger.out"), "a") })
	in.WriteString("b\n")
	p.exit()
	r.on(p.Exited)
	p.drained()
	if got := r.contents(r.dir + "/logger.out"); got != "a\r\n30 90\r\nb\r\n" {
		t.Errorf("got %q", got)
	}
}

func TestHandoverOfALingeringFifo(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	p := r.run(cfg, "echo last words")
	p.exit()
	p.drained()
	p.handOver()
	p.drained()
	if got := r.all(r.reader(cfg.Stdout)); got != "last words\n" {
		t.Errorf("got %q", got)
	}
	r.until("the fifo is given up", func() bool { return len(p.lingers) == 0 })
}

func TestRestoreRefusesNonsense(t *testing.T) {
	r := newRig(t)
	for _, b := range []string{"\x1a", "\x1a\x02\x08\x09", "\x22\x02\x08\x63"} {
		if s, err := Restore(r.l, r.table, r.config(), []byte(b)); err == nil {
			t.Errorf("%q: got %+v", b, s)
		}
	}
}
