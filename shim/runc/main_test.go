// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/programs"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/process"
)

// noUnified makes the test binary hide the host's cgroup2 mount before it runs
// its tests: no crun runs where both cgroup versions are mounted.
const noUnified = "BERTH_TEST_NO_UNIFIED"

func TestMain(m *testing.M) {
	if os.Getenv(noUnified) != "" {
		if err := hideUnified(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func hideUnified() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil || st.Type == unix.CGROUP2_SUPER_MAGIC {
		return err
	}
	err := unix.Unmount("/sys/fs/cgroup/unified", 0)
	if err == unix.EINVAL || err == unix.ENOENT { // pure v1
		return nil
	}
	return err
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

// children is the one table of the test process: there can be no second reaper.
var children *process.Table

func runningLoop(t *testing.T) *loop.Loop {
	t.Helper()
	if theLoop == nil {
		l, err := loop.New()
		if err != nil {
			t.Fatal(err)
		}
		if err := process.Subreaper(); err != nil {
			t.Fatal(err)
		}
		theLoop, children = l, process.New(l)
		go func() { _ = l.Run() }()
	}
	return theLoop
}

var theLoop *loop.Loop

// onLoop runs f on the loop and waits for it.
func onLoop(l *loop.Loop, f func()) {
	done := make(chan struct{})
	l.Post(func() { f(); close(done) })
	<-done
}

// busyboxBundle makes a bundle whose process is the shell script.
func busyboxBundle(t *testing.T, script string, terminal bool) string {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "rootfs", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install busybox-static", err)
	}
	programs.Write(t, filepath.Join(bin, "busybox"), b)
	if err := os.Symlink("busybox", filepath.Join(bin, "sh")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"proc", "dev", "sys"} {
		if err := os.Mkdir(filepath.Join(dir, "rootfs", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := fmt.Sprintf(`{
	"ociVersion": "1.0.2",
	"process": {"terminal": %v, "user": {}, "args": ["/bin/sh", "-c", %q], "env": ["PATH=/bin"], "cwd": "/"},
	"root": {"path": "rootfs"},
	"mounts": [
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
		{"destination": "/dev/pts", "type": "devpts", "source": "devpts"}
	],
	"linux": {"cgroupsPath": "/berth-runc-test-%d", "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]}
}`, terminal, script, time.Now().UnixNano())
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// again runs the named test in a copy of this process that cannot see cgroup2.
func again(t *testing.T, name string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+name+"$", "-test.v")
	cmd.Env = append(os.Environ(), noUnified+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+name)) {
		t.Fatalf("%v\n%s", err, strings.TrimSpace(string(out)))
	}
}
