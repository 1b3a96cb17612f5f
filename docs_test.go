// SPDX-License-Identifier: Apache-2.0

package berth

import (
	"os"
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
