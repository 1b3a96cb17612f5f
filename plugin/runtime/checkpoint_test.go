// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/programs"
	berth "github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/handler"
)

// counting says how far it is.
const counting = "i=0; echo ready; while :; do i=$((i+1)); echo $i > /count.new; mv /count.new /count; sleep 0.02; done"

func (r *rig) count(t *testing.T, ref string) int {
	t.Helper()
	got, err := r.ExecSync(ctx(t), ref, []string{"cat", "/count"}, 0)
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(got.Stdout)))
	return n
}

// (S73) A container goes on from an archive, beside the one that it was made of, and
// from an image in a pod made for it.
func TestRuntimeCheckpoint(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	c := r.start(t, shell(p, "main", counting))
	eventually(t, patience, func() string {
		if r.count(t, string(c.ID)) < 5 {
			return "it does not count"
		}
		return ""
	})
	archive := filepath.Join(t.TempDir(), "archive.tar")
	if err := r.Checkpoint(ctx(t), string(c.ID), berth.CheckpointRequest{Archive: archive, LeaveRunning: true}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(archive); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if got := r.state(t, string(c.ID)); got != berth.ContainerRunning {
		t.Errorf("after the checkpoint it is %s", got)
	}
	const image = "berth.test/checkpoint:1"
	if err := r.Checkpoint(ctx(t), string(c.ID), berth.CheckpointRequest{Image: image}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Client().ImageService().Delete(r.Context(ctx(t)), image) })
	if got, err := r.Container(ctx(t), string(c.ID)); err != nil || got.State != berth.ContainerExited || got.ExitCode == nil || *got.ExitCode != 0 || got.Reason != "Completed" {
		t.Errorf("stopped by the checkpoint: %v, %+v", err, got)
	}
	q := berth.RestoreRequest{Archive: archive}
	q.Pod, q.Name = string(p.ID), "second"
	second, err := r.Restore(ctx(t), q)
	if err != nil {
		t.Fatal(err)
	}
	r.goesOn(t, second, archive)
	q = berth.RestoreRequest{Image: image}
	q.Name, q.NewPod = podName(t)+"-third", berth.PodRequest{HostNetwork: true}
	third, err := r.Restore(ctx(t), q)
	if err != nil {
		t.Fatal(err)
	}
	r.goesOn(t, third, image)
	if err := r.RemoveContainer(ctx(t), string(third.ID), berth.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(archive, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := len(r.left())
	bad := berth.RestoreRequest{Archive: archive}
	bad.Pod, bad.Name = string(p.ID), "bad"
	if _, err := r.Restore(ctx(t), bad); !errdefs.IsInvalidArgument(err) {
		t.Errorf("of no archive: %v", err)
	}
	if left := r.left(); len(left) != before {
		t.Errorf("left: %v", left)
	}
}

func (r *rig) goesOn(t *testing.T, c berth.Container, from string) {
	t.Helper()
	if c.State != berth.ContainerRunning || c.Pid == 0 || c.RestoredFrom != from {
		t.Errorf("restored: %+v", c)
	}
	if err := r.StartContainer(ctx(t), string(c.ID)); err != nil {
		t.Error(err)
	}
	begin := r.count(t, string(c.ID))
	if begin < 5 {
		t.Errorf("it counts from %d on", begin)
	}
	eventually(t, patience, func() string {
		if r.count(t, string(c.ID)) <= begin {
			return "it does not go on"
		}
		return ""
	})
	if err := r.StopContainer(ctx(t), string(c.ID), 0); err != nil {
		t.Error(err)
	}
}

// (S74) What lacks the inventory is no checkpoint, which is told before the runtime is
// called; nothing is left.
func TestRuntimeRestoreRefused(t *testing.T) {
	dir := t.TempDir() // outlives the service, which needs the runtime to clean up
	r := withService(t)
	calls := filepath.Join(dir, "calls")
	script := "#!/bin/sh\necho \"$*\" >> " + calls + "\nexec " + host.Deps("bin/runc") + " \"$@\"\n"
	logged := programs.Write(t, filepath.Join(dir, "runc"), script)
	r.configure(t, func(c *handler.Config) { c.Handlers["logged"] = &handler.Handler{Path: logged} })
	q := hostPod(t)
	q.Handler = "logged"
	p := r.pod(t, q)
	c := r.start(t, shell(p, "main", counting))
	whole, part := filepath.Join(dir, "whole.tar"), filepath.Join(dir, "part.tar")
	if err := r.Checkpoint(ctx(t), string(c.ID), berth.CheckpointRequest{Archive: whole, LeaveRunning: true}); err != nil {
		t.Fatal(err)
	}
	without(t, whole, part, "checkpoint/inventory.img")
	before := r.left()
	again := berth.RestoreRequest{Archive: part}
	again.Pod, again.Name = string(p.ID), "second"
	if _, err := r.Restore(ctx(t), again); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "inventory.img") {
		t.Errorf("without an inventory: %v", err)
	}
	again = berth.RestoreRequest{Archive: whole}
	again.Pod, again.ID = string(p.ID), berth.ContainerID("../containers/"+string(c.ID))
	if _, err := r.Restore(ctx(t), again); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a path as an ID: %v", err)
	}
	if got := r.left(); !slices.Equal(got, before) {
		t.Errorf("left: %v", got)
	}
	if b, err := os.ReadFile(calls); err != nil || !strings.Contains(string(b), "checkpoint") || strings.Contains(string(b), "restore") {
		t.Errorf("calls of the runtime: %s, %v", b, err)
	}
}

// without copies an archive but for one file.
func without(t *testing.T, from, to, name string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w := tar.NewWriter(out)
	found := false
	for rd := tar.NewReader(in); ; {
		h, err := rd.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Clean(h.Name) == name {
			found = true
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, rd); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil || !found {
		t.Fatalf("%s without %s: found %v, %v", from, name, found, err)
	}
}
