// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	sandbox "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/process"
	server "github.com/berthd/berth/shim/ttrpc"
)

func TestDir(t *testing.T) {
	if dir, err := Dir("/s", "n", "id"); err != nil || dir != "/s/sandboxes/n/id" {
		t.Errorf("%s, %v", dir, err)
	}
	for _, id := range []string{"", ".", "..", "../x", "a/b", "/a", "a/", strings.Repeat("x", 256)} {
		for _, names := range [][2]string{{"n", id}, {id, "n"}} {
			if dir, err := Dir("/s", names[0], names[1]); fault.CodeOf(err) != fault.InvalidArgument {
				t.Errorf("%q: %s, %v", names, dir, err)
			}
		}
	}
}

func TestRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pod")
	if err := Remove(dir); err != nil {
		t.Errorf("a pod that is not there: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, ShmDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, PinIPC), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // twice: a maker that was killed may have done so
		if err := unix.Mount("/proc/self/ns/ipc", filepath.Join(dir, PinIPC), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("shm", filepath.Join(dir, ShmDir), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ShmDir, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestMade(t *testing.T) {
	for _, want := range []Made{{}, {InitPid: 7, InitStart: 1 << 40, Cgroup: "/a\xff", CgroupOwned: true}} {
		var got Made
		if err := got.Decode(want.Append(nil)); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
}

// A process is a member's init only while the shim that its bundle names has it
// as its child.
func TestFindMember(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	shim := strconv.Itoa(os.Getpid()) + " " + strconv.FormatUint(process.StartTime(os.Getpid()), 10)
	init := strconv.Itoa(cmd.Process.Pid)
	for name, c := range map[string]struct {
		shim, init string
		want       bool
	}{
		"alive":                     {shim, init, true},
		"another's child":           {strconv.Itoa(os.Getppid()) + " 1", init, false},
		"the shim's number is used": {strconv.Itoa(os.Getpid()) + " 1", init, false},
		"no init":                   {shim, "", false},
		"no shim":                   {"", init, false},
		"no numbers":                {"x y", "z", false},
		"everybody":                 {shim, "-1", false},
		"init of the machine":       {shim, "1", false},
		"ended":                     {shim, "4194304", false},
	} {
		t.Run(name, func(t *testing.T) {
			bundle := t.TempDir()
			for file, text := range map[string]string{plan.ServerFile: c.shim, plan.InitPidFile: c.init} {
				if err := os.WriteFile(filepath.Join(bundle, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			m := findMember("m", bundle)
			if got := m.pidfd >= 0; got != c.want {
				t.Errorf("found: %v", got)
			}
			if m.pidfd >= 0 {
				unix.Close(m.pidfd)
			}
		})
	}
}

func TestLeave(t *testing.T) {
	state := t.TempDir()
	dir, err := Dir(state, "n", "pod")
	if err != nil {
		t.Fatal(err)
	}
	if err := Leave(state, "n", "pod", "c"); err != nil {
		t.Errorf("a pod that is gone: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, MembersDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/b", filepath.Join(dir, MembersDir, "c")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Leave(state, "n", "pod", "c"); err != nil {
			t.Error(err)
		}
	}
	if list, err := os.ReadDir(filepath.Join(dir, MembersDir)); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// rig is a served Service whose maker the test replaces.
type rig struct {
	client sandbox.TTRPCSandboxService
	ended  chan struct{}
}

func newRig(t *testing.T, id string, maker func([]byte) ([]byte, error)) *rig {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{ended: make(chan struct{})}
	s, err := New(Host{
		Loop: l, Children: process.New(l), Plan: &plan.Plan{Namespace: "n", ID: id, Bundle: "/b"},
		Warn: func(text string) { t.Log(text) }, Make: maker,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Shutdown = func() { close(r.ended) }
	socket := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: socket})
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := server.NewServer(l, s.Serve).Listen(fd); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := l.Run(); err != nil {
			t.Error(err)
		}
	}()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	r.client = sandbox.NewTTRPCSandboxClient(client)
	t.Cleanup(func() {
		_ = client.Close()
		l.Post(l.Stop)
		<-done
		_ = l.Close()
		unix.Close(fd)
	})
	return r
}

// A maker that fails leaves a shim which ShutdownSandbox ends; calls meanwhile are
// refused or wait their turn.
func TestMakerFails(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	making, fail := make(chan struct{}), make(chan struct{})
	r := newRig(t, "pod", func([]byte) ([]byte, error) {
		close(making)
		<-fail
		return nil, fault.New(fault.InvalidArgument, "no")
	})
	created := make(chan error, 1)
	go func() {
		_, err := r.client.CreateSandbox(ctx, &sandbox.CreateSandboxRequest{SandboxID: "pod", BundlePath: "/b"})
		created <- err
	}()
	<-making
	if _, err := r.client.StartSandbox(ctx, &sandbox.StartSandboxRequest{SandboxID: "pod"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("start meanwhile: %v", err)
	}
	if s, err := r.client.SandboxStatus(ctx, &sandbox.SandboxStatusRequest{SandboxID: "pod"}); err != nil || s.State != "SANDBOX_NOTREADY" {
		t.Errorf("status meanwhile: %v, %v", s, err)
	}
	shut := make(chan error, 1)
	go func() {
		_, err := r.client.ShutdownSandbox(ctx, &sandbox.ShutdownSandboxRequest{SandboxID: "pod"})
		shut <- err
	}()
	select {
	case <-r.ended:
		t.Error("it is shut down while it is made")
	case <-time.After(50 * time.Millisecond):
	}
	close(fail)
	if err := <-created; status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "create sandbox pod: no") {
		t.Errorf("create: %v", err)
	}
	if err := <-shut; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	<-r.ended
}

// A pod that another shim has is not this one's to remove.
func TestPodOfAnother(t *testing.T) {
	id := "taken" + strconv.Itoa(os.Getpid())
	r := newRig(t, id, func([]byte) ([]byte, error) { return nil, fault.New(fault.AlreadyExists, "another has it") })
	dir, err := Dir(State, "n", id)
	if err == nil {
		err = os.MkdirAll(dir, 0o711)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Remove(dir)
		_ = os.Remove(filepath.Dir(dir))
	})
	if _, err := r.client.CreateSandbox(t.Context(), &sandbox.CreateSandboxRequest{SandboxID: id, BundlePath: "/b"}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("create: %v", err)
	}
	if _, err := r.client.ShutdownSandbox(t.Context(), &sandbox.ShutdownSandboxRequest{SandboxID: id}); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	<-r.ended
	if _, err := os.Lstat(dir); err != nil {
		t.Errorf("the other's directory: %v", err)
	}
}

func TestCreateIsChecked(t *testing.T) {
	r := newRig(t, "pod", func([]byte) ([]byte, error) {
		t.Error("made")
		return nil, nil
	})
	for name, q := range map[string]*sandbox.CreateSandboxRequest{
		"another pod":    {SandboxID: "other", BundlePath: "/b"},
		"another bundle": {SandboxID: "pod", BundlePath: "/c"},
	} {
		if _, err := r.client.CreateSandbox(t.Context(), q); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSnapshot(t *testing.T) {
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host := Host{Loop: l, Children: process.New(l), Plan: &plan.Plan{Namespace: "n", ID: "pod"}}
	fresh := func() *Service {
		s, err := New(host)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if b := fresh().Snapshot(nil); b != nil {
		t.Errorf("of no pod: %x", b)
	}
	s := fresh()
	s.state, s.createdAt, s.exitedAt, s.code = stopped, 1, 2, 3
	s.made = Made{Cgroup: "/a", CgroupOwned: true}
	got := fresh()
	if err := got.Restore(s.Snapshot(nil)); err != nil {
		t.Fatal(err)
	}
	if got.state != s.state || got.createdAt != 1 || got.exitedAt != 2 || got.code != 3 || got.made != s.made || got.group == nil || got.init != nil {
		t.Errorf("got %+v", got)
	}
	for _, b := range [][]byte{{8, 9}, {8}, {}} {
		if err := fresh().Restore(b); err == nil {
			t.Errorf("%x: no error", b)
		}
	}
}

// A cgroup that another pod is in as well stays.
func TestSharesCgroup(t *testing.T) {
	state := t.TempDir()
	pod := func(namespace, id, record string) string {
		dir, err := Dir(state, namespace, id)
		if err == nil {
			err = os.MkdirAll(dir, 0o700)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, RecordFile), []byte(record), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	one := pod("a", "1", `{"ID":"1","CgroupParent":"/x/y"}`)
	pod("a", "2", `{"ID":"2","CgroupParent":"/x/y/z"}`)
	if sharesCgroup(one, "/x/y") {
		t.Error("a pod below is taken for one in it")
	}
	pod("b", "3", `{"ID":"3","CgroupParent":"/x/y"}`)
	if !sharesCgroup(one, "/x/y") {
		t.Error("another pod in it is not seen")
	}
}
