// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"

	"github.com/berthd/berth/integration/host"
	berth "github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/network"
)

// The tests drive a real containerd, runc and berth's shim. Numbers in comments are
// acceptance statements: P of pods and containers, S of the shim.

// patience bounds every single call and every wait.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if text := os.Getenv(envAct); text != "" {
		os.Exit(act(text))
	}
	host.EnterOffline()
	code := m.Run()
	if shared.d != nil {
		if err := shared.d.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// shared is the daemon of all tests that do not ask for one of their own.
var shared struct {
	once sync.Once
	d    *host.Daemon
	err  error
}

// rig is a service on a daemon, and what tests of it share.
type rig struct {
	*host.Daemon
	*berth.Service
	config berth.Config
}

// withService returns a service on the shared daemon. What is there when the test
// ends is compared with what was before.
func withService(t *testing.T) *rig {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return serviceOn(t, shared.d)
}

func serviceOn(t *testing.T, d *host.Daemon) *rig {
	t.Helper()
	before := d.Count(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd's log:\n%s", d.Log(15))
		}
		d.Settle(t, before)
	})
	return openService(t, d)
}

// serviceConfig is that of a service whose directories belong to the daemon.
func serviceConfig(t *testing.T, d *host.Daemon) berth.Config {
	t.Helper()
	conf, err := host.Network()
	if err != nil {
		t.Fatal(err)
	}
	handlers, err := handler.New(handler.Default())
	if err != nil {
		t.Fatal(err)
	}
	return berth.Config{
		Client: d.Client(), Namespace: d.Namespace, Root: filepath.Join(d.Dir, "berth"), State: "/run/berth",
		Handlers: handlers, Network: network.Config{ConfDir: conf, BinDirs: []string{host.Deps("cni")}}, Prefixes: true, CRIU: host.Deps("bin/criu"),
	}
}

// openService opens a service. When the test ends all pods of the namespace that are
// berth's are removed, and nothing of the service may be left.
func openService(t *testing.T, d *host.Daemon) *rig {
	t.Helper()
	config := serviceConfig(t, d)
	s, err := berth.Open(ctx(t), config)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{d, s, config}
	// They stay, and are not to be taken for somebody's.
	for _, dir := range []string{"containers", "creations", "claims"} {
		if err := os.MkdirAll(filepath.Join(config.State, config.Namespace, dir), 0o711); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		r.clean(t, ctx)
	})
	return r
}

func (r *rig) clean(t *testing.T, ctx context.Context) {
	t.Helper()
	defer r.Service.Close()
	pods, err := r.Pods(ctx, berth.PodFilter{})
	if err != nil {
		t.Error(err)
	}
	for _, p := range pods {
		if p.Owner != "berth" {
			continue
		}
		if err := r.RemovePod(ctx, string(p.ID), berth.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	for _, left := range r.left() {
		t.Errorf("left: %s", left)
	}
	_ = os.RemoveAll(filepath.Join("/run/berth", r.Namespace))
}

// left are files of the service that belong to a pod or container.
func (r *rig) left() (all []string) {
	for _, pattern := range []string{
		r.config.Root + "/*/containers/*", filepath.Join(r.config.State, r.Namespace, "containers/*"),
		r.config.Root + "/*/networks/*", filepath.Join(r.config.State, r.Namespace, "creations/*"),
		filepath.Join(r.config.State, r.Namespace, "claims/*"),
	} {
		found, _ := filepath.Glob(pattern)
		all = append(all, found...)
	}
	return all
}

// reopen is what a new process would see.
func (r *rig) reopen(t *testing.T) {
	t.Helper()
	if err := r.Service.Close(); err != nil {
		t.Error(err)
	}
	r.config.Client = r.Client()
	s, err := berth.Open(ctx(t), r.config)
	if err != nil {
		t.Fatal(err)
	}
	r.Service = s
}

// configure opens the service with other runtime handlers.
func (r *rig) configure(t *testing.T, change func(*handler.Config)) {
	t.Helper()
	c := handler.Default()
	change(c)
	h, err := handler.New(c)
	if err != nil {
		t.Fatal(err)
	}
	r.config.Handlers = h
	r.reopen(t)
}

// podName makes a name of the test's.
func podName(t *testing.T) string {
	return strings.ToLower(strings.NewReplacer("/", "-", "#", "", "_", "-").Replace(strings.TrimPrefix(t.Name(), "TestRuntime")))
}

// hostPod asks for a pod that needs nothing from outside.
func hostPod(t *testing.T) berth.PodRequest {
	return berth.PodRequest{Name: podName(t), Namespace: "default", HostNetwork: true}
}

func (r *rig) pod(t *testing.T, q berth.PodRequest) berth.Pod {
	t.Helper()
	p, err := r.CreatePod(ctx(t), q)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// took fails if something took longer than it may.
func took(t *testing.T, what string, most time.Duration, f func()) time.Duration {
	t.Helper()
	start := time.Now()
	f()
	d := time.Since(start)
	if d > most {
		t.Errorf("%s took %v, want at most %v", what, d, most)
	}
	return d
}

func ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until ok returns "", and fails with its last answer.
func eventually(t testing.TB, limit time.Duration, ok func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		why := ok()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", limit, why)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func deleteTask(id string) *tasks.DeleteTaskRequest { return &tasks.DeleteTaskRequest{ContainerID: id} }

// mountedAt counts the mounts at a path.
func mountedAt(t *testing.T, path string) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == path {
			n++
		}
	}
	return n
}

// status is a field of a process's status file (proc(5)).
func status(t *testing.T, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, field); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("process %d: no %s", pid, field)
	return ""
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
