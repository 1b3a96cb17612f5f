// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/integration/host"
	berth "github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/process"
	"github.com/berthd/berth/plugin/runtime/record"
)

// shell asks for a container that runs a script.
func shell(pod berth.Pod, name, script string) berth.ContainerRequest {
	return berth.ContainerRequest{Pod: string(pod.ID), Name: name, Image: host.Busybox, Command: []string{"sh", "-c", script}}
}

// idle ends on SIGTERM; stubborn does not.
const (
	idle     = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
	stubborn = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
)

func (r *rig) create(t *testing.T, q berth.ContainerRequest) berth.Container {
	t.Helper()
	c, err := r.CreateContainer(ctx(t), q)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start runs a container and waits until it has said ready.
func (r *rig) start(t *testing.T, q berth.ContainerRequest) berth.Container {
	t.Helper()
	c := r.create(t, q)
	if err := r.StartContainer(ctx(t), string(c.ID)); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() string {
		if b, _ := os.ReadFile(c.LogPath); !strings.Contains(string(b), "ready") {
			return "not ready: " + string(b)
		}
		return ""
	})
	return c
}

func (r *rig) state(t *testing.T, ref string) berth.ContainerState {
	t.Helper()
	c, err := r.Container(ctx(t), ref)
	if err != nil {
		t.Fatal(err)
	}
	return c.State
}

// (P10, P36, P45)
func TestRuntimeContainerLife(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	q := shell(p, "main", idle)
	q.Labels, q.Attempt = map[string]string{"tier": "front"}, 2
	c := r.create(t, q)
	if c.State != berth.ContainerCreated || c.PodID != p.ID || c.Name != "main" || c.Attempt != 2 || c.Labels["tier"] != "front" {
		t.Errorf("created: %+v", c)
	}
	record, err := r.Client().ContainerService().Get(r.Context(ctx(t)), string(c.ID))
	if err != nil || record.SandboxID != string(p.ID) || record.Labels["io.berth.created"] != "true" {
		t.Errorf("record: sandbox %q, labels %v, %v", record.SandboxID, record.Labels, err)
	}
	for key := range record.Labels {
		if strings.HasPrefix(key, "io.cri-containerd") {
			t.Errorf("label %s", key)
		}
	}
	for _, ref := range []string{string(c.ID), c.FullName, "main", string(c.ID[:10])} {
		if got, err := r.Container(ctx(t), ref); err != nil || got.ID != c.ID {
			t.Errorf("by %q: %v, %v", ref, got.ID, err)
		}
	}
	if _, err := r.Container(ctx(t), p.Name); !errdefs.IsNotFound(err) {
		t.Errorf("by the pod's name: %v", err)
	}
	if err := r.StartContainer(ctx(t), "main"); err != nil {
		t.Fatal(err)
	}
	if c, err = r.Container(ctx(t), "main"); err != nil || c.State != berth.ContainerRunning || c.Pid == 0 {
		t.Errorf("started: %v, %+v", err, c)
	}
	if err := r.Pause(ctx(t), "main"); err != nil {
		t.Fatal(err)
	}
	if got := r.state(t, "main"); got != berth.ContainerPaused {
		t.Errorf("paused: %s", got)
	}
	if err := r.Unpause(ctx(t), "main"); err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveContainer(ctx(t), "main", berth.RemoveOptions{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removed while it runs: %v", err)
	}
	if err := r.RemovePod(ctx(t), p.Name, berth.RemoveOptions{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("pod removed while it runs: %v", err)
	}
	if err := r.StopContainer(ctx(t), "main", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if c, err = r.Container(ctx(t), "main"); err != nil || c.State != berth.ContainerExited || c.ExitCode == nil || *c.ExitCode != 7 || c.Reason != "Error" {
		t.Errorf("stopped: %v, %+v", err, c)
	}
	for range 2 {
		if err := r.RemoveContainer(ctx(t), string(c.ID), berth.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(c.WorkDirectory); err == nil {
		t.Error("the work directory is left")
	}
}

// (P52, S52, S55) and the log in Kubernetes' format.
func TestRuntimeExec(t *testing.T) {
	r := withService(t)
	c := r.start(t, shell(r.pod(t, hostPod(t)), "main", idle))
	ref := string(c.ID)
	var out, errs bytes.Buffer
	code, err := r.Exec(ctx(t), ref, berth.ExecRequest{
		Command: []string{"sh", "-c", "cat; id -u; echo $X; pwd; echo bad >&2; exit 3"}, Stdin: strings.NewReader("in\n"),
		Stdout: &out, Stderr: &errs, Env: []string{"X=y"}, WorkDir: "/tmp", User: "12:34",
	})
	if err != nil || code != 3 || out.String() != "in\n12\ny\n/tmp\n" || errs.String() != "bad\n" {
		t.Errorf("code %d, %v, stdout %q, stderr %q", code, err, out.String(), errs.String())
	}
	got, err := r.ExecSync(ctx(t), ref, []string{"sh", "-c", "echo a; exit 4"}, 0)
	if err != nil || got.ExitCode != 4 || string(got.Stdout) != "a\n" {
		t.Errorf("%+v, %v", got, err)
	}
	took(t, "a command with a second", 5*time.Second, func() {
		got, err = r.ExecSync(ctx(t), ref, []string{"sleep", "60"}, time.Second)
	})
	if !errdefs.IsDeadlineExceeded(err) || got.ExitCode != -1 || string(got.Stderr) != "command timed out" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := r.Exec(ctx(t), ref, berth.ExecRequest{Command: []string{"/missing"}}); err == nil {
		t.Error("a missing command could be executed")
	}
	top, err := r.Top(ctx(t), ref)
	if err != nil || len(top) == 0 || !strings.Contains(top[0].Command, "trap") || top[0].User != "root" {
		t.Errorf("top: %+v, %v", top, err)
	}
	st, err := r.Stats(ctx(t), ref)
	if err != nil || len(st) != 1 || st[0].Memory.Usage == 0 || st[0].Pids.Current == 0 {
		t.Errorf("stats: %+v, %v", st, err)
	}
	line, err := os.ReadFile(c.LogPath)
	if fields := strings.SplitN(string(line), " ", 4); err != nil || len(fields) != 4 || fields[1] != "stdout" || fields[2] != "F" || fields[3] != "ready\n" {
		t.Errorf("log %q, %v", line, err)
	}
}

// (S47, S49, S50 as far as the service is concerned; S51)
func TestRuntimeAttach(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	q := shell(p, "main", "echo ready; while read line; do echo got $line; echo err >&2; done; exit 5")
	q.Stdin, q.StdinOnce = true, true
	c := r.start(t, q)
	var out, errs bytes.Buffer
	err := r.Attach(ctx(t), string(c.ID), berth.AttachRequest{Stdin: strings.NewReader("one\ntwo\n"), Stdout: &out, Stderr: &errs})
	if err != nil || out.String() != "got one\ngot two\n" || errs.String() != "err\nerr\n" {
		t.Errorf("%v, %q, %q", err, out.String(), errs.String())
	}
	end, err := r.Wait(ctx(t), string(c.ID))
	if err != nil || end.ExitCode == nil || *end.ExitCode != 5 {
		t.Errorf("%+v, %v", end, err)
	}
}

// stalled is a client that takes nothing.
type stalled struct{ until <-chan struct{} }

func (s stalled) Write(p []byte) (int, error) {
	<-s.until
	return len(p), nil
}

// counter counts what it takes.
type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// (S47, S48) Of three clients one stalls: the others and the log get everything, and
// the container does not wait.
func TestRuntimeAttachStalled(t *testing.T) {
	const size = 10 << 20
	r := withService(t)
	p := r.pod(t, hostPod(t))
	q := shell(p, "main", "echo ready; read go; dd if=/dev/zero bs=1024 count=10240 2>/dev/null | tr '\\0' x")
	q.Stdin = true
	c := r.start(t, q)
	until := make(chan struct{})
	late := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		late <- r.Attach(ctx(t), string(c.ID), berth.AttachRequest{Stdout: stalled{until}, Started: started})
	}()
	<-started
	clients := []*counter{{}, {}}
	ends := make(chan error, len(clients))
	for _, client := range clients {
		started := make(chan struct{})
		go func() {
			ends <- r.Attach(ctx(t), string(c.ID), berth.AttachRequest{Stdout: client, Started: started})
		}()
		<-started
	}
	if err := r.Attach(ctx(t), string(c.ID), berth.AttachRequest{Stdin: strings.NewReader("go\n")}); err != nil {
		t.Fatal(err)
	}
	for range clients {
		if err := <-ends; err != nil {
			t.Error(err)
		}
	}
	for _, client := range clients {
		if client.n != size { // and nothing of before
			t.Errorf("a client got %d bytes", client.n)
		}
	}
	if end, err := r.Wait(ctx(t), string(c.ID)); err != nil || end.ExitCode == nil || *end.ExitCode != 0 {
		t.Errorf("%+v, %v", end, err)
	}
	close(until)
	if err := <-late; err != nil && !errors.Is(err, process.ErrTooSlow) {
		t.Error(err)
	}
	eventually(t, patience, func() string {
		b, err := os.ReadFile(c.LogPath)
		if n := strings.Count(string(b), "x"); err != nil || n != size {
			return fmt.Sprintf("the log has %d bytes, %v", n, err)
		}
		return ""
	})
}

// (P23, P24, P25, P26)
func TestRuntimeMount(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	c := r.start(t, shell(p, "main", idle))
	ref := string(c.ID)
	running, err := r.Mount(ctx(t), ref)
	if err != nil || running != filepath.Join(r.Bundle(ref), "rootfs") {
		t.Errorf("while it runs: %s, %v", running, err)
	}
	if err := r.Unmount(ctx(t), ref); err != nil {
		t.Error(err)
	}
	if got := r.state(t, ref); got != berth.ContainerRunning {
		t.Errorf("after Unmount: %s", got)
	}
	if err := r.Service.Kill(ctx(t), ref, "KILL", false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Wait(ctx(t), ref); err != nil {
		t.Fatal(err)
	}
	if ended, err := r.Mount(ctx(t), ref); err != nil || ended != running {
		t.Errorf("when it has ended: %s, %v", ended, err)
	}
	tasks := r.Client().TaskService()
	if _, err := tasks.Delete(r.Context(ctx(t)), deleteTask(ref)); err != nil {
		t.Fatal(err)
	}
	var paths [2]string
	for i := range paths {
		if paths[i], err = r.Mount(ctx(t), ref); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(paths[0], "bin/busybox")); err != nil || paths[0] != paths[1] {
		t.Errorf("%v: %v", paths, err)
	}
	if n := mountedAt(t, paths[0]); n != 1 {
		t.Errorf("mounted %d times", n)
	}
	if err := r.Unmount(ctx(t), ref); err != nil {
		t.Fatal(err)
	}
	if n := mountedAt(t, paths[0]); n != 0 {
		t.Errorf("after Unmount mounted %d times", n)
	}
}

// A container of no pod has one made for it, which goes with it.
func TestRuntimeContainerAlone(t *testing.T) {
	r := withService(t)
	q := berth.ContainerRequest{
		Name: podName(t), Image: host.Busybox, Command: []string{"sh", "-c", idle}, NewPod: berth.PodRequest{HostNetwork: true},
	}
	c := r.start(t, q)
	p, err := r.Pod(ctx(t), c.Name)
	if err != nil || p.ID != c.PodID || len(p.Containers) != 1 || c.FullName != q.Name+"/"+q.Name {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := r.CreateContainer(ctx(t), q); !errdefs.IsAlreadyExists(err) {
		t.Errorf("again: %v", err)
	}
	if err := r.RemoveContainer(ctx(t), c.Name, berth.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if pods, err := r.Pods(ctx(t), berth.PodFilter{}); err != nil || len(pods) != 0 {
		t.Errorf("%v, %v", pods, err)
	}
	q.Image = "berth.test/missing:1"
	if _, err := r.CreateContainer(ctx(t), q); !errdefs.IsNotFound(err) {
		t.Errorf("of a missing image: %v", err)
	}
	if left := r.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// (P68, S71) and others that are refused, which leaves nothing.
func TestRuntimeContainerRefused(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	first := r.create(t, shell(p, "first", idle))
	before := r.Count(t)
	for name, change := range map[string]func(*berth.ContainerRequest){
		"name in use": func(q *berth.ContainerRequest) { q.Name = "first" },
		"no image":    func(q *berth.ContainerRequest) { q.Image = "" },
		"memory":      func(q *berth.ContainerRequest) { q.Resources.Memory = 4 << 20 },
		"pod":         func(q *berth.ContainerRequest) { q.Pod = "unknown" },
		"command":     func(q *berth.ContainerRequest) { q.Command = []string{"/missing"} },
		"label":       func(q *berth.ContainerRequest) { q.Labels = map[string]string{"containerd.io/gc.root": "x"} },
		"mount":       func(q *berth.ContainerRequest) { q.Mounts = []berth.Mount{{Source: "/missing", Target: "/x"}} },
	} {
		q := shell(p, "other", idle)
		change(&q)
		c, err := r.CreateContainer(ctx(t), q)
		if err == nil {
			t.Errorf("%s: made as %s", name, c.ID)
			continue
		}
		if name == "name in use" && !(errdefs.IsAlreadyExists(err) && strings.Contains(err.Error(), string(first.ID))) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "memory" && !(errdefs.IsInvalidArgument(err) && strings.Contains(err.Error(), "4194304") && strings.Contains(err.Error(), "12582912")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.Settle(t, before)
	if left := r.left(); len(left) != 2*2+1 { // two directories each, and the pod's network
		t.Errorf("left: %v", left)
	}
}

// (P69) A repeated request joins the first.
func TestRuntimeRepeated(t *testing.T) {
	r := withService(t)
	type result struct {
		id  string
		err error
	}
	p := r.pod(t, hostPod(t))
	for what, create := range map[string]func() (string, error){
		"container": func() (string, error) {
			c, err := r.CreateContainer(ctx(t), shell(p, "main", idle))
			return string(c.ID), err
		},
		"pod": func() (string, error) {
			q := hostPod(t)
			q.Name += "-second"
			p, err := r.CreatePod(ctx(t), q)
			return string(p.ID), err
		},
	} {
		results := make(chan result, 3)
		for range cap(results) {
			go func() {
				id, err := create()
				results <- result{id, err}
			}()
		}
		ids := map[string]bool{}
		for range cap(results) {
			got := <-results
			if got.err != nil {
				t.Errorf("%s: %v", what, got.err)
			}
			ids[got.id] = true
		}
		if len(ids) != 1 {
			t.Errorf("%s: %v", what, ids)
		}
	}
}

// (P66, S58 to S63)
func TestRuntimeStop(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	for _, name := range []string{"one", "two", "three"} {
		r.start(t, shell(p, name, stubborn))
	}
	d := took(t, "stopping three stubborn containers", 4*time.Second, func() {
		if err := r.StopPod(ctx(t), p.Name, 2*time.Second); err != nil {
			t.Error(err)
		}
	})
	if d < 1900*time.Millisecond {
		t.Errorf("they had %v", d)
	}
	got, err := r.Pod(ctx(t), p.Name)
	if err != nil || got.State != berth.PodNotReady {
		t.Errorf("%v, %v", got.State, err)
	}
	for _, c := range got.Containers {
		if c.State != berth.ContainerExited || c.ExitCode == nil || *c.ExitCode != 137 {
			t.Errorf("%s: %s, %v", c.Name, c.State, c.ExitCode)
		}
	}
	q := hostPod(t)
	q.Name += "-second"
	p = r.pod(t, q)
	c := r.start(t, shell(p, "main", stubborn))
	took(t, "stops of 60 s and 1 s", 5*time.Second, func() {
		first := make(chan error, 1)
		go func() { first <- r.StopContainer(ctx(t), string(c.ID), time.Minute) }()
		if err := r.StopContainer(ctx(t), string(c.ID), time.Second); err != nil {
			t.Error(err)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
	polite := r.start(t, shell(p, "polite", idle))
	if err := r.Pause(ctx(t), string(polite.ID)); err != nil {
		t.Fatal(err)
	}
	took(t, "stopping a paused container", 3*time.Second, func() {
		if err := r.StopContainer(ctx(t), string(polite.ID), time.Minute); err != nil {
			t.Error(err)
		}
	})
	if got, err := r.Container(ctx(t), "polite"); err != nil || got.ExitCode == nil || *got.ExitCode != 7 {
		t.Errorf("%+v, %v", got, err)
	}
}

// (S59, S61) The image says which signal asks a container to end, and none does with
// no time to do so.
func TestRuntimeStopSignal(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	const image = "berth.test/usr1:1"
	r.image(t, image, func(c *ocispec.ImageConfig) { c.StopSignal = "SIGUSR1" })
	script := "trap 'echo USR1; exit 6' USR1; trap 'echo TERM' TERM INT HUP; echo ready; while :; do sleep 0.05; done"
	for name, c := range map[string]struct {
		grace time.Duration
		code  int32
		log   string
	}{"asked": {10 * time.Second, 6, "USR1"}, "killed": {0, 137, ""}} {
		q := shell(p, name, script)
		q.Image = image
		made := r.start(t, q)
		took(t, "stopping", 5*time.Second, func() {
			if err := r.StopContainer(ctx(t), string(made.ID), c.grace); err != nil {
				t.Error(err)
			}
		})
		got, err := r.Container(ctx(t), string(made.ID))
		if err != nil || got.StopSignal != "SIGUSR1" || got.ExitCode == nil || *got.ExitCode != c.code {
			t.Errorf("%s: %v, %+v", name, err, got)
		}
		if b, _ := os.ReadFile(made.LogPath); strings.Contains(string(b), "TERM") || strings.Contains(string(b), "USR1") != (c.log != "") {
			t.Errorf("%s: log %q", name, b)
		}
	}
}

// image makes an image of busybox's layer, and more of them, with another configuration.
func (r *rig) image(t *testing.T, name string, change func(*ocispec.ImageConfig), layers ...[]byte) {
	t.Helper()
	in := r.Context(context.Background())
	ctx, done, err := r.Client().WithLease(in)
	if err != nil {
		t.Fatal(err)
	}
	defer done(in)
	from, err := r.Client().GetImage(ctx, host.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	config, err := from.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := images.Manifest(ctx, r.Client().ContentStore(), from.Target(), from.Platform())
	if err != nil {
		t.Fatal(err)
	}
	change(&config.Config)
	manifest.MediaType = ocispec.MediaTypeImageManifest
	for _, layer := range layers {
		desc := r.blob(t, ctx, ocispec.MediaTypeImageLayer, layer, nil)
		manifest.Layers = append(manifest.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, desc.Digest)
	}
	manifest.Config = r.blob(t, ctx, ocispec.MediaTypeImageConfig, encoded(t, config), nil)
	keep := map[string]string{"containerd.io/gc.ref.content.config": manifest.Config.Digest.String()}
	for i, layer := range manifest.Layers {
		keep[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = layer.Digest.String()
	}
	target := r.blob(t, ctx, ocispec.MediaTypeImageManifest, encoded(t, manifest), keep)
	if _, err := r.Client().ImageService().Create(ctx, images.Image{Name: name, Target: target}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Client().ImageService().Delete(in, name, images.SynchronousDelete()); err != nil {
			t.Error(err)
		}
	})
}

func encoded(t *testing.T, document any) []byte {
	t.Helper()
	b, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// blob stores what an image is made of.
func (r *rig) blob(t *testing.T, ctx context.Context, mediaType string, b []byte, labels map[string]string) ocispec.Descriptor {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(ctx, r.Client().ContentStore(), desc.Digest.String(), bytes.NewReader(b), desc, content.WithLabels(labels)); err != nil {
		t.Fatal(err)
	}
	return desc
}

// (P68) What has a task is not deleted, and nothing changes.
func TestRuntimeRemoveLiving(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	c := r.start(t, shell(p, "main", idle))
	before, files := r.records(t), r.left()
	for what, err := range map[string]error{
		"container": r.RemoveContainer(ctx(t), string(c.ID), berth.RemoveOptions{}),
		"pod":       r.RemovePod(ctx(t), string(p.ID), berth.RemoveOptions{}),
	} {
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), string(c.ID)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Nor below: what the service would have to do first is checked there too.
	store, err := record.New(r.Client(), record.Options{Namespace: r.Namespace, Root: r.config.Root, State: r.config.State, Snapshotter: "overlayfs"})
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"container": store.Remove(ctx(t), string(c.ID)), "pod": store.RemovePod(ctx(t), string(p.ID)),
	} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s, of the store: %v", what, err)
		}
	}
	if diff := cmp.Diff(before, r.records(t)); diff != "" {
		t.Errorf("records: %s", diff)
	}
	if diff := cmp.Diff(files, r.left()); diff != "" {
		t.Errorf("files: %s", diff)
	}
	if got := r.state(t, string(c.ID)); got != berth.ContainerRunning {
		t.Errorf("afterwards it is %s", got)
	}
}

// records are those of containers, as their names and when they were changed.
func (r *rig) records(t *testing.T) (all []string) {
	t.Helper()
	found, err := r.Client().ContainerService().List(r.Context(ctx(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range found {
		all = append(all, c.ID+" "+c.UpdatedAt.String())
	}
	slices.Sort(all)
	return all
}
