// SPDX-License-Identifier: Apache-2.0

package join

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPlace: wherever mounts come from, the pod's are seen.
func TestPlace(t *testing.T) {
	const cgroup = "/sys/fs/cgroup:cgroup"
	for _, c := range []struct {
		name        string
		mounts      string // destination, or destination:type
		destination string
		want        int
	}{
		{"no mounts", "", "/etc/hosts", 0},
		{"behind the defaults", "/proc /dev " + cgroup, "/etc/hosts", 3},
		{"by depth", "/proc " + cgroup + " /data /var/lib /etc/ssl/certs", "/etc/hosts", 4},
		{"below a folder", cgroup + " /etc /data/x/y", "/etc/hosts", 2},
		{"what plugins append", cgroup + " /var/lib /run/x/y /etc", "/etc/hosts", 4},
		{"below the new one", "/dev/shm/x " + cgroup, "/dev/shm", 0},
		{"below the new one, beside others", "/dev /dev/pts /dev/shm/x " + cgroup + " /dev/shm/y", "/dev/shm", 2},
		{"between", "/dev/shm/x /dev " + cgroup, "/dev/shm", 2},
		{"no cgroup", "/proc /dev /dev/pts /sys", "/dev/shm", 3},
		{"like names", cgroup + " /etc/hosts.d/x/y /etc/hosts.d", "/etc/hosts", 1},
		{"root", cgroup + " /data/x/y /", "/etc/hosts", 3},
		{"the same", cgroup + " /data/x/y /etc/hosts", "/etc/hosts", 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &spec{}
			for f := range strings.FieldsSeq(c.mounts) {
				destination, kind, _ := strings.Cut(f, ":")
				s.mounts = append(s.mounts, mount{destination: destination, kind: kind})
			}
			if got := s.place(mount{destination: c.destination}); got != c.want {
				t.Errorf("place %d, want %d", got, c.want)
			}
		})
	}
}

func TestShm(t *testing.T) {
	const private = `{"destination":"/dev/shm/","type":"tmpfs","source":"shm"}`
	const users = `{"destination":"/dev//shm","type":"bind","source":"/x"}`
	for _, c := range []struct {
		name, mounts, ipc string
		want              []string // sources
	}{
		{"none", `[]`, "pod", []string{"/POD/shm"}},
		{"private", `[` + private + `]`, "pod", []string{"/POD/shm"}},
		{"the user's", `[` + users + `]`, "pod", []string{"/x"}},
		{"the user's over it", `[` + private + `,` + users + `]`, "pod", []string{"shm", "/x"}},
		{"over the user's", `[` + users + `,` + private + `]`, "pod", []string{"/x", "/POD/shm"}},
		{"host's, of a container that does not ask for it", `[` + private + `]`, "node", []string{"shm"}},
		{"host's", `[` + users + `]`, "node", []string{"/x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := parse([]byte(`{"mounts":` + c.mounts + `}`))
			must(t, err)
			s.addFiles("/POD", recordOf("/POD", map[string]string{"ipc": c.ipc}))
			var got []string
			for _, m := range s.mounts {
				var fields struct{ Source string }
				must(t, json.Unmarshal(m.raw, &fields))
				if m.destination == devShm {
					got = append(got, fields.Source)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("/dev/shm (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMeaning: what is not the join's business stays as it is written.
func TestMeaning(t *testing.T) {
	const given = `{"n":12345678901234567890123,"f":1e400,"nested":{"a":[1.10,null,"<&>\u2028"]},` +
		`"linux":{"x":1e-999,"namespaces":[{"type":"ipc","path":"/proc/0/ns/ipc","new":[0.10]}]},` +
		`"mounts":[{"destination":"/a","new":1.0,"options":["x"]}]}`
	s, err := parse([]byte(given))
	must(t, err)
	r := recordOf("/POD", nil)
	must(t, s.joinNamespaces(r))
	s.addFiles("/POD", r)
	got := s.encode()
	want := strings.Replace(given, "/proc/0/ns/ipc", "/POD/ipc", 1)
	want = strings.Replace(want, `["x"]}`, `["x"]},`+
		`{"destination":"/etc/hostname","options":["rbind","rprivate","rw"],"source":"/POD/hostname","type":"bind"},`+
		`{"destination":"/etc/hosts","options":["rbind","rprivate","rw"],"source":"/POD/hosts","type":"bind"},`+
		`{"destination":"/etc/resolv.conf","options":["rbind","rprivate","rw"],"source":"/POD/resolv.conf","type":"bind"},`+
		`{"destination":"/dev/shm","options":["rbind","rprivate","rw"],"source":"/POD/shm","type":"bind"}`, 1)
	if diff := cmp.Diff(value(t, []byte(want)), value(t, got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzRewrite: whatever config.json holds, the join refuses it or leaves no
// marker, adds what it says it adds, and keeps the rest.
func FuzzRewrite(f *testing.F) {
	names, err := filepath.Glob("testdata/*.json")
	if err != nil || len(names) == 0 {
		f.Fatal("no samples", err)
	}
	for i, name := range names {
		b, err := os.ReadFile(name)
		must(f, err)
		var s sample
		must(f, json.Unmarshal(b, &s))
		f.Add([]byte(s.Given), byte(i))
	}
	f.Add([]byte(`{"mounts":[null,{}],"linux":{"namespaces":[null,{"type":"pid","path":"/proc/0/ns/"}]}}`), byte(0))
	f.Add([]byte(`{"mounts":[{"deStination":"/dev/shm","TYPE":"tmpfs"}]}`), byte(0)) // as the runtime reads it
	f.Add([]byte(`null`), byte(0))
	f.Fuzz(func(t *testing.T, raw []byte, modes byte) {
		kinds := map[string]string{}
		for i, kind := range []string{"network", "ipc", "uts", "pid", "user"} {
			if modes>>i&1 != 0 {
				kinds[kind] = "node"
			}
		}
		r := recordOf("/POD", kinds)
		s, err := parse(raw)
		if err != nil {
			return
		}
		if err := s.joinNamespaces(r); err != nil {
			return
		}
		if s.top == nil {
			return // null, which is no member of a pod
		}
		s.addFiles("/POD", r)
		out := s.encode()
		again, err := parse(out)
		if err != nil {
			t.Fatalf("what was written is not read: %v", err)
		}
		if again.marked() {
			t.Errorf("a marker is left in %s", out)
		}
		must(t, again.joinNamespaces(r))
		again.addFiles("/POD", r)
		if len(again.changes) > 0 {
			t.Errorf("a second join changes %q", again.changes)
		}
		if diff := cmp.Diff(rest(t, raw), rest(t, out)); diff != "" {
			t.Errorf("the rest has changed (-before +after):\n%s", diff)
		}
	})
}

// rest is a specification without what a join may change: mounts that are the
// pod's or make room for them, and namespaces that are joined or given up.
func rest(t *testing.T, raw []byte) map[string]any {
	s, err := parse(raw)
	must(t, err)
	config := value(t, raw)
	mounts := []string{}
	for _, m := range s.mounts {
		if !strings.Contains(string(m.raw), `"/POD/`) && m.destination != devShm {
			mounts = append(mounts, string(m.raw))
		}
	}
	config["mounts"] = mounts
	if linux, ok := config["linux"].(map[string]any); ok && linux["namespaces"] != nil {
		left := []any{}
		for _, ns := range s.namespaces {
			if !strings.HasPrefix(ns.path, marker) && !strings.HasPrefix(ns.path, "/POD/") {
				left = append(left, value(t, encodeObject(ns.raw)))
			}
		}
		linux["namespaces"] = left
	}
	return config
}
