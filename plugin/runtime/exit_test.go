// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
	berth "github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/process"
)

// exits is the directory of exit codes.
func (r *rig) exits() string { return filepath.Join(r.config.Root, r.Namespace, "exits") }

// (S65) The exit code is left for all to see, when the log is complete, until the
// container is removed; and a command of the host's is executed.
func TestRuntimeExitFile(t *testing.T) {
	r := withService(t)
	dir := t.TempDir()
	settings := fmt.Sprintf("exit_command = [\"/bin/sh\", \"-c\", \"echo $CONTAINER_ID $0 $(cat /proc/self/oom_score_adj) >%s/called\", \"arg\"]\nexit_delay = \"100ms\"\n", dir)
	const file = "/etc/berth/shim.toml" // of this program's mount namespace
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(file) })
	p := r.pod(t, hostPod(t))
	c := r.create(t, shell(p, "main", "i=0; while [ $i -lt 2000 ]; do echo line; i=$((i+1)); done; exit 9"))
	if err := r.StartContainer(ctx(t), string(c.ID)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.exits(), string(c.ID))
	eventually(t, patience, func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		if log, _ := os.ReadFile(c.LogPath); string(b) != "9" || strings.Count(string(log), "line\n") != 2000 {
			t.Errorf("exit file %q, log of %d bytes", b, len(log))
		}
		return ""
	})
	if err := r.RemoveContainer(ctx(t), string(c.ID), berth.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("removed, and the exit code is there")
	}
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", r.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s arg %s", c.ID, score)
	eventually(t, patience, func() string {
		if b, err := os.ReadFile(filepath.Join(dir, "called")); string(b) != want {
			return fmt.Sprintf("exit command: %q, %v, want %q", b, err, want)
		}
		return ""
	})
}

// (S64, P57) What the shim has told is known though shim, task and bundle are gone.
func TestRuntimeExitKept(t *testing.T) {
	r := serviceOn(t, host.Run(t, host.Options{}))
	p := r.pod(t, hostPod(t))
	c := r.start(t, shell(p, "main", idle))
	r.lose(t, c, func() {
		if err := unix.Kill(c.Pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() string {
			if b, err := os.ReadFile(filepath.Join(r.exits(), string(c.ID))); string(b) != "137" {
				return fmt.Sprintf("%q, %v", b, err)
			}
			return ""
		})
	})
	for _, when := range []string{"as it is found", "as it is kept"} {
		got, err := r.Container(ctx(t), string(c.ID))
		if err != nil || got.State != berth.ContainerExited || got.ExitCode == nil || *got.ExitCode != 137 || got.Reason != "Error" {
			t.Errorf("%s: %+v, %v", when, got, err)
		}
		if err := r.StopContainer(ctx(t), string(c.ID), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// (S66) Gone without a trace: stopped, in an unknown way, within six seconds.
func TestRuntimeExitLost(t *testing.T) {
	r := serviceOn(t, host.Run(t, host.Options{}))
	p := r.pod(t, hostPod(t))
	c := r.start(t, shell(p, "main", idle))
	r.lose(t, c, nil)
	took(t, "a status without a trace", 7*time.Second, func() {
		if err := r.StopContainer(ctx(t), string(c.ID), 0); err != nil {
			t.Error(err)
		}
	})
	got, err := r.Container(ctx(t), string(c.ID))
	if err != nil || got.State != berth.ContainerExited || got.ExitCode != nil || got.Reason != "Unknown" || got.FinishedAt.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
}

// lose kills a container, its shim and containerd, and empties its bundle, so that
// nobody can tell how it ended but by what is elsewhere. before is called while the
// shim lives.
func (r *rig) lose(t *testing.T, c berth.Container, before func()) {
	t.Helper()
	shim := number(t, status(t, c.Pid, "PPid:"))
	bundle := r.Bundle(string(c.ID))
	if err := r.Daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before()
	}
	for _, pid := range []int{shim, c.Pid} {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	work, _ := os.Readlink(filepath.Join(bundle, "work"))
	for _, dir := range []string{bundle, work} {
		for _, name := range []string{"exit", "berth.end"} {
			_ = os.Remove(filepath.Join(dir, name))
		}
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	r.reopen(t)
}

// A shim that has died while its container lives is noticed, and the container can be
// stopped.
func TestRuntimeUnwatched(t *testing.T) {
	// Without a census: what only a shim can clear stays.
	r := openService(t, host.Run(t, host.Options{}))
	p := r.pod(t, hostPod(t))
	c := r.start(t, shell(p, "main", idle))
	shim, bundle := number(t, status(t, c.Pid, "PPid:")), r.Bundle(string(c.ID))
	if err := r.Daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(shim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Without it containerd does not know of the container, and does not end it.
	if err := errors.Join(unix.Unmount(bundle+"/rootfs", unix.MNT_DETACH), os.RemoveAll(bundle)); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	r.reopen(t)
	got, err := r.Container(ctx(t), string(c.ID))
	if err != nil || got.State != berth.ContainerRunning || !slices.Contains(got.Warnings, process.Unwatched) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := r.StopContainer(ctx(t), string(c.ID), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if got, err = r.Container(ctx(t), string(c.ID)); err != nil || got.State != berth.ContainerExited || got.Reason != "Unknown" {
		t.Errorf("stopped: %+v, %v", got, err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", c.Pid)); err == nil && !strings.HasPrefix(status(t, c.Pid, "State:"), "Z") {
		t.Error("the process lives")
	}
}

// (S69) Forbidden system calls are refused, and end the container a while after the
// last of them, if it was asked for; else they do not.
func TestRuntimeSeccompNotifier(t *testing.T) {
	r := withService(t)
	const annotation = "io.kubernetes.cri-o.seccompNotifierAction"
	r.configure(t, func(c *handler.Config) { c.Handlers["runc"].AllowedAnnotations = []string{annotation} })
	script := "echo ready; for i in 1 2 3; do mount -t tmpfs x /tmp 2>&1; done; umount /tmp; while :; do sleep 0.05; done"
	q := hostPod(t)
	q.Annotations = map[string]string{annotation: "stop"}
	p := r.pod(t, q)
	q = hostPod(t)
	q.Name, q.Annotations = "log", map[string]string{annotation: "log"}
	told := r.start(t, shell(r.pod(t, q), "main", script))
	c := r.start(t, shell(p, "main", script))
	free := shell(p, "free", "echo ready; mount -t tmpfs x /tmp; while :; do sleep 0.05; done")
	free.Security.Seccomp = "unconfined"
	unconfined := r.start(t, free)
	begun := time.Now()
	// A shim that gives its place to another program goes on to answer.
	if out, err := exec.Command(host.Native.Binary(), "-namespace", r.Namespace, "-id", string(c.ID), "upgrade", r.State()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, err := r.ExecSync(ctx(t), string(c.ID), []string{"sh", "-c", "sleep 0.5; mount -t tmpfs y /tmp || echo refused"}, 0); err != nil || string(got.Stdout) != "refused\n" {
		t.Errorf("an exec: %+v, %v", got, err)
	}
	end, err := r.Wait(ctx(t), string(c.ID))
	if err != nil || end.ExitCode == nil || *end.ExitCode != 137 || end.Reason != "seccomp killed" {
		t.Errorf("%+v, %v", end, err)
	}
	if d := time.Since(begun); d < 4*time.Second || d > 20*time.Second {
		t.Errorf("ended after %v", d)
	}
	if want := "forbidden system calls: mount (4x), umount2 (1x)"; end.Error != want {
		t.Errorf("told %q, want %q", end.Error, want)
	}
	if b, err := os.ReadFile(c.LogPath); err != nil || strings.Count(string(b), "permission denied") != 3 {
		t.Errorf("log %s, %v", b, err)
	}
	eventually(t, patience, func() string {
		if !strings.Contains(r.Log(100), "forbidden system calls: mount (3x), umount2 (1x)") {
			return "no report"
		}
		return ""
	})
	for _, other := range []berth.Container{told, unconfined} {
		if got := r.state(t, string(other.ID)); got != berth.ContainerRunning {
			t.Errorf("%s is %s", other.Name, got)
		}
	}
}
