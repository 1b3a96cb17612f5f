// SPDX-License-Identifier: Apache-2.0

package berth

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/berthd/berth/shim/options"
	"github.com/berthd/berth/shim/wire"
)

// TestExampleSettings: the documented file names every setting, with its default
// or commented out.
func TestExampleSettings(t *testing.T) {
	const example = "docs/shim.toml"
	got, err := options.Load(example, &wire.Any{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(options.Default(), got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s differs from the defaults (-default +example):\n%s", example, diff)
	}
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	for field := range reflect.TypeFor[options.Options]().Fields() {
		key := field.Tag.Get("toml")
		if !regexp.MustCompile(`(?m)^(# )?` + key + ` = `).Match(text) {
			t.Errorf("%s: no key %q", example, key)
		}
	}
}

// TestKubeletSettings: what the guide shows of the settings is a file that berth
// reads.
func TestKubeletSettings(t *testing.T) {
	text, err := os.ReadFile("docs/kubelet.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile("(?ms)^```toml\n(# /etc/berth/shim.toml\n.*?)^```$").FindSubmatch(text)
	if shown == nil {
		t.Fatal("no settings are shown")
	}
	file := filepath.Join(t.TempDir(), "shim.toml")
	if err := os.WriteFile(file, shown[1], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := options.Load(file, &wire.Any{}); err != nil {
		t.Error(err)
	}
}
