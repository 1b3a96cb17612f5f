// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/sandbox"
	"github.com/berthd/berth/shim/wire"
)

// The main thread stays as it is: /proc/self shows its namespaces.
func init() { runtime.LockOSThread() }

// makerState in the environment turns this program into the verb make-pod.
const makerState = "POD_TEST_STATE"

func TestMain(m *testing.M) {
	if state := os.Getenv(makerState); state != "" {
		os.Exit(verb(state))
	}
	// What a pod's init becomes a child of, in place of the resident shim.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func verb(state string) int {
	in, err := io.ReadAll(os.Stdin)
	if err == nil {
		m := Maker{State: state, Namespace: ns, ID: testID, Bundle: "/bundle"}
		in, err = m.Make(in)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return int(fault.CodeOf(err))
	}
	_, _ = os.Stdout.Write(in)
	return 0
}

// TestVerb has another process make the pod, as the resident does.
func TestVerb(t *testing.T) {
	w := newWorld(t)
	run := exec.Command("/proc/self/exe")
	run.Env = append(os.Environ(), makerState+"="+w.maker.State)
	run.Stdin = bytes.NewReader(request(t, newNetns(t), podConfig(modes(modeP, modeP, modeP))))
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r, err := Read(w.dir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		reap(t, r.Init.Pid)
		if err := sandbox.Remove(w.dir()); err != nil {
			t.Error(err)
		}
	})
	if r.Owner.Pid != os.Getpid() {
		t.Errorf("owner is %d, want %d", r.Owner.Pid, os.Getpid())
	}
	checkInit(t, r.Init.Pid, r)
}

const (
	testID = "8a3f"
	ns     = "k8s.io"
)

// world is a state directory of one test, which must be left as it was.
type world struct {
	t     *testing.T
	maker Maker
	logs  []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("/run", "berth-pod-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t}
	w.maker = Maker{State: dir, Namespace: ns, ID: testID, Bundle: "/bundle", Ports: true, ICMP: true, Logf: func(f string, a ...any) {
		w.logs = append(w.logs, fmt.Sprintf(f, a...))
	}}
	before := descriptors(t)
	t.Cleanup(func() {
		w.clean()
		if got := descriptors(t); len(got) > len(before) {
			t.Errorf("descriptors: %v, before %v", got, before)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return w
}

// clean expects that nothing of a pod is left.
func (w *world) clean() {
	w.t.Helper()
	if left := w.mounts(); len(left) > 0 {
		w.t.Errorf("mounts left: %v", left)
		for _, m := range slices.Backward(left) {
			_ = unix.Unmount(m, unix.MNT_DETACH)
		}
	}
	if left := children(w.t); len(left) > 0 {
		w.t.Errorf("processes left: %v", left)
	}
	if _, err := os.Lstat(w.dir()); err == nil {
		w.t.Error("the pod's directory is left")
	}
}

func (w *world) dir() string { return filepath.Join(w.maker.State, "sandboxes", ns, testID) }

func (w *world) mounts() (list []string) {
	w.t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, w.dir()) {
			list = append(list, strings.TrimPrefix(point, w.dir()+"/"))
		}
	}
	slices.Sort(list)
	return list
}

func children(t *testing.T) (list []string) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		text, _ := os.ReadFile(f) // the thread may be gone
		list = append(list, strings.Fields(string(text))...)
	}
	return list
}

func descriptors(t *testing.T) (list []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		at, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(at, "anon_inode:[event") {
			list = append(list, at)
		}
	}
	return list
}

// request encodes what containerd would send. c may be nil.
func request(t testing.TB, netns string, c *cri.PodSandboxConfig) []byte {
	t.Helper()
	r := &sandboxapi.CreateSandboxRequest{SandboxID: testID, BundlePath: "/bundle", NetnsPath: netns}
	if c != nil {
		value, err := proto.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		r.Options = &anypb.Any{TypeUrl: "runtime.v1.PodSandboxConfig", Value: value}
	}
	b, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type answer struct {
	pid    int
	start  uint64
	parent string
	made   bool
}

// make makes the pod and removes it at the end of the test.
func (w *world) make(netns string, c *cri.PodSandboxConfig) answer {
	w.t.Helper()
	b, err := w.maker.Make(request(w.t, netns, c))
	if err != nil {
		w.t.Fatal(err)
	}
	var a answer
	s := wire.Scan(b)
	for f := (wire.Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			a.pid = int(f.Value)
		case 2:
			a.start = f.Value
		case 3:
			a.parent = string(f.Bytes)
		case 4:
			f.Bool(&a.made)
		}
	}
	if s.Err() != nil {
		w.t.Fatal(s.Err())
	}
	w.t.Cleanup(func() {
		if a.pid != 0 {
			reap(w.t, a.pid)
		}
		if err := sandbox.Remove(w.dir()); err != nil {
			w.t.Error(err)
		}
	})
	return a
}

// reap kills a child.
func reap(t *testing.T, pid int) {
	t.Helper()
	_ = unix.Kill(pid, unix.SIGKILL)
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil && !errors.Is(err, unix.ECHILD) {
		t.Errorf("wait for %d: %v", pid, err)
	}
}

// newNetns makes a network namespace as CRI does, and returns its path.
func newNetns(t *testing.T) string {
	t.Helper()
	at := emptyFile(t)
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			errs <- err
			return
		}
		errs <- unix.Mount("/proc/thread-self/ns/net", at, "", unix.MS_BIND, "")
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	return at
}

const mappedRoot, mappedGroup = 200000, 300000

// newUserNetns makes one that is owned by a user namespace.
func newUserNetns(t *testing.T) string {
	t.Helper()
	at := emptyFile(t)
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: mappedRoot, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{HostID: mappedGroup, Size: 65536}}, GidMappingsEnableSetgroups: true,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if err := unix.Mount("/proc/"+strconv.Itoa(cmd.Process.Pid)+"/ns/net", at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	return at
}

func emptyFile(t *testing.T) string {
	t.Helper()
	f, err := os.CreateTemp("/run", "berth-netns-")
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	t.Cleanup(func() { _ = os.Remove(f.Name()) })
	return f.Name()
}

// inside calls f on a thread that has joined the namespaces.
func inside(t *testing.T, f func() error, paths ...string) {
	t.Helper()
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends
		for _, path := range paths {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Setns(fd, 0)
				_ = unix.Close(fd)
			}
			if err != nil {
				errs <- fmt.Errorf("%s: %w", path, err)
				return
			}
		}
		errs <- f()
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
}

func sysctlValue(t *testing.T, path string, at ...string) string {
	t.Helper()
	var text []byte
	inside(t, func() (err error) {
		text, err = os.ReadFile("/proc/sys/" + path)
		return err
	}, at...)
	return strings.Join(strings.Fields(string(text)), " ")
}

func nodename(t *testing.T, at ...string) (host, domain string) {
	t.Helper()
	inside(t, func() error {
		var u unix.Utsname
		err := unix.Uname(&u)
		host, domain = unix.ByteSliceToString(u.Nodename[:]), unix.ByteSliceToString(u.Domainname[:])
		return err
	}, at...)
	return host, domain
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (w *world) file(name string) string { return filepath.Join(w.dir(), name) }

func podConfig(o *cri.NamespaceOption) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "web", Namespace: "prod", Uid: "u-1", Attempt: 2},
		Hostname:     "web-0",
		LogDirectory: "/var/log/pods/web",
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: o}},
	}
}

func modes(net, pid, ipc cri.NamespaceMode) *cri.NamespaceOption {
	return &cri.NamespaceOption{Network: net, Pid: pid, Ipc: ipc}
}

const (
	modeP = cri.NamespaceMode_POD
	modeC = cri.NamespaceMode_CONTAINER
	modeN = cri.NamespaceMode_NODE
)

func mapped(o *cri.NamespaceOption) *cri.NamespaceOption {
	o.UsernsOptions = &cri.UserNamespace{
		Mode: modeP,
		Uids: []*cri.IDMapping{{HostId: mappedRoot, Length: 65536}},
		Gids: []*cri.IDMapping{{HostId: mappedGroup, Length: 65536}},
	}
	return o
}

// TestPod is an ordinary pod: its own network, IPC and UTS, processes apart.
func TestPod(t *testing.T) {
	w := newWorld(t)
	netns := newNetns(t)
	c := podConfig(modes(modeP, modeC, modeP))
	c.DnsConfig = &cri.DNSConfig{Servers: []string{"10.0.0.10", "fe80::1%eth0"}, Searches: []string{"prod.svc", "svc"}, Options: []string{"ndots:5", "edns0"}}
	c.Linux.Sysctls = map[string]string{
		"kernel.shm_rmid_forced": "1", "kernel.sem": "32000 1024000000 500 32001", "fs.mqueue.msg_max": "17",
		"net.ipv4.ip_forward": "1", "net/ipv4/conf/lo/rp_filter": "2", "kernel.domainname": "example",
	}
	c.Linux.Resources = &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 5, CpuShares: 7, MemoryLimitInBytes: 1 << 30}
	c.Linux.CgroupParent = "/kubepods/../x"
	if _, err := w.maker.Make(request(t, netns, c)); fault.CodeOf(err) != fault.InvalidArgument {
		t.Fatalf("cgroup parent: %v", err)
	}
	c.Linux.CgroupParent = "a.slice/a-b.slice"
	host := map[string]string{}
	for _, path := range []string{"kernel/shm_rmid_forced", "kernel/sem", "fs/mqueue/msg_max", "net/ipv4/ip_forward", pingPath, portsPath, "kernel/hostname", "kernel/domainname"} {
		host[path] = sysctlValue(t, path)
	}

	a := w.make(netns, c)
	if want := (answer{parent: "a.slice/a-b.slice"}); a != want {
		t.Errorf("answer: got %+v, want %+v", a, want)
	}
	if got, want := w.mounts(), []string{"ipc", "shm", "uts"}; !slices.Equal(got, want) {
		t.Errorf("mounts: got %v, want %v", got, want)
	}
	if got := children(t); len(got) != 0 {
		t.Errorf("processes: %v", got)
	}
	for _, typ := range []string{ipc, uts} {
		if inode(t, w.file(typ)) == inode(t, "/proc/self/ns/"+typ) {
			t.Errorf("%s: the pin is of the host's namespace", typ)
		}
	}
	ipcPin, utsPin := w.file(sandbox.PinIPC), w.file(sandbox.PinUTS)
	if h, d := nodename(t, utsPin); h != "web-0" || d != "example" {
		t.Errorf("names: got %s, %s", h, d)
	}
	for path, want := range map[string]string{
		"kernel/shm_rmid_forced": "1", "kernel/sem": "32000 1024000000 500 32001", "fs/mqueue/msg_max": "17",
		"net/ipv4/ip_forward": "1", "net/ipv4/conf/lo/rp_filter": "2", portsPath: "0", pingPath: "0 2147483647",
	} {
		if got := sysctlValue(t, path, ipcPin, netns); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
	for path, want := range host {
		if got := sysctlValue(t, path); got != want {
			t.Errorf("the host's %s: got %s, was %s", path, got, want)
		}
	}

	for name, want := range map[string]string{
		sandbox.HostnameFile: "web-0\n", sandbox.HostsFile: content(t, "/etc/hosts"),
		sandbox.ResolvFile: "search prod.svc svc\nnameserver 10.0.0.10\nnameserver fe80::1%eth0\noptions ndots:5 edns0\n",
	} {
		if got := content(t, w.file(name)); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		w.owner(name, 0, 0, 0o644)
	}
	w.owner("", 0, 0, 0o711)
	w.owner(sandbox.MembersDir, 0, 0, 0o700)
	w.owner(sandbox.ShmDir, 0, 0, 0o777|os.ModeSticky)
	w.checkShm()
	w.checkSpec(netns)
	w.checkInfo(c)

	r, err := Read(w.dir())
	if err != nil {
		t.Fatal(err)
	}
	want := &Record{
		Version: 1, ID: testID, Namespace: ns, Bundle: "/bundle", Owner: Process{os.Getppid(), process.StartTime(os.Getppid())},
		Namespaces: map[string]Namespace{network: {Own, netns}, ipc: {Own, ipcPin}, uts: {Own, utsPin}, pid: {Mode: Each}, user: {Mode: Node}},
		Hostname:   "web-0", CgroupParent: "a.slice/a-b.slice", Shm: true,
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	w.owner(sandbox.RecordFile, 0, 0, 0o600)
}

func (w *world) owner(name string, uid, gid uint32, mode os.FileMode) {
	w.t.Helper()
	info, err := os.Stat(w.file(name))
	if err != nil {
		w.t.Error(err)
		return
	}
	st := info.Sys().(*syscall.Stat_t)
	if st.Uid != uid || st.Gid != gid || info.Mode()&^os.ModeDir != mode {
		w.t.Errorf("%s: %v, %d:%d, want %v, %d:%d", name, info.Mode(), st.Uid, st.Gid, mode, uid, gid)
	}
}

func (w *world) checkShm() {
	w.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(w.file(sandbox.ShmDir), &st); err != nil {
		w.t.Fatal(err)
	}
	const flags = unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_NOSUID
	if size := int64(st.Blocks) * st.Bsize; st.Type != unix.TMPFS_MAGIC || size != 64<<20 || st.Flags&flags != flags {
		w.t.Errorf("shm: type %#x, %d bytes, flags %#x", st.Type, size, st.Flags)
	}
}

func (w *world) checkSpec(netns string) {
	w.t.Helper()
	var s specs.Spec
	d := json.NewDecoder(strings.NewReader(content(w.t, w.file(sandbox.SpecFile))))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		w.t.Fatal(err)
	}
	want := specs.Spec{
		Version: "1.2.0", Hostname: "web-0",
		Annotations: map[string]string{
			"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": testID,
			"io.kubernetes.cri.sandbox-name": "web", "io.kubernetes.cri.sandbox-namespace": "prod", "io.kubernetes.cri.sandbox-uid": "u-1",
			"io.kubernetes.cri.sandbox-log-directory": "/var/log/pods/web", "io.kubernetes.cri.sandbox-cpu-period": "100000",
			"io.kubernetes.cri.sandbox-cpu-quota": "5", "io.kubernetes.cri.sandbox-cpu-shares": "7", "io.kubernetes.cri.sandbox-memory": "1073741824",
		},
		Linux: &specs.Linux{
			CgroupsPath: "a.slice/a-b.slice",
			Namespaces: []specs.LinuxNamespace{
				{Type: "ipc", Path: w.file("ipc")},
				{Type: "uts", Path: w.file("uts")},
				{Type: "network", Path: netns},
				{Type: "pid"},
			},
			Sysctl: map[string]string{
				"kernel.shm_rmid_forced": "1", "kernel.sem": "32000 1024000000 500 32001", "fs.mqueue.msg_max": "17",
				"net.ipv4.ip_forward": "1", "net/ipv4/conf/lo/rp_filter": "2", "kernel.domainname": "example",
				"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647",
			},
		},
	}
	if diff := cmp.Diff(want, s); diff != "" {
		w.t.Errorf("spec (-want +got):\n%s", diff)
	}
}

// sandboxInfo is CRI's, which is internal to containerd; but for the processStatus,
// which is no file's.
type sandboxInfo struct {
	Pid         uint32                `json:"pid"`
	NetNSClosed bool                  `json:"netNamespaceClosed"`
	RuntimeType string                `json:"runtimeType"`
	Config      *cri.PodSandboxConfig `json:"config"`
	RuntimeSpec *specs.Spec           `json:"runtimeSpec"`
}

func (w *world) checkInfo(c *cri.PodSandboxConfig) {
	w.t.Helper()
	var got sandboxInfo
	d := json.NewDecoder(strings.NewReader(content(w.t, w.file(sandbox.InfoFile))))
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil {
		w.t.Fatal(err)
	}
	if got.Pid != 0 || got.NetNSClosed || got.RuntimeType != "io.containerd.berth.v1" || got.RuntimeSpec.Hostname != "web-0" {
		w.t.Errorf("info: %+v", got)
	}
	if !proto.Equal(got.Config, c) {
		w.t.Errorf("info's config: got %v, want %v", got.Config, c)
	}
}

// TestShared is a pod whose containers share a process namespace.
func TestShared(t *testing.T) {
	for _, c := range []struct {
		name  string
		netns func(*testing.T) string
		o     *cri.NamespaceOption
	}{
		{"plain", newNetns, modes(modeP, modeP, modeP)},
		{"no options", newNetns, nil},
		{"host network", func(*testing.T) string { return "" }, modes(modeN, modeP, modeN)},
		{"user namespace", newUserNetns, mapped(modes(modeP, modeP, modeP))},
		{"user namespace, host network", func(*testing.T) string { return "" }, mapped(modes(modeN, modeP, modeP))},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			netns := c.netns(t)
			cfg := podConfig(c.o)
			if c.o == nil {
				cfg = nil
			}
			a := w.make(netns, cfg)
			r, err := Read(w.dir())
			if err != nil {
				t.Fatal(err)
			}
			if want := (&Process{a.pid, a.start}); a.pid == 0 || *r.Init != *want || !r.Init.Alive() {
				t.Fatalf("init: record has %v, answer %v", r.Init, want)
			}
			if got := children(t); !slices.Equal(got, []string{strconv.Itoa(a.pid)}) {
				t.Fatalf("children: %v, want the init %d", got, a.pid)
			}
			if inode(t, w.file("pid")) == inode(t, "/proc/self/ns/pid") || inode(t, w.file("pid")) != inode(t, "/proc/"+strconv.Itoa(a.pid)+"/ns/pid") {
				t.Error("the pin is not of the init's namespace")
			}
			checkInit(t, a.pid, r)
			checkReaps(t, w, a.pid)
		})
	}
}

// checkInit looks at what the pod's first process is and has.
func checkInit(t *testing.T, first int, r *Record) {
	t.Helper()
	proc := "/proc/" + strconv.Itoa(first)
	uid, gid := 65535, 65535
	if len(r.UIDs) > 0 {
		uid, gid = uid+mappedRoot, gid+mappedGroup
	}
	status := content(t, proc+"/status")
	for end := time.Now().Add(5 * time.Second); !strings.HasPrefix(status, "Name:\tberth-init\n") && time.Now().Before(end); {
		status = content(t, proc+"/status") // its own first step
	}
	for _, want := range []string{
		"Name:\tberth-init\n", "NSpid:\t" + strconv.Itoa(first) + "\t1\n", "Threads:\t1\n",
		fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", uid), fmt.Sprintf("Gid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", gid), "Groups:\t \n",
		"SigCgt:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
		"NoNewPrivs:\t1\n", "Seccomp:\t2\n",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
	if got := content(t, proc+"/cmdline"); got != "berth-init\x00" {
		t.Errorf("command line: %q", got)
	}
	stat := strings.Fields(content(t, proc+"/stat"))
	if stat[3] != strconv.Itoa(os.Getpid()) || stat[5] != strconv.Itoa(first) {
		t.Errorf("parent %s, session %s", stat[3], stat[5])
	}
	for fd := range 5 {
		at, err := os.Readlink(proc + "/fd/" + strconv.Itoa(fd))
		if fd < 3 && at != "/dev/null" || fd >= 3 && err == nil {
			t.Errorf("descriptor %d: %s, %v", fd, at, err)
		}
	}
	// Whoever may look through it sees an empty directory, and none above.
	for _, at := range []string{"/root", "/root/../../..", "/cwd", "/cwd/.."} {
		entries, err := os.ReadDir(proc + at)
		if !errors.Is(err, unix.ENOENT) || len(entries) > 0 || inode(t, proc+at) != inode(t, proc+"/root") {
			t.Errorf("%s: %v, %v", at, entries, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(proc+"/fd", &st); err != nil || st.Uid != 0 {
		t.Errorf("it can be traced by %d, %v", st.Uid, err)
	}
	if err := os.Mkdir(proc+"/root/x", 0o700); !errors.Is(err, unix.ENOENT) {
		t.Errorf("its root takes files: %v", err)
	}
	if kib := privateDirty(t, first); kib > 16 {
		t.Errorf("private memory: %d KiB", kib)
	}
}

func privateDirty(t *testing.T, first int) (kib int) {
	t.Helper()
	for line := range strings.Lines(content(t, "/proc/"+strconv.Itoa(first)+"/smaps_rollup")) {
		if f := strings.Fields(line); f[0] == "Private_Dirty:" {
			kib, _ = strconv.Atoi(f[1])
		}
	}
	return kib
}

// checkReaps leaves orphans to the pod's first process, and tries to end it.
func checkReaps(t *testing.T, w *world, first int) {
	t.Helper()
	script := `
for i in 1 2 3; do (sleep 0.0$i & sleep 0.2 &) >/dev/null 2>&1; done
for s in TERM INT HUP USR1 CHLD STOP KILL; do kill -$s 1; done
exit 0`
	run := exec.Command("nsenter", "--pid="+w.file("pid"), "sh", "-c", script)
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	seen := false
	for end := time.Now().Add(5 * time.Second); ; {
		text := content(t, fmt.Sprintf("/proc/%d/task/%[1]d/children", first))
		seen = seen || text != ""
		if text == "" && seen {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("orphans: %q, seen %v", text, seen)
		}
		time.Sleep(time.Millisecond)
	}
	// As fresh as before: it waits for the next one.
	if out, err := exec.Command("nsenter", "--pid="+w.file("pid"), "sh", "-c", "(sleep 0.01 &) >/dev/null 2>&1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if procs := content(t, fmt.Sprintf("/proc/%d/task/%[1]d/children", first)); procs == "" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the second orphan is left")
		}
	}
	if unix.Kill(first, 0) != nil {
		t.Error("the init is gone")
	}
}

// TestUser is a pod with a user namespace.
func TestUser(t *testing.T) {
	for _, c := range []struct {
		name  string
		netns func(*testing.T) string
		net   cri.NamespaceMode
	}{{"own network", newUserNetns, modeP}, {"host network", func(*testing.T) string { return "" }, modeN}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			netns := c.netns(t)
			cfg := podConfig(mapped(modes(c.net, modeC, modeP)))
			cfg.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "kernel.msgmax": "4096"}
			if c.net == modeP {
				cfg.Linux.Sysctls["kernel.domainname"] = "example"
			}
			before := sysctlValue(t, "kernel/shm_rmid_forced")
			w.make(netns, cfg)
			for path, want := range map[string]string{"kernel/shm_rmid_forced": "1", "kernel/msgmax": "4096"} {
				if got := sysctlValue(t, path, w.file("ipc")); got != want {
					t.Errorf("%s: got %s", path, got)
				}
			}
			if got := sysctlValue(t, "kernel/shm_rmid_forced"); got != before {
				t.Errorf("the host's kernel.shm_rmid_forced is %s now", got)
			}
			for _, name := range []string{sandbox.HostnameFile, sandbox.HostsFile, sandbox.ResolvFile} {
				w.owner(name, mappedRoot, mappedGroup, 0o644)
			}
			w.owner(sandbox.ShmDir, mappedRoot, mappedGroup, 0o777|os.ModeSticky)
			out, err := exec.Command("nsenter", "--user="+w.file("user"), "--ipc="+w.file("ipc"), "sh", "-c", "id -u; cat /proc/self/uid_map /proc/self/gid_map").CombinedOutput()
			if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != "0 0 200000 65536 0 300000 65536" {
				t.Errorf("%v, %s", err, got)
			}
			if c.net == modeN {
				if _, err := os.Stat(w.file("uts")); !os.IsNotExist(err) {
					t.Errorf("UTS namespace: %v", err)
				}
				return
			}
			if h, d := nodename(t, w.file("uts")); h != "web-0" || d != "example" {
				t.Errorf("names: got %s, %s", h, d)
			}
			if got := sysctlValue(t, portsPath, netns); got != "0" {
				t.Errorf("%s: %s", portsPath, got)
			}
			if got := sysctlValue(t, pingPath, netns); got == "0 2147483647" {
				t.Errorf("%s is set in a user namespace", pingPath)
			}
		})
	}
}

// TestHost is a pod that has everything in common with the host.
func TestHost(t *testing.T) {
	w := newWorld(t)
	cfg := podConfig(modes(modeN, modeN, modeN))
	cfg.Hostname = ""
	w.make("", cfg)
	if got := w.mounts(); len(got) > 0 {
		t.Errorf("mounts: %v", got)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, w.file(sandbox.HostnameFile)); got != host+"\n" {
		t.Errorf("hostname: %q", got)
	}
	if got := content(t, w.file(sandbox.ResolvFile)); got != content(t, "/etc/resolv.conf") {
		t.Errorf("resolv.conf: %q", got)
	}
	r, err := Read(w.dir())
	if err != nil {
		t.Fatal(err)
	}
	for typ, n := range r.Namespaces {
		if n.Mode != Node || n.Path != "" {
			t.Errorf("%s: %+v", typ, n)
		}
	}
	if r.Shm {
		t.Error("a /dev/shm of its own")
	}
}

// TestRefused: what cannot be is refused, with a class and a text that says what,
// and nothing is done.
func TestRefused(t *testing.T) {
	netns := newNetns(t)
	long := strings.Repeat("h", 300)
	type config = cri.PodSandboxConfig
	sysctls := func(o *cri.NamespaceOption, key, value string) *config {
		c := podConfig(o)
		c.Linux.Sysctls = map[string]string{key: value}
		return c
	}
	own := modes(modeP, modeC, modeP)
	with := func(change func(c *config)) *config {
		c := podConfig(own)
		change(c)
		return c
	}
	for _, c := range []struct {
		name  string
		netns string
		c     *config
		code  fault.Code
		text  string
	}{
		{"host IPC sysctl", netns, sysctls(modes(modeP, modeC, modeN), "kernel.shm_rmid_forced", "1"), fault.InvalidArgument, "sysctl kernel.shm_rmid_forced: the pod shares its IPC"},
		{"host IPC queue sysctl", netns, sysctls(modes(modeP, modeC, modeN), "fs.mqueue.msg_max", "9"), fault.InvalidArgument, "shares its IPC"},
		{"host network sysctl", "", sysctls(modes(modeN, modeC, modeP), "net.ipv4.ip_forward", "1"), fault.InvalidArgument, "net.ipv4.ip_forward: the pod shares its network"},
		{"host UTS sysctl", "", sysctls(modes(modeN, modeC, modeP), "kernel.domainname", "x"), fault.InvalidArgument, "shares its UTS"},
		{"not namespaced", netns, sysctls(own, "kernel.panic", "1"), fault.InvalidArgument, "kernel.panic: not namespaced"},
		{"vm", netns, sysctls(own, "vm.swappiness", "1"), fault.InvalidArgument, "not namespaced"},
		{"upwards", netns, sysctls(own, "net/../kernel/panic", "1"), fault.InvalidArgument, "not a name"},
		{"upwards, dotted", netns, sysctls(own, "net.//.kernel.panic", "1"), fault.InvalidArgument, "not a name"},
		{"empty part", netns, sysctls(own, "net..ipv4", "1"), fault.InvalidArgument, "not a name"},
		{"empty", netns, sysctls(own, "", "1"), fault.InvalidArgument, `sysctl ""`},
		{"unusual", netns, sysctls(own, "net.ipv4.a b", "1"), fault.InvalidArgument, "not a name"},
		{"zero byte", netns, sysctls(own, "net.ipv4.ip_forward\x00", "1"), fault.InvalidArgument, "not a name"},
		{"value with a newline", netns, sysctls(own, "net.ipv4.ip_forward", "1\n0"), fault.InvalidArgument, "control character"},
		{"no such sysctl", netns, sysctls(own, "net.ipv4.no_such", "1"), fault.InvalidArgument, "net.ipv4.no_such="},
		{"bad value", netns, sysctls(own, "net.ipv4.ip_forward", "many"), fault.InvalidArgument, `net.ipv4.ip_forward="many": invalid argument`},
		{"bad value in IPC", netns, sysctls(own, "kernel.msgmni", "-5"), fault.InvalidArgument, "kernel.msgmni="},
		{"bad value with an init", netns, sysctls(modes(modeP, modeP, modeP), "kernel.sem", "x"), fault.InvalidArgument, "kernel.sem="},
		{"hostname sysctl", netns, sysctls(own, "kernel.hostname", "other"), fault.InvalidArgument, "kernel.hostname"},
		{"named twice", netns, with(func(c *config) {
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0"}
		}), fault.InvalidArgument, "named twice"},
		{"long domain", netns, sysctls(own, "kernel.domainname", long), fault.InvalidArgument, "300 bytes"},

		{"long hostname", netns, with(func(c *config) { c.Hostname = long }), fault.InvalidArgument, "300 bytes"},
		{"hostname with a newline", netns, with(func(c *config) { c.Hostname = "a\nb" }), fault.InvalidArgument, `hostname "a\nb"`},
		{"hostname with a slash", netns, with(func(c *config) { c.Hostname = "a/b" }), fault.InvalidArgument, `hostname "a/b"`},
		{"hostname with a zero byte", netns, with(func(c *config) { c.Hostname = "a\x00b" }), fault.InvalidArgument, "hostname"},

		{"DNS option", netns, with(func(c *config) { c.DnsConfig = &cri.DNSConfig{Options: []string{"ndots:1\nnameserver 6.6.6.6"}} }), fault.InvalidArgument, `DNS option "ndots:1\nnameserver 6.6.6.6"`},
		{"DNS server", netns, with(func(c *config) { c.DnsConfig = &cri.DNSConfig{Servers: []string{"1.1.1.1 2.2.2.2"}} }), fault.InvalidArgument, "DNS server"},
		{"DNS search", netns, with(func(c *config) { c.DnsConfig = &cri.DNSConfig{Searches: []string{"a\x00"}} }), fault.InvalidArgument, "DNS search domain"},

		{"cgroup upwards", netns, with(func(c *config) { c.Linux.CgroupParent = "/a/../../b" }), fault.InvalidArgument, "leads upwards"},
		{"cgroup relative", netns, with(func(c *config) { c.Linux.CgroupParent = "a/b" }), fault.InvalidArgument, "cgroup parent"},

		{"SELinux", netns, with(func(c *config) {
			c.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Level: `s0",size=9g,x="`}
		}), fault.InvalidArgument, "SELinux level"},

		{"no network namespace", "", podConfig(own), fault.InvalidArgument, "network namespace"},
		{"missing network namespace", "/run/no/such", podConfig(own), fault.NotFound, "/run/no/such"},
		{"a file as one", "/etc/hosts", podConfig(own), fault.InvalidArgument, "/etc/hosts: the file is none"},
		{"another type", "/proc/self/ns/ipc", podConfig(own), fault.InvalidArgument, "the file is none"},
		{"the host's", "/proc/self/ns/net", podConfig(own), fault.FailedPrecondition, "it is the host's"},
		{"not of a user namespace", netns, podConfig(mapped(modes(modeP, modeC, modeP))), fault.FailedPrecondition, "user namespace of " + netns},
		{"target", netns, podConfig(modes(modeP, cri.NamespaceMode_TARGET, modeP)), fault.InvalidArgument, "mode 3"},
		{"user mode", netns, podConfig(&cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{Mode: modeC}}), fault.InvalidArgument, "user namespace"},
		{"host user with mappings", netns, podConfig(&cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{Mode: modeN, Uids: []*cri.IDMapping{{Length: 1}}}}), fault.InvalidArgument, "mappings"},
		{"no mappings", netns, podConfig(&cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{}}), fault.InvalidArgument, "uid mappings"},
		{"overlapping mappings", "", podConfig(&cri.NamespaceOption{Network: modeN, UsernsOptions: &cri.UserNamespace{
			Uids: []*cri.IDMapping{{HostId: 1000, Length: 10}, {HostId: 1005, ContainerId: 5, Length: 10}},
			Gids: []*cri.IDMapping{{HostId: 1000, Length: 10}},
		}}), fault.InvalidArgument, "uid_map"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			shm := sysctlValue(t, "kernel/shm_rmid_forced")
			_, err := w.maker.Make(request(t, c.netns, c.c))
			if fault.CodeOf(err) != c.code || !strings.Contains(fmt.Sprint(err), c.text) || !strings.Contains(fmt.Sprint(err), testID) {
				t.Errorf("got class %d, %v", fault.CodeOf(err), err)
			}
			w.clean()
			if got := sysctlValue(t, "kernel/shm_rmid_forced"); got != shm {
				t.Errorf("the host's kernel.shm_rmid_forced is %s now", got)
			}
		})
	}
}

func TestRefusedRequests(t *testing.T) {
	w := newWorld(t)
	encode := func(m *sandboxapi.CreateSandboxRequest) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		name    string
		id      string
		request []byte
		text    string
	}{
		{"path as id", "../x", encode(&sandboxapi.CreateSandboxRequest{SandboxID: "../x"}), "plain names"},
		{"other id", testID, encode(&sandboxapi.CreateSandboxRequest{SandboxID: "other"}), `"other"`},
		{"other options", testID, encode(&sandboxapi.CreateSandboxRequest{SandboxID: testID, Options: &anypb.Any{TypeUrl: "a/b.C"}}), `"a/b.C"`},
		{"malformed", testID, []byte{0xff}, "malformed"},
		{"malformed options", testID, encode(&sandboxapi.CreateSandboxRequest{SandboxID: testID, Options: &anypb.Any{TypeUrl: configURL, Value: []byte{0x42, 9}}}), "malformed"},
	} {
		w.maker.ID = c.id
		_, err := w.maker.Make(c.request)
		if fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(fmt.Sprint(err), c.text) {
			t.Errorf("%s: got class %d, %v", c.name, fault.CodeOf(err), err)
		}
	}
	w.maker.ID = testID
}

// TestExists: a pod is one at a time; what is left of a dead one goes away.
func TestExists(t *testing.T) {
	w := newWorld(t)
	netns := newNetns(t)
	b := request(t, netns, podConfig(modes(modeP, modeP, modeP)))
	first := w.make(netns, podConfig(modes(modeP, modeP, modeP)))
	if _, err := w.maker.Make(b); fault.CodeOf(err) != fault.AlreadyExists {
		t.Fatalf("second: %v", err)
	}
	if unix.Kill(first.pid, 0) != nil || len(w.mounts()) != 4 {
		t.Fatal("the second took the first's")
	}
	for name, change := range map[string]func(r *Record) []byte{
		"dead owner": func(r *Record) []byte {
			r.Owner.StartTime++
			text, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			return text
		},
		"torn record": func(*Record) []byte { return []byte(`{"Version":1,"ID"`) },
	} {
		r, err := Read(w.dir())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(w.file(sandbox.RecordFile), change(r), 0o600); err != nil {
			t.Fatal(err)
		}
		a := w.make(netns, podConfig(modes(modeP, modeP, modeP)))
		if a.pid == r.Init.Pid || len(w.mounts()) != 4 {
			t.Errorf("%s: %+v, mounts %v", name, a, w.mounts())
		}
		if name == "dead owner" {
			if process.StartTime(r.Init.Pid) == 0 {
				t.Errorf("%s: its init was reaped by another", name)
			}
			if state := strings.Fields(content(t, "/proc/"+strconv.Itoa(r.Init.Pid)+"/stat"))[2]; state != "Z" {
				t.Errorf("%s: the old init lives: %s", name, state)
			}
		}
		reap(t, r.Init.Pid)
	}
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(dir); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("no record: %v", err)
	}
	for _, text := range []string{
		"", "{}", `{"Version":2}`,
		`{"Version":1,"Namespaces":{"network":{"Mode":"node"},"ipc":{"Mode":"node"},"uts":{"Mode":"node"},"pid":{"Mode":"node"}}}`,
		`{"Version":1,"Namespaces":{"network":{"Mode":"pod"},"ipc":{"Mode":"node"},"uts":{"Mode":"node"},"pid":{"Mode":"node"},"user":{"Mode":"node"}}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, sandbox.RecordFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(dir); fault.CodeOf(err) != fault.FailedPrecondition {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestUndone lets each step of Make fail that a test can reach, with everything
// before it made.
func TestUndone(t *testing.T) {
	for _, c := range []struct {
		name string
		fail func(t *testing.T, w *world)
		code fault.Code
	}{
		{"no room", func(t *testing.T, w *world) {
			if err := unix.Mount("full", w.maker.State, "tmpfs", 0, "size=4k"); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(w.maker.State+"/fill", bytes.Repeat([]byte{1}, 4096), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(w.maker.State, unix.MNT_DETACH) })
		}, fault.ResourceExhausted},
		{"room for the files, not for the record", func(t *testing.T, w *world) {
			if err := unix.Mount("full", w.maker.State, "tmpfs", 0, "size=12k"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(w.maker.State, unix.MNT_DETACH) })
		}, fault.ResourceExhausted},
		{"no inodes", func(t *testing.T, w *world) {
			if err := unix.Mount("full", w.maker.State, "tmpfs", 0, "nr_inodes=9"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(w.maker.State, unix.MNT_DETACH) })
		}, fault.ResourceExhausted},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.fail(t, w)
			group := "/berth-test-u-1-" + strconv.Itoa(os.Getpid())
			cfg := podConfig(modes(modeP, modeP, modeP))
			cfg.Linux.CgroupParent = group
			_, err := w.maker.Make(request(t, newNetns(t), cfg))
			if fault.CodeOf(err) != c.code {
				t.Errorf("got class %d, %v", fault.CodeOf(err), err)
			}
			w.clean()
			if left := cgroups(t, group); len(left) > 0 {
				t.Errorf("cgroups left: %v", left)
			}
		})
	}
}

func cgroups(t *testing.T, group string) (list []string) {
	t.Helper()
	tops, err := hierarchies(cgroupRoot)
	if err != nil {
		t.Fatal(err)
	}
	for _, top := range tops {
		if _, err := os.Stat(top + group); err == nil {
			list = append(list, top+group)
		}
	}
	return list
}

func TestCgroup(t *testing.T) {
	w := newWorld(t)
	group := "/berth-test-" + strconv.Itoa(os.Getpid())
	cfg := podConfig(modes(modeN, modeC, modeN))
	cfg.Linux.CgroupParent = group + "//podu-1/"
	a := w.make("", cfg)
	if a.parent != group+"/podu-1" || !a.made {
		t.Errorf("answer: %+v", a)
	}
	left := cgroups(t, group+"/podu-1")
	if tops, _ := hierarchies(cgroupRoot); len(left) != len(tops) || len(tops) == 0 {
		t.Errorf("cgroups: %v of %v", left, tops)
	}
	for _, dir := range left {
		if text, err := os.ReadFile(dir + "/cpuset.mems"); err == nil && strings.Contains(dir, "/cpuset/") && len(bytes.TrimSpace(text)) == 0 {
			t.Errorf("%s takes no process", dir)
		}
	}
	// One that is there is left to who made it.
	if again, err := makeCgroup(cgroupRoot, group+"/podu-1"); err != nil || len(again) > 0 {
		t.Errorf("again: %v, %v", again, err)
	}
	for _, dir := range left {
		if err := removeCgroups([]string{filepath.Dir(dir), dir}); err != nil {
			t.Error(err)
		}
	}
}

// TestMakerKilled: when the maker dies before it is done, the helper takes the
// init with it.
func TestMakerKilled(t *testing.T) {
	w := newWorld(t)
	p, err := w.maker.plan(request(t, newNetns(t), podConfig(modes(modeP, modeP, modeP))))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := makeDir(p.dir); err != nil {
		t.Fatal(err)
	}
	h, err := startHelper(p)
	if err != nil {
		t.Fatal(err)
	}
	first, err := h.finish()
	if err != nil || first == 0 {
		t.Fatal(first, err)
	}
	h.abort() // closes the pipe, as the kernel does for a dead maker
	if process.StartTime(first) != 0 {
		t.Error("the init is left")
	}
	if err := sandbox.Remove(p.dir); err != nil {
		t.Error(err)
	}
}

func TestInitProgramIsSmall(t *testing.T) {
	b, err := initProgram()
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 512 {
		t.Errorf("%d bytes", len(b))
	}
}

func BenchmarkMake(b *testing.B) {
	for _, c := range []struct {
		name string
		o    *cri.NamespaceOption
	}{
		{"pod", modes(modeP, modeC, modeP)},
		{"shared", modes(modeP, modeP, modeP)},
		{"host", modes(modeN, modeC, modeP)},
	} {
		b.Run(c.name, func(b *testing.B) {
			var t testing.T
			netns := newNetns(&t)
			defer func() {
				_ = unix.Unmount(netns, unix.MNT_DETACH)
				_ = os.Remove(netns)
			}()
			dir, err := os.MkdirTemp("/run", "berth-pod-")
			if err != nil {
				b.Fatal(err)
			}
			defer os.RemoveAll(dir)
			m := Maker{State: dir, Namespace: ns, ID: testID, Ports: true, ICMP: true}
			r := request(b, netns, podConfig(c.o))
			for b.Loop() {
				if _, err := m.Make(r); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				at := filepath.Join(dir, "sandboxes", ns, testID)
				if rec, err := Read(at); err == nil && rec.Init != nil {
					_ = unix.Kill(rec.Init.Pid, unix.SIGKILL)
					_, _ = unix.Wait4(rec.Init.Pid, nil, 0, nil)
				}
				if err := sandbox.Remove(at); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
