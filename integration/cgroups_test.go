// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
)

// pick returns the name that the machine's cgroup version uses.
func pick(v1, v2 string) string {
	if host.Unified() {
		return v2
	}
	return v1
}

// cgroupOf returns the folder of a process's cgroup; controller matters on
// version 1 only.
func cgroupOf(t testing.TB, pid int, controller string) string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.SplitN(lines.Text(), ":", 3)
		switch {
		case host.Unified() && fields[0] == "0":
			return filepath.Join("/sys/fs/cgroup", fields[2])
		case !host.Unified() && slices.Contains(strings.Split(fields[1], ","), controller):
			return filepath.Join("/sys/fs/cgroup", controller, fields[2])
		}
	}
	t.Fatalf("process %d is in no %s cgroup", pid, controller)
	return ""
}

// 26: statistics, in the types of containerd's cgroups library.
func TestCgroupStats(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		s := e.shim(t, sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 1000"))
		pid := s.run(t, stdio{})
		ctx := e.ctx(t)
		eventually(t, patience, func() string {
			r, err := s.Stats(ctx, &taskapi.StatsRequest{ID: s.id})
			if err != nil {
				return err.Error()
			}
			v, err := typeurl.UnmarshalAny(r.Stats)
			if err != nil {
				return err.Error()
			}
			var cpu, memory, pids uint64
			switch m := v.(type) {
			case *cgroup1.Metrics:
				cpu, memory, pids = m.CPU.Usage.Total, m.Memory.Usage.Usage, m.Pids.Current
			case *cgroup2.Metrics:
				cpu, memory, pids = m.CPU.UsageUsec, m.Memory.Usage, m.Pids.Current
			}
			if _, v2 := v.(*cgroup2.Metrics); v2 != host.Unified() || cpu == 0 || memory == 0 || pids == 0 {
				return fmt.Sprintf("%T cpu %d memory %d pids %d", v, cpu, memory, pids)
			}
			return ""
		})
		if !e.rt.Berth {
			return
		}
		dir := cgroupOf(t, pid, "memory")
		s.kill(t, unix.SIGKILL)
		s.wait(t, "")
		for range 100 { // each hierarchy's
			_ = os.Remove(dir)
		}
		if _, err := s.Stats(ctx, &taskapi.StatsRequest{ID: s.id}); err != nil && !errdefs.IsNotFound(class(err)) {
			t.Errorf("without a cgroup: %v, want NotFound", err)
		}
	})
}

// 67: a container that is killed for its memory, and one that is not.
func TestCgroupOOM(t *testing.T) {
	hog := sh("tail /dev/zero")
	limit := oci.WithMemoryLimit(20 << 20)
	forRuntimes(t, func(t *testing.T, e *env) {
		cases := map[string][]oci.SpecOpts{"own": {limit, hog}}
		if !host.Systemd() {
			pod := "/" + e.Namespace + "/pod"
			cases["limit of the pod"] = []oci.SpecOpts{limit, hog, oci.WithCgroup(pod + "/ctr")}
			podLimit(t, pod, 20<<20)
		}
		if host.Systemd() {
			cases["systemd"] = []oci.SpecOpts{limit, hog, oci.WithCgroup(e.Namespace + ".slice:berth:oom")}
			// The pod's slice has the same limit: the kernel books the event there.
			pod := e.Namespace + "-pod.slice"
			cases["systemd limit of the pod"] = []oci.SpecOpts{limit, hog, oci.WithCgroup(pod + ":berth:oom")}
			if out, err := exec.Command("systemctl", "set-property", "--runtime", pod, "MemoryMax=20M", "MemorySwapMax=0").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			t.Cleanup(func() { _ = exec.Command("systemctl", "stop", pod).Run() })
		}
		for name, opts := range cases {
			t.Run(name, func(t *testing.T) {
				if strings.HasPrefix(name, "systemd") {
					e.berthOnly(t)
				}
				r := e.record(t)
				s := e.shim(t, opts...)
				s.run(t, stdio{})
				if code := s.wait(t, ""); code != 137 {
					t.Errorf("exit %d, want 137", code)
				}
				got := r.until(t, s.id, "exit")
				if want := []string{"create", "start", "oom", "exit"}; !cmp.Equal(slices.Compact(got), want) {
					t.Errorf("events %q, want %q", got, want)
				}
				if _, err := os.Stat(s.bundle + "/oom"); e.rt.Berth && err != nil {
					t.Error(err)
				}
			})
		}
		t.Run("killed from outside", func(t *testing.T) {
			r := e.record(t)
			s := e.shim(t, limit)
			pid := s.run(t, stdio{})
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			s.wait(t, "")
			if got := r.until(t, s.id, "exit"); slices.Contains(got, "oom") {
				t.Errorf("events %q", got)
			}
			s.delete(t, "") // on version 1, removal notifies too
			if got := r.until(t, s.id, "delete"); slices.Contains(got, "oom") {
				t.Errorf("events %q", got)
			}
		})
	})
}

// podLimit makes a parent cgroup with a memory limit, for one test.
func podLimit(t *testing.T, path string, bytes int) {
	t.Helper()
	dir := pick("/sys/fs/cgroup/memory", "/sys/fs/cgroup") + path
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if host.Unified() {
		for _, d := range []string{"/sys/fs/cgroup", filepath.Dir(dir), dir} {
			if err := os.WriteFile(d+"/cgroup.subtree_control", []byte("+memory +pids +cpu +io"), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(dir+"/"+pick("memory.limit_in_bytes", "memory.max"), fmt.Append(nil, bytes), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		roots, _ := filepath.Glob(pick("/sys/fs/cgroup/*", "/sys/fs/cgroup"))
		for _, root := range roots {
			_ = os.Remove(root + path)
		}
	})
}

// 8, 67: the path alone says that systemd makes the cgroup.
func TestCgroupSystemd(t *testing.T) {
	if !host.Systemd() {
		t.Skip("NOT TESTED HERE: needs systemd as init; integration/vm-test.sh runs it")
	}
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		slice := e.Namespace + ".slice"
		s := e.shim(t, oci.WithCgroup(slice+":berth:one"))
		pid := s.run(t, stdio{})
		got := cgroupOf(t, pid, "memory")
		if !strings.HasSuffix(got, "/"+slice+"/berth-one.scope") {
			t.Errorf("cgroup %s", got)
		}
		if _, err := s.Stats(e.ctx(t), &taskapi.StatsRequest{ID: s.id}); err != nil {
			t.Error(err)
		}
		if err := s.update(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(64 << 20))}}); err != nil {
			t.Error(err)
		}
		s.kill(t, unix.SIGKILL)
		s.wait(t, "")
		s.delete(t, "")
		if _, err := os.Stat(got); err == nil {
			t.Errorf("%s is left", got)
		}
	})
}
