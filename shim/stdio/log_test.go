// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/programs"
	"github.com/berthd/berth/shim/crilog"
	"github.com/berthd/berth/shim/fault"
)

func TestCRILog(t *testing.T) {
	r := newRig(t)
	before := fds(t)
	cfg := r.config()
	path := r.dir + "/0.log"
	cfg.Stdout, cfg.Stderr = "cri://"+path, "cri://"+path
	p := r.run(cfg, `printf 'a\nb'; printf 'error\n' >&2`)
	p.exit()
	p.drained()
	var got []string
	for _, e := range r.entries(path) {
		got = append(got, fmt.Sprint(e.Stream, " ", e.Partial, " ", string(e.Text)))
	}
	if len(got) == 3 && got[0] == "stderr false error" { // the streams are not ordered
		got = append(got[1:], got[0])
	}
	want := []string{"stdout false a", "stdout true b", "stderr false error"}
	if len(got) == 3 && got[1] == want[2] {
		got[1], got[2] = got[2], got[1]
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	r.on(p.Close)
	if n := fds(t); n > before {
		t.Errorf("%d descriptors instead of %d", n, before)
	}
}

func TestCRILogOfMuchOutput(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	path := r.dir + "/0.log"
	cfg.Stdout, cfg.Stderr = "cri://"+path, "cri://"+path
	p := r.run(cfg, "seq 300000 & seq 300000 >&2; wait")
	p.exit()
	p.drained()
	var want strings.Builder
	for i := range 300000 {
		fmt.Fprintln(&want, i+1)
	}
	for s := range crilog.Stream(2) {
		if got := r.logged(path, s); got != want.String() {
			t.Errorf("%v: got %d bytes, want %d", s, len(got), want.Len())
		}
	}
	partial := 0
	for _, e := range r.entries(path) {
		if e.Partial {
			partial++
		}
	}
	if partial > 1000 {
		t.Errorf("%d of 600000 lines are torn", partial)
	}
}

func TestReopenDuringMuchOutput(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	path := r.dir + "/0.log"
	cfg.Stdout = "cri://" + path
	p := r.run(cfg, "cd "+r.dir+"; for i in $(seq 12000); do seq 10000; sleep 0.001; [ ! -e stop ] || exit 0; done")
	sizes := map[string]int{}
	var names []string
	for i := range 5 {
		r.until("something is logged", func() bool {
			st, err := os.Stat(path) // not its content: it grows faster than it is read
			return err == nil && st.Size() > 0
		})
		old := fmt.Sprintf("%s.%d", path, i)
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		began := time.Now()
		r.on(func() { p.Reopen(func(err error) { done <- err }) })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		t.Log("reopened", time.Since(began))
		names = append(names, old)
		sizes[old] = len(r.contents(old))
	}
	os.WriteFile(r.dir+"/stop", nil, 0o600)
	p.exit()
	p.drained()
	var got strings.Builder
	for _, name := range append(names, path) {
		if n := len(r.contents(name)); name != path && n != sizes[name] {
			t.Errorf("%s grew from %d to %d after it was reopened", name, sizes[name], n)
		}
		got.WriteString(r.logged(name, crilog.Stdout))
	}
	var once strings.Builder
	for i := range 10000 {
		fmt.Fprintln(&once, i+1)
	}
	if want := strings.Repeat(once.String(), len(got.String())/once.Len()); got.String() != want {
		t.Errorf("%d bytes of output are not what was written", len(got.String()))
	}
	r.on(func() {
		p.Reopen(func(err error) { // nothing is left to reopen
			if err != nil {
				t.Error(err)
			}
		})
	})
}

func TestReopenThatFails(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	dir := r.dir + "/pod"
	os.Mkdir(dir, 0o755)
	cfg.Stdout = "cri://" + dir + "/0.log"
	p := r.run(cfg, "cat /dev/zero >/dev/null")
	os.RemoveAll(dir)
	done := make(chan error, 1)
	r.on(func() { p.Reopen(func(err error) { done <- err }) })
	if err := <-done; fault.CodeOf(err) != fault.NotFound {
		t.Errorf("got %v", err)
	}
}

func TestCRILogOfATerminal(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = "cri://" + r.dir + "/0.log"
	p := r.runTerminal(cfg, "echo a; echo b >&2")
	p.exit()
	p.drained()
	if got := r.logged(r.dir+"/0.log", crilog.Stdout); got != "a\r\nb\r\n" {
		t.Errorf("got %q", got)
	}
}

func TestRotationBySettingsOfTheURI(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	path := r.dir + "/0.log"
	cfg.Stdout = "cri://" + path + "?max-size=64KiB&max-files=3&sync=false"
	p := r.run(cfg, "seq 100000")
	p.exit()
	p.drained()
	var got strings.Builder
	for _, name := range []string{path + ".3", path + ".2", path + ".1", path} {
		if n := len(r.contents(name)); n > 64<<10 {
			t.Errorf("%s has %d bytes", name, n)
		}
		got.WriteString(r.logged(name, crilog.Stdout))
	}
	if !strings.HasSuffix(got.String(), "99999\n100000\n") || strings.Count(got.String(), "\n") < 2000 {
		t.Errorf("got %d bytes: ...%q", len(got.String()), got.String()[max(0, len(got.String())-40):])
	}
}

// The driver's log and containerd's fifo, both complete, though the reader of the
// fifo is slow.
func TestDriverBesidesFifo(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	path := r.dir + "/k8s.log"
	cfg.Stdout = r.fifo("out")
	cfg.Log.Drivers = []string{"k8s-file:" + path, "none"}
	out := r.reader(cfg.Stdout)
	p := r.run(cfg, "seq 100000; seq 5 >&2")
	r.until("the reader is waited for", func() bool { return !p.working && p.out[0].waiting == sink })
	got := r.all(out)
	p.exit()
	p.drained()
	var want strings.Builder
	for i := range 100000 {
		fmt.Fprintln(&want, i+1)
	}
	if got != want.String() {
		t.Errorf("fifo: got %d bytes, want %d", len(got), want.Len())
	}
	if got := r.logged(path, crilog.Stdout); got != want.String() {
		t.Errorf("log: got %d bytes, want %d", len(got), want.Len())
	}
	if got := r.logged(path, crilog.Stderr); got != "1\n2\n3\n4\n5\n" {
		t.Errorf("log of stderr: got %q", got)
	}
}

// While containerd is away a logged stream is spooled as well.
func TestDriverBesidesFifoSpools(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	cfg.Log.Drivers = []string{"k8s-file:" + r.dir + "/k8s.log"}
	p := r.run(cfg, "seq 300000")
	r.until("the reader is waited for", func() bool { return !p.working && p.out[0].waiting == sink })
	r.on(func() { p.SetConnected(false) })
	if e := p.exit(); e.Code != 0 {
		t.Fatalf("got %+v", e)
	}
	got := r.all(r.reader(cfg.Stdout))
	p.drained()
	if log := r.logged(r.dir+"/k8s.log", crilog.Stdout); got != log || strings.Count(got, "\n") != 300000 {
		t.Errorf("got %d bytes from the fifo, %d from the log", len(got), len(log))
	}
}

func TestFullDiskDoesNotStopTheContainer(t *testing.T) {
	r := newRig(t)
	d := r.dir + "/small"
	os.Mkdir(d, 0o755)
	if err := unix.Mount("tmpfs", d, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatalf("needs root: %v", err)
	}
	defer unix.Unmount(d, unix.MNT_DETACH)
	cfg := r.config()
	cfg.Stdout = "cri://" + d + "/0.log"
	cfg.Stderr = "file://" + d + "/raw"
	cfg.Log.Drivers = []string{"k8s-file:" + d + "/0.log"}
	p := r.run(cfg, "seq 100000; seq 100000 >&2")
	if e := p.exit(); e.Code != 0 {
		t.Errorf("got %+v", e)
	}
	p.drained()
	if n := len(strings.Split(r.warned(), "\n")); n != 2 { // one for each file
		t.Errorf("got warnings: %s", r.warned())
	}
	r.entries(d + "/0.log")
}

// receiver plays the journal.
func (r *rig) receiver() (path string, receive func() map[string]string) {
	r.t.Helper()
	path = r.dir + "/journal"
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		r.t.Fatal(err)
	}
	tv := unix.NsecToTimeval(int64(patience))
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	return path, func() map[string]string {
		r.t.Helper()
		b := make([]byte, 64<<10)
		n, _, err := unix.Recvfrom(fd, b, 0)
		for err == unix.EINTR { // a socket with a time limit is not restarted
			n, _, err = unix.Recvfrom(fd, b, 0)
		}
		if err != nil {
			r.t.Fatal(err)
		}
		return parseEntry(r.t, b[:n])
	}
}

func parseEntry(t testing.TB, b []byte) map[string]string {
	t.Helper()
	entry := map[string]string{}
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte{'\n'})
		if !ok {
			t.Fatalf("no newline after %q", b)
		}
		key, value, ok := bytes.Cut(line, []byte{'='})
		if !ok {
			n := binary.LittleEndian.Uint64(rest)
			value, rest = rest[8:8+n], rest[8+n+1:]
		}
		entry[string(key)] = string(value)
		b = rest
	}
	return entry
}

func TestJournald(t *testing.T) {
	r := newRig(t)
	path, receive := r.receiver()
	cfg := r.config()
	cfg.Stdout = r.fifo("out")
	cfg.Log = LogConfig{
		Drivers: []string{"journald"}, Labels: []string{"A_1=b=c", "MULTI=x\ny"}, Tag: "tag", Name: "name", JournalSocket: path,
	}
	out := r.reader(cfg.Stdout)
	p := r.run(cfg, `printf 'plain\n<3>x\n'; head -c 10000 /dev/zero | tr '\0' z; printf 'end\nrest'; read x <&- ; exit 0`)
	base := map[string]string{
		"CONTAINER_ID_FULL": cfg.ID, "CONTAINER_ID": "0123456789ab", "CONTAINER_NAME": "name", "CONTAINER_TAG": "tag",
		"SYSLOG_IDENTIFIER": "tag", "A_1": "b=c", "MULTI": "x\ny", "PRIORITY": "6",
	}
	want := func(fields ...string) {
		t.Helper()
		entry := map[string]string{}
		maps.Copy(entry, base)
		for i := 0; i < len(fields); i += 2 {
			entry[fields[i]] = fields[i+1]
		}
		if d := cmp.Diff(entry, receive()); d != "" {
			t.Error(d)
		}
	}
	want("MESSAGE", "plain")
	want("MESSAGE", "x", "PRIORITY", "3")
	want("MESSAGE", strings.Repeat("z", 8192), "CONTAINER_PARTIAL_MESSAGE", "true")
	want("MESSAGE", strings.Repeat("z", 10000-8192)+"end")
	want("MESSAGE", "rest", "CONTAINER_PARTIAL_MESSAGE", "true")
	if got := r.all(out); len(got) != 10019 {
		t.Errorf("fifo: got %d bytes", len(got))
	}
	p.exit()
	p.drained()
	// Standard error has a priority of its own.
	p = r.run(cfg, "echo problem >&2")
	want("MESSAGE", "problem", "PRIORITY", "3")
	p.exit()
	p.drained()
}

func TestJournalThatIsAway(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Log = LogConfig{Drivers: []string{"journald"}, JournalSocket: r.dir + "/none"}
	p := r.run(cfg, "seq 1000")
	if e := p.exit(); e.Code != 0 {
		t.Errorf("got %+v", e)
	}
	p.drained()
	if n := len(strings.Split(r.warned(), "\n")); n != 1 || !strings.Contains(r.warned(), "/none") {
		t.Errorf("got warnings: %s", r.warned())
	}
}

// script writes a logging program.
func (r *rig) script(body string) string {
	r.t.Helper()
	return programs.Write(r.t, r.dir+"/logger", "#!/bin/sh\n"+body)
}

func TestBinaryLogger(t *testing.T) {
	for _, scheme := range []string{"binary", "binary-v2"} {
		t.Run(scheme, func(t *testing.T) {
			r := newRig(t)
			before := fds(t)
			out := r.dir + "/result"
			path := r.script(`
				d=$(dirname $0)
				{ echo "args: $*"; env | grep -v ^_= | grep -v ^PWD= | grep -v ^SHLVL= | grep -v ^OLDPWD= | sort; for i in 0 1 2 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$i ] || printf '%s ' $i; done; } >$d/result
				[ "` + scheme + `" = binary ] || printf x >&5
				exec 5>&-
				cat <&3 >$d/stdout &
				cat <&4 >$d/stderr
				wait`)
			cfg := r.config()
			cfg.Stdout = scheme + "://" + path + "?a=b&c=d%20e&f&a=g"
			cfg.Stderr = cfg.Stdout
			s := r.open(cfg)
			// Ready means: what it did first is done.
			want := "args: a b c d e f  a g\nCONTAINER_ID=0123456789abcdef\nCONTAINER_NAMESPACE=ns\n0 1 2 3 4 5 "
			if got := r.contents(out); !strings.HasPrefix(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			p := r.attach(s, "seq 100000; echo error >&2")
			if p.out[0] != nil {
				t.Error("the shim copies")
			}
			p.exit()
			p.drained()
			if got := r.contents(r.dir + "/stdout"); strings.Count(got, "\n") != 100000 {
				t.Errorf("stdout: got %d bytes", len(got))
			}
			if got := r.contents(r.dir + "/stderr"); got != "error\n" {
				t.Errorf("stderr: got %q", got)
			}
			r.on(p.Close)
			if n := fds(t); n > before {
				t.Errorf("%d descriptors instead of %d", n, before)
			}
		})
	}
}

func TestLoggerThatFails(t *testing.T) {
	r := newRig(t)
	before := fds(t)
	cfg := r.config()
	path := r.script("echo no space for logs >&2; exit 1")
	cfg.Stdout = "binary-v2://" + path
	_, err := Open(r.l, r.table, cfg)
	if err == nil || !strings.Contains(err.Error(), "no space for logs") || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
	// The first version takes an end for ready.
	cfg.Stdout = "binary://" + path
	r.open(cfg).Abort()
	cfg.Stdout = "binary://" + r.dir + "/missing"
	if _, err := Open(r.l, r.table, cfg); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("got %v", err)
	}
	if n := fds(t); n > before {
		t.Errorf("%d descriptors instead of %d", n, before)
	}
}

func TestLoggerIsAskedToEndThenMade(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a logger may")
	}
	r := newRig(t)
	cfg := r.config()
	path := r.script(`trap 'echo term >>$0.out' TERM; exec 5>&-; while :; do sleep 0.1; done`)
	cfg.Stdout = "binary://" + path
	p := r.run(cfg, "true")
	p.exit()
	got := make(chan bool, 1)
	r.on(func() { p.Drained(100*time.Millisecond, func(c bool) { got <- c }) })
	if <-got {
		t.Error("drained although the logger is there")
	}
	began := time.Now()
	ended := make(chan struct{})
	r.on(func() { p.End(func() { close(ended) }) })
	<-ended
	if d := time.Since(began); d < loggerPatience || d > loggerPatience+5*time.Second {
		t.Errorf("it took %v", d)
	}
	if got := r.contents(path + ".out"); got != "term\n" {
		t.Errorf("got %q", got)
	}
}

func TestTerminalToLogger(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = "binary://" + r.script("exec 5>&-; cat <&3 >$0.out; cat <&4 >>$0.out")
	cfg.Stderr = cfg.Stdout
	p := r.runTerminal(cfg, "echo a; echo b >&2")
	p.exit()
	p.drained()
	if got := r.contents(r.dir + "/logger.out"); got != "a\r\nb\r\n" {
		t.Errorf("got %q", got)
	}
}

// A logger beside a driver: both get everything, and the log goes on when the
// logger ends.
func TestLoggerBesidesDriver(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Stdout = "binary://" + r.script("exec 5>&-; head -n 2 <&3 >$0.out")
	cfg.Log.Drivers = []string{"k8s-file:" + r.dir + "/log"}
	p := r.run(cfg, "for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done")
	if e := p.exit(); e.Code != 0 {
		t.Errorf("got %+v", e)
	}
	p.drained()
	if got := r.contents(r.dir + "/logger.out"); got != "1\n2\n" {
		t.Errorf("logger: got %q", got)
	}
	if got := r.logged(r.dir+"/log", crilog.Stdout); got != "1\n2\n3\n4\n5\n6\n" {
		t.Errorf("log: got %q", got)
	}
}
