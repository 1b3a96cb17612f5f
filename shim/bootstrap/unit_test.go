// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	stdlib "crypto/sha256"
	"encoding/json"
	"os"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/options"
	"github.com/berthd/berth/shim/plan"
)

func mkfifo(path string) error { return unix.Mkfifo(path, 0o600) }

func TestDigest(t *testing.T) {
	msg := []byte(strings.Repeat("abcdefghijklmnopqrstuvwxyz/", 10))
	for n := range len(msg) {
		if got, want := sha256(msg[:n]), stdlib.Sum256(msg[:n]); got != want {
			t.Fatalf("%d bytes: %x, want %x", n, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		args string
		want *Invocation
	}{
		"start": {
			"-namespace n -address a -publish-binary b -id i -debug start",
			&Invocation{Namespace: "n", Address: "a", PublishBinary: "b", ID: "i", Debug: true, Verb: "start"},
		},
		"delete":          {"--namespace=n --id i -bundle /b delete", &Invocation{Namespace: "n", ID: "i", Bundle: "/b", Verb: "delete"}},
		"info":            {"-info", &Invocation{Info: true}},
		"version":         {"-v", &Invocation{Version: true}},
		"serve":           {"-namespace n -id i -address a", &Invocation{Namespace: "n", ID: "i", Address: "a"}},
		"a verb's own":    {"upgrade -x y", &Invocation{Verb: "upgrade", Args: []string{"-x", "y"}}},
		"empty value":     {"-id= start", &Invocation{Verb: "start"}},
		"unknown flag":    {"-nonsense start", nil},
		"value missing":   {"-id", nil},
		"value to switch": {"-debug=x start", nil},
	} {
		got, err := Parse(strings.Fields(tc.args))
		if tc.want == nil {
			if fault.CodeOf(err) != fault.InvalidArgument {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(got.Args) == 0 {
			got.Args = nil
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestIdentifier(t *testing.T) {
	for _, s := range []string{"a", "A0", "k8s.io", "a-b_c.d", strings.Repeat("x", 76)} {
		if err := identifier("id", s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"", ".", "..", "-a", "a-", "a..b", "a/b", "a b", "ä", "a\n", strings.Repeat("x", 77)} {
		if err := identifier("id", s); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestSpec(t *testing.T) {
	for name, tc := range map[string]struct {
		config string
		change func(o *options.Options)
		want   plan.Plan
	}{
		"empty": {config: `{}`, want: plan.Plan{SharedPidNS: true, Native: true, NativeStart: true, NativeDelete: true}},
		"everything": {
			config: `{"process":{"terminal":true,"oomScoreAdj":-5},"linux":{"cgroupsPath":"/a/b","resources":{"memory":{"limit":20000000},"cpu":{"cpus":"2-3,7"}},
				"namespaces":[{"type":"mount"},{"type":"pid"}]},"annotations":{"io.kubernetes.cri.sandbox-id":"s","io.kubernetes.cri.container-type":"container"}}`,
			want: plan.Plan{
				Terminal:  true,
				SandboxID: "s", Native: true, NativeStart: true, NativeDelete: true,
			},
		},
		"joined PID namespace": {
			config: `{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}`,
			want:   plan.Plan{SharedPidNS: true, Native: true, NativeStart: true, NativeDelete: true},
		},
		"hooks":     {config: `{"hooks":{"poststart":[{"path":"/x"}],"poststop":[{}]}}`, want: plan.Plan{SharedPidNS: true, Native: true}},
		"intel RDT": {config: `{"linux":{"intelRdt":{}}}`, want: plan.Plan{SharedPidNS: true, Native: true, NativeStart: true}},
		"systemd's path": {
			config: `{"linux":{"cgroupsPath":"a.slice:berth:id"}}`,
			want:   plan.Plan{SharedPidNS: true, Systemd: true, Native: true, NativeStart: true},
		},
		"colons are not systemd's": {
			config: `{"linux":{"cgroupsPath":"/a:b:c"}}`,
			want:   plan.Plan{SharedPidNS: true, Native: true, NativeStart: true, NativeDelete: true},
		},
		"no limit": {
			config: `{"linux":{"resources":{"memory":{"limit":-1}}}}`,
			want:   plan.Plan{SharedPidNS: true, Native: true, NativeStart: true, NativeDelete: true},
		},
		"not native": {config: `{}`, change: func(o *options.Options) { o.Native = false }, want: plan.Plan{SharedPidNS: true}},
		"affinity": {
			config: `{"linux":{"resources":{"cpu":{"cpus":"2-3,7"}}}}`, change: func(o *options.Options) { o.ExecCPUAffinity = "first" },
			want: plan.Plan{SharedPidNS: true, ExecCPU: "2", Native: true, NativeStart: true, NativeDelete: true},
		},
		"affinity without a cpuset": {
			config: `{}`, change: func(o *options.Options) { o.ExecCPUAffinity = "first" },
			want: plan.Plan{SharedPidNS: true, Native: true, NativeStart: true, NativeDelete: true},
		},
		"just enough memory for crun": {
			config: `{"linux":{"resources":{"memory":{"limit":512000}}}}`, change: func(o *options.Options) { o.Runtime = "crun" },
			want: plan.Plan{SharedPidNS: true, Native: true, NativeStart: true, NativeDelete: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s spec
			if err := json.Unmarshal([]byte(tc.config), &s); err != nil {
				t.Fatal(err)
			}
			o := options.Default()
			if tc.change != nil {
				tc.change(o)
			}
			var got plan.Plan
			if err := s.apply(o, &got); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAdjust(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		m    memory
		want string // "" : refused
		code fault.Code
		say  []string
	}{
		"cpu only":                 {in: `{"cpu":{"shares":5}}`, m: memory{usage: 100, swap: true}, want: `{"cpu":{"shares":5}}`},
		"limit":                    {in: `{"memory":{"limit":200}}`, m: memory{usage: 100}, want: `{"memory":{"limit":200}}`},
		"limit with swap":          {in: `{"cpu":{"shares":5},"memory":{"limit":200,"reservation":7}}`, m: memory{usage: 100, swap: true}, want: `{"cpu":{"shares":5},"memory":{"limit":200,"reservation":7,"swap":200}}`},
		"swap given":               {in: `{"memory":{"limit":200,"swap":300}}`, m: memory{swap: true}, want: `{"memory":{"limit":200,"swap":300}}`},
		"zero leaves it as it is":  {in: `{"memory":{"limit":0}}`, m: memory{usage: 100, swap: true}, want: `{"memory":{"limit":0}}`},
		"nothing":                  {in: `{"memory":null}`, m: memory{usage: 100, swap: true}, want: `{"memory":null}`},
		"as large as what is used": {in: `{"memory":{"limit":100}}`, m: memory{usage: 100}, want: `{"memory":{"limit":100}}`},
		"less than what is used":   {in: `{"memory":{"limit":99}}`, m: memory{usage: 100}, code: fault.FailedPrecondition, say: []string{"99", "100"}},
		"negative":                 {in: `{"memory":{"limit":-1}}`, code: fault.InvalidArgument, say: []string{"-1", "negative"}},
		"no JSON":                  {in: `{`, code: fault.InvalidArgument, say: []string{"resources"}},
		"text for a limit":         {in: `{"memory":{"limit":"1"}}`, code: fault.InvalidArgument, say: []string{"memory"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := adjust([]byte(tc.in), tc.m)
			if fault.CodeOf(err) != tc.code {
				t.Fatalf("class %d, want %d: %v", fault.CodeOf(err), tc.code, err)
			}
			for _, part := range tc.say {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			if string(got) != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	id, err := identityOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	fd := id.open()
	if fd < 0 {
		t.Fatal("this process is taken to be gone")
	}
	defer unix.Close(fd)
	if ended(fd, 0) {
		t.Error("this process is taken to have ended")
	}
	for _, other := range []identity{{id.pid, id.start + 1}, {0, 0}, {1, 0}, {1 << 22, 1}} {
		if fd := other.open(); fd >= 0 {
			t.Errorf("%v: opened", other)
		}
	}
}

// FuzzRequest holds the detection of the protocol against containerd's own.
func FuzzRequest(f *testing.F) {
	for _, m := range []proto.Message{
		&bootapi.BootstrapParams{InstanceID: "c", Namespace: "ns", LogLevel: -4, Extensions: []*bootapi.Extension{{Value: &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte("x")}}, {}}},
		&anypb.Any{TypeUrl: "c", Value: []byte("ns")},
		&anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte("x")},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	inv := &Invocation{ID: "c", Namespace: "ns"}
	f.Fuzz(func(t *testing.T, input []byte) {
		r, err := parseRequest(inv, input)
		var want bootapi.BootstrapParams
		perr := proto.Unmarshal(input, &want)
		newer := perr == nil && want.InstanceID == "c" && want.Namespace == "ns"
		if err != nil {
			return // also what protobuf would take: groups, which no proto3 writer makes
		}
		if r.legacy == newer {
			t.Errorf("legacy %v, want %v", r.legacy, !newer)
		}
		if newer && (r.ContainerdTtrpcAddress != want.ContainerdTtrpcAddress || r.SocketDir != want.GetSocketDir() || r.LogLevel != int32(want.LogLevel)) {
			t.Errorf("got %+v, want %v", r, &want)
		}
	})
}
