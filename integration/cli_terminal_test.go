// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
)

// lines is output that is looked at while it comes.
type lines struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// lacks returns "" once the words have come so often.
func (l *lines) lacks(times int, words string) string {
	if text := l.String(); strings.Count(text, words) < times {
		return "output " + text
	}
	return ""
}

// typist is a user at a terminal on which berth runs.
type typist struct {
	*exec.Cmd
	lines
	t     *testing.T
	fd    int      // of the terminal's other side
	other *os.File // the same
	slave *os.File
}

// atTerminal calls berth with a terminal of 40 lines and 100 columns.
func (c *cli) atTerminal(t *testing.T, args ...string) *typist {
	t.Helper()
	// Not openPTY: a write to a terminal that nobody reads is to end with the test.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	u := &typist{Cmd: c.command(t, args...), t: t, fd: fd, other: os.NewFile(uintptr(fd), "ptmx")}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err := errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)); err != nil {
		t.Fatal(err)
	}
	if u.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	u.resize(40, 100)
	u.Stdin, u.Stdout, u.Stderr = u.slave, u.slave, u.slave
	u.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := u.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := u.other.Read(b)
			_, _ = u.lines.Write(b[:n])
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = u.Process.Kill() // it has ended unless the test failed
		_ = u.slave.Close()
		_ = u.other.Close()
		<-read
	})
	return u
}

func (u *typist) resize(rows, columns uint16) {
	u.t.Helper()
	if err := unix.IoctlSetWinsize(u.fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		u.t.Fatal(err)
	}
}

func (u *typist) types(text string) {
	u.t.Helper()
	_ = u.other.SetWriteDeadline(time.Now().Add(patience))
	if _, err := u.other.WriteString(text); err != nil {
		u.t.Fatalf("%v: output %q", err, u.lines.String())
	}
}

// repeats types something once in a while until there is an answer: what is typed
// before a process listens may be lost.
func (u *typist) repeats(text, answer string, watchers ...*typist) {
	u.t.Helper()
	for range 20 {
		u.types(text)
		for range 100 {
			if !slices.ContainsFunc(append(watchers, u), func(w *typist) bool { return w.lacks(1, answer) != "" }) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	u.t.Fatalf("no %q: output %q", answer, u.lines.String())
}

// sees waits for output.
func (u *typist) sees(words string) {
	u.t.Helper()
	eventually(u.t, patience, func() string { return u.lacks(1, words) })
}

// ends waits for the end and its exit code, and for the terminal to be as it was.
func (u *typist) ends(code int) {
	u.t.Helper()
	_ = u.Wait()
	if got := u.ProcessState.ExitCode(); got != code {
		u.t.Errorf("exit %d, want %d: %q", got, code, u.lines.String())
	}
	state, err := unix.IoctlGetTermios(int(u.slave.Fd()), unix.TCGETS)
	if err != nil || state.Lflag&unix.ECHO == 0 || state.Lflag&unix.ICANON == 0 {
		u.t.Errorf("the terminal is still raw: %v", err)
	}
}

// detachKeys are ctrl-p and ctrl-q.
const detachKeys = "\x10\x11"

// A shell in a terminal: sizes, keys that are signals, and its end.
func TestCLITerminalRun(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		u := c.atTerminal(t, "run", "--rm", "-it", "--network", "host", host.Busybox, "sh")
		u.types("tty && stty size; echo re''ady\n")
		u.sees("ready")
		if got := u.lines.String(); !strings.Contains(got, "/dev/pts/0") || !strings.Contains(got, "40 100") {
			t.Errorf("terminal: %q", got)
		}
		u.resize(30, 90)
		u.repeats("stty size\n", "30 90")
		u.types("echo sle''eps; sleep 1000\n")
		u.sees("sleeps")
		u.types("\x03")                                                    // ctrl-c is the sleep's
		eventually(t, patience, func() string { return u.lacks(1, "^C") }) // and the terminal throws away what was typed before
		u.types("echo go''ing on; exit 5\n")
		u.sees("going on")
		u.ends(5)
	})
}

// A user leaves a container, comes back, and others watch.
func TestCLITerminalAttach(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		u := c.atTerminal(t, "run", "-it", "--name", "shell", "--network", "host", host.Busybox, "sh")
		t.Cleanup(func() { c.must(t, "container", "rm", "-f", "shell") })
		u.types("A=kept; echo re''ady\n")
		u.sees("ready")
		u.types(detachKeys)
		u.ends(0)
		u.sees("left shell")

		a := c.atTerminal(t, "container", "attach", "shell")
		b := c.atTerminal(t, "container", "attach", "--no-stdin", "shell")
		a.repeats("\n", "# ")
		a.repeats("echo he''re\n", "here", b) // who came later sees nothing of before
		a.repeats("echo $A''it\n", "keptit")
		eventually(t, patience, func() string { return b.lacks(1, "keptit") })
		a.types("exit 6\n")
		a.ends(6)
		b.ends(6)
	})
}

func TestCLITerminalExec(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		c.start(t, "app", host.Busybox, "sh", "-c", idling)
		u := c.atTerminal(t, "exec", "-it", "app", "sh")
		u.types("stty size; echo re''ady\n")
		u.sees("ready")
		if got := u.lines.String(); !strings.Contains(got, "40 100") {
			t.Errorf("terminal: %q", got)
		}
		u.resize(30, 90)
		u.repeats("stty size\n", "30 90")
		u.types("exit 4\n")
		u.ends(4)

		u = c.atTerminal(t, "exec", "-it", "--detach-keys", "x,y", "app", "sh", "-c", "echo re''ady; sleep 2; echo on > /marker")
		u.sees("ready")
		u.types("xy")
		u.ends(0)
		eventually(t, patience, func() string { return c.run(t, "exec", "app", "cat", "/marker").err })
	})
}

// Signals are the container's. Somebody who insists ends berth alone.
func TestCLISignals(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		cmd := c.command(t, "run", "--rm", "--network", "host", host.Busybox, "sh", "-c", "trap 'echo got; exit 9' USR1; trap 'echo real time' 37; echo ready; while :; do sleep 0.1; done")
		var out lines
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() string { return out.lacks(1, "ready") })
		_ = cmd.Process.Signal(unix.Signal(37)) // SIGRTMIN+3, which has no name everywhere
		eventually(t, patience, func() string { return out.lacks(1, "real time") })
		_ = cmd.Process.Signal(unix.SIGUSR1)
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 9 || out.String() != "ready\nreal time\ngot\n" {
			t.Errorf("exit %d: %q", got, out.String())
		}

		out = lines{}
		cmd = c.command(t, "run", "--name", "deaf", "--network", "host", host.Busybox, "sh", "-c", "trap '' INT; echo ready; while :; do sleep 0.1; done")
		t.Cleanup(func() { c.must(t, "container", "rm", "-f", "deaf") })
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() string { return out.lacks(1, "ready") })
		gone := make(chan error, 1)
		go func() { gone <- cmd.Wait() }()
		eventually(t, patience, func() string {
			select {
			case <-gone:
				return ""
			default:
				_ = cmd.Process.Signal(os.Interrupt)
				return "berth goes on"
			}
		})
		// One more, as it ends, kills it: the same to a shell.
		if got := cmd.ProcessState.Sys().(syscall.WaitStatus); got.ExitStatus() != 130 && got.Signal() != unix.SIGINT {
			t.Errorf("ended with %#x, want exit 130", int(got))
		}
		fields(t, c.only(t, "container", "inspect", "deaf"), object{"state": "Running"})
	})
}

// On a terminal a list is drawn again in its place.
func TestCLITerminalWatch(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		c.pod(t, "web", "--network", "host")
		u := c.atTerminal(t, "pods", "--watch", "--interval", "50ms")
		u.sees("\x1b[H")
		eventually(t, patience, func() string { return u.lacks(3, "web") })
		_ = u.Process.Signal(os.Interrupt)
		u.ends(0)
	})
}
