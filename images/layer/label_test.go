// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/google/go-cmp/cmp"
)

// SELinux is not enabled on every machine: what it is told is looked at.
func TestMountLabel(t *testing.T) {
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	options := make([]string, 1, 8)
	options[0] = "lowerdir=/a"
	given := []mount.Mount{{Type: "overlay", Options: options}, {Type: "bind", Source: "/b"}}
	want := []mount.Mount{{Type: "overlay", Options: []string{"lowerdir=/a", `context="` + label + `"`}}, {Type: "bind", Source: "/b"}}
	if diff := cmp.Diff(want, withContext(given, label)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(given[0].Options) != 1 || options[:2][1] != "" {
		t.Error("changed the options that were given")
	}
	if got, err := labelled(given, ""); err != nil || !cmp.Equal(got, given) {
		t.Errorf("without a label: got %v, %v", got, err)
	}
}
