// SPDX-License-Identifier: Apache-2.0

package pin_test

import (
	"testing"

	"github.com/berthd/berth/images/pin"
)

// A20.
func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"reg.io/db:1", "reg.io/db:1", true},
		{"reg.io/db:1", "REG.io/DB:1", true},
		{"Reg.io/db:1", "reg.io/db:1", true},
		{"reg.io/db:1", "reg.io/db:10", false},
		{"reg.io/db:1", "my.reg.io/db:1", false},
		{"reg.io/app*", "reg.io/app:1", true},
		{"reg.io/app*", "reg.io/APPLE@sha256:0", true},
		{"reg.io/app*", "mirror/reg.io/app:1", true}, // as CRI-O: not tied to the beginning
		{"reg.io/app*", "reg.io/ap", false},
		{"*pause*", "registry.k8s.io/pause:3", true},
		{"*pause*", "registry.k8s.io/Pause", true},
		{"*pause*", "registry.k8s.io/paus", false},
		{"reg.io/d.:1", "reg.io/db:1", false}, // a dot is a dot
		{"reg.io/[a-z]*", "reg.io/db:1", false},
		{"*pause", "registry.k8s.io/pause", false},
		{"*", "anything", true},
		{"", "", false},
		{" ", "anything", false},
	} {
		if got := pin.Compile([]string{"no such name", c.pattern}).Match(c.name); got != c.want {
			t.Errorf("%q matches %q: %v, want %v", c.pattern, c.name, got, c.want)
		}
	}
	for _, none := range []pin.Patterns{{}, pin.Compile(nil), pin.Compile([]string{})} {
		if none.Match("reg.io/db:1") {
			t.Error("an empty list matches")
		}
	}
}
