// SPDX-License-Identifier: Apache-2.0

package layers

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

// The guide shows each key, with its default.
func TestGuide(t *testing.T) {
	guide, err := os.ReadFile("../../docs/snapshotter.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(guide), "```toml\n[plugins.'io.containerd.snapshotter.v1.berth']\n")
	block, _, _ = strings.Cut(block, "```")
	got := Config{Size: "x", MountOptions: []string{"x"}}
	if err := toml.NewDecoder(strings.NewReader(block)).DisallowUnknownFields().Decode(&got); err != nil {
		t.Fatal(err)
	}
	if want := (Config{MountOptions: []string{}}); !cmp.Equal(got, want) {
		t.Errorf("the guide's section: %s", cmp.Diff(want, got))
	}
	for field := range reflect.TypeFor[Config]().Fields() {
		if key := field.Tag.Get("toml"); !strings.Contains(block, "  "+key+" = ") {
			t.Errorf("the guide does not show %s", key)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]Config{
		`size "much"`:  {Size: "much"},
		"size 1":       {Size: "1"},
		"root \"x\"":   {RootPath: "x"},
		"lowerdir=/x":  {MountOptions: []string{"lowerdir=/x"}},
		"enforcement ": {Enforcement: "soft"},
	} {
		if err := c.Validate(); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := Config{RootPath: "/x", Size: "64MiB", Enforcement: "image"}
	s, err := good.resolve("/other")
	if err != nil || s.Root != "/x" || s.Size != 64<<20 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestOpen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	root := filepath.Join(t.TempDir(), "root")
	s, err := (&Config{}).Open(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestCapabilities(t *testing.T) {
	for slow, want := range map[bool][]string{
		false: {"only-remap-ids", "remap-ids", "rebase"},
		true:  {"remap-ids", "rebase"},
	} {
		if got := (&Config{SlowChown: slow}).Capabilities(); !slices.Equal(got, want) {
			t.Errorf("slow_chown = %v: %v, want %v", slow, got, want)
		}
	}
}

// A file system that cannot be below an overlay is found before anything is made.
func TestSupported(t *testing.T) {
	dir := t.TempDir()
	if err := Supported(dir + "/a/b"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	overlay := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + dir + "/lower", "upperdir=" + dir + "/upper", "workdir=" + dir + "/work",
	}}
	if err := overlay.Mount(dir + "/merged"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.Unmount(dir+"/merged", 0); err != nil {
			t.Error(err)
		}
	}()
	root := dir + "/merged/a/b"
	if err := Supported(root); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), root) {
		t.Errorf("on an overlay: %v", err)
	}
	if left, err := os.ReadDir(dir + "/merged"); err != nil || len(left) > 0 {
		t.Errorf("left there: %v, %v", left, err)
	}
	file := dir + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Supported(file + "/a"); err == nil || errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), file) {
		t.Errorf("below a file: %v", err)
	}
}
