// SPDX-License-Identifier: Apache-2.0

package options_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/shim/fault"
	ours "github.com/berthd/berth/shim/options"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/wire"
)

func anyOf(t *testing.T, m proto.Message) *wire.Any {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &wire.Any{TypeURL: string(m.ProtoReflect().Descriptor().FullName()), Value: b}
}

func body(t *testing.T, text string) *wire.Any {
	return anyOf(t, &runtimeoptions.Options{ConfigBody: []byte(text)})
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shim.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	host := "runtime = \"crun\"\nlog_size_max = \"4MiB\"\nio_uid = 3\ncreate_timeout = 60"
	for name, tc := range map[string]struct {
		host string
		any  *wire.Any
		want func(o *ours.Options)
	}{
		"nothing": {any: &wire.Any{}, want: func(*ours.Options) {}},
		"host file alone": {host: host, any: &wire.Any{}, want: func(o *ours.Options) {
			o.Runtime, o.LogSizeMax, o.IoUID, o.CreateTimeout = "crun", 4<<20, 3, ours.Duration{Duration: time.Minute}
		}},
		"runc options": {
			host: host,
			any: anyOf(t, &options.Options{
				NoPivotRoot: true, NoNewKeyring: true, ShimCgroup: "/shims", IoUid: 7, IoGid: 8, BinaryName: "/opt/runc",
				Root: "/run/r", SystemdCgroup: true, CriuImagePath: "/i", CriuWorkPath: "/w", TaskApiAddress: "ignored", //lint:ignore SA1019 containerd still fills it
			}),
			want: func(o *ours.Options) {
				o.Runtime, o.LogSizeMax, o.IoUID, o.IoGID = "/opt/runc", 4<<20, 7, 8
				o.NoPivotRoot, o.NoNewKeyring, o.SystemdCgroup = true, true, true
				o.ShimCgroup, o.Root, o.CriuImagePath, o.CriuWorkPath = "/shims", "/run/r", "/i", "/w"
				o.CreateTimeout.Duration = time.Minute
			},
		},
		"empty runc options leave the host's": {host: host, any: anyOf(t, &options.Options{}), want: func(o *ours.Options) {
			o.Runtime, o.LogSizeMax, o.IoUID, o.CreateTimeout.Duration = "crun", 4<<20, 3, time.Minute
		}},
		"body": {
			any: body(t, "systemd_cgroup = true\nnative = false\nmonitor_env = [\"A=b\"]\n[platform_runtime_paths]\n\"plan9/mips\" = \"/bin/x\"\n"),
			want: func(o *ours.Options) {
				o.SystemdCgroup, o.Native, o.MonitorEnv = true, false, []string{"A=b"}
				o.PlatformRuntimePaths = map[string]string{"plan9/mips": "/bin/x"}
			},
		},
		"body in the words of runc's options": {
			any: body(t, "SystemdCgroup = true\nBinaryName = '/b'\nRoot = '/r'\nIoUid = 4\nCriuWorkPath = '/w'\nTaskApiVersion = 3\n"),
			want: func(o *ours.Options) {
				o.SystemdCgroup, o.Runtime, o.Root, o.IoUID, o.CriuWorkPath = true, "/b", "/r", 4, "/w"
			},
		},
		"path": {
			any:  anyOf(t, &runtimeoptions.Options{ConfigPath: write(t, "output = 'direct'\nspool_max = 1000"), ConfigBody: []byte("ignored")}),
			want: func(o *ours.Options) { o.Output, o.SpoolMax = "direct", 1000 },
		},
		"empty body": {any: body(t, ""), want: func(*ours.Options) {}},
		"type with a host": {
			any:  &wire.Any{TypeURL: "type.googleapis.com/containerd.runc.v1.Options", Value: anyOf(t, &options.Options{Root: "/x"}).Value},
			want: func(o *ours.Options) { o.Root = "/x" },
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := ours.Default()
			tc.want(want)
			got, err := ours.Load(write(t, tc.host), tc.any)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestLoadWithoutHostFile(t *testing.T) {
	got, err := ours.Load(filepath.Join(t.TempDir(), "none"), &wire.Any{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(ours.Default(), got); d != "" {
		t.Error(d)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		host string
		any  *wire.Any
		want []string // parts of the error
	}{
		"foreign type":  {any: &wire.Any{TypeURL: "runhcs.v1.Options", Value: []byte{1}}, want: []string{"unknown type", "runhcs.v1.Options"}},
		"typeless":      {any: &wire.Any{Value: []byte{1}}, want: []string{"unknown type"}},
		"malformed":     {any: &wire.Any{TypeURL: "containerd.runc.v1.Options", Value: []byte{0x3a, 9}}, want: []string{"containerd.runc.v1.Options", "malformed"}},
		"unknown key":   {any: body(t, "a_key = 1\nroot = '/r'"), want: []string{"config_body", "a_key", "line 1"}},
		"wrong type":    {any: body(t, "root = 1"), want: []string{"config_body", "root", "line 1"}},
		"no TOML":       {any: body(t, "root ="), want: []string{"config_body", "line 1"}},
		"bad size":      {any: body(t, "spool_max = '4 apples'"), want: []string{"spool_max", "4 apples"}},
		"host's fault":  {host: "nonsense = true", any: &wire.Any{}, want: []string{"shim.toml", "nonsense"}},
		"relative path": {any: anyOf(t, &runtimeoptions.Options{ConfigPath: "x.toml"}), want: []string{"config_path", "x.toml"}},
		"no such path":  {any: anyOf(t, &runtimeoptions.Options{ConfigPath: "/nonexistent/x.toml"}), want: []string{"config_path", "/nonexistent/x.toml"}},
		"all faults at once": {
			any: body(t, `runtime = ""
root = "r"
output = "both"
exec_cpu_affinity = "last"
create_timeout = -1
min_memory = -5
log_max_files = -1
log_labels = ["x"]
monitor_env = ["=x"]
log_allowed_dirs = ["d"]
platform_runtime_paths = { linux = "p" }
`),
			want: []string{
				"runtime: ", "root: ", "output: ", "exec_cpu_affinity: ", "create_timeout: ", "min_memory: ",
				"log_max_files: ", "log_labels: ", "monitor_env: ", "log_allowed_dirs: ", "platform_runtime_paths: ",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ours.Load(write(t, tc.host), tc.any)
			if got := fault.CodeOf(err); got != fault.InvalidArgument {
				t.Fatalf("class %d of %v, want InvalidArgument", got, err)
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
		})
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]ours.Size{
		"0": 0, "12": 12, "12B": 12, "4MiB": 4 << 20, "4 MiB": 4 << 20, "500KiB": 500 << 10, "2kB": 2000, "1GB": 1e9, "8TiB": 8 << 40,
	} {
		var got ours.Size
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "MiB", "1.5MiB", "9999999TiB", "4Mib", "0x10"} {
		var s ours.Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: no error, %d", text, s)
		}
	}
}

func TestMinMemory(t *testing.T) {
	for name, tc := range map[string]struct {
		o    ours.Options
		want int64
	}{
		"runc":       {ours.Options{Runtime: "/usr/bin/runc"}, 12 << 20},
		"crun":       {ours.Options{Runtime: "/usr/bin/crun"}, 500 << 10},
		"configured": {ours.Options{Runtime: "crun", MinMemory: 1}, 1},
	} {
		if got := tc.o.MinMemoryBytes(); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

func TestApply(t *testing.T) {
	o := ours.Default()
	o.Output, o.CreateTimeout.Duration, o.NoSyncLog = "direct", time.Second, true
	p := plan.Plan{Namespace: "k8s.io"}
	o.Apply(&p)
	want := plan.Plan{
		Namespace: "k8s.io", Root: "/run/containerd/runc/k8s.io", CreateTimeout: int64(30 * time.Second), Direct: true, LogNoSync: true,
	}
	if d := cmp.Diff(want, p); d != "" {
		t.Error(d)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("containerd.runc.v1.Options", []byte{0x3a, 1, 'x'})
	f.Add("runtimeoptions.v1.Options", []byte("\x1a\x0froot = \"/a/b\"\n"))
	f.Add("runtimeoptions.v1.Options", []byte("\x1a\x11spool_max = '1MB'"))
	f.Add("", []byte{})
	host := filepath.Join(f.TempDir(), "none")
	f.Fuzz(func(t *testing.T, url string, value []byte) {
		o, err := ours.Load(host, &wire.Any{TypeURL: url, Value: value})
		if err != nil {
			if fault.CodeOf(err) != fault.InvalidArgument {
				t.Errorf("class %d: %v", fault.CodeOf(err), err)
			}
			return
		}
		if err := o.Validate(); err != nil {
			t.Errorf("loaded, but: %v", err)
		}
	})
}
