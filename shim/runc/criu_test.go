// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/process"
)

func TestConfigure(t *testing.T) {
	var r Runtime
	p := plan.Plan{Runtime: "/r", Root: "/s", Bundle: "/b", Systemd: true, Debug: true, MonitorEnv: []string{"A=b"}}
	r.Configure(&p, []string{"PATH=/p", "GOGC=off", "GOMEMLIMIT=1", "GOMAXPROCS=1", "GOAT=1"})
	if want := []string{"PATH=/p", "GOAT=1", "A=b"}; !slices.Equal(r.Env, want) {
		t.Errorf("environment %q, want %q", r.Env, want)
	}
	if r.Path != "/r" || r.Root != "/s" || r.Bundle != "/b" || !r.Systemd || !r.Debug {
		t.Errorf("%+v", r)
	}
}

// TestCheckpoint dumps a counting container twice, leaving it and ending it, and
// continues from the second image.
func TestCheckpoint(t *testing.T) {
	bundle := busyboxBundle(t, "i=0; while :; do i=$((i+1)); echo $i >/new; busybox mv /new /count; busybox usleep 10000; done", false)
	r := newRuntime(t, "runc", bundle)
	r.Env = []string{"PATH=" + filepath.Dir(deps(t, "criu")) + ":" + os.Getenv("PATH")}
	count := func() string {
		b, _ := os.ReadFile(filepath.Join(bundle, "rootfs", "count")) // not there at first
		return strings.TrimSpace(string(b))
	}
	counts := func() {
		t.Helper()
		before := count()
		for deadline := time.Now().Add(time.Minute); count() == "" || count() == before; {
			if time.Now().After(deadline) {
				t.Fatalf("the container does not count beyond %q", before)
			}
		}
	}
	c := &container{Runtime: r, id: "c", exit: make(chan process.Exit, 1)}
	if err := r.Create(&Creation{ID: c.id, PidFile: "init.pid", Files: null, Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Delete(c.id, true) })
	c.adopt(t)
	if err := r.StartFifo(c.id, c.pid, time.Minute); err != nil {
		t.Fatal(err)
	}
	counts()
	images := t.TempDir()
	dump := Checkpoint{Criu: Criu{ID: c.id, ImagePath: filepath.Join(images, "1"), WorkPath: images, FileLocks: true, Timeout: time.Minute}}
	if err := r.Checkpoint(&dump); err != nil {
		t.Fatal(err)
	}
	counts()
	dump.ImagePath, dump.Exit = filepath.Join(images, "2"), true
	if err := r.Checkpoint(&dump); err != nil {
		t.Fatal(err)
	}
	c.wait(t)
	stopped := count()
	_ = r.Delete(c.id, false) // runc has dropped it already

	if err := os.Remove(filepath.Join(bundle, "init.pid")); err != nil {
		t.Fatal(err)
	}
	err := r.Restore(&Restoration{
		Criu:    Criu{ID: c.id, ImagePath: dump.ImagePath, WorkPath: images, FileLocks: true, Timeout: time.Minute},
		PidFile: "init.pid", Files: null,
	})
	if err != nil {
		t.Fatal(err)
	}
	c.adopt(t)
	counts()
	if now := count(); len(now) < len(stopped) {
		t.Errorf("counts from %s on, was at %s", now, stopped)
	}
	if err := unix.Kill(c.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := c.wait(t); e.Code != 128+9 {
		t.Errorf("restored init: exit code %d, want 137", e.Code)
	}
}
