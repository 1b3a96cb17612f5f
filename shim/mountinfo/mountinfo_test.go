// SPDX-License-Identifier: Apache-2.0

package mountinfo

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type line struct{ root, point, fstype, options string }

func read(t *testing.T, text string) []line {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var got []line
	if err := Each(path, func(m *Mount) bool {
		got = append(got, line{string(m.Root), string(m.Point), string(m.FSType), string(m.Options)})
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestEach(t *testing.T) {
	const usual = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 master:1 - cgroup2 cgroup2 rw,nsdelegate\n"
	cgroup := line{"/", "/sys/fs/cgroup", "cgroup2", "rw,nsdelegate"}
	long := "40 23 0:30 / /long rw - overlay overlay rw,lowerdir=" + strings.Repeat("/x", lineBytes) + "\n"
	for name, c := range map[string]struct {
		text string
		want []line
	}{
		"usual":           {usual, []line{cgroup}},
		"empty":           {"", nil},
		"no end of line":  {usual + "40 23 0:30 / /cut rw - tmpfs", []line{cgroup}},
		"malformed":       {"bla\n\n1 2 3:4 / /x rw shared:1 tmpfs tmpfs rw\n" + usual, []line{cgroup}},
		"escaped":         {"1 2 3:4 /a\\040b /c\\134d\\011e rw - tmpfs tmp\\040fs rw\n", []line{{"/a b", "/c\\d\te", "tmpfs", "rw"}}},
		"no super option": {"1 2 3:4 / /x rw - tmpfs none\n", []line{{"/", "/x", "tmpfs", ""}}},
		"many":            {strings.Repeat(usual, 500), slicesOf(cgroup, 500)},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, read(t, c.text), cmp.AllowUnexported(line{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	t.Run("longer than the buffer", func(t *testing.T) {
		got := read(t, usual+long+usual)
		if len(got) != 3 || got[1].point != "/long" || got[1].fstype != "overlay" || got[2] != cgroup {
			t.Errorf("got %d lines: %.200v", len(got), got)
		}
	})
}

func slicesOf(l line, n int) []line {
	var list []line
	for range n {
		list = append(list, l)
	}
	return list
}

func TestEachStops(t *testing.T) {
	n := 0
	if err := Each(Self, func(*Mount) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d calls, %v", n, err)
	}
	if err := Each(filepath.Join(t.TempDir(), "missing"), nil); !os.IsNotExist(err) {
		t.Errorf("missing table: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("31 23 0:28 / /sys/fs\\040x rw shared:9 - cgroup2 cgroup2 rw"))
	f.Fuzz(func(t *testing.T, line []byte) {
		var m Mount
		if parse(&m, line) && len(m.Point) == 0 {
			t.Error("a mount without a place")
		}
	})
}
