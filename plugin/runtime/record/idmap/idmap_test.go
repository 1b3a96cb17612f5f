// SPDX-License-Identifier: Apache-2.0

package idmap

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/labels"
)

func single(first, size uint32) labels.IDMap {
	m := []specs.LinuxIDMapping{{HostID: first, Size: size}}
	return labels.IDMap{UIDs: m, GIDs: m}
}

func TestChoose(t *testing.T) {
	r := Range{First: 1000, Count: 100}
	for _, c := range []struct {
		name string
		size uint32
		used []labels.IDMap
		want uint32 // 0: none is left
	}{
		{"first", 10, nil, 1000},
		{"behind others", 10, []labels.IDMap{single(1010, 10), single(1000, 10)}, 1020},
		{"gap", 10, []labels.IDMap{single(1000, 10), single(1020, 80)}, 1010},
		{"gap too small", 10, []labels.IDMap{single(1000, 10), single(1015, 10)}, 1025},
		{"overlapping", 10, []labels.IDMap{single(900, 200), single(1000, 5)}, 0},
		{"wider first", 10, []labels.IDMap{single(1000, 50), single(1010, 5)}, 1050},
		{"full", 10, []labels.IDMap{single(1000, 91)}, 0},
		{"too large", 101, nil, 0},
		{"elsewhere", 100, []labels.IDMap{single(0, 1000), single(1100, 5)}, 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := r.Choose(c.size, c.used)
			if c.want == 0 {
				if !errdefs.IsResourceExhausted(err) {
					t.Fatalf("got %v, %v", got, err)
				}
				return
			}
			if diff := cmp.Diff(single(c.want, c.size), got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subuid")
	if _, err := Of("containers", path); !errdefs.IsNotFound(err) {
		t.Errorf("without a file: %v", err)
	}
	if err := os.WriteFile(path, []byte("joe:1:2\ncontainers:70000:65536\nbad:x:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := Of("containers", path); err != nil || r != (Range{70000, 65536}) {
		t.Errorf("got %v, %v", r, err)
	}
	if _, err := Of("bad", path); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad line: %v", err)
	}
	if _, err := Of("nobody", path); !errdefs.IsNotFound(err) {
		t.Errorf("unknown: %v", err)
	}
}

func TestCopyKey(t *testing.T) {
	chain := "sha256:" + strings.Repeat("a", 64)
	one, two := CopyKey(chain, single(1, 2)), CopyKey(chain, single(1, 3))
	if one == two || !IsCopy(one) || IsCopy(chain) || IsCopy("x") {
		t.Errorf("%s, %s", one, two)
	}
	if one != CopyKey(chain, single(1, 2)) {
		t.Error("not the same for the same map")
	}
}

func TestChown(t *testing.T) {
	root := t.TempDir()
	path := func(name string) string { return filepath.Join(root, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(path("dir"), 0o1777))
	must(os.Chmod(path("dir"), 0o777|os.ModeSticky))
	must(os.WriteFile(path("dir/suid"), nil, 0o755))
	must(os.Chown(path("dir/suid"), 7, 8))
	must(os.Chmod(path("dir/suid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	must(os.Link(path("dir/suid"), path("link")))
	must(os.Symlink("/etc/passwd", path("symlink")))
	must(os.WriteFile(path("cap"), nil, 0o755))
	capability := make([]byte, rootlessBytes)
	binary.LittleEndian.PutUint32(capability, 0x02000001) // revision 2, effective
	binary.LittleEndian.PutUint32(capability[4:], 1<<10)  // CAP_NET_BIND_SERVICE
	must(unix.Lsetxattr(path("cap"), capabilityXattr, capability, 0))

	must(Chown(t.Context(), root, single(100000, 65536)))

	for name, want := range map[string][2]uint32{
		".": {100000, 100000}, "dir": {100000, 100000}, "dir/suid": {100007, 100008}, "link": {100007, 100008},
		"symlink": {100000, 100000}, "cap": {100000, 100000},
	} {
		info, err := os.Lstat(path(name))
		must(err)
		st := info.Sys().(*syscall.Stat_t)
		if got := [2]uint32{st.Uid, st.Gid}; got != want {
			t.Errorf("%s: owner %v, want %v", name, got, want)
		}
	}
	info, _ := os.Lstat(path("link"))
	if info.Mode()&(os.ModeSetuid|os.ModeSetgid) != os.ModeSetuid|os.ModeSetgid {
		t.Errorf("mode %v lost its bits", info.Mode())
	}
	b := make([]byte, maxCapabilityBytes)
	// The kernel shows a capability of another namespace with its root.
	n, err := unix.Lgetxattr(path("cap"), capabilityXattr, b)
	must(err)
	if n != maxCapabilityBytes || binary.LittleEndian.Uint32(b[20:]) != 100000 || binary.LittleEndian.Uint32(b) != 0x03000001 {
		t.Errorf("capability is %x", b[:n])
	}
	if info, _ := os.Lstat("/etc/passwd"); info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Fatal("a symbolic link was followed")
	}
	if err := Chown(t.Context(), root, single(5, 10)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("owners that are not mapped: %v", err)
	}
}
