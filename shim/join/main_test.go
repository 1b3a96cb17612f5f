// SPDX-License-Identifier: Apache-2.0

package join

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/pod"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/sandbox"
)

// TestMain puts the tests into a mount namespace: they pin namespaces.
func TestMain(m *testing.M) {
	const inside = "BERTH_JOIN_TEST_INSIDE"
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in a mount namespace (needs root):", err)
		os.Exit(1)
	}
}

const (
	testNamespace = "k8s.io"
	testPod       = "0f3b63aa9c5d5b6b2f0e" // what testdata says
	testContainer = "c7d1e08b44a2"
)

// world is a pod's directory and the bundle of a container that is to join it.
type world struct {
	*Joiner
	dir    string // the pod's
	record *pod.Record
	notes  []string
}

// recordOf is the record of a pod with modes by OCI type; "pod" where none is
// told. Pins are below dir.
func recordOf(dir string, modes map[string]string) *pod.Record {
	r := &pod.Record{
		Version: 1, ID: testPod, Namespace: testNamespace, Namespaces: map[string]pod.Namespace{}, Shm: modes["ipc"] != pod.Node,
	}
	for kind, path := range map[string]string{
		"network": dir + "/netns", "ipc": dir + "/ipc", "uts": dir + "/uts", "pid": dir + "/pid", "user": dir + "/user",
	} {
		mode := modes[kind]
		if mode == "" {
			mode = pod.Own
		}
		if mode != pod.Own {
			path = ""
		}
		r.Namespaces[kind] = pod.Namespace{Mode: mode, Path: path}
	}
	return r
}

// newWorld makes a pod as package pod does, of this process's namespaces, and a
// bundle with a config.json.
func newWorld(t testing.TB, modes map[string]string, config []byte) *world {
	t.Helper()
	state, bundle := t.TempDir(), t.TempDir()
	dir, err := sandbox.Dir(state, testNamespace, testPod)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, dir + "/members", dir + "/shm"} {
		must(t, os.MkdirAll(d, 0o711))
	}
	w := &world{
		Joiner: &Joiner{State: state, Namespace: testNamespace, ID: testContainer, Bundle: bundle},
		dir:    dir, record: recordOf(dir, modes),
	}
	w.Note = func(level, format string, args ...any) {
		w.notes = append(w.notes, level+" "+fmt.Sprintf(format, args...))
	}
	for kind, ns := range w.record.Namespaces {
		if ns.Path != "" {
			pin(t, map[string]string{"network": "net"}[kind], kind, ns.Path)
		}
	}
	must(t, unix.Mount("shm", dir+"/shm", "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { _ = unix.Unmount(dir+"/shm", unix.MNT_DETACH) })
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
	}
	w.saveRecord(t)
	must(t, os.WriteFile(bundle+"/config.json", config, 0o644))
	return w
}

func (w *world) saveRecord(t testing.TB) {
	t.Helper()
	b, err := json.Marshal(w.record)
	must(t, err)
	must(t, os.WriteFile(w.dir+"/pod.json", b, 0o600))
}

// pin mounts one of this process's namespaces.
func pin(t testing.TB, name, kind, path string) {
	t.Helper()
	if name == "" {
		name = kind
	}
	must(t, os.WriteFile(path, nil, 0o444))
	must(t, unix.Mount("/proc/self/ns/"+name, path, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
}

func (w *world) config(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(w.Bundle + "/config.json")
	must(t, err)
	return b
}

// members are the links of the pod's list.
func (w *world) members(t testing.TB) map[string]string {
	t.Helper()
	all := map[string]string{}
	entries, err := os.ReadDir(w.dir + "/members")
	must(t, err)
	for _, e := range entries {
		all[e.Name()], err = os.Readlink(filepath.Join(w.dir, "members", e.Name()))
		must(t, err)
	}
	return all
}

// self is this process as a pod's init.
func self() *pod.Process {
	return &pod.Process{Pid: os.Getpid(), StartTime: process.StartTime(os.Getpid())}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// value decodes JSON with numbers as they are written.
func value(t testing.TB, b []byte) map[string]any {
	t.Helper()
	var v map[string]any
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.UseNumber()
	must(t, d.Decode(&v))
	return v
}
