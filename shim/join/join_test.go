// SPDX-License-Identifier: Apache-2.0

package join

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/pod"
	"github.com/berthd/berth/shim/sandbox"
)

// sample is a file of testdata: what containerd 2.4.2 gives a member of a pod
// whose process is number 0, and what it gives the same container in a pod with
// a pause container. They differ in mounts and namespaces only. /POD is the
// pod's directory, PAUSE its process.
type sample struct {
	Given json.RawMessage `json:"given"`
	Stock struct {
		Mounts     []map[string]any `json:"mounts"`
		Namespaces []map[string]any `json:"namespaces"`
	} `json:"stock"`
}

func readSample(t testing.TB, name string) *sample {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	must(t, err)
	s := &sample{}
	must(t, json.Unmarshal(b, s))
	return s
}

// want is the specification that stock's makes us expect in a world.
func (s *sample) want(t testing.TB, w *world) map[string]any {
	t.Helper()
	want := value(t, s.Given)
	mounts := make([]any, len(s.Stock.Mounts))
	for i, m := range s.Stock.Mounts {
		if source, ours := strings.CutPrefix(m["source"].(string), "/POD"); ours {
			m["source"] = w.dir + source
			// Stock's files belong to the host's root and are mapped; ours belong
			// to the pod's.
			delete(m, "uidMappings")
			delete(m, "gidMappings")
		}
		mounts[i] = m
	}
	want["mounts"] = mounts
	namespaces := []any{}
	for _, ns := range s.Stock.Namespaces {
		path, _ := ns["path"].(string)
		of := w.record.Namespaces[ns["type"].(string)]
		switch {
		case !strings.HasPrefix(path, "/proc/PAUSE/ns/"):
		case of.Mode == pod.Node:
			continue
		default:
			ns["path"] = of.Path
		}
		namespaces = append(namespaces, ns)
	}
	want["linux"].(map[string]any)["namespaces"] = namespaces
	return want
}

// TestLikeStock: the container of a pod without a pause container is made as that
// of a pod with one.
func TestLikeStock(t *testing.T) {
	node := map[string]string{"network": "node", "uts": "node", "ipc": "node", "pid": "node", "user": "node"}
	own := map[string]string{"pid": "container", "user": "node"}
	for _, c := range []struct {
		name  string
		modes map[string]string
		user  bool // has a user namespace
		// moved is the destination of a mount that containerd puts behind the pod's,
		// and in a place before them if it has none: beside them, so nobody can tell.
		moved string
	}{
		{"plain", own, false, ""},
		{"shared", map[string]string{"user": "node"}, false, ""},
		{"host", node, false, "/dev/shm"},
		{"userns", map[string]string{"pid": "container"}, true, ""},
		{"usernshost", map[string]string{"pid": "container", "network": "node", "uts": "node"}, true, "/sys"},
		{"mounts", own, false, ""},
		{"shm", own, false, "/dev/shm"},
		{"dev", own, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := readSample(t, c.name)
			w := newWorld(t, c.modes, s.Given)
			if c.modes["pid"] == "" {
				w.record.Init = self()
				w.saveRecord(t)
			}
			want := s.want(t, w)
			for i := range 2 { // joining again changes nothing
				p, err := w.Join()
				if err != nil {
					t.Fatal(err)
				}
				wantPod := &Pod{SandboxID: testPod}
				if c.user {
					wantPod.UsernsPath = w.dir + "/user"
				}
				if diff := cmp.Diff(wantPod, p); diff != "" {
					t.Errorf("pod (-want +got):\n%s", diff)
				}
				got := value(t, w.config(t))
				if c.moved != "" {
					last(want["mounts"], c.moved)
					last(got["mounts"], c.moved)
				}
				if diff := cmp.Diff(normal(t, want), normal(t, got)); diff != "" {
					t.Errorf("config.json after join %d (-stock +got):\n%s", i+1, diff)
				}
				if diff := cmp.Diff(map[string]string{testContainer: w.Bundle}, w.members(t)); diff != "" {
					t.Errorf("members (-want +got):\n%s", diff)
				}
			}
			if len(w.notes) != 1 || !strings.HasPrefix(w.notes[0], "info config.json rewritten to join pod "+testPod+": ") ||
				!strings.Contains(w.notes[0], "mount /etc/hostname") || strings.Contains(w.notes[0], "\n") {
				t.Errorf("notes %q, want one with all changes", w.notes)
			}
		})
	}
}

// last moves the mount of a destination to the end.
func last(mounts any, destination string) {
	all := mounts.([]any)
	i := slices.IndexFunc(all, func(m any) bool { return m.(map[string]any)["destination"] == destination })
	m := all[i]
	copy(all[i:], all[i+1:])
	all[len(all)-1] = m
}

// normal is v after a way through JSON, with numbers as they are written.
func normal(t testing.TB, v any) map[string]any {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return value(t, b)
}

// edit returns a sample's specification with changes.
func edit(t testing.TB, name string, change func(config map[string]any)) []byte {
	t.Helper()
	config := value(t, readSample(t, name).Given)
	change(config)
	b, err := json.Marshal(config)
	must(t, err)
	return b
}

func namespaces(config map[string]any) []any {
	return config["linux"].(map[string]any)["namespaces"].([]any)
}

// setPath changes the path of the namespace of a type.
func setPath(config map[string]any, kind, path string) {
	for _, ns := range namespaces(config) {
		if ns := ns.(map[string]any); ns["type"] == kind {
			ns["path"] = path
		}
	}
}

func pathOf(config map[string]any, kind string) any {
	for _, ns := range namespaces(config) {
		if ns := ns.(map[string]any); ns["type"] == kind {
			return ns["path"]
		}
	}
	return nil
}

func annotate(config map[string]any, key, value string) {
	config["annotations"].(map[string]any)[key] = value
}

var ownPIDs = map[string]string{"pid": "container", "user": "node"}

// TestTarget: an ephemeral container that sees another's processes.
func TestTarget(t *testing.T) {
	for _, modes := range []map[string]string{ownPIDs, {"user": "node"}} {
		w := newWorld(t, modes, edit(t, "shared", func(c map[string]any) { setPath(c, "pid", "/proc/4711/ns/pid") }))
		if _, err := w.Join(); err != nil {
			t.Fatal(err)
		}
		got := value(t, w.config(t))
		if path := pathOf(got, "pid"); path != "/proc/4711/ns/pid" {
			t.Errorf("pid namespace %v, want the target's", path)
		}
		if path := pathOf(got, "ipc"); path != w.dir+"/ipc" {
			t.Errorf("ipc namespace %v, want the pod's", path)
		}
	}
}

// TestUntouched: containers that are none of a pod of ours.
func TestUntouched(t *testing.T) {
	paused := func(c map[string]any) {
		for _, kind := range []string{"ipc", "uts", "network"} {
			setPath(c, kind, "/proc/4711/ns/x")
		}
	}
	for _, c := range []struct {
		name   string
		config []byte
	}{
		{"no pod", []byte(`{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"pid"}]}}`)},
		{"not even JSON", []byte(`{`)},
		{"pod with pause", edit(t, "plain", func(c map[string]any) {
			paused(c)
			annotate(c, sandboxIDAnnotation, "another")
		})},
		{"pause", edit(t, "plain", func(c map[string]any) {
			paused(c)
			annotate(c, containerTypeAnnotation, "sandbox")
		})},
		{"marker in an argument", edit(t, "plain", func(c map[string]any) {
			paused(c)
			c["process"].(map[string]any)["args"] = []string{"ls", marker + "net"}
			annotate(c, sandboxIDAnnotation, "another")
		})},
		{"namespaces of null", []byte(`{"annotations":null,"x":"` + marker + `","linux":{"namespaces":[null,{"type":"pid"}]},"mounts":[null]}`)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, ownPIDs, c.config)
			must(t, os.Chmod(w.Bundle+"/config.json", 0o400))
			var before, after unix.Stat_t
			must(t, unix.Stat(w.Bundle+"/config.json", &before))
			p, err := w.Join()
			if p != nil || err != nil {
				t.Fatalf("pod %v, %v, want none", p, err)
			}
			must(t, unix.Stat(w.Bundle+"/config.json", &after))
			before.Atim, after.Atim = unix.Timespec{}, unix.Timespec{}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("config.json was touched:\n%s", diff)
			}
			if m := w.members(t); len(m) > 0 {
				t.Errorf("members %v, want none", m)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	plain := readSample(t, "plain").Given
	for _, c := range []struct {
		name   string
		config []byte // nil: plain
		spoil  func(t *testing.T, w *world)
		code   fault.Code
		text   string
	}{
		{
			name: "no pod", spoil: func(t *testing.T, w *world) {
				must(t, os.Rename(w.dir, w.dir+"x"))
				t.Cleanup(func() { must(t, os.Rename(w.dir+"x", w.dir)) })
			},
			code: fault.FailedPrecondition, text: "pod " + testPod + ": its state was lost",
		},
		{
			name: "no record", spoil: func(t *testing.T, w *world) { must(t, os.Remove(w.dir+"/pod.json")) },
			code: fault.FailedPrecondition, text: "pod " + testPod + ": its state was lost",
		},
		{
			name: "spoilt record", spoil: func(t *testing.T, w *world) { must(t, os.WriteFile(w.dir+"/pod.json", []byte("{"), 0o600)) },
			code: fault.FailedPrecondition, text: "pod " + testPod + ": its state was lost",
		},
		{
			name: "stopped", spoil: func(t *testing.T, w *world) { must(t, os.WriteFile(w.dir+"/stopped", nil, 0o600)) },
			code: fault.FailedPrecondition, text: "pod " + testPod + " has stopped",
		},
		{
			name: "no pod is named", config: edit(t, "plain", func(c map[string]any) { delete(c, "annotations") }),
			code: fault.FailedPrecondition, text: "no pod is named",
		},
		{
			name: "a pause container", config: edit(t, "plain", func(c map[string]any) { annotate(c, containerTypeAnnotation, "sandbox") }),
			code: fault.FailedPrecondition, text: "no pod is named",
		},
		{
			name: "a path for a pod", config: edit(t, "plain", func(c map[string]any) { annotate(c, sandboxIDAnnotation, "../"+testPod) }),
			code: fault.InvalidArgument, text: "not plain names",
		},
		{
			name: "a path for a container", spoil: func(_ *testing.T, w *world) { w.ID = "../x" },
			code: fault.InvalidArgument, text: "not a plain name",
		},
		{
			name: "annotations of numbers", config: edit(t, "plain", func(c map[string]any) { c["annotations"].(map[string]any)["x"] = 1 }),
			code: fault.InvalidArgument, text: "annotations",
		},
		{name: "no JSON", config: plain[:len(plain)-3], code: fault.InvalidArgument, text: "config.json"},
		{name: "pin gone", spoil: func(t *testing.T, w *world) {
			must(t, unix.Unmount(w.dir+"/uts", 0))
			must(t, os.Remove(w.dir+"/uts"))
		}, code: fault.FailedPrecondition, text: "/uts"},
		{
			name: "pin not mounted", spoil: func(t *testing.T, w *world) { must(t, unix.Unmount(w.dir+"/ipc", 0)) },
			code: fault.FailedPrecondition, text: "/ipc: no namespace is mounted there",
		},
		{
			name: "network namespace not mounted", spoil: func(t *testing.T, w *world) { must(t, unix.Unmount(w.dir+"/netns", 0)) },
			code: fault.FailedPrecondition, text: "network namespace",
		},
		{
			name: "pin not mounted, joined before", config: edit(t, "plain", func(c map[string]any) { setPath(c, "ipc", "REPLACED") }),
			spoil: func(t *testing.T, w *world) {
				b := strings.ReplaceAll(string(w.config(t)), "REPLACED", w.dir+"/ipc")
				must(t, os.WriteFile(w.Bundle+"/config.json", []byte(b), 0o644))
				must(t, unix.Unmount(w.dir+"/ipc", 0))
			}, code: fault.FailedPrecondition, text: "/ipc: no namespace is mounted there",
		},
		{name: "record without the namespace", spoil: func(t *testing.T, w *world) {
			delete(w.record.Namespaces, "uts")
			w.saveRecord(t)
		}, code: fault.FailedPrecondition, text: "uts namespace"},
		{
			name: "processes that the pod does not share", config: readSample(t, "shared").Given,
			code: fault.FailedPrecondition, text: "the pod has no pid namespace to join",
		},
		{
			name: "a namespace that no pod has", config: edit(t, "plain", func(c map[string]any) { setPath(c, "mount", marker+"mnt") }),
			code: fault.FailedPrecondition, text: "the pod has no mount namespace to join",
		},
		{
			name: "shm not mounted", spoil: func(t *testing.T, w *world) { must(t, unix.Unmount(w.dir+"/shm", 0)) },
			code: fault.FailedPrecondition, text: "/shm: nothing is mounted there",
		},
		{
			name: "no hosts", spoil: func(t *testing.T, w *world) { must(t, os.Remove(w.dir+"/hosts")) },
			code: fault.FailedPrecondition, text: "/hosts",
		},
		{
			name: "no list of members", spoil: func(t *testing.T, w *world) { must(t, os.Remove(w.dir+"/members")) },
			code: fault.FailedPrecondition, text: "list of members",
		},
		{name: "bundle cannot be written", spoil: func(t *testing.T, w *world) {
			must(t, os.MkdirAll(w.Bundle+"/config.json.join/full", 0o755))
		}, code: fault.Internal, text: "config.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.config == nil {
				c.config = plain
			}
			w := newWorld(t, ownPIDs, c.config)
			if c.spoil != nil {
				c.spoil(t, w)
			}
			before := w.config(t)
			p, err := w.Join()
			if p != nil || err == nil || fault.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("pod %v, error %v of class %d, want class %d with %q", p, err, fault.CodeOf(err), c.code, c.text)
			}
			if diff := cmp.Diff(before, w.config(t)); diff != "" {
				t.Errorf("config.json was changed:\n%s", diff)
			}
			if links, _ := filepath.Glob(w.dir + "/members/*"); len(links) > 0 {
				t.Errorf("members %v, want none", links)
			}
			if len(w.notes) > 0 {
				t.Errorf("notes %q, want none", w.notes)
			}
		})
	}
}

// TestInit: a shared PID namespace is of no use once its init has ended.
func TestInit(t *testing.T) {
	w := newWorld(t, map[string]string{"user": "node"}, readSample(t, "shared").Given)
	w.record.Init = self()
	w.record.Init.StartTime++
	w.saveRecord(t)
	_, err := w.Join()
	if fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "init has ended") {
		t.Errorf("error %v, want that init has ended", err)
	}
}

func TestFileIsReplaced(t *testing.T) {
	w := newWorld(t, ownPIDs, readSample(t, "plain").Given)
	path := w.Bundle + "/config.json"
	must(t, os.Chown(path, 12, 34))
	must(t, os.Chmod(path, 0o640))
	must(t, os.WriteFile(path+".join", []byte("of a crash"), 0o600))
	old, err := os.Open(path)
	must(t, err)
	defer old.Close()
	if _, err := w.Join(); err != nil {
		t.Fatal(err)
	}
	var before, after unix.Stat_t
	must(t, unix.Fstat(int(old.Fd()), &before))
	must(t, unix.Stat(path, &after))
	if before.Ino == after.Ino {
		t.Error("the file was written in place")
	}
	if after.Uid != 12 || after.Gid != 34 || after.Mode != unix.S_IFREG|0o640 {
		t.Errorf("owner %d:%d, mode %o, want those it had", after.Uid, after.Gid, after.Mode)
	}
	if entries, _ := os.ReadDir(w.Bundle); len(entries) != 1 {
		t.Errorf("bundle has %v, want config.json", entries)
	}
}

// TestMembers: the list outlives neither a failure nor the container.
func TestMembers(t *testing.T) {
	w := newWorld(t, ownPIDs, readSample(t, "plain").Given)
	link := filepath.Join(w.dir, "members", testContainer)
	must(t, os.Symlink("/the/bundle/of/another", link))
	if _, err := w.Join(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{testContainer: w.Bundle}, w.members(t)); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := sandbox.Leave(w.State, testNamespace, testPod, testContainer); err != nil {
			t.Error(err)
		}
	}
	if m := w.members(t); len(m) > 0 {
		t.Errorf("members %v, want none", m)
	}
	for _, c := range []struct {
		pod, container string
		code           fault.Code
	}{
		{"", testContainer, fault.OK},
		{"another", testContainer, fault.OK},
		{"../" + testPod, testContainer, fault.InvalidArgument},
		{testPod, "../pod.json", fault.InvalidArgument},
		{testPod, "..", fault.InvalidArgument},
		{testPod, "", fault.InvalidArgument},
	} {
		if err := sandbox.Leave(w.State, testNamespace, c.pod, c.container); fault.CodeOf(err) != c.code {
			t.Errorf("Leave of %q, %q: %v, want class %d", c.pod, c.container, err, c.code)
		}
	}
}

func BenchmarkJoin(b *testing.B) {
	// The size of a specification with containerd's seccomp profile.
	config := edit(b, "userns", func(c map[string]any) {
		names := make([]string, 1000)
		for i := range names {
			names[i] = "a_system_call"
		}
		c["linux"].(map[string]any)["seccomp"] = map[string]any{"syscalls": names}
	})
	w := newWorld(b, map[string]string{"pid": "container"}, config)
	w.Note = nil
	b.SetBytes(int64(len(config)))
	for b.Loop() {
		must(b, os.WriteFile(w.Bundle+"/config.json", config, 0o644))
		if _, err := w.Join(); err != nil {
			b.Fatal(err)
		}
	}
}
