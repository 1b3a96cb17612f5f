// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/loop"
)

// The test binary is also the process in the cgroup: role says what it does.
const role = "BERTH_CGROUP_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		os.Exit(m.Run())
	case "work":
		work()
	case "hog":
		hog()
	case "fork":
		forkers()
	case "pause":
		for {
			_ = unix.Pause()
		}
	}
	idle()
}

// idle ends when the test does: stdin is a pipe from it.
func idle() {
	_, _ = os.Stdin.Read(make([]byte, 1))
	os.Exit(0)
}

// await blocks until the test has put this process into its cgroup.
func await() {
	_, _ = os.Stdin.Read(make([]byte, 1))
}

// work makes most counters differ from zero.
func work() {
	await()
	mem := make([]byte, 16<<20)
	for i := range mem {
		mem[i] = byte(i)
	}
	dir, err := os.MkdirTemp("", "berth-cgroup")
	if err == nil {
		file, err := os.Create(filepath.Join(dir, "data"))
		if err == nil {
			_, _ = file.Write(mem)
			_ = file.Sync()
			_ = file.Close()
		}
		_ = os.RemoveAll(dir)
	}
	for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); {
		mem[0]++
	}
	fmt.Println("worked")
	idle()
}

// hog takes memory until it is killed.
func hog() {
	await()
	var all [][]byte
	for {
		mem := make([]byte, 1<<20)
		for i := 0; i < len(mem); i += 4096 {
			mem[i] = 1
		}
		all = append(all, mem)
		if len(all) > 200 {
			fmt.Println("not killed")
			os.Exit(3)
		}
	}
}

// forkers makes three children, and answers a byte once.
func forkers() {
	await()
	runtime.LockOSThread() // which the children's end depends on
	for range 3 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), role+"=pause")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		if err := cmd.Start(); err != nil {
			panic(err)
		}
	}
	fmt.Println("forked")
	await()
	fmt.Println("awake")
	idle()
}

// child is a process of the test, in a cgroup of its own.
type child struct {
	*exec.Cmd
	dirs []string // of the cgroup, one per hierarchy
	in   *os.File
	out  *os.File
}

// start makes cgroups below the test's own, in each mounted hierarchy, calls set
// for each, and puts a process into them. Cleanup ends the process and removes
// the cgroups, which must be empty by then.
func start(t *testing.T, what string, set func(dir string)) *child {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	self, err := find("", os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	c := &child{}
	for i := range self.places {
		dir := filepath.Join(self.places[i].dir, "berth-test-"+strconv.Itoa(os.Getpid())+"-"+t.Name())
		if self.v2 && self.places[i].has == unified {
			// With processes in it, only the root may have controllers below.
			dir = filepath.Join("/sys/fs/cgroup", filepath.Base(dir))
			_ = os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+cpu +memory +pids +io +hugetlb"), 0)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			removeWithin(t, dir)
		})
		// The cpuset of v1 takes nobody before it is told where.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if text, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name)); err == nil && !self.v2 {
				put(t, dir, name, strings.TrimSpace(string(text)))
			}
		}
		if set != nil {
			set(dir)
		}
		c.dirs = append(c.dirs, dir)
	}
	c.Cmd = exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), role+"="+what, "GOMAXPROCS=2", "GORACE=exitcode=0")
	c.Stderr = os.Stderr
	if c.Stdin, c.in, err = pipe(); err != nil {
		t.Fatal(err)
	}
	var stdout *os.File
	if c.out, stdout, err = pipe(); err != nil {
		t.Fatal(err)
	}
	c.Stdout = stdout
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	c.Stdin.(*os.File).Close()
	t.Cleanup(c.end)
	for _, dir := range c.dirs {
		put(t, dir, "cgroup.procs", strconv.Itoa(c.Process.Pid))
	}
	return c
}

func pipe() (r, w *os.File, err error) { return os.Pipe() }

// begin lets the process do its work.
func (c *child) begin(t *testing.T) {
	t.Helper()
	if _, err := c.in.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

// line reads what the process says.
func (c *child) line(t *testing.T) string {
	t.Helper()
	buf := make([]byte, 100)
	n, err := c.out.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(buf[:n]))
}

func (c *child) end() {
	if c.in == nil {
		return
	}
	c.in.Close()
	c.in = nil
	_ = c.Process.Kill()
	_ = c.Wait()
	c.out.Close()
}

func put(t *testing.T, dir, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

// removeWithin removes a cgroup whose last process may still be on its way out.
func removeWithin(t *testing.T, dir string) {
	t.Helper()
	within(t, "removal of "+dir, func() bool {
		err := unix.Rmdir(dir)
		return err == nil || errors.Is(err, unix.ENOENT)
	})
}

// within polls for a condition, for ten seconds.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal(what, ": not within ten seconds")
		}
		time.Sleep(time.Millisecond)
	}
}

// running runs a loop until the test ends. on runs a function on it.
func running(t *testing.T) (l *loop.Loop, on func(func())) {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	t.Cleanup(func() {
		l.Post(l.Stop)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l, func(f func()) {
		done := make(chan struct{})
		l.Post(func() {
			f()
			close(done)
		})
		<-done
	}
}
