// SPDX-License-Identifier: Apache-2.0

package join

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestShared(t *testing.T) {
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	for _, c := range []struct{ name, present, want string }{
		{"none", "", label},
		{"the host's", "system_u:object_r:container_var_run_t:s0", label},
		{"ours", label, label},
		{"of another member", "system_u:object_r:container_file_t:s0:c3,c4", "system_u:object_r:container_file_t:s0"},
		{"of all", "system_u:object_r:container_file_t:s0", "system_u:object_r:container_file_t:s0"},
		{"nonsense", "x", label},
	} {
		if got := shared(c.present, label); got != c.want {
			t.Errorf("%s: label %q, want %q", c.name, got, c.want)
		}
	}
}

// TestRelabel: labels are attributes like others on a machine without SELinux.
func TestRelabel(t *testing.T) {
	const label = "u:r:t:s0:c1"
	dir, outside := t.TempDir(), t.TempDir()+"/file"
	must(t, os.WriteFile(outside, nil, 0o644))
	must(t, os.Mkdir(dir+"/sub", 0o755))
	must(t, os.WriteFile(dir+"/sub/file", nil, 0o644))
	must(t, os.Symlink(outside, dir+"/link"))
	must(t, os.WriteFile(dir+"/file", nil, 0o644))
	if err := unix.Lsetxattr(outside, selinuxXattr, []byte("u:r:host:s0"), 0); err != nil {
		t.Skip("no labels on this filesystem:", err)
	}
	for _, path := range []string{dir, outside} {
		if err := relabel(path, label); err != nil {
			t.Fatal(err)
		}
	}
	must(t, unix.Lsetxattr(outside, selinuxXattr, []byte("u:r:host:s0"), 0))
	if err := relabel(dir, label); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, name := range []string{"", "/sub", "/sub/file", "/file", "/link"} {
		got[name] = labelOf(dir + name)
	}
	want := map[string]string{"": label, "/sub": label, "/sub/file": label, "/file": label, "/link": label}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if l := labelOf(outside); l != "u:r:host:s0" {
		t.Errorf("what a link in the folder leads to has label %q", l)
	}
	if err := relabel("/proc/self/status", label); err != nil {
		t.Errorf("a filesystem without labels: %v", err)
	}
}
