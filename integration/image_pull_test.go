// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
	registries "github.com/berthd/berth/integration/registry"
)

// stalling is a registry with an image of three layers, the last of which stalls in
// the middle.
type stalling struct {
	*registries.Registry
	ref    string
	layers []string // their digests
	resume func()   // ends the stall
}

func newStalling(t *testing.T) *stalling {
	t.Helper()
	r, err := registries.Start(t.Context(), registries.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	s := &stalling{Registry: r, ref: r.Address + "/berth/large:1"}
	const size = 4 << 20
	img, err := image.Noise(3, size)(s.ref)
	if err == nil {
		err = r.Push(t.Context(), s.ref, img.Manifest(), img)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := images.Manifest(t.Context(), img, img.Manifest(), platforms.All)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		s.layers = append(s.layers, l.Digest.String())
	}
	s.resume = r.Inject(registries.Fault{Path: s.layers[2], Do: registries.StallAfter(size / 2)})
	return s
}

// awaitMiddle waits until containerd has two layers, and a part of the third one.
func (s *stalling) awaitMiddle(t *testing.T, d *host.Daemon) {
	t.Helper()
	ctx := d.Context(t.Context())
	eventually(t, patience, func() string {
		ingests, err := d.Client().ContentStore().ListStatuses(ctx)
		if err != nil {
			return err.Error()
		}
		out, err := d.Ctr("content", "ls", "-q").Output()
		if err != nil {
			return err.Error()
		}
		for _, l := range s.layers[:2] {
			if !strings.Contains(string(out), l) {
				return "no layer " + l
			}
		}
		for _, i := range ingests {
			if strings.Contains(i.Ref, s.layers[2]) && i.Offset > 0 {
				return ""
			}
		}
		return fmt.Sprintf("no part of layer %s: %v", s.layers[2], ingests)
	})
}

// goneOn checks what the pull after the interrupted one has asked for.
func (s *stalling) goneOn(t *testing.T) {
	t.Helper()
	for _, l := range s.layers[:2] {
		if n := s.Count(http.MethodGet, l); n > 0 {
			t.Errorf("layer %s was complete and asked for %d times", l, n)
		}
	}
	ranges := 0
	for _, q := range s.Log() {
		if q.Method == http.MethodGet && strings.Contains(q.Path, s.layers[2]) && q.Range != "" {
			ranges++
		}
	}
	if ranges == 0 {
		t.Errorf("layer %s was fetched from its beginning", s.layers[2])
	}
}

func leasesOf(t *testing.T, d *host.Daemon) []string {
	t.Helper()
	all, err := d.Client().LeasesService().List(d.Context(context.Background()))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, l := range all {
		ids = append(ids, l.ID)
	}
	return ids
}

// `berth image pull` is killed: the next one uses what is there, and leaves nothing
// of both.
func TestImagePullKilled(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		s := newStalling(t)
		before := leasesOf(t, c.Daemon)
		cmd := c.command(t, append(slices.Clone(c.settings), "image", "pull", s.ref)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		s.awaitMiddle(t, c.Daemon)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		if slices.Contains(c.names(t), s.ref) {
			t.Error("there is an image by that name")
		}
		s.resume()
		s.Forget()
		c.does(t, "pull", s.ref)
		c.complete(t, s.ref)
		s.goneOn(t)
		eventually(t, patience, func() string {
			if after := leasesOf(t, c.Daemon); len(after) > len(before) {
				return fmt.Sprintf("leases left: %v", after)
			}
			return ""
		})
	})
}

// containerd is killed during `berth image pull`, which fails; with containerd there
// again the next one uses what is there.
func TestImagePullContainerdKilled(t *testing.T) {
	d := host.Run(t, host.Options{})
	onDaemon(t, d, func(t *testing.T, plain *cli) {
		withImages(t, plain, func(t *testing.T, c *imageCLI) {
			s := newStalling(t)
			cmd := c.command(t, append(slices.Clone(c.settings), "image", "pull", s.ref)...)
			var said bytes.Buffer
			cmd.Stderr = &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			s.awaitMiddle(t, d)
			if err := d.Kill(); err != nil {
				t.Fatal(err)
			}
			s.resume()
			if err := cmd.Wait(); exitCode(err) != 125 || !strings.Contains(said.String(), "is containerd running?") {
				t.Errorf("the pull without containerd: %v: %s", err, &said)
			}
			if err := d.Start(); err != nil {
				t.Fatal(err)
			}
			s.Forget()
			c.does(t, "pull", s.ref)
			c.complete(t, s.ref)
			s.goneOn(t)
		})
	})
}

// A32: while a pull fetches in a slice of its own there is a scope in it.
func TestImagePullScope(t *testing.T) {
	if !host.Systemd() {
		t.Skip("needs systemd; the machine's tests have it")
	}
	forImages(t, func(t *testing.T, c *imageCLI) {
		s := newStalling(t)
		cmd := c.command(t, append(slices.Clone(c.settings), "image", "pull", "--cgroup", "berthpulls.slice", s.ref)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		s.awaitMiddle(t, c.Daemon)
		scopes := func() []string {
			found, err := filepath.Glob("/sys/fs/cgroup/berthpulls.slice/berth-pull-*.scope")
			if err != nil {
				t.Fatal(err)
			}
			return found
		}
		if found := scopes(); len(found) != 1 {
			t.Errorf("scopes %v, want one", found)
		} else if procs, err := os.ReadFile(found[0] + "/cgroup.procs"); err != nil || !strings.Contains(found[0], "berth-pull-"+strings.TrimSpace(string(procs))+".scope") {
			t.Errorf("in %s there are the processes %q (%v)", found[0], procs, err)
		}
		s.resume()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		c.complete(t, s.ref)
		eventually(t, patience, func() string { return strings.Join(scopes(), " ") })
	})
}
