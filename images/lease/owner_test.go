// SPDX-License-Identifier: Apache-2.0

package lease

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
)

func TestGone(t *testing.T) {
	self := self()
	if gone(self) {
		t.Errorf("this process (%s) is said to have ended", self)
	}
	parts := strings.Split(self, "/")
	if len(parts) != 4 || parts[0] == "" || parts[3] == "" {
		t.Fatalf("self is %q", self)
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	ended := strconv.Itoa(cmd.Process.Pid)
	with := func(i int, value string) string {
		changed := append([]string{}, parts...)
		changed[i] = value
		return strings.Join(changed, "/")
	}
	for name, test := range map[string]struct {
		owner string
		want  bool
	}{
		"another boot":       {with(0, "another"), true},
		"another namespace":  {with(1, "pid:[1]"), false},
		"a process that was": {with(2, ended), true},
		"started before":     {with(3, "1"), true},
		"unknown start":      {with(3, ""), false},
		"nonsense":           {"nobody", false},
		"empty":              {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := gone(test.owner); got != test.want {
				t.Errorf("gone(%q) = %v", test.owner, got)
			}
		})
	}
}

// A lease is in use by who runs. One that is nobody's is not.
func TestInUse(t *testing.T) {
	for whose, want := range map[string]bool{self(): true, "another" + self(): false} {
		if got := InUse(leases.Lease{Labels: map[string]string{LabelOwner: whose}}); got != want {
			t.Errorf("of %s: in use %v", whose, got)
		}
	}
	if InUse(leases.Lease{}) {
		t.Error("nobody's is in use")
	}
}
