// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/record/idmap"
)

// (1, 2, 3, 31)
func TestArguments(t *testing.T) {
	w := newWorld(t)
	pod := w.pod(t, nil)
	before := w.census(t)
	for _, c := range []struct {
		name   string
		pod    func(*CreatePod)
		member func(*CreateContainer)
		want   error
	}{
		{"pod without name", func(r *CreatePod) { r.Pod.FullName = "" }, nil, ErrInvalidPodName},
		{"pod without ID", func(r *CreatePod) { r.Pod.ID = "" }, nil, ErrInvalidPodName},
		{"pause image without name", func(r *CreatePod) { r.Pause = &PauseImage{} }, nil, ErrInvalidImageName},
		{"pod ID as a path", func(r *CreatePod) { r.Pod.ID = "../x" }, nil, errdefs.ErrInvalidArgument},
		{"pod label of containerd's", func(r *CreatePod) { r.Labels = map[string]string{"containerd.io/gc.root": "x"} }, nil, errdefs.ErrInvalidArgument},
		{"pod map without root", func(r *CreatePod) { r.IDs = &IDMappings{} }, nil, errdefs.ErrInvalidArgument},
		{"member without pod name", nil, func(r *CreateContainer) { r.PodName = "" }, ErrInvalidPodName},
		{"member without pod ID", nil, func(r *CreateContainer) { r.PodID = "" }, ErrInvalidPodName},
		{"member without both names", nil, func(r *CreateContainer) { r.PodName, r.Name = "", "" }, ErrInvalidPodName},
		{"member without name", nil, func(r *CreateContainer) { r.Name = "" }, ErrInvalidContainerName},
		{"member without image", nil, func(r *CreateContainer) { r.Image.Record = "" }, ErrInvalidImageName},
		{"member without image and name", nil, func(r *CreateContainer) { r.Image.Record, r.Name = "", "" }, ErrInvalidImageName},
		{"member of another pod name", nil, func(r *CreateContainer) { r.PodName += "x" }, ErrInvalidPodName},
		{"member of no pod", nil, func(r *CreateContainer) { r.PodID = "nobody" }, ErrInvalidSandboxID},
		{"member ID as a path", nil, func(r *CreateContainer) { r.ID = "a/../../b" }, errdefs.ErrInvalidArgument},
		{"pod ID of member as a path", nil, func(r *CreateContainer) { r.PodID = "a/../../b" }, errdefs.ErrInvalidArgument},
		{"member with its pod's ID", nil, func(r *CreateContainer) { r.ID = r.PodID }, errdefs.ErrInvalidArgument},
		{"member without spec", nil, func(r *CreateContainer) { r.Spec = nil }, errdefs.ErrInvalidArgument},
		{"member with other IDs", nil, func(r *CreateContainer) { r.IDs = &IDMappings{Auto: true} }, errdefs.ErrInvalidArgument},
		{"label of CRI's", nil, func(r *CreateContainer) { r.Labels = map[string]string{"io.cri-containerd.kind": "x"} }, errdefs.ErrInvalidArgument},
		{"label of berth's", nil, func(r *CreateContainer) { r.Labels = map[string]string{"io.berth.created": "x"} }, errdefs.ErrInvalidArgument},
		{"unknown image", nil, func(r *CreateContainer) { r.Image.Record = "docker.io/library/no:1" }, errdefs.ErrNotFound},
		{"image with another ID", nil, func(r *CreateContainer) { r.Image.ID = strings.Repeat("a", 64) }, errdefs.ErrNotFound},
		{"unknown snapshotter", nil, func(r *CreateContainer) { r.Snapshotter = "no" }, errdefs.ErrInvalidArgument},
		{"spec fails", nil, func(r *CreateContainer) {
			r.Spec = func(context.Context, *Creation) (*specs.Spec, error) { return nil, errdefs.ErrPermissionDenied }
		}, errdefs.ErrPermissionDenied},
	} {
		t.Run(c.name, func(t *testing.T) {
			var err error
			if c.pod != nil {
				r := w.podRequest(t)
				c.pod(r)
				_, err = w.CreatePod(t.Context(), r)
			} else {
				r := w.request(pod.Container.Metadata.Pod)
				c.member(r)
				_, err = w.CreateContainer(t.Context(), r)
			}
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			w.wantCensus(t, before)
		})
	}
}

// (4, 9, 10, 29, 34, 36)
func TestRecords(t *testing.T) {
	w := newWorld(t)
	before := w.census(t)
	pod := w.pod(t, func(r *CreatePod) { r.Labels = map[string]string{"app": "x"} })
	c := w.container(t, pod, func(r *CreateContainer) {
		r.MetadataName, r.Privileged = "", true
		r.Labels = map[string]string{"tier": "y"}
		r.Annotations = map[string]string{"note": "z"}
	})
	p := pod.Container.Metadata
	if pod.Container.ID != p.Pod.ID || p.Kind != labels.KindInfra || c.Container.Metadata.Kind != labels.KindContainer {
		t.Errorf("kinds: %+v, %+v", p, c.Container.Metadata)
	}
	for _, name := range []string{p.Pod.ID, p.Name, p.Pod.FullName} {
		got, err := w.Container(t.Context(), name)
		if err != nil || got.ID != p.Pod.ID {
			t.Errorf("by %s: %v, %v", name, got.ID, err)
		}
	}
	for _, name := range []string{c.Container.ID, c.Container.Metadata.Name} {
		got, err := w.Container(t.Context(), name)
		if err != nil || got.ID != c.Container.ID {
			t.Errorf("by %s: %v, %v", name, got.ID, err)
		}
		if m := got.Metadata; m.MetadataName != m.Name || m.Attempt != 0 || !m.Created || m.Pod != p.Pod {
			t.Errorf("metadata: %+v", m)
		}
	}
	if _, err := w.Container(t.Context(), "nobody"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown: %v", err)
	}
	if id, err := w.Complete(t.Context(), c.Container.ID[:len(c.Container.ID)-2]); err != nil || id != c.Container.ID {
		t.Errorf("completed: %v, %v", id, err)
	}
	if _, err := w.Complete(t.Context(), ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("empty prefix: %v", err)
	}
	w.container(t, pod, nil)
	if _, err := w.Complete(t.Context(), "c"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("ambiguous prefix: %v", err)
	}
	r := c.Container.Record
	if r.SandboxID != p.Pod.ID || pod.Container.Record.SandboxID != "" || pod.Sandbox == nil || pod.Sandbox.ID != p.Pod.ID {
		t.Errorf("sandboxes: %q, %q, %v", r.SandboxID, pod.Container.Record.SandboxID, pod.Sandbox)
	}
	if r.Image != host.Busybox || r.SnapshotKey != r.ID || r.Snapshotter != "overlayfs" {
		t.Errorf("record: %+v", r)
	}
	info, _ := w.snapshot(t, "overlayfs", r.ID)
	for key, value := range labels.SnapshotLabels(c.Container.Metadata.Name) {
		if info.Labels[key] != value {
			t.Errorf("snapshot's label %s is %q", key, info.Labels[key])
		}
	}
	if left := w.leased(t, p.Pod.ID); len(left) > 0 {
		t.Errorf("the lease still has %v", left)
	}
	out, err := w.d.Ctr("containers", "info", r.ID).CombinedOutput()
	if err != nil || strings.Contains(string(out), "io.cri-containerd") {
		t.Errorf("ctr: %v\n%s", err, out)
	}
	for _, key := range []string{
		"io.berth.managed", "io.berth.kind", "io.berth.pod.id", "io.berth.pod.name", "io.kubernetes.pod.name",
		"io.kubernetes.pod.namespace", "io.kubernetes.pod.uid", "io.berth.name", "io.kubernetes.container.name",
		"io.berth.image.name", "io.berth.image.id", "io.berth.created-at", "io.berth.privileged", "io.berth.created", "tier",
	} {
		if !strings.Contains(string(out), fmt.Sprintf("%q", key)) {
			t.Errorf("ctr shows no %s", key)
		}
	}
	for _, dir := range []string{c.Container.WorkDir, c.Container.RunDir, pod.Container.WorkDir} {
		info, err := os.Stat(dir)
		if err != nil || info.Mode() != os.ModeDir|0o700 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
	entry, err := w.Pod(t.Context(), p.Pod.FullName)
	if err != nil || !entry.Sandbox || entry.Infra == nil || len(entry.Members) != 2 {
		t.Errorf("pod: %+v, %v", entry, err)
	}
	pods, rest, err := w.List(t.Context())
	if err != nil || len(pods) != 1 || len(rest) != 0 {
		t.Errorf("list: %v, %v, %v", pods, rest, err)
	}
	// (70)
	if err := w.RemovePod(t.Context(), p.Pod.FullName); err != nil {
		t.Error(err)
	}
	w.wantCensus(t, before)
}

// (14): and two callers at once.
func TestNames(t *testing.T) {
	w := newWorld(t)
	pod := w.pod(t, nil)
	first := w.container(t, pod, nil)
	before := w.census(t)
	r := w.request(pod.Container.Metadata.Pod)
	r.Name = first.Container.Metadata.Name
	_, err := w.CreateContainer(t.Context(), r)
	if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), first.Container.ID) {
		t.Errorf("name in use: %v", err)
	}
	r = w.request(pod.Container.Metadata.Pod)
	r.ID = first.Container.ID
	if _, err := w.CreateContainer(t.Context(), r); !errdefs.IsAlreadyExists(err) {
		t.Errorf("ID in use: %v", err)
	}
	r = w.request(pod.Container.Metadata.Pod)
	r.Name = pod.Container.Metadata.Pod.FullName
	if _, err := w.CreateContainer(t.Context(), r); !errdefs.IsAlreadyExists(err) {
		t.Errorf("name of the pod: %v", err)
	}
	p := w.podRequest(t)
	p.Pod.FullName, p.Name = pod.Container.Metadata.Pod.FullName, "other"
	if _, err := w.CreatePod(t.Context(), p); !errdefs.IsAlreadyExists(err) {
		t.Errorf("name of another pod: %v", err)
	}
	p = w.podRequest(t)
	p.Pod.ID = pod.Container.ID
	if _, err := w.CreatePod(t.Context(), p); !errdefs.IsAlreadyExists(err) {
		t.Errorf("ID of another pod: %v", err)
	}
	w.wantCensus(t, before)
	if _, err := w.Mount(t.Context(), first.Container.ID); err != nil {
		t.Errorf("the first one is damaged: %v", err)
	}

	other := w.again(t) // another process, as far as claims go
	stores := []*world{w, other}
	var mu sync.Mutex
	var won []*Creation
	var wg sync.WaitGroup
	name := pod.Container.Metadata.Pod.ContainerName("both", 0)
	for i := range 6 {
		r := w.request(pod.Container.Metadata.Pod)
		r.Name = name
		wg.Go(func() {
			c, err := stores[i%2].CreateContainer(t.Context(), r)
			if err == nil {
				mu.Lock()
				won = append(won, c)
				mu.Unlock()
			} else if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "-"+pod.Container.ID) {
				t.Errorf("loser: %v", err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d callers won", len(won))
	}
	id := won[0].Container.ID
	r = w.request(pod.Container.Metadata.Pod)
	r.Name = name
	if _, err := w.CreateContainer(t.Context(), r); err == nil || !strings.Contains(err.Error(), id) {
		t.Errorf("while it is not finished: %v", err)
	}
	if err := w.Remove(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removed while it is being created: %v", err)
	}
	won[0].Abort(t.Context())
	// Released by the rollback.
	c := w.made(t)(w.CreateContainer(t.Context(), r))
	if err := w.Remove(t.Context(), c.Container.ID); err != nil {
		t.Error(err)
	}
}

// (13, 15, 16, 21, and every other step): whatever call fails, nothing is left and
// the first error is told; the same if every later call fails too, once somebody
// recovers, and by a repeated request.
func TestEveryFailure(t *testing.T) {
	w := newWorld(t)
	pod := w.pod(t, nil)
	auto := func(r *CreatePod) {
		r.IDs = &IDMappings{Auto: true}
		r.Pause = &PauseImage{Reference: host.Pause}
	}
	creations := map[string]func() (*Creation, error){
		"pod": func() (*Creation, error) {
			r := w.podRequest(t)
			auto(r)
			return w.CreatePod(t.Context(), r)
		},
		"container": func() (*Creation, error) {
			return w.CreateContainer(t.Context(), w.request(pod.Container.Metadata.Pod))
		},
	}
	loadPause(t, w)
	for kind, create := range creations {
		for mode, count := range map[string]int64{"one call": 1, "all later calls": forever} {
			t.Run(kind+", "+mode, func(t *testing.T) {
				before := w.census(t)
				for n := int64(1); ; n++ {
					w.fail.arm(n, count)
					c, err := create()
					if err == nil {
						err = c.Commit(t.Context())
						if err != nil {
							c.Abort(t.Context())
						}
					}
					w.fail.arm(0, 0)
					if err == nil && count == forever || n > 100 {
						t.Logf("%d calls", n)
						w.fail.arm(0, 0)
						remove(t, w, c.Container)
						break
					}
					if err == nil { // a call that may fail, or the one after the last
						remove(t, w, c.Container)
						if w.fail.calls.Load() < n {
							break
						}
						w.wantCensus(t, before)
						if n > 60 {
							break
						}
						continue
					}
					if !strings.Contains(err.Error(), "injected") {
						t.Errorf("call %d, %s: the first error is not told: %v", n, w.fail.method(n), err)
					}
					if count == forever {
						if err := w.again(t).Recover(t.Context()); err != nil {
							t.Errorf("call %d, %s: recover: %v", n, w.fail.method(n), err)
						}
					}
					w.wantCensus(t, before)
					if t.Failed() {
						t.Fatalf("call %d, %s", n, w.fail.method(n))
					}
				}
				w.wantCensus(t, before)
			})
		}
	}
}

func remove(t testing.TB, w *world, c Container) {
	t.Helper()
	var err error
	if c.Metadata.Kind == labels.KindInfra {
		err = w.RemovePod(t.Context(), c.ID)
	} else {
		err = w.Remove(t.Context(), c.ID)
	}
	if err != nil {
		t.Errorf("remove %s: %v", c.ID, err)
	}
}

// loadPause imports the pause image, once.
func loadPause(t testing.TB, w *world) {
	t.Helper()
	ctx := w.in(t.Context())
	if _, err := w.d.Client().ImageService().Get(ctx, host.Pause); err == nil {
		return
	}
	if out, err := w.d.Ctr("images", "import", host.Deps("images/pause.tar")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestDirectoryFails: (15, 16) as the list has it, with directories.
func TestDirectoryFails(t *testing.T) {
	w := newWorld(t)
	pod := w.pod(t, nil)
	before := w.census(t)
	r := w.request(pod.Container.Metadata.Pod)
	if err := os.WriteFile(w.workDir(r.ID), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := w.CreateContainer(t.Context(), r)
	if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), w.workDir(r.ID)) {
		t.Errorf("got %v", err)
	}
	_ = os.Remove(w.workDir(r.ID))
	w.wantCensus(t, before)
}

// (32): what an image says may neither forge a record nor keep it from being made.
func TestImageLabels(t *testing.T) {
	w := newWorld(t)
	pod := w.pod(t, nil)
	c := w.container(t, pod, func(r *CreateContainer) { r.Image.Name = strings.Repeat("n", 5000) }) // (30)
	m, err := w.Metadata(t.Context(), c.Container.ID)
	if err != nil || len(m.ImageName) != 5000 {
		t.Errorf("image name of %d bytes, %v", len(m.ImageName), err)
	}
	if _, ok := c.Container.Record.Labels["io.berth.image.name"]; ok {
		t.Error("the label is there")
	}
}

// (17): the maps are chosen, written back, and the files belong to them.
func TestIDs(t *testing.T) {
	for _, snapshotter := range []string{"overlayfs", "native"} {
		t.Run(snapshotter, func(t *testing.T) {
			w := newWorld(t)
			before := w.census(t)
			ids, other := &IDMappings{Auto: true}, &IDMappings{Auto: true, Size: 1000}
			pod := w.pod(t, func(r *CreatePod) { r.IDs = ids })
			second := w.pod(t, func(r *CreatePod) { r.IDs = other })
			if len(ids.Map.UIDs) != 1 || ids.Map.UIDs[0].Size != idmap.DefaultSize || other.Map.UIDs[0].Size != 1000 ||
				ids.Map.UIDs[0].HostID == other.Map.UIDs[0].HostID {
				t.Fatalf("maps %v, %v", ids, other)
			}
			member := &IDMappings{Auto: true}
			c := w.container(t, pod, func(r *CreateContainer) { r.IDs, r.Snapshotter = member, snapshotter })
			if diff := cmp.Diff(ids.Map, member.Map); diff != "" {
				t.Errorf("member's map:\n%s", diff)
			}
			if diff := cmp.Diff(ids.Map, c.Container.Metadata.IDMap); diff != "" {
				t.Errorf("stored map:\n%s", diff)
			}
			path, err := w.Mount(t.Context(), c.Container.ID)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"", "/bin", "/bin/busybox"} {
				if got := owner(t, path+name); got != ids.Map.UIDs[0].HostID {
					t.Errorf("%s belongs to %d", path+name, got)
				}
			}
			info, _ := w.snapshot(t, snapshotter, c.Container.ID)
			if copied := idmap.IsCopy(info.Parent); copied != (snapshotter == "native") {
				t.Errorf("parent %s", info.Parent)
			}
			for _, p := range []*Creation{pod, second} {
				if err := w.RemovePod(t.Context(), p.Container.ID); err != nil {
					t.Error(err)
				}
			}
			w.wantCensusButImages(t, before)
		})
	}
}

// (18): one copy for containers that are made at once, none after the last.
func TestSharedCopy(t *testing.T) {
	w := newWorld(t)
	pod := w.pod(t, func(r *CreatePod) { r.IDs = &IDMappings{Auto: true} })
	w.container(t, w.pod(t, nil), func(r *CreateContainer) { r.Snapshotter = "native" }) // unpacks
	before := w.census(t)
	made := make([]*Creation, 4)
	var wg sync.WaitGroup
	for i := range made {
		r := w.request(pod.Container.Metadata.Pod)
		r.Snapshotter = "native"
		wg.Go(func() {
			var err error
			if made[i], err = w.CreateContainer(t.Context(), r); err != nil {
				t.Error(err)
			} else if err := made[i].Commit(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	parents := map[string]bool{}
	for _, c := range made {
		info, _ := w.snapshot(t, "native", c.Container.ID)
		parents[info.Parent] = true
	}
	if len(parents) != 1 || strings.Count(w.census(t), "native sha256:") != strings.Count(before, "native sha256:")+1 {
		t.Errorf("parents %v in\n%s", parents, w.census(t))
	}
	for _, c := range made {
		wg.Go(func() {
			if err := w.Remove(t.Context(), c.Container.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.wantCensus(t, before)
}

// wantCensusButImages leaves out the snapshots of images.
func (w *world) wantCensusButImages(t testing.TB, before string) {
	t.Helper()
	for line := range strings.SplitSeq(w.census(t), "\n") {
		key := line[strings.LastIndex(line, " ")+1:]
		if strings.HasPrefix(key, "sha256:") && !idmap.IsCopy(key) {
			before += "\n" + line
		}
	}
	w.wantCensus(t, before)
}

// (19, 20)
func TestSELinux(t *testing.T) {
	const process, files = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
	l := &labeler{process: process, files: files}
	w := newWorldOn(t, newWorld(t).d, Options{SELinux: l})
	pod := w.pod(t, nil)
	c := w.container(t, pod, func(r *CreateContainer) { r.SELinux = []string{"level:s0:c1,c2"} })
	if c.ProcessLabel != process || c.MountLabel != files || l.options[len(l.options)-1] != "level:s0:c1,c2" {
		t.Errorf("labels %q, %q of %q", c.ProcessLabel, c.MountLabel, l.options)
	}
	before, err := w.Metadata(t.Context(), c.Container.ID)
	if err != nil || before.MountLabel != "" {
		t.Errorf("stored %q, %v", before.MountLabel, err)
	}
	// (33)
	ctx := w.in(t.Context())
	foreign, err := w.d.Client().LoadContainer(ctx, c.Container.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := foreign.SetLabels(ctx, map[string]string{"x": "y"}); err != nil {
		t.Fatal(err)
	}
	m := before
	m.MountLabel = c.MountLabel
	if err := w.SetMetadata(t.Context(), c.Container.Metadata.Name, m); err != nil {
		t.Fatal(err)
	}
	after, err := w.Container(t.Context(), c.Container.ID)
	if diff := cmp.Diff(m, after.Metadata); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if after.Record.Labels["x"] != "y" {
		t.Error("the label of others is gone")
	}
	if err := w.UpdateMetadata(t.Context(), c.Container.ID, func(m *labels.Metadata) { m.MountLabel = "" }); err != nil {
		t.Fatal(err)
	}
	after, err = w.Container(t.Context(), c.Container.ID)
	if diff := cmp.Diff(before, after.Metadata); err != nil || diff != "" || after.Record.Labels["x"] != "y" {
		t.Errorf("%v, labels %v (-want +got):\n%s", err, after.Record.Labels, diff)
	}
	r := w.request(pod.Container.Metadata.Pod)
	aborted, err := w.CreateContainer(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	undone := false
	aborted.OnAbort("x", func(context.Context) error { undone = true; return nil })
	aborted.Abort(t.Context())
	if l.released != 1 || !undone {
		t.Errorf("%d labels released; undone: %v", l.released, undone)
	}
}

type labeler struct {
	process, files string
	options        []string
	released       int
}

func (l *labeler) Label(options []string) (process, mount string, err error) {
	l.options = append(l.options, options...)
	return l.process, l.files, nil
}

func (l *labeler) Release(string) { l.released++ }

// (21)
func TestImageDeleted(t *testing.T) {
	w := newWorld(t)
	ctx := w.in(t.Context())
	pod := w.pod(t, nil)
	is := w.d.Client().ImageService()
	i, err := is.Get(ctx, host.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := is.Create(ctx, images.Image{Name: "gone:1", Target: i.Target}); err != nil {
		t.Fatal(err)
	}
	before := w.census(t)
	r := w.request(pod.Container.Metadata.Pod)
	r.Image.Record = "gone:1"
	if err := is.Delete(ctx, "gone:1"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.CreateContainer(t.Context(), r); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	w.wantCensus(t, before)
}
