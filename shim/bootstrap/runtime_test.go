// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/integration/programs"
	"github.com/berthd/berth/shim/cgroup"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/plan"
)

// liveContainer starts a container by hand in the bundle of w, whose root
// filesystem is a mount, and a resident for it.
func liveContainer(t *testing.T, w *world, script string) identity {
	t.Helper()
	rootfs := filepath.Join(w.bundle, "rootfs")
	if err := unix.Mount("tmpfs", rootfs, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "proc", "below"} {
		if err := os.Mkdir(filepath.Join(rootfs, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", filepath.Join(rootfs, "below"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install busybox-static", err)
	}
	programs.Write(t, filepath.Join(rootfs, "bin", "busybox"), b)
	w.write(filepath.Join(w.bundle, "config.json"), fmt.Sprintf(`{
	"ociVersion": "1.2.0",
	"process": {"user": {}, "args": ["/bin/busybox", "sh", "-c", %q], "env": ["PATH=/bin"], "cwd": "/"},
	"root": {"path": "rootfs"},
	"mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
	"linux": {"cgroupsPath": "/berth-bootstrap-%d", "namespaces": [{"type": "mount"}], "resources": {"memory": {"limit": 209715200}}}
}`, script, time.Now().UnixNano()))
	address(t, w.shim(marshal(t, params("c")), flags("c", "start")...))
	runtimeCall(t, w, "create", "--pid-file", plan.InitPidFile, "--bundle", w.bundle, "c")
	runtimeCall(t, w, "start", "c")
	id, err := containerInit(w.plan())
	if err != nil {
		t.Fatal(err)
	}
	if fd := id.open(); fd < 0 {
		t.Fatalf("init %v is not there", id)
	} else {
		unix.Close(fd)
	}
	t.Cleanup(func() {
		cmd := exec.Command(deps(t, "runc"), "--root", w.plan().Root, "delete", "--force", "c")
		_ = cmd.Run() // the test has done so, or failed
	})
	return id
}

func runtimeCall(t *testing.T, w *world, args ...string) {
	t.Helper()
	cmd := exec.Command(deps(t, "runc"), append([]string{"--root", w.plan().Root}, args...)...)
	cmd.Dir = w.bundle
	if err := cmd.Run(); err != nil {
		t.Fatalf("runc %s: %v", args[0], err)
	}
}

func deleted(t *testing.T, r result) *task.DeleteResponse {
	t.Helper()
	var d task.DeleteResponse
	if err := proto.Unmarshal(r.ok(t).stdout, &d); err != nil {
		t.Fatal(err)
	}
	return &d
}

func mounts(t *testing.T, below string) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), " "+below)
}

func TestDeleteLive(t *testing.T) {
	w := newWorld(t, "", "")
	work := t.TempDir()
	if err := os.Symlink(work, filepath.Join(w.bundle, "work")); err != nil {
		t.Fatal(err)
	}
	w.write(filepath.Join(work, "spool-stdout"), "x")
	w.write(filepath.Join(work, "other"), "x")
	id := liveContainer(t, w, "sleep 1000 & sleep 1000 & exec sleep 1000")
	g, err := cgroup.Of(id.pid)
	if err != nil {
		t.Fatal(err)
	}
	var processes []identity
	for deadline := time.Now().Add(20 * time.Second); len(processes) < 3; {
		pids, err := g.Pids(nil)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%v: %v", pids, err)
		}
		processes = processes[:0]
		for _, pid := range pids {
			if p, err := identityOf(pid); err == nil {
				processes = append(processes, p)
			}
		}
	}
	processes = append(processes, w.resident())
	p := w.plan()

	before := time.Now()
	d := deleted(t, w.shim(nil, append([]string{"-bundle", w.bundle}, flags("c", "delete")...)...))
	if d.ExitStatus != 137 || int(d.Pid) != id.pid || d.ExitedAt.AsTime().Before(before) {
		t.Errorf("got %v", d)
	}
	for _, p := range processes {
		if alive := p.open(); alive >= 0 && !ended(alive, time.Second) {
			t.Errorf("process %v lives", p)
		}
	}
	if n := mounts(t, w.bundle); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
	for _, path := range []string{p.Socket, filepath.Join(p.Root, "c"), filepath.Join(work, "spool-stdout")} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	if _, err := os.Lstat(filepath.Join(work, "other")); err != nil {
		t.Error("a foreign file is gone from the work directory")
	}
	if _, err := g.AppendStats(nil); err != cgroup.ErrGone {
		t.Errorf("cgroup: %v", err)
	}
	// A second time there is nothing to do.
	if d := deleted(t, w.shim(nil, flags("c", "delete")...)); d.ExitStatus != 137 {
		t.Errorf("again: %v", d)
	}
}

// A runtime that is gone, or broken, does not keep delete from cleaning up.
func TestDeleteWithoutRuntime(t *testing.T) {
	w := newWorld(t, "", "")
	id := liveContainer(t, w, "exec sleep 1000")
	g, err := cgroup.Of(id.pid)
	if err != nil {
		t.Fatal(err)
	}
	p := w.plan()
	p.Runtime = "/no/such/runtime"
	w.write(filepath.Join(w.bundle, plan.File), string(p.Append(nil)))
	r := w.shim(nil, append([]string{"-bundle", w.bundle}, flags("c", "delete")...)...)
	if !strings.Contains(r.stderr, "/no/such/runtime") {
		t.Errorf("the warning is %q", r.stderr)
	}
	r.stderr = ""
	if d := deleted(t, r); d.ExitStatus != 137 {
		t.Errorf("got %v", d)
	}
	if alive := id.open(); alive >= 0 && !ended(alive, time.Second) {
		t.Error("the container lives")
	}
	if _, err := g.AppendStats(nil); !errors.Is(err, cgroup.ErrGone) {
		t.Errorf("its cgroup: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(p.Root, "c")); err == nil {
		t.Error("the runtime's state is left")
	}
}

func TestDeleteMissingBundle(t *testing.T) {
	w := newWorld(t, "", "")
	d := deleted(t, w.shim(nil, append([]string{"-bundle", w.bundle + "-missing"}, flags("c", "delete")...)...))
	if d.ExitStatus != 137 || d.Pid != 0 || time.Since(d.ExitedAt.AsTime()) > time.Minute {
		t.Errorf("got %v", d)
	}
}

func TestDeleteWithoutWorkingDirectory(t *testing.T) {
	w := newWorld(t, "", "")
	gone := t.TempDir()
	cmd := exec.Command("/bin/sh", "-c", `rmdir "$1" && shift && exec "$@"`, "sh", gone, "/proc/"+fmt.Sprint(os.Getpid())+"/exe", "-bundle", w.bundle)
	cmd.Args = append(cmd.Args, flags("c", "delete")...)
	cmd.Dir = gone
	cmd.Env = append(os.Environ(), testSettings+"="+w.settings, testSocketDir+"="+w.socketDir)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if d := deleted(t, result{stdout: out}); d.ExitStatus != 137 {
		t.Errorf("got %v", d)
	}
}

func TestDeleteRecordedExit(t *testing.T) {
	at := time.Now().Add(-time.Hour).UnixNano()
	for name, tc := range map[string]struct {
		exit string
		want exit
	}{
		"whole":          {fmt.Sprintf("7 %d 99", at), exit{99, 7, at}},
		"zero":           {fmt.Sprintf("0 %d 99", at), exit{99, 0, at}},
		"torn":           {"7", exit{42, 137, 0}},
		"not understood": {"?", exit{42, 137, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "", minimalConfig)
			w.write(filepath.Join(w.bundle, plan.EndFile), tc.exit)
			w.write(filepath.Join(w.bundle, plan.InitPidFile), "42")
			d := deleted(t, w.shim(nil, flags("c", "delete")...))
			got := exit{int(d.Pid), int(d.ExitStatus), d.ExitedAt.AsTime().UnixNano()}
			if tc.want.at == 0 && time.Since(time.Unix(0, got.at)) < time.Minute {
				got.at = 0
			}
			if got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestDeleteSparesOthers(t *testing.T) {
	w := newWorld(t, "", "")
	id := liveContainer(t, w, "exec sleep 1000")
	server := w.resident()
	// init ends, and its number passes to another process.
	fd := id.open()
	kill(fd)
	unix.Close(fd)
	sleep := exec.Command("sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait()
	other, err := identityOf(sleep.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(w.plan().Root, "c", "state.json")
	b, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	const recorded = `"init_process_pid":%d,"init_process_start":%d`
	changed := strings.Replace(string(b), fmt.Sprintf(recorded, id.pid, id.start), fmt.Sprintf(recorded, other.pid, other.start+1), 1)
	if changed == string(b) {
		t.Fatal("no pid and start time in the runtime's state")
	}
	w.write(state, changed)
	w.write(filepath.Join(w.bundle, plan.ServerFile), identity{server.pid, server.start + 1}.String())
	if d := deleted(t, result{stdout: w.shim(nil, flags("c", "delete")...).stdout}); d.ExitStatus != 137 {
		t.Errorf("got %v", d)
	}
	for _, p := range []identity{server, other} {
		fd = p.open()
		if fd < 0 || ended(fd, 0) {
			t.Errorf("process %v was killed", p)
			continue
		}
		kill(fd)
		unix.Close(fd)
	}
}

func TestDeleteForeignPlan(t *testing.T) {
	for name, text := range map[string]string{"garbage": "\xff\xff", "of another": "\x0a\x02ns\x12\x05other", "empty": ""} {
		w := newWorld(t, "", minimalConfig)
		w.write(filepath.Join(w.bundle, plan.File), text)
		r := w.shim(nil, flags("c", "delete")...)
		if r.code != fault.OK {
			t.Errorf("%s: exit status %d, %s", name, r.code, r.stderr)
		}
		if d := deleted(t, result{stdout: r.stdout}); d.ExitStatus != 137 {
			t.Errorf("%s: %v", name, d)
		}
	}
}

func TestInfo(t *testing.T) {
	w := newWorld(t, "", "")
	info := func(stdin []byte) *types.RuntimeInfo {
		t.Helper()
		var i types.RuntimeInfo
		if err := proto.Unmarshal(w.shim(stdin, "-info").ok(t).stdout, &i); err != nil {
			t.Fatal(err)
		}
		if i.Name != "io.containerd.berth.v1" || i.Version.GetVersion() != "1.2.3" {
			t.Errorf("got %v", &i)
		}
		return &i
	}
	i := info(nil)
	var f features.Features
	if err := json.Unmarshal(i.Features.GetValue(), &f); err != nil {
		t.Fatal(err)
	}
	if i.Features.TypeUrl != "types.containerd.io/opencontainers/runtime-spec/1/features/Features" || len(f.MountOptions) == 0 || i.Options != nil {
		t.Errorf("got %v", i)
	}
	if x := f.Linux.MountExtensions; x == nil || x.IDMap == nil || !*x.IDMap.Enabled {
		t.Errorf("no idmapped mounts in %+v", f.Linux)
	}

	// A runtime that knows no features.
	script := programs.Write(t, filepath.Join(t.TempDir(), "runtime"), "#!/bin/sh\necho what\nexit 1\n")
	opts := bare(t, &options.Options{BinaryName: script})
	if i := info(marshal(t, opts)); i.Features != nil || !proto.Equal(i.Options, opts) {
		t.Errorf("got %v", i)
	}

	if r := w.shim(marshal(t, &anypb.Any{TypeUrl: "x.Y", Value: []byte{1}}), "-info"); r.code != fault.InvalidArgument || !strings.Contains(r.stderr, "x.Y") {
		t.Errorf("unknown type: %+v", r)
	}
}

func TestVersion(t *testing.T) {
	w := newWorld(t, "", "")
	for _, flag := range []string{"-v", "--version"} {
		if got := string(w.shim(nil, flag).ok(t).stdout); !strings.Contains(got, "1.2.3") {
			t.Errorf("%s: %q", flag, got)
		}
	}
}

func TestUpdate(t *testing.T) {
	w := newWorld(t, "", "")
	// Memory that the container holds: a file on a tmpfs of its own.
	id := liveContainer(t, w, "busybox mkdir /m; busybox mount -t tmpfs m /m; busybox dd if=/dev/zero of=/m/x bs=1M count=40; exec busybox sleep 1000")
	g, err := cgroup.Of(id.pid)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if n, err := g.MemoryUsage(); err == nil && n > 35<<20 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the container does not use its memory")
		}
	}
	limit := func() string {
		b, err := os.ReadFile(memoryLimitFile(t, id.pid))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	before := limit()
	update := func(json string) result { return w.shim([]byte(json), flags("c", "update")...) }
	if r := update(`{"memory":{"limit":20971520}}`); r.code != fault.FailedPrecondition || !strings.Contains(r.stderr, "20971520") {
		t.Errorf("below usage: %+v", r)
	}
	if r := update(`{"memory":{"limit":-1}}`); r.code != fault.InvalidArgument {
		t.Errorf("negative: %+v", r)
	}
	update(`{"cpu":{"shares":512}}`).ok(t)
	if got := limit(); got != before {
		t.Errorf("memory limit %s, was %s", got, before)
	}
	update(`{"memory":{"limit":104857600}}`).ok(t)
	if got := limit(); got != "104857600" {
		t.Errorf("memory limit %s, want 104857600", got)
	}
}

func memoryLimitFile(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); parts[1] == "memory" {
			return filepath.Join(cgroupMount, "memory", parts[2], "memory.limit_in_bytes")
		} else if parts[0] == "0" {
			if _, err := os.Stat(filepath.Join(cgroupMount, parts[2], "memory.max")); err == nil {
				return filepath.Join(cgroupMount, parts[2], "memory.max")
			}
		}
	}
	t.Fatalf("no memory cgroup in %s", b)
	return ""
}

func TestOptionsVerb(t *testing.T) {
	w := newWorld(t, "io_gid = 4\n", minimalConfig)
	address(t, w.shim(marshal(t, params("c")), flags("c", "start")...))
	want := w.plan()
	want.IoUID, want.NoNewKeyring = 9, true
	a := bare(t, &runtimeoptions.Options{ConfigBody: []byte("io_uid = 9\nno_new_keyring = true")})
	want.OptionsType, want.OptionsSum = a.TypeUrl, plan.Sum(a.Value)
	var got plan.Plan
	if err := got.Decode(w.shim(marshal(t, a), flags("c", "options")...).ok(t).stdout); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, &got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want, w.plan()); d != "" {
		t.Errorf("in the bundle: %s", d)
	}
	if r := w.shim(marshal(t, &anypb.Any{TypeUrl: "x.Y", Value: []byte{1}}), flags("c", "options")...); r.code != fault.InvalidArgument || !strings.Contains(r.stderr, "x.Y") {
		t.Errorf("unknown type: %+v", r)
	}
}
