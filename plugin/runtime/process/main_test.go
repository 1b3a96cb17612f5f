// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/plugin/labels"
)

// Numbers in comments are the acceptance statements of the specifications: P of
// pods and containers, S of the shim. BERTH_TEST_RUNTIME=dropin runs the tests with
// the shim under runc's name.

func TestMain(m *testing.M) {
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

// shared is the containerd of all tests that do not harm it.
var shared struct {
	once sync.Once
	d    *host.Daemon
	err  error
}

// rig is what a test works with.
type rig struct {
	*host.Daemon
	s   *Service
	ctx context.Context
}

// newRig counts what is there, and again when the test has cleaned up.
func newRig(t *testing.T) *rig {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return rigOn(t, shared.d)
}

func rigOn(t *testing.T, d *host.Daemon) *rig {
	t.Helper()
	before := d.Count(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd's log:\n%s", d.Log(15))
		}
		d.Settle(t, before)
	})
	const patience = 60 * time.Second
	ctx, cancel := context.WithTimeout(d.Context(context.Background()), patience)
	t.Cleanup(cancel)
	r := &rig{Daemon: d, s: New(d.Client().TaskService()), ctx: ctx}
	t.Cleanup(r.s.Close)
	return r
}

// options say how a test's container differs.
type options struct {
	args     []string
	settings labels.Settings
	stdio    Stdio
	spec     []oci.SpecOpts
}

// sh is a script for a container.
func sh(script string) []string { return []string{"sh", "-c", script} }

// container makes a record and the process side of it, and cleans up.
func (r *rig) container(t *testing.T, o options) (*Container, client.Container) {
	t.Helper()
	id := strings.NewReplacer("/", "-", "_", "-", " ", "-", "#", "-", ",", "").Replace(strings.TrimPrefix(t.Name(), "Test"))
	id = fmt.Sprintf("%s-%d", id[max(0, len(id)-50):], time.Now().UnixNano()%1e6)
	id = strings.TrimLeft(id, "-")
	image, err := r.Client().GetImage(r.ctx, host.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	if o.args == nil {
		o.args = []string{"sleep", "600"}
	}
	opts := append([]oci.SpecOpts{oci.WithImageConfig(image), oci.WithProcessArgs(o.args...)}, o.spec...)
	if o.settings.Terminal {
		opts = append(opts, oci.WithTTY)
	}
	record, err := r.Client().NewContainer(r.ctx, id, client.WithImage(image), client.WithNewSnapshot(id, image),
		client.WithRuntime(host.Runtimes()[0].Name, nil), client.WithNewSpec(opts...))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := record.Spec(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.s.Container(Config{
		ID: id, Dir: t.TempDir(), Spec: spec, Stdio: o.stdio,
		Metadata: labels.Metadata{Name: id, CreatedAt: time.Now(), Settings: o.settings},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(r.ctx, 0); err != nil {
			t.Error(err)
		}
		if err := c.Delete(r.ctx); err != nil {
			t.Error(err)
		}
		record, err := r.Client().LoadContainer(r.ctx, id) // containerd may be another one now
		if err == nil {
			err = record.Delete(r.ctx, client.WithSnapshotCleanup)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return c, record
}

// creation is with the runtime under test.
func creation(record client.Container) CreateRequest {
	r := CreateRequest{Record: record}
	if path := host.Runtimes()[0].Path; path != "" {
		r.Options = []client.NewTaskOpts{client.WithRuntimePath(path)}
	}
	return r
}

// run starts a container.
func (r *rig) run(t *testing.T, o options) *Container {
	t.Helper()
	c, record := r.container(t, o)
	if err := c.Create(r.ctx, creation(record)); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(r.ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// logged is a container that says when it is ready, into a file.
func (r *rig) logged(t *testing.T, o options) (*Container, string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	o.stdio.Stdout = "file://" + log
	return r.run(t, o), log
}

// ready waits for a text in a file.
func ready(t *testing.T, file, text string) {
	t.Helper()
	eventually(t, func() string {
		b, _ := os.ReadFile(file)
		if strings.Contains(string(b), text) {
			return ""
		}
		return fmt.Sprintf("%s: no %q in %q", file, text, b)
	})
}

// eventually polls until ok returns "".
func eventually(t *testing.T, ok func() string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		why := ok()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(why)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// took fails if f did not take about want.
func took(t *testing.T, want time.Duration, f func()) {
	t.Helper()
	begun := time.Now()
	f()
	const slack = 1500 * time.Millisecond // two cores, many tests
	if d := time.Since(begun); d < want-50*time.Millisecond || d > want+slack {
		t.Errorf("took %v, want about %v", d, want)
	}
}

// code is the exit code of a state, -1 for an unknown one.
func code(s State) int32 {
	if s.ExitCode == nil {
		return -1
	}
	return *s.ExitCode
}

// hostPID makes a container share the PID namespace of the host.
var hostPID = oci.WithHostNamespace(specs.PIDNamespace)
