// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/programs"
	"github.com/berthd/berth/plugin/labels"
)

func TestMain(m *testing.M) {
	host.EnterOffline()
	os.Exit(m.Run())
}

// bench is a containerd with an engine and places for files.
type bench struct {
	*host.Daemon
	Engine
	ctx   context.Context
	image client.Image
	dir   string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	d := host.Run(t, host.Options{})
	ctx, cancel := context.WithTimeout(d.Context(context.Background()), 2*time.Minute)
	t.Cleanup(cancel)
	image, err := d.Client().GetImage(ctx, host.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	// The daemon's folder, not the test's: the census looks there.
	b := &bench{d, Engine{Client: d.Client(), CRIU: host.Deps("bin/criu"), Version: "0.1"}, ctx, image, t.TempDir()}
	before := d.Count(t)
	t.Cleanup(func() { d.Settle(t, before) })
	return b
}

// script counts in a file and in its output, and changes the image's files first.
const script = `rm /bin/wget; rm -r /root; mkdir /root; echo new > /root/new; echo changed > /etc/hostname
i=0; while :; do i=$((i+1)); echo $i > /tmp.count; mv /tmp.count /count; echo $i; usleep 20000; done`

// create makes a container's record.
func (b *bench) create(t *testing.T, id string, spec containers.Container, opts ...oci.SpecOpts) client.Container {
	t.Helper()
	options := []client.NewContainerOpts{client.WithNewSnapshot(id, b.image), client.WithRuntime(host.Native.Name, nil)}
	if spec.SandboxID != "" {
		options = append(options, client.WithSandbox(spec.SandboxID))
	}
	if spec.Spec == nil {
		opts = append([]oci.SpecOpts{
			oci.WithImageConfig(b.image), oci.WithProcessArgs("sh", "-c", script), oci.WithCgroup("/" + b.Namespace + "/" + id), oci.WithEnv([]string{"A=b"}),
		}, opts...)
		options = append(options, client.WithNewSpec(opts...))
	}
	c, err := b.Engine.Client.NewContainer(b.ctx, id, append(options, func(_ context.Context, _ *client.Client, c *containers.Container) error {
		if spec.Spec != nil {
			c.Spec = spec.Spec
		}
		return nil
	})...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if task, err := c.Task(b.ctx, nil); err == nil {
			_, _ = task.Delete(b.ctx, client.WithProcessKill)
		}
		if err := c.Delete(b.ctx, client.WithSnapshotCleanup); err != nil {
			t.Error(err)
		}
	})
	return c
}

// start runs a container and waits until it counts.
func (b *bench) start(t *testing.T, c client.Container, log string) client.Task {
	t.Helper()
	task, err := c.NewTask(b.ctx, criLog(log))
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.counts(t, c.ID(), 0)
	return task
}

// criLog is a log as berth's containers have it.
func criLog(path string) cio.Creator {
	return cio.LogURI(&url.URL{Scheme: "cri", Path: path})
}

// read reads a file of a running container.
func (b *bench) read(t *testing.T, id, path string) string {
	t.Helper()
	out, err := os.ReadFile(filepath.Join(b.Bundle(id), "rootfs", path))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// counts waits until a container has counted beyond a number and returns where it
// is.
func (b *bench) counts(t *testing.T, id string, beyond int) int {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		n, _ := strconv.Atoi(b.read(t, id, "count"))
		if n > beyond {
			return n
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s counts to %d, not beyond %d", id, n, beyond)
		}
	}
}

func status(t *testing.T, ctx context.Context, task client.Task) client.Status {
	t.Helper()
	s, err := task.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// parts of an archive.
var parts = []string{
	"checkpoint/inventory.img", "config.dump", "spec.dump", "bind.mounts", "dump.log", "stats-dump",
	"rootfs-diff.tar", "deleted.files", "container.log",
}

// (73)
func TestArchive(t *testing.T) {
	b := newBench(t)
	volume := filepath.Join(b.dir, "volume")
	if err := os.Mkdir(volume, 0o750); err != nil {
		t.Fatal(err)
	}
	bound := oci.WithMounts([]specs.Mount{{Type: "bind", Source: volume, Destination: "/data/volume", Options: []string{"rbind", "rw"}}})
	c := b.create(t, "first", containers.Container{}, bound)
	log := filepath.Join(b.dir, "log")
	task := b.start(t, c, log)

	request := Request{ID: "first", Dir: filepath.Join(b.dir, "dump"), LeaveRunning: true, LogPath: log, Config: Config{Name: "counter", PodID: "pod", RootfsImageName: host.Busybox}}
	cp, err := b.Checkpoint(b.ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	at := b.counts(t, "first", 0)
	if s := status(t, b.ctx, task); s.Status != client.Running {
		t.Errorf("it is %s after a checkpoint", s.Status)
	}
	b.counts(t, "first", at)
	if want := []BindMount{{volume, "/data/volume", "directory", 0o750}}; !cmp.Equal(cp.BindMounts, want) {
		t.Errorf("bind mounts %+v", cp.BindMounts)
	}

	archive := filepath.Join(b.dir, "a.tar")
	if err := cp.Export(b.ctx, archive); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(archive); err != nil || st.Mode() != 0o600 {
		t.Errorf("archive: %v, %v", st.Mode(), err)
	}
	list, err := exec.Command("tar", "-tf", archive).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		if !strings.Contains("\n"+string(list), "\n"+part+"\n") {
			t.Errorf("%s is not in the archive:\n%s", part, list)
		}
	}

	// A second container goes on from it while the first one still runs.
	got, err := Import(b.ctx, archive, filepath.Join(b.dir, "unpacked"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Config.Name != "counter" || got.Config.PodID != "pod" || got.Config.ID != "first" || got.Config.OCIRuntime != host.Native.Name || got.Config.CheckpointedAt.IsZero() {
		t.Errorf("config %+v", got.Config)
	}
	spec, err := got.SpecFor(Target{CgroupPath: "/" + b.Namespace + "/second"})
	if err != nil {
		t.Fatal(err)
	}
	b.restoreAs(t, "second", got, spec)
	if n := b.counts(t, "second", 0); n > at+50 {
		t.Errorf("it counts from %d on; the checkpoint was made at about %d", n, at)
	}
	if got := b.read(t, "second", "root/new"); got != "new" {
		t.Errorf("/root/new is %q", got)
	}
	if got := b.read(t, "second", "etc/hostname"); got != "changed" {
		t.Errorf("/etc/hostname is %q", got)
	}
	if _, err := os.Lstat(filepath.Join(b.Bundle("second"), "rootfs/bin/wget")); !os.IsNotExist(err) {
		t.Errorf("/bin/wget is back: %v", err)
	}
}

// restoreAs makes a container and restores it, with a log that must go on.
func (b *bench) restoreAs(t *testing.T, id string, cp *Checkpoint, spec *specs.Spec) client.Task {
	t.Helper()
	record := containers.Container{SandboxID: spec.Annotations[labels.AnnotationSandboxID]}
	if err := client.WithSpec(spec)(b.ctx, b.Engine.Client, &record); err != nil {
		t.Fatal(err)
	}
	b.create(t, id, record)
	log := filepath.Join(b.dir, "log."+id)
	task, err := b.Restore(b.ctx, cp, RestoreRequest{ID: id, IO: criLog(log), LogPath: log})
	if err != nil {
		t.Fatal(err)
	}
	if s := status(t, b.ctx, task); s.Status != client.Running {
		t.Errorf("it is %s after its restoration", s.Status)
	}
	n := b.counts(t, id, 0)
	b.counts(t, id, n)
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(string(text)) {
		if lines++; !strings.HasSuffix(line, fmt.Sprintf(" stdout F %d\n", lines)) {
			t.Errorf("line %d of the log is %s", lines, line)
			break
		}
	}
	if lines < n {
		t.Errorf("the log has %d lines, it counted to %d", lines, n)
	}
	return task
}

// (73) A container that ends with its checkpoint goes on in place.
func TestStopAndRestore(t *testing.T) {
	b := newBench(t)
	c := b.create(t, "c", containers.Container{})
	log := filepath.Join(b.dir, "log")
	task := b.start(t, c, log)
	exit, err := task.Wait(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	cp, err := b.Checkpoint(b.ctx, Request{ID: "c", Dir: filepath.Join(b.dir, "dump")})
	if err != nil {
		t.Fatal(err)
	}
	e := <-exit
	t.Logf("exit code %d", e.ExitCode())
	if s := status(t, b.ctx, task); s.Status != client.Stopped {
		t.Errorf("it is %s", s.Status)
	}
	at := b.counts(t, "c", 0)
	if _, err := task.Delete(b.ctx); err != nil {
		t.Fatalf("delete: %v", err)
	}
	if _, err := b.Checkpoint(b.ctx, Request{ID: "c", Dir: filepath.Join(b.dir, "other")}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("checkpoint without a task: %v", err)
	}
	if _, err := b.Restore(b.ctx, cp, RestoreRequest{ID: "c", IO: criLog(log)}); err != nil {
		t.Fatal(err)
	}
	if n := b.counts(t, "c", at); n > at+100 {
		t.Errorf("it was at %d and is at %d", at, n)
	}
	if !cp.Config.Restored {
		t.Error("it is not marked as restored")
	}
}

// A paused container stays paused.
func TestPaused(t *testing.T) {
	b := newBench(t)
	task := b.start(t, b.create(t, "c", containers.Container{}), filepath.Join(b.dir, "log"))
	if err := task.Pause(b.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Checkpoint(b.ctx, Request{ID: "c", Dir: filepath.Join(b.dir, "dump"), LeaveRunning: true}); err != nil {
		t.Fatal(err)
	}
	if s := status(t, b.ctx, task); s.Status != client.Paused {
		t.Errorf("it is %s", s.Status)
	}
	if err := task.Resume(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.counts(t, "c", b.counts(t, "c", 0))
}

// What CRIU cannot write down leaves the container running, and the error tells
// CRIU's reason.
func TestFailedDump(t *testing.T) {
	b := newBench(t)
	// A connection that nobody said may be written down.
	c := b.create(t, "c", containers.Container{}, oci.WithProcessArgs("sh", "-c",
		"ifconfig lo up 2>/dev/null; nc -l -p 7000 -e sleep 1000 & sleep 0.5; nc 127.0.0.1 7000 & echo 1 > /count; i=1; while :; do i=$((i+1)); echo $i > /tmp.count; mv /tmp.count /count; usleep 20000; done"))
	task := b.start(t, c, filepath.Join(b.dir, "log"))
	b.counts(t, "c", 50)
	_, err := b.Checkpoint(b.ctx, Request{ID: "c", Dir: filepath.Join(b.dir, "dump")})
	if err == nil || !strings.Contains(err.Error(), "dump.log") {
		t.Errorf("error %v", err)
	}
	if s := status(t, b.ctx, task); s.Status != client.Running {
		t.Errorf("it is %s", s.Status)
	}
	b.counts(t, "c", b.counts(t, "c", 0))
	if _, err := os.Stat(filepath.Join(b.dir, "dump/dump.log")); err != nil {
		t.Error(err)
	}
}

// Images that CRIU cannot use leave no task, and the container can be restored
// from better ones.
func TestFailedRestore(t *testing.T) {
	b := newBench(t)
	c := b.create(t, "c", containers.Container{})
	log := filepath.Join(b.dir, "log")
	task := b.start(t, c, log)
	cp, err := b.Checkpoint(b.ctx, Request{ID: "c", Dir: filepath.Join(b.dir, "dump")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.Delete(b.ctx); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(b.dir, "dump/checkpoint/pstree.img")
	good, err := os.ReadFile(tree)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tree, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := RestoreRequest{ID: "c", IO: criLog(log)}
	if _, err := b.Restore(b.ctx, cp, r); err == nil || !strings.Contains(err.Error(), "restore c: ") {
		t.Errorf("error %v", err)
	}
	if _, err := c.Task(b.ctx, nil); !errdefs.IsNotFound(err) {
		t.Errorf("there is a task: %v", err)
	}
	if err := os.WriteFile(tree, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Restore(b.ctx, cp, r); err != nil {
		t.Fatal(err)
	}
	b.counts(t, "c", b.counts(t, "c", 0))
}

func TestImage(t *testing.T) {
	b := newBench(t)
	log := filepath.Join(b.dir, "log")
	task := b.start(t, b.create(t, "c", containers.Container{}), log)
	cp, err := b.Checkpoint(b.ctx, Request{ID: "c", Dir: filepath.Join(b.dir, "dump"), LogPath: log, Config: Config{Name: "counter", PodName: "pod", RootfsImageName: host.Busybox}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.Delete(b.ctx); err != nil {
		t.Fatal(err)
	}
	const name = "berth.test/checkpoint:1"
	for range 2 { // in place of itself
		if _, err := b.Publish(b.ctx, cp, name); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = b.Engine.Client.ImageService().Delete(b.ctx, name) })
	m, err := b.manifest(b.ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"org.criu.checkpoint.engine.name": "berth", "org.criu.checkpoint.engine.version": "0.1", "org.criu.checkpoint.container.name": "counter",
		"org.criu.checkpoint.pod.name": "pod", "org.criu.checkpoint.rootfsImageName": host.Busybox,
	} {
		if m.Annotations[key] != want {
			t.Errorf("annotation %s is %q, want %q", key, m.Annotations[key], want)
		}
	}
	if is, err := b.IsImage(b.ctx, name); !is || err != nil {
		t.Errorf("%v, %v", is, err)
	}
	if is, err := b.IsImage(b.ctx, host.Busybox); is || err != nil {
		t.Errorf("%v, %v", is, err)
	}
	if _, err := b.Fetch(b.ctx, host.Busybox, filepath.Join(b.dir, "none")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("image of something else: %v", err)
	}
	if _, err := b.Fetch(b.ctx, "berth.test/none:1", filepath.Join(b.dir, "none")); !errdefs.IsNotFound(err) {
		t.Errorf("no image: %v", err)
	}
	got, err := b.Fetch(b.ctx, name, filepath.Join(b.dir, "fetched"))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := got.SpecFor(Target{CgroupPath: "/" + b.Namespace + "/d"})
	if err != nil {
		t.Fatal(err)
	}
	b.restoreAs(t, "d", got, spec)
}

// (74) and what else is refused before the runtime is called: there is no such
// container.
func TestRefused(t *testing.T) {
	b := newBench(t)
	good := filepath.Join(b.dir, "good")
	if err := os.MkdirAll(filepath.Join(good, imagesDir), 0o700); err != nil {
		t.Fatal(err)
	}
	r := RestoreRequest{ID: "none", IO: cio.NullIO}
	if _, err := b.Restore(b.ctx, &Checkpoint{Dir: good}, r); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "inventory.img") {
		t.Errorf("without inventory: %v", err)
	}
	if _, err := Load(good); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "inventory.img") {
		t.Errorf("load without inventory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(good, imagesDir, inventoryFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Restore(b.ctx, &Checkpoint{Dir: good}, r); !errdefs.IsNotFound(err) {
		t.Errorf("no container: %v", err)
	}
	none := Engine{Client: b.Engine.Client, CRIU: filepath.Join(b.dir, "nocriu")}
	old := Engine{Client: b.Engine.Client, CRIU: filepath.Join(b.dir, "oldcriu")}
	programs.Write(t, old.CRIU, "#!/bin/sh\necho Version: 3.9.1\n")
	b.create(t, "c", containers.Container{})
	for name, e := range map[string]*Engine{"no criu": &none, "3.9.1": &old} {
		if _, err := e.Restore(b.ctx, &Checkpoint{Dir: good}, r); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := e.Checkpoint(b.ctx, Request{ID: "c", Dir: filepath.Join(b.dir, "x")}); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.Checkpoint(b.ctx, Request{ID: "c", Dir: filepath.Join(b.dir, "x")}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("not running: %v", err)
	}
	if _, err := b.Checkpoint(b.ctx, Request{ID: "c", Dir: "x"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("relative: %v", err)
	}
	if _, err := b.Checkpoint(b.ctx, Request{ID: "none", Dir: "/x"}); !errdefs.IsNotFound(err) {
		t.Errorf("no container: %v", err)
	}
}
