// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/plan"
)

// The test binary is also the shim: with these variables its transient half, in
// a world of the test's; with a shim's arguments alone a resident that only
// tells how it was started.
const (
	testSettings  = "BERTH_TEST_SETTINGS"
	testSocketDir = "BERTH_TEST_SOCKET_DIR"
)

func TestMain(m *testing.M) {
	if os.Getenv(testSettings) != "" {
		os.Exit(transient())
	}
	if inv, err := Parse(os.Args[1:]); err == nil && inv.Serves() && inv.ID != "" {
		resident()
	}
	os.Exit(m.Run())
}

func transient() int {
	inv, err := Parse(os.Args[1:])
	if err == nil {
		var h *Host
		if h, err = System("1.2.3"); err == nil {
			h.Settings, h.SocketDir = os.Getenv(testSettings), os.Getenv(testSocketDir)
			err = h.Run(inv)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return int(fault.CodeOf(err))
}

// facts are what the resident of a test finds out about itself.
type facts struct {
	Args, Env   []string
	Dir         string
	Leader      bool // of a session
	OOMScoreAdj string
	Files       map[string]string
	Plan        []byte
}

// resident accepts connections until it is killed, or its bundle is gone.
func resident() {
	dir, _ := os.Getwd()
	sid, _ := unix.Getsid(0)
	f := facts{Args: os.Args, Env: os.Environ(), Dir: dir, Leader: sid == os.Getpid(), Files: map[string]string{}}
	score, _ := os.ReadFile("/proc/self/oom_score_adj")
	f.OOMScoreAdj = strings.TrimSpace(string(score))
	for fd := range 6 { // more are Go's own
		if target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil {
			f.Files[fmt.Sprint(fd)] = strings.Split(target, ":")[0]
		}
	}
	f.Plan, _ = os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", plan.PlanFD))
	b, _ := json.Marshal(f)
	_ = os.WriteFile("facts.tmp", b, 0o600)
	_ = os.Rename("facts.tmp", "facts")
	_ = unix.SetNonblock(plan.ServerFD, false)
	_ = unix.SetsockoptTimeval(plan.ServerFD, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	for {
		if fd, _, err := unix.Accept(plan.ServerFD); err == nil {
			unix.Close(fd)
		}
		if _, err := os.Stat(dir); err != nil {
			os.Exit(0)
		}
	}
}

// world is where the shim of a test runs.
type world struct {
	t         *testing.T
	settings  string
	socketDir string
	bundle    string
	env       []string
	files     []*os.File // that its starter has left open, from descriptor 3 on
}

func newWorld(t *testing.T, settings, config string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth") // short, for the sockets
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, settings: filepath.Join(dir, "shim.toml"), socketDir: filepath.Join(dir, "s"), bundle: filepath.Join(dir, "bundle")}
	t.Cleanup(func() {
		w.killResident()
		_ = unix.Unmount(filepath.Join(w.bundle, "rootfs"), unix.MNT_DETACH)
		os.RemoveAll(dir)
	})
	if err := os.MkdirAll(filepath.Join(w.bundle, "rootfs"), 0o711); err != nil {
		t.Fatal(err)
	}
	settings = fmt.Sprintf("root = %q\nruntime = %q\n", filepath.Join(dir, "runc"), deps(t, "runc")) + settings
	w.write(w.settings, settings)
	if config != "" {
		w.write(filepath.Join(w.bundle, "config.json"), config)
	}
	return w
}

func (w *world) write(path, text string) {
	w.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// result is what an invocation of the shim came to.
type result struct {
	stdout []byte
	stderr string
	code   fault.Code
}

// shim executes the shim as containerd does, in the bundle.
func (w *world) shim(stdin []byte, args ...string) result {
	w.t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Dir = w.bundle
	// Race mode otherwise sleeps for a second at exit.
	cmd.Env = append(os.Environ(), append([]string{"GORACE=atexit_sleep_ms=0", testSettings + "=" + w.settings, testSocketDir + "=" + w.socketDir}, w.env...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.ExtraFiles = w.files
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		w.t.Fatal(err)
	}
	return result{out.Bytes(), errb.String(), fault.Code(cmd.ProcessState.ExitCode())}
}

// ok fails the test when the shim did, or wrote where containerd reads.
func (r result) ok(t *testing.T) result {
	t.Helper()
	if r.code != fault.OK || r.stderr != "" {
		t.Fatalf("exit status %d, stderr %q", r.code, r.stderr)
	}
	return r
}

func flags(id, verb string) []string {
	return []string{"-namespace", "ns", "-address", "/run/c.sock", "-publish-binary", "/bin/containerd", "-id", id, verb}
}

func (w *world) resident() identity {
	w.t.Helper()
	id, err := readIdentity(filepath.Join(w.bundle, plan.ServerFile))
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) killResident() {
	id, err := readIdentity(filepath.Join(w.bundle, plan.ServerFile))
	if err != nil {
		return
	}
	if fd := id.open(); fd >= 0 {
		kill(fd)
		unix.Close(fd)
	}
}

// facts waits for what the resident tells of itself.
func (w *world) facts() facts {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(w.bundle, "facts"))
		if err == nil {
			var f facts
			if err := json.Unmarshal(b, &f); err != nil {
				w.t.Fatal(err)
			}
			return f
		}
		if time.Now().After(deadline) {
			w.t.Fatal(err)
		}
	}
}

func (w *world) plan() *plan.Plan {
	w.t.Helper()
	p, err := readPlan(w.bundle)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// deps returns the path of a program that `make deps` has built.
func deps(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("BERTH_DEPS")
	for d, _ := os.Getwd(); dir == "" && d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			dir = filepath.Join(d, ".deps")
		}
	}
	path := filepath.Join(dir, "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make deps`", err)
	}
	return path
}
