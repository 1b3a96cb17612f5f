// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	cmount "github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/images/mount"
	"github.com/berthd/berth/integration/host"
)

func TestMain(m *testing.M) {
	host.EnterOffline()
	os.Exit(m.Run())
}

// kernel is containerd's manager for mounts that the kernel knows: it has nothing to
// do.
type kernel struct{ cmount.Manager }

func (kernel) Activate(context.Context, string, []cmount.Mount, ...cmount.ActivateOpt) (cmount.ActivationInfo, error) {
	return cmount.ActivationInfo{}, errdefs.ErrNotImplemented
}

func (kernel) Deactivate(context.Context, string) error { return errdefs.ErrNotFound }

// place is a directory of mounts and something to mount.
type place struct {
	*mount.Mounts
	dir  string
	file string // of what is mounted
}

func newPlace(t *testing.T) place {
	t.Helper()
	source := t.TempDir()
	if err := os.WriteFile(source+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p := place{dir: t.TempDir(), file: source}
	p.Mounts = mount.New(p.dir, kernel{})
	t.Cleanup(func() {
		if keys, err := p.Keys(); err != nil || len(keys) != 0 {
			t.Errorf("left: %v, %v", keys, err)
		}
	})
	return p
}

func (p place) source(context.Context) ([]cmount.Mount, error) {
	return []cmount.Mount{{Type: "bind", Source: p.file, Options: []string{"rbind", "ro"}}}, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// A64
func TestCountsUsers(t *testing.T) {
	p, ctx := newPlace(t), t.Context()
	root, err := p.Mount(ctx, "a", p.source)
	if err != nil {
		t.Fatal(err)
	}
	// Another process.
	other := mount.New(p.dir, kernel{})
	again, err := other.Mount(ctx, "a", func(context.Context) ([]cmount.Mount, error) {
		return nil, errors.New("mounted twice")
	})
	if err != nil || again != root {
		t.Fatalf("second mount: got %s, %v, want %s", again, err, root)
	}
	if last, err := p.Unmount(ctx, "a", nil); err != nil || last {
		t.Fatalf("first unmount: got %v, %v", last, err)
	}
	if !exists(root + "/file") {
		t.Error("unmounted with a user left")
	}
	released := 0
	if last, err := p.Unmount(ctx, "a", func(context.Context) error { released++; return nil }); err != nil || !last || released != 1 {
		t.Fatalf("second unmount: got %v, %v, released %d times", last, err, released)
	}
	if exists(root) {
		t.Error("still there without users")
	}
	if _, err := p.Unmount(ctx, "a", nil); !errors.Is(err, mount.ErrNotMounted) || !errdefs.IsFailedPrecondition(err) {
		t.Errorf("third unmount: got %v, want ErrNotMounted", err)
	}
	if _, found, err := p.Find("a"); err != nil || found {
		t.Errorf("found: %v, %v", found, err)
	}
}

func TestMountedAwayByOthers(t *testing.T) {
	p, ctx := newPlace(t), t.Context()
	root, err := p.Mount(ctx, "a", p.source)
	if err != nil {
		t.Fatal(err)
	}
	// As after a reboot: the count says one, nothing is mounted.
	if err := unix.Unmount(root, 0); err != nil {
		t.Fatal(err)
	}
	if _, found, err := p.Find("a"); err != nil || found {
		t.Errorf("found: %v, %v", found, err)
	}
	if _, err := p.Mount(ctx, "a", p.source); err != nil {
		t.Fatal(err)
	}
	if !exists(root + "/file") {
		t.Error("not mounted again")
	}
	if swept, err := p.Sweep(ctx, "a", nil); err != nil || swept {
		t.Errorf("swept one in use: %v, %v", swept, err)
	}
	if err := unix.Unmount(root, 0); err != nil {
		t.Fatal(err)
	}
	if swept, err := p.Sweep(ctx, "a", nil); err != nil || !swept {
		t.Errorf("not swept: %v, %v", swept, err)
	}
	if _, err := p.Mount(ctx, "a", p.source); err != nil {
		t.Fatal(err)
	}
	if last, err := p.Unmount(ctx, "a", nil); err != nil || !last {
		t.Errorf("unmount: got %v, %v, want the last", last, err)
	}
}

func TestFailedMountLeavesNothing(t *testing.T) {
	p, ctx := newPlace(t), t.Context()
	for name, source := range map[string]mount.Source{
		"no source": func(context.Context) ([]cmount.Mount, error) { return nil, errdefs.ErrNotFound },
		"no type": func(context.Context) ([]cmount.Mount, error) {
			return []cmount.Mount{{Type: "bind", Source: p.file, Options: []string{"rbind"}}, {Type: "nothing", Source: "none"}}, nil
		},
	} {
		if _, err := p.Mount(ctx, "a", source); err == nil {
			t.Errorf("%s: no error", name)
		}
		if keys, err := p.Keys(); err != nil || len(keys) != 0 {
			t.Errorf("%s: left %v, %v", name, keys, err)
		}
	}
	if _, err := p.Mount(ctx, "../a", p.source); !errdefs.IsInvalidArgument(err) {
		t.Errorf("key with a slash: got %v", err)
	}
}

func TestBusy(t *testing.T) {
	p, ctx := newPlace(t), t.Context()
	root, err := p.Mount(ctx, "a", p.source)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(root + "/file")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Unmount(ctx, "a", nil); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "busy") {
		t.Errorf("got %v, want that it is busy", err)
	}
	if _, found, err := p.Find("a"); err != nil || !found {
		t.Errorf("found: %v, %v", found, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(ctx, "a", nil); err != nil {
		t.Error(err)
	}
	if err := p.Remove(ctx, "a", nil); err != nil {
		t.Errorf("second removal: %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	p, ctx := newPlace(t), t.Context()
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			for range 20 {
				root, err := p.Mount(ctx, "a", p.source)
				if err != nil {
					t.Error(err)
					return
				}
				if !exists(filepath.Join(root, "file")) {
					t.Error("mounted and not there")
				}
				if _, err := p.Unmount(ctx, "a", nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
}

func TestTemporary(t *testing.T) {
	p, ctx := newPlace(t), t.Context()
	mounts, _ := p.source(ctx)
	stop := errors.New("stop")
	var seen string
	err := p.View(ctx, "a", mounts, func(root string) error {
		if seen = root; !exists(root + "/file") {
			t.Error("not mounted")
		}
		return stop
	})
	if !errors.Is(err, stop) || exists(seen) {
		t.Errorf("got %v, left %v", err, exists(seen))
	}
}
