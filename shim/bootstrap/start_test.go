// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/plan"
)

const minimalConfig = `{"ociVersion":"1.2.0","process":{"args":["x"]},"linux":{"namespaces":[{"type":"pid"}]}}`

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// bare is an Any as containerd makes it, with the name of the type alone.
func bare(t *testing.T, m proto.Message) *anypb.Any {
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: marshal(t, m)}
}

func params(id string, extensions ...*anypb.Any) *bootapi.BootstrapParams {
	p := &bootapi.BootstrapParams{
		InstanceID: id, Namespace: "ns", ContainerdVersion: "2.4.2", ContainerdGrpcAddress: "/run/c.sock",
		ContainerdTtrpcAddress: "/run/c.sock.ttrpc", ContainerdBinary: "/bin/containerd",
	}
	for _, e := range extensions {
		p.Extensions = append(p.Extensions, &bootapi.Extension{Value: e})
	}
	return p
}

// address reads the answer to containerd 2.3 and later.
func address(t *testing.T, r result) string {
	t.Helper()
	var b bootapi.BootstrapResult
	if err := proto.Unmarshal(r.ok(t).stdout, &b); err != nil {
		t.Fatal(err)
	}
	if b.Version != 2 || b.Protocol != "ttrpc" {
		t.Fatalf("version %d, protocol %q", b.Version, b.Protocol)
	}
	return b.Address
}

func TestStartProtocols(t *testing.T) {
	runcOptions := marshal(t, bare(t, &options.Options{NoPivotRoot: true}))
	for name, tc := range map[string]struct {
		stdin   []byte
		env     []string
		read    func(t *testing.T, r result) string
		options string
	}{
		"containerd 2.4":              {stdin: marshal(t, params("c")), read: address},
		"containerd 2.4 with options": {stdin: marshal(t, params("c", bare(t, &options.Options{NoPivotRoot: true}))), read: address, options: "containerd.runc.v1.Options"},
		"containerd 2.0":              {env: []string{"MAX_SHIM_VERSION=2", "TTRPC_ADDRESS=/run/c.sock.ttrpc"}, read: fromJSON},
		"containerd 2.0 with options": {stdin: runcOptions, env: []string{"MAX_SHIM_VERSION=2", "TTRPC_ADDRESS=/run/c.sock.ttrpc"}, read: fromJSON, options: "containerd.runc.v1.Options"},
		"containerd 1.6": {env: []string{"TTRPC_ADDRESS=/run/c.sock.ttrpc"}, read: func(t *testing.T, r result) string {
			return string(r.ok(t).stdout)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "", minimalConfig)
			w.env = tc.env
			socket, ok := strings.CutPrefix(tc.read(t, w.shim(tc.stdin, flags("c", "start")...)), "unix://")
			if !ok || !alive(socket) {
				t.Fatalf("nobody listens at %q", socket)
			}
			if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("socket: %v, %v", st.Mode(), err)
			}
			p := w.plan()
			if p.OptionsType != tc.options || p.NoPivot != (tc.options != "") {
				t.Errorf("options type %q, no pivot %v", p.OptionsType, p.NoPivot)
			}
			if p.TTRPCAddress != "/run/c.sock.ttrpc" || p.Address != "/run/c.sock" || p.Socket != socket {
				t.Errorf("addresses %q, %q, %q", p.TTRPCAddress, p.Address, p.Socket)
			}
		})
	}
}

func fromJSON(t *testing.T, r result) string {
	t.Helper()
	var b bootapi.BootstrapResult // as containerd reads it
	if err := json.Unmarshal(r.ok(t).stdout, &b); err != nil || b.Version != 2 || b.Protocol != "ttrpc" {
		t.Fatalf("%s: %v", r.stdout, err)
	}
	return b.Address
}

func TestResident(t *testing.T) {
	w := newWorld(t, "", minimalConfig)
	w.env = []string{"SECRET=1", "PATH=/a:/b", "GOGC=50"}
	work := t.TempDir()
	if err := os.Symlink(work, filepath.Join(w.bundle, "work")); err != nil {
		t.Fatal(err)
	}
	address(t, w.shim(marshal(t, params("c")), flags("c", "start")...))
	f := w.facts()
	if want := []string{"-namespace", "ns", "-id", "c", "-address", "/run/c.sock"}; !slices.Equal(f.Args[1:], want) {
		t.Errorf("arguments %q, want %q", f.Args[1:], want)
	}
	slices.Sort(f.Env)
	if d := cmp.Diff([]string{"GOGC=off", "GOMAXPROCS=1", "GOMEMLIMIT=32MiB", "PATH=/a:/b"}, slices.DeleteFunc(f.Env, func(kv string) bool {
		return !strings.HasPrefix(kv, "GO") && !strings.HasPrefix(kv, "PATH") && !strings.HasPrefix(kv, "SECRET")
	})); d != "" {
		t.Error(d)
	}
	if f.Dir != w.bundle || !f.Leader {
		t.Errorf("working directory %s, leader of a session %v", f.Dir, f.Leader)
	}
	wantFiles := map[string]string{"0": "/dev/null", "1": "/dev/null", "2": "/dev/null", "3": "socket", "4": filepath.Join(w.bundle, plan.File)}
	for fd, want := range wantFiles {
		if f.Files[fd] != want {
			t.Errorf("descriptor %s is %q, want %q", fd, f.Files[fd], want)
		}
	}
	var inherited plan.Plan
	if err := inherited.Decode(f.Plan); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(w.plan(), &inherited); d != "" {
		t.Error(d)
	}
	want := plan.Plan{
		Namespace: "ns", ID: "c", Bundle: w.bundle, Work: work, Socket: inherited.Socket, Binary: inherited.Binary,
		Address: "/run/c.sock", TTRPCAddress: "/run/c.sock.ttrpc", ContainerdBinary: "/bin/containerd",
		OptionsSum: plan.Sum(nil), Runtime: deps(t, "runc"), Root: filepath.Join(filepath.Dir(w.bundle), "runc", "ns"),
		CreateTimeout: int64(plan.DefaultCreateTimeout), Native: true, NativeStart: true, NativeDelete: true,
	}
	if d := cmp.Diff(want, inherited); d != "" {
		t.Error(d)
	}
	if id := w.resident(); id.open() < 0 {
		t.Errorf("shim.pid names no process: %v", id)
	}
}

// What containerd's starter leaves open does not reach the resident, nor does it take
// a kernel newer than 5.10, where close_range(2) knows no flags.
func TestStartOnLinux510(t *testing.T) {
	left, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer left.Close()
	w := newWorld(t, "", minimalConfig)
	w.files = []*os.File{left, left, left}
	started := make(chan result, 1)
	go func() {
		defer close(started)
		runtime.LockOSThread() // never unlocked: the filter ends with the thread
		if err := refuse(unix.SYS_CLOSE_RANGE); err != nil {
			t.Error(err)
		}
		started <- w.shim(marshal(t, params("c")), flags("c", "start")...)
	}()
	address(t, <-started)
	if got := w.facts().Files["5"]; got == os.DevNull {
		t.Error("descriptor 5 is its starter's")
	}
}

// refuse makes a system call fail with EINVAL in this thread and its children.
func refuse(nr uint32) error {
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number, at the begin of seccomp_data
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EINVAL)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&filter)), 0, 0)
}

func TestStartAgain(t *testing.T) {
	w := newWorld(t, "", minimalConfig)
	start := func() string { return address(t, w.shim(marshal(t, params("c")), flags("c", "start")...)) }
	first, resident := start(), w.resident()
	if got := start(); got != first || w.resident() != resident {
		t.Errorf("a live socket: address %s, was %s; resident %v, was %v", got, first, w.resident(), resident)
	}
	w.killResident()
	if alive(path(first)) {
		t.Fatal("a dead socket is taken to be alive")
	}
	if got := start(); got != first || w.resident() == resident || !alive(path(got)) {
		t.Errorf("a dead socket: address %s, was %s; resident %v, was %v", got, first, w.resident(), resident)
	}
}

func TestSocketPath(t *testing.T) {
	long := strings.Repeat("x", maxIdentifierBytes)
	got, err := socketPath(defaultSocketDir, strings.Repeat("/a", 100), long, long)
	if err != nil || len(got) > maxSocketPathBytes {
		t.Errorf("%q, %v", got, err)
	}
	seen := map[string]bool{got: true}
	for _, s := range [][3]string{{"a", "b", "c"}, {"a", "b", "d"}, {"a", "c", "c"}, {"b", "b", "c"}} {
		got, err := socketPath("/s", s[0], s[1], s[2])
		if err != nil || seen[got] {
			t.Errorf("%v: %q, %v", s, got, err)
		}
		seen[got] = true
	}
	if _, err := socketPath("/"+strings.Repeat("d", 41), "a", "b", "c"); fault.CodeOf(err) != fault.InvalidArgument {
		t.Errorf("too long: %v", err)
	}
}

func TestStartWithSocketDir(t *testing.T) {
	w := newWorld(t, "", minimalConfig)
	p := params("c")
	dir := filepath.Join(filepath.Dir(w.bundle), "other")
	p.SocketDir = &dir
	got := address(t, w.shim(marshal(t, p), flags("c", "start")...))
	if filepath.Dir(path(got)) != dir || !alive(path(got)) {
		t.Errorf("%s is not in %s or dead", got, dir)
	}
}

func TestStartOptions(t *testing.T) {
	toml := filepath.Join(t.TempDir(), "o.toml")
	if err := os.WriteFile(toml, []byte("output = 'direct'"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		options *anypb.Any
		check   func(p *plan.Plan) bool
	}{
		"runc":             {bare(t, &options.Options{IoUid: 5, SystemdCgroup: true}), func(p *plan.Plan) bool { return p.IoUID == 5 && p.Systemd && !p.NativeDelete }},
		"body":             {bare(t, &runtimeoptions.Options{ConfigBody: []byte("io_uid = 6\nnative = false")}), func(p *plan.Plan) bool { return p.IoUID == 6 && !p.Native && !p.NativeStart && !p.NativeDelete }},
		"path":             {bare(t, &runtimeoptions.Options{ConfigPath: toml}), func(p *plan.Plan) bool { return p.Direct }},
		"not options":      {&anypb.Any{TypeUrl: "x.Unknown", Value: []byte("?")}, func(p *plan.Plan) bool { return p.OptionsType == "" }},
		"log settings":     {bare(t, &runtimeoptions.Options{ConfigBody: []byte("log_size_max = '1MiB'\nlog_max_files = 3\nno_sync_log = true")}), func(p *plan.Plan) bool { return p.LogSizeMaxBytes == 1<<20 && p.LogMaxFiles == 3 && p.LogNoSync }},
		"short time limit": {bare(t, &runtimeoptions.Options{ConfigBody: []byte("create_timeout = 1")}), func(p *plan.Plan) bool { return p.CreateTimeout == int64(30*time.Second) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "", minimalConfig)
			address(t, w.shim(marshal(t, params("c", tc.options)), flags("c", "start")...))
			if p := w.plan(); !tc.check(p) {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestStartRefuses(t *testing.T) {
	body := func(text string) *anypb.Any { return bare(t, &runtimeoptions.Options{ConfigBody: []byte(text)}) }
	for name, tc := range map[string]struct {
		settings, config string
		options          *anypb.Any
		stdin            []byte
		id               string
		code             fault.Code
		want             []string
	}{
		"no config.json":        {code: fault.FailedPrecondition, want: []string{"config.json", "no such file"}},
		"malformed config.json": {config: `{"process":`, code: fault.InvalidArgument, want: []string{"config.json", "unexpected end"}},
		"too little memory": {
			config: `{"linux":{"resources":{"memory":{"limit":4194304}}}}`,
			code:   fault.InvalidArgument, want: []string{"4194304", "12582912"},
		},
		"unknown key":         {config: minimalConfig, options: body("runtim = 'x'"), code: fault.InvalidArgument, want: []string{"runtim"}},
		"runtime not in PATH": {config: minimalConfig, options: body("runtime = 'no-such-runtime'"), code: fault.FailedPrecondition, want: []string{"no-such-runtime", "$PATH"}},
		"runtime missing":     {config: minimalConfig, options: body("runtime = '/nonexistent/runc'"), code: fault.FailedPrecondition, want: []string{"/nonexistent/runc"}},
		"runtime a directory": {config: minimalConfig, options: body("runtime = '/etc'"), code: fault.FailedPrecondition, want: []string{"/etc"}},
		"cgroup missing":      {config: minimalConfig, options: body("shim_cgroup = '/no/such/cgroup'"), code: fault.FailedPrecondition, want: []string{"/no/such/cgroup"}},
		"foreign options":     {config: minimalConfig, stdin: marshal(t, &anypb.Any{TypeUrl: "runhcs.v1.Options", Value: []byte{1}}), code: fault.InvalidArgument, want: []string{"runhcs.v1.Options"}},
		"garbage":             {config: minimalConfig, stdin: []byte("\xff\xff\xff"), code: fault.InvalidArgument, want: []string{"standard input"}},
		"path as id":          {config: minimalConfig, id: "../x", code: fault.InvalidArgument, want: []string{"id", "../x"}},
		"long id":             {config: minimalConfig, id: strings.Repeat("x", 77), code: fault.InvalidArgument, want: []string{"id", "76"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "", tc.config)
			if tc.id == "" {
				tc.id = "c"
			}
			if tc.stdin == nil {
				p := params(tc.id)
				if tc.options != nil {
					p = params(tc.id, tc.options)
				}
				tc.stdin = marshal(t, p)
			}
			r := w.shim(tc.stdin, flags(tc.id, "start")...)
			if r.code != tc.code || len(r.stdout) > 0 {
				t.Errorf("exit status %d, want %d; stdout %q", r.code, tc.code, r.stdout)
			}
			for _, part := range tc.want {
				if !strings.Contains(r.stderr, part) {
					t.Errorf("%q does not say %q", r.stderr, part)
				}
			}
			if left, _ := os.ReadDir(w.socketDir); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if id, err := readIdentity(filepath.Join(w.bundle, plan.ServerFile)); err == nil && id.open() >= 0 {
				t.Errorf("left: process %v", id)
			}
		})
	}
}

func TestNote(t *testing.T) {
	inv := &Invocation{Bundle: t.TempDir(), Namespace: "ns", ID: "c"}
	inv.note("warning", "nobody has made the fifo")
	fifo := filepath.Join(inv.Bundle, "log")
	if err := mkfifo(fifo); err != nil {
		t.Fatal(err)
	}
	inv.note("warning", "nobody reads")
	r, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	inv.note("debug", "not asked for")
	inv.note("warning", "a %q", "b")
	b := make([]byte, 1000)
	n, err := r.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	line := string(b[:n])
	if !strings.HasPrefix(line, `time="2`) || !strings.HasSuffix(line, ` level=warning msg="a \"b\"" runtime=io.containerd.berth.v1 namespace=ns container=c`+"\n") {
		t.Errorf("%q", line)
	}
}

// A container may want an OOM score that this machine cannot give. It gets
// containerd's own then, and nothing else of its specification changes.
func TestStartToleratesOOMScore(t *testing.T) {
	own, err := os.ReadFile(ownOOMScore)
	if err != nil {
		t.Fatal(err)
	}
	lowers := os.WriteFile(ownOOMScore, []byte("-998"), 0) == nil
	if err := os.WriteFile(ownOOMScore, own, 0); err != nil {
		t.Fatal(err)
	}
	const config = `{"ociVersion":"1.2.0","process":{"args":["x"],"oomScoreAdj":SCORE},"linux":{"namespaces":[{"type":"pid"}],"x":1.50}}`
	for score, want := range map[string]string{"-998": string(own), "1000": "1000"} {
		given := strings.Replace(config, "SCORE", score, 1)
		w := newWorld(t, "", given)
		address(t, w.shim(marshal(t, params("c")), flags("c", "start")...))
		got, err := os.ReadFile(filepath.Join(w.bundle, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		if lowers {
			want = score
		}
		var a, b map[string]json.RawMessage
		if err := json.Unmarshal(got, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(strings.Replace(config, "SCORE", strings.TrimSpace(want), 1)), &b); err != nil {
			t.Fatal(err)
		}
		same := cmp.Comparer(func(x, y json.RawMessage) bool {
			var v, w any
			return json.Unmarshal(x, &v) == nil && json.Unmarshal(y, &w) == nil && cmp.Equal(v, w)
		})
		if d := cmp.Diff(b, a, same); d != "" {
			t.Errorf("%s (-want +got):\n%s", score, d)
		}
	}
}
