// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// envBase carries the base folder from the supervising process to the one that
// runs the tests.
const envBase = "BERTH_IT_BASE"

// base is the folder of this run. It is on a disk rather than in /run: an
// overlay's upper layer may not be on every file system, and it is short, for
// unix sockets below it.
var base string

// Enter moves the program into surroundings of its own. It starts the program
// a second time, in a mount namespace where /run/containerd and /run/berth are
// empty and /etc a private copy, and becomes the subreaper of all that the second one leaves
// behind. In the second process Enter returns; in the first one it never does:
// it waits, ends what is left, complains about it, and exits with the second
// process's code. Call it first in main or TestMain. It needs root.
func Enter() { enter(unix.CLONE_NEWNS) }

// EnterOffline is Enter with a network of the program's own besides, in which
// there is nothing but loopback: bridges, routes and rules of a test are neither
// seen nor left on the host.
func EnterOffline() {
	enter(unix.CLONE_NEWNS | unix.CLONE_NEWNET)
	must("network", raiseLoopback())
}

// enter runs the program in new namespaces of the kinds that are given by
// CLONE_NEW flags.
func enter(unshare uintptr) {
	if base = os.Getenv(envBase); base != "" {
		must("surroundings", furnish())
		return
	}
	// PR_SET_PDEATHSIG goes by the thread that forked.
	runtime.LockOSThread()
	code, err := supervise(unshare)
	must("supervisor", err)
	os.Exit(code)
}

func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

func must(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "integration/host: %s: %v\n", what, err)
		os.Exit(1)
	}
}

func supervise(unshare uintptr) (int, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, err
	}
	dir := fmt.Sprintf("/var/tmp/berthit%d", os.Getpid())
	if err := os.Mkdir(dir, 0o711); err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	child, err := os.StartProcess(self, os.Args, &os.ProcAttr{
		Env:   append(os.Environ(), envBase+"="+dir),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{
			// The runtime makes every mount private first.
			Unshareflags: unshare,
			Pdeathsig:    unix.SIGKILL,
		},
	})
	if err != nil {
		return 1, err
	}
	go func() {
		for s := range signals {
			_ = child.Signal(s)
		}
	}()
	code := reapUntil(child.Pid)
	if left := endDescendants(); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "integration/host: processes left at the end:\n  %s\n", strings.Join(left, "\n  "))
		code = max(code, 1)
	}
	// Of daemons that nobody closed.
	for _, dir := range cgroupsNaming(filepath.Base(dir)) {
		_ = os.Remove(dir)
	}
	return code, nil
}

// reapUntil waits for all children, orphans included, until pid has ended, and
// returns its exit code.
func reapUntil(pid int) int {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 1
		case got == pid && status.Signaled():
			return 128 + int(status.Signal())
		case got == pid:
			return status.ExitStatus()
		}
	}
}

// endDescendants kills what descends from this process until nothing does and
// returns what it found first.
func endDescendants() []string {
	var found []string
	for round := 0; ; round++ {
		all := processes()
		pids := descendants(all, os.Getpid())
		for _, pid := range pids {
			if round == 0 && all[pid].state != "Z" {
				found = append(found, all[pid].String())
			}
			end(pid)
		}
		if len(pids) == 0 {
			return found
		}
		// Each killed process ends as a child of this one.
		_, _ = unix.Wait4(-1, nil, 0, nil)
	}
}

func furnish() error {
	for _, run := range []string{"/run/containerd", "/run/berth"} {
		if err := os.MkdirAll(run, 0o711); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", run, "tmpfs", 0, "mode=0711"); err != nil {
			return fmt.Errorf("mount %s: %w", run, err)
		}
	}
	// For /etc/berth/shim.toml.
	upper, work := filepath.Join(base, "etc"), filepath.Join(base, "etc.work")
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("mount /etc: %w", err)
	}
	if err := os.RemoveAll("/etc/berth"); err != nil {
		return err
	}
	if name := os.Getenv("BERTH_TEST_OCI"); name != "" {
		if err := useOCI(name); err != nil {
			return err
		}
	}
	return os.Unsetenv(envBase)
}

// useOCI makes an OCI runtime below .deps/bin the one that berth's shim uses.
func useOCI(name string) error {
	if err := os.Mkdir("/etc/berth", 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("runtime = %q\n", Deps("bin/"+name))
	if err := os.WriteFile("/etc/berth/shim.toml", []byte(text), 0o644); err != nil {
		return err
	}
	const hybrid = "/sys/fs/cgroup/unified"
	if _, err := os.Stat(hybrid + "/cgroup.procs"); name != "crun" || err != nil {
		return nil //nolint:nilerr // not a hybrid host
	}
	// crun works with neither version on a hybrid host; it does where the second
	// is not seen. This is our own mount namespace: the host keeps its mount.
	if err := unix.Unmount(hybrid, unix.MNT_DETACH); err != nil {
		return err
	}
	// crun makes its folders there all the same; they go with the namespace.
	return unix.Mount("tmpfs", hybrid, "tmpfs", 0, "mode=0755")
}
