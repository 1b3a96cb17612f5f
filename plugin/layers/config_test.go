// SPDX-License-Identifier: Apache-2.0

package layers

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

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
	if err := Supported(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(strings.Join(Capabilities(), " "), "rebase") {
		t.Errorf("capabilities %v", Capabilities())
	}
}
