// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/shim/fault"
)

func TestFind(t *testing.T) {
	const hybrid = `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
35 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:30 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`
	cases := map[string]struct {
		self, process, mounts string
		v2                    bool
		want                  []hierarchy
	}{
		"v2": {
			self: "0::/containerd\n", process: "0::/a/b\n", mounts: cgroup2Mount, v2: true,
			want: []hierarchy{{dir: "/sys/fs/cgroup/a/b", has: unified}},
		},
		"v2 mounted elsewhere": {
			self: "0::/containerd\n", process: "0::/a/b\n",
			mounts: "31 23 0:28 / /mnt/with\\040space rw - cgroup2 cgroup2 rw\n", v2: true,
			want: []hierarchy{{dir: "/mnt/with space/a/b", has: unified}},
		},
		"v2 in our own cgroup": {
			self: "0::/a/b\n", process: "0::/a/b\n", mounts: cgroup2Mount, v2: true,
			want: []hierarchy{{dir: "/sys/fs/cgroup/a/b", has: unified, shared: true}},
		},
		"v2 above our own cgroup": {
			self: "0::/a/b/c\n", process: "0::/a/b\n", mounts: cgroup2Mount, v2: true,
			want: []hierarchy{{dir: "/sys/fs/cgroup/a/b", has: unified, shared: true}},
		},
		"v2 beside our own cgroup": {
			self: "0::/a/bc\n", process: "0::/a/b\n", mounts: cgroup2Mount, v2: true,
			want: []hierarchy{{dir: "/sys/fs/cgroup/a/b", has: unified}},
		},
		"part of the hierarchy mounted": {
			self: "0::/docker/x/self\n", process: "0::/docker/x/a\n",
			mounts: "31 23 0:28 /docker/y /elsewhere rw - cgroup2 cgroup2 rw\n31 23 0:28 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", v2: true,
			want: []hierarchy{{dir: "/sys/fs/cgroup/a", has: unified}},
		},
		"hybrid": {
			self:    "4:freezer:/\n3:memory:/x\n2:cpu:/\n1:name=systemd:/x\n0::/x\n",
			process: "4:freezer:/c/1\n3:memory:/x/c/1\n2:cpu:/c/1\n1:name=systemd:/x\n0::/\n",
			mounts:  hybrid,
			want: []hierarchy{
				{dir: "/sys/fs/cgroup/cpu/c/1", has: cpu},
				{dir: "/sys/fs/cgroup/memory/x/c/1", has: memory},
				{dir: "/sys/fs/cgroup/freezer/c/1", has: freezer},
				{dir: "/sys/fs/cgroup/systemd/x", shared: true},
				{dir: "/sys/fs/cgroup/unified", has: unified, shared: true},
			},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			root := fakeHost(t, map[string]string{
				"proc/self/cgroup": c.self, "proc/42/cgroup": c.process, "proc/self/mountinfo": c.mounts,
			})
			g, err := find(root, 42)
			if err != nil {
				t.Fatal(err)
			}
			if g.v2 != c.v2 {
				t.Errorf("v2 is %t", g.v2)
			}
			for i := range g.places {
				g.places[i].dir = strings.TrimPrefix(g.places[i].dir, root)
			}
			if diff := cmp.Diff(c.want, g.places, cmp.AllowUnexported(hierarchy{})); diff != "" {
				t.Errorf("places (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFindPath(t *testing.T) {
	root := fakeHost(t, map[string]string{
		"proc/self/cgroup": "3:memory:/x\n0::/x\n", "proc/self/mountinfo": `32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`,
	})
	g, err := findPath(root, "/pods/a")
	if err != nil {
		t.Fatal(err)
	}
	want := []hierarchy{{dir: root + "/sys/fs/cgroup/memory/pods/a", has: memory}, {dir: root + "/sys/fs/cgroup/unified/pods/a", has: unified}}
	if diff := cmp.Diff(want, g.places, cmp.AllowUnexported(hierarchy{})); diff != "" {
		t.Errorf("places (-want +got):\n%s", diff)
	}
	if _, err := g.AppendStats(nil); err != ErrGone {
		t.Errorf("statistics of a cgroup that is not there: %v", err)
	}
	g, err = findPath(root, "/")
	if err != nil || g.Own() {
		t.Errorf("the root is taken for a pod's own: %v", err)
	}
}

func TestExpandSlice(t *testing.T) {
	for path, want := range map[string]string{
		"/kubepods/pod1":            "/kubepods/pod1",
		"/kubepods.slice/a.slice":   "/kubepods.slice/a.slice",
		"kubepods.slice":            "/kubepods.slice",
		"kubepods-burst-pod1.slice": "/kubepods.slice/kubepods-burst.slice/kubepods-burst-pod1.slice",
	} {
		if got := expandSlice(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestFindNothing(t *testing.T) {
	if _, err := Of(1 << 30); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("no such process: %v", err)
	}
	root := fakeHost(t, map[string]string{
		"proc/self/cgroup": "0::/\n", "proc/42/cgroup": "0::/a (deleted)\n", "proc/self/mountinfo": cgroup2Mount,
	})
	if _, err := find(root, 42); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("cgroup deleted: %v", err)
	}
}

// A process that was left in our own cgroup must not take its neighbours along.
func TestSharedCgroupIsLeftAlone(t *testing.T) {
	g, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if g.Own() {
		t.Error("our own cgroup is taken for the container's")
	}
	for name, err := range map[string]error{"Kill": g.Kill(), "Freeze": g.Freeze(), "Thaw": g.Thaw()} {
		if fault.CodeOf(err) != fault.FailedPrecondition {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := g.Pids(nil); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("Pids: %v", err)
	}
	if err := g.Remove(); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if _, err := g.AppendStats(nil); err != nil {
		t.Errorf("AppendStats: %v", err)
	}
	l, on := running(t)
	on(func() {
		w, err := g.WatchOOM(l, func() { t.Error("a neighbour's kill is told") })
		if err != nil || w.fd >= 0 {
			t.Errorf("WatchOOM: descriptor %d, %v", w.fd, err)
		}
		w.Close()
	})
}

func TestEncode(t *testing.T) {
	g := &Group{
		v2: true, kills: 3, pageSizes: []string{"2MB", "1GB"},
		places: []hierarchy{{"/sys/fs/cgroup/a", unified, false}, {"/sys/fs/cgroup/b", 0, true}},
	}
	got, err := Decode(g.Encode(nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(g, got, cmp.AllowUnexported(Group{}, hierarchy{}, reader{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func FuzzDecode(f *testing.F) {
	g := &Group{places: []hierarchy{{"/sys/fs/cgroup/a", unified, false}}, pageSizes: []string{"2MB"}}
	f.Add(g.Encode(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := Decode(b)
		if err != nil {
			if fault.CodeOf(err) != fault.InvalidArgument {
				t.Errorf("class of %v", err)
			}
			return
		}
		for _, p := range g.places {
			if !strings.HasPrefix(p.dir, "/") || strings.Contains(p.dir+"/", "/../") {
				t.Errorf("path %q", p.dir)
			}
		}
	})
}
