// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func parse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefault(t *testing.T) {
	h, err := Open(filepath.Join(t.TempDir(), "none.toml"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := h.Choose("")
	if err != nil || r.Name != "runc" || r.Path != "runc" {
		t.Errorf("%+v, %v", r, err)
	}
	if c, err := Parse(nil); err != nil || !cmp.Equal(c.Handlers["runc"], r) {
		t.Errorf("%+v, %v", c, err)
	}
}

// (70)
func TestValidate(t *testing.T) {
	h, err := New(parse(t, `[runtime.handlers.empty]`))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		class func(error) bool
		text  string
	}{
		"":      {errdefs.IsInvalidArgument, "empty runtime handler"},
		"other": {errdefs.IsNotFound, `"other"`},
		"empty": {errdefs.IsFailedPrecondition, `"empty" has no path`},
	} {
		if _, err := h.Validate(name); !c.class(err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if r, err := h.Validate("runc"); err != nil || r.Name != "runc" {
		t.Errorf("%v, %v", r, err)
	}
}

func TestParse(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "kata")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	c := parse(t, `
[images]
anything = 1
[runtime]
default_handler = "fast"
timezone = "Local"
[runtime.handlers.fast]
path = "crun"
min_memory = "4MiB"
create_timeout = 90
exec_cpu_affinity = "first"
no_sync_log = true
allowed_annotations = ["io.kubernetes.cri-o.Devices"]
platform_runtime_paths = {"linux/arm64" = "`+program+`"}
[runtime.handlers.same]
inherit_default_runtime = true
min_memory = 1000
default_annotations = {a = "b"}
[runtime.handlers.kata]
type = "vm"
path = "`+program+`"
config_path = "`+program+`"
runtime_pull_image = true
[runtime.handlers.pod]
type = "pod"
path = "runc"
stream_websockets = true
`)
	if got, err := c.Localtime(); err != nil || got != "/etc/localtime" {
		t.Errorf("%q, %v", got, err)
	}
	same := c.Handlers["same"]
	if same.Path != "crun" || same.MinMemoryBytes() != 1000 || same.ExecCPUAffinity != "first" || len(same.AllowedAnnotations) > 0 || same.DefaultAnnotations["a"] != "b" {
		t.Errorf("%+v", same)
	}
	if got, err := same.PlatformPath("linux/arm64"); err != nil || got != program {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := same.PlatformPath("windows/amd64"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	for name, want := range map[string]string{
		"fast": `runtime = 'crun'
create_timeout = '1m30s'
min_memory = 4194304
exec_cpu_affinity = 'first'
no_sync_log = true
`, "runc": "", "pod": "",
	} {
		r, err := c.Handlers[name].Runtime(Use{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(r.Options.GetConfigBody())); diff != "" || r.Name != Shim {
			t.Errorf("%s: %s %s", name, r.Name, diff)
		}
		if want == "" && r.Options != nil {
			t.Errorf("%s: options %v", name, r.Options)
		}
	}
	r, err := c.Handlers["kata"].Runtime(Use{})
	if err != nil || r.Name != program || r.Options.GetConfigPath() != program || len(r.Options.GetConfigBody()) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown table":        {"[runtim]\na = 1", "unknown key runtim"},
		"unknown key":          {"[runtime.handlers.x]\npth = 'a'", "line 2: unknown key runtime.handlers.x.pth"},
		"wrong type":           {"[runtime]\ntimezone = 1", "runtime.timezone"},
		"no toml":              {"[runtime", "line 1"},
		"default":              {"[runtime]\ndefault_handler = 'x'", `runtime.default_handler: no handler "x"`},
		"default inherits":     {"[runtime.handlers.runc]\ninherit_default_runtime = true", "runtime.handlers.runc.inherit_default_runtime"},
		"time zone":            {"[runtime]\ntimezone = 'Nowhere/City'", "runtime.timezone"},
		"time zone as path":    {"[runtime]\ntimezone = '../../etc/passwd'", "runtime.timezone"},
		"name":                 {"[runtime.handlers.A_b]\n", `"A_b" is not a name`},
		"type":                 {"[runtime.handlers.x]\ntype = 'jail'", "runtime.handlers.x.type"},
		"missing program":      {"[runtime.handlers.x]\npath = '/nowhere/runc'", "runtime.handlers.x.path"},
		"not a program":        {"[runtime.handlers.x]\npath = '/etc/passwd'", "runtime.handlers.x.path: /etc/passwd is not executable"},
		"relative vm":          {"[runtime.handlers.x]\ntype = 'vm'\npath = 'kata'", "runtime.handlers.x.path"},
		"platform":             {"[runtime.handlers.x]\nplatform_runtime_paths = {arm = '/bin/sh'}", `"arm" is not a platform`},
		"platform's path":      {"[runtime.handlers.x]\nplatform_runtime_paths = {'linux/arm' = 'sh'}", "runtime.handlers.x.platform_runtime_paths: linux/arm"},
		"vm with no_sync_log":  {"[runtime.handlers.x]\ntype = 'vm'\nno_sync_log = true", "runtime.handlers.x.no_sync_log: only for handlers of type oci"},
		"pod with no_sync_log": {"[runtime.handlers.x]\ntype = 'pod'\nno_sync_log = true", "runtime.handlers.x.no_sync_log: only for handlers of type oci"},
		"oci with config_path": {"[runtime.handlers.x]\nconfig_path = '/etc/passwd'", "runtime.handlers.x.config_path: only for handlers of type vm"},
		"oci pulls":            {"[runtime.handlers.x]\nruntime_pull_image = true", "runtime.handlers.x.runtime_pull_image: only for handlers of type vm"},
		"oci websockets":       {"[runtime.handlers.x]\nstream_websockets = true", "runtime.handlers.x.stream_websockets: only for handlers of type pod"},
		"root":                 {"[runtime.handlers.x]\nroot = 'run'", "runtime.handlers.x.root"},
		"seccomp":              {"[runtime.handlers.x]\nseccomp_profile = '/nowhere.json'", "runtime.handlers.x.seccomp_profile"},
		"affinity":             {"[runtime.handlers.x]\nexec_cpu_affinity = 'last'", "runtime.handlers.x.exec_cpu_affinity"},
		"size":                 {"[runtime.handlers.x]\nmin_memory = 'much'", "is not a size"},
		"negative size":        {"[runtime.handlers.x]\nmin_memory = '-4MiB'", "is not a size"},
		"time":                 {"[runtime.handlers.x]\ncreate_timeout = '-4m'", "runtime.handlers.x.create_timeout"},
		"environment":          {"[runtime.handlers.x]\nmonitor_env = ['A']", "runtime.handlers.x.monitor_env"},
		"annotation":           {"[runtime.handlers.x]\nallowed_annotations = ['']", "runtime.handlers.x.allowed_annotations"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(c.text))
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	_, err := Parse([]byte("[runtime]\ntimezone = 'x'\n[runtime.handlers.x]\ntype = 'y'\nroot = 'z'"))
	for _, want := range []string{"timezone", "handlers.x.type", "handlers.x.root"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not told of: %v", want, err)
		}
	}
}

func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berth.toml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[runtime.handlers.a]\npath = 'runc'")
	h, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	write("[runtime.handlers.b]\npth = 'runc'")
	if err := h.Reload(); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
	if _, err := h.Validate("a"); err != nil {
		t.Errorf("what was read before is gone: %v", err)
	}
	write("[runtime.handlers.b]\npath = 'runc'")
	if err := h.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Validate("a"); !errdefs.IsNotFound(err) {
		t.Errorf("a is still there: %v", err)
	}
}

// (70)
func TestAnnotations(t *testing.T) {
	h := &Handler{
		AllowedAnnotations: []string{"io.kubernetes.cri-o.ShmSize", "seccomp-profile.kubernetes.cri-o.io", "cpu-shared.crio.io"},
		DefaultAnnotations: map[string]string{"run.oci.keep_original_groups": "1", "x": "default"},
	}
	got, stripped := h.Annotations(map[string]string{
		"note":                                "kept",
		"x":                                   "own",
		"io.kubernetes.cri-o.ShmSize":         "1",
		"io.kubernetes.cri-o.ShmSizes":        "2",
		"io.kubernetes.cri-o.Devices":         "3",
		"seccomp-profile.kubernetes.cri-o.io": "4",
		"seccomp-profile.kubernetes.cri-o.io/ctr":  "5",
		"cpu-shared.crio.io.ctr":                   "6",
		"cpu-shared.crio.io/a/b":                   "7",
		"cpu-shared.crio.io/":                      "8",
		"io.katacontainers.config.hypervisor.path": "9",
	})
	if diff := cmp.Diff(map[string]string{
		"note": "kept", "x": "own", "run.oci.keep_original_groups": "1", "io.kubernetes.cri-o.ShmSize": "1",
		"seccomp-profile.kubernetes.cri-o.io": "4", "seccomp-profile.kubernetes.cri-o.io/ctr": "5", "cpu-shared.crio.io.ctr": "6",
	}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{
		"cpu-shared.crio.io/", "cpu-shared.crio.io/a/b", "io.katacontainers.config.hypervisor.path",
		"io.kubernetes.cri-o.Devices", "io.kubernetes.cri-o.ShmSizes",
	}, stripped); diff != "" {
		t.Error(diff)
	}
	if len(h.DefaultAnnotations) != 2 {
		t.Error("the defaults were changed")
	}
}

// (71)
func TestCheckMemory(t *testing.T) {
	for _, c := range []struct {
		h     Handler
		limit int64
		ok    bool
	}{
		{Handler{Path: "runc"}, 4 << 20, false},
		{Handler{Path: "runc"}, 12 << 20, true},
		{Handler{Path: "runc"}, 0, true},
		{Handler{Path: "runc"}, -1, true},
		{Handler{Path: "/usr/bin/crun"}, 4 << 20, true},
		{Handler{Path: "/usr/bin/crun"}, 1 << 10, false},
		{Handler{Path: "runc", MinMemory: 20 << 20}, 19 << 20, false},
	} {
		err := c.h.CheckMemory(c.limit)
		if (err == nil) != c.ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v, %d: %v", c.h, c.limit, err)
		}
	}
	err := (&Handler{Path: "runc"}).CheckMemory(4 << 20)
	for _, want := range []string{"4194304", "12582912"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in %v", want, err)
		}
	}
}

// (76)
func TestVolume(t *testing.T) {
	for _, v := range []*Volume{
		{Type: ImageGuestPull, Source: "example.com/a:1", FSType: "overlay", Options: []string{"ro"}, ImagePull: &VolumeMetadata{map[string]string{"k": "v"}}},
		{Type: DirectBlock, Source: "/dev/x", Direct: &VolumeMetadata{map[string]string{"k": "v"}}},
		{Type: LayerNydusFS, Nydus: &NydusImage{"c", "/s"}},
		{Type: ImageRawBlock, Source: "/dev/x", DMVerity: &DMVerity{"sha256", "ab", 1, 2, 3, 4}},
	} {
		option, err := EncodeVolume(v)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeVolume(option)
		if diff := cmp.Diff(v, got); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
	}
	for _, v := range []*Volume{nil, {}, {Type: "floppy"}, {Type: ImageGuestPull}, {Type: DirectBlock}, {Type: ImageNydusFS}} {
		if _, err := EncodeVolume(v); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", v, err)
		}
	}
	for _, option := range []string{"", "ro", volumeOption, volumeOption + "?", volumeOption + "bnVsbA==", volumeOption + "e30="} {
		if v, err := DecodeVolume(option); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %+v, %v", option, v, err)
		}
	}
	mounts, err := GuestPull("example.com/a:1", map[string]string{"k": "v"})
	if err != nil || len(mounts) != 1 || mounts[0].Type != volumeMountType {
		t.Fatalf("%+v, %v", mounts, err)
	}
	mounts[0].Options = append(mounts[0].Options, "ro")
	all, err := VolumesOf(mounts[0])
	if err != nil || len(all) != 1 || all[0].ImagePull.Metadata["k"] != "v" || all[0].Source != "example.com/a:1" {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := VolumesOf(mount.Mount{Options: []string{volumeOption + "x"}}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

// What the JSON must look like is Kata's to say.
func TestVolumeJSON(t *testing.T) {
	const option = volumeOption + "eyJ2b2x1bWVfdHlwZSI6ImltYWdlX2d1ZXN0X3B1bGwiLCJzb3VyY2UiOiJhIiwiZnNfdHlwZSI6Im92ZXJsYXkiLCJpbWFnZV9wdWxsIjp7Im1ldGFkYXRhIjp7ImsiOiJ2In19fQ=="
	got, err := EncodeVolume(&Volume{Type: ImageGuestPull, Source: "a", FSType: "overlay", ImagePull: &VolumeMetadata{map[string]string{"k": "v"}}})
	if err != nil || got != option {
		t.Errorf("%s, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("[runtime.handlers.x]\npath = 'runc'\nmin_memory = '4MiB'\ncreate_timeout = 3")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse([]byte(text))
		if err == nil && c.Handlers[c.DefaultHandler] == nil {
			t.Error("no default handler")
		}
	})
}

func FuzzDecodeVolume(f *testing.F) {
	f.Add(volumeOption + "e30=")
	f.Fuzz(func(t *testing.T, option string) {
		v, err := DecodeVolume(option)
		if err != nil {
			return
		}
		if _, err := EncodeVolume(v); err != nil {
			t.Error(err)
		}
	})
}
