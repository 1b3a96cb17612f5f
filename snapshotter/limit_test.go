// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/snapshotter/quota"
)

const mebi = 1 << 20

// ways to hold a limit; each test with a limit runs with both.
var ways = []Enforcement{Image, Quota}

// each runs a test for each way, with a snapshotter that has a first layer "base".
func each(t *testing.T, config Config, test func(t *testing.T, s *Snapshotter)) {
	for _, way := range ways {
		t.Run(string(way), func(t *testing.T) {
			config := config
			config.Root, config.Enforcement = filepath.Join(t.TempDir(), "root"), way
			if way == Quota {
				needQuota(t, t.TempDir())
			}
			s := open(t, config)
			mounts := prepare(t, s, "extract-1 base", "")
			inside(t, mounts, func(dir string) {
				must(t, os.WriteFile(filepath.Join(dir, "below"), []byte("x"), 0o644))
			})
			must(t, s.Commit(t.Context(), "base", "extract-1 base"))
			test(t, s)
		})
	}
}

func open(t *testing.T, config Config) *Snapshotter {
	t.Helper()
	s, err := New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, unmountLayers(s)) })
	return s
}

func prepare(t *testing.T, s *Snapshotter, key, parent string, opts ...snapshots.Opt) []mount.Mount {
	t.Helper()
	mounts, err := s.Prepare(t.Context(), key, parent, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

func size(text string) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{LabelSize: text})
}

// inside calls f with the mounted snapshot.
func inside(t *testing.T, mounts []mount.Mount, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	must(t, mount.All(mounts, dir))
	defer func() { must(t, mount.UnmountAll(dir, 0)) }()
	f(dir)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fill writes to a file until it has so many bytes or the layer is full.
func fill(dir string, bytes int) (written int, err error) {
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for i := range block {
		block[i] = byte(i*7 + 1)
	}
	for written < bytes {
		n, err := f.Write(block)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, f.Sync()
}

func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

func TestLimit(t *testing.T) {
	each(t, Config{Size: 8 * mebi}, func(t *testing.T, s *Snapshotter) {
		for _, c := range []struct {
			key   string
			opts  []snapshots.Opt
			limit int
		}{
			{"default", nil, 8 * mebi},
			{"label", []snapshots.Opt{size("16MiB")}, 16 * mebi},
			{"containerd's label", []snapshots.Opt{snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: "4194304"})}, 4 * mebi},
			{"none", []snapshots.Opt{size("0")}, 0},
			{"ns/3/extract-2 sha256:x", nil, 0},
		} {
			neighbour := prepare(t, s, c.key+" neighbour", "base")
			inside(t, prepare(t, s, c.key, "base", c.opts...), func(dir string) {
				written, err := fill(dir, 24*mebi)
				switch {
				case c.limit == 0 && err != nil:
					t.Errorf("%s: %v after %d bytes", c.key, err, written)
				case c.limit > 0 && !full(err):
					t.Errorf("%s: %d bytes of %d, %v", c.key, written, c.limit, err)
				case c.limit > 0 && (written < c.limit*9/10 || written > c.limit*11/10):
					t.Errorf("%s: full after %d bytes of %d", c.key, written, c.limit)
				}
				t.Logf("%s: %d of %d bytes, %v", c.key, written, c.limit, err)
				inside(t, neighbour, func(dir string) {
					if n, err := fill(dir, 4*mebi); err != nil {
						t.Errorf("neighbour of %s: %v after %d bytes", c.key, err, n)
					}
				})
			})
			info, err := s.Stat(t.Context(), c.key)
			must(t, err)
			want := fmt.Sprint(c.limit)
			if c.limit == 0 {
				want = info.Labels[LabelSize] // as it was given
			}
			if info.Labels[LabelSize] != want {
				t.Errorf("%s: label %q, want %s", c.key, info.Labels[LabelSize], want)
			}
			must(t, s.Remove(t.Context(), c.key))
			must(t, s.Remove(t.Context(), c.key+" neighbour"))
		}
		nothingLeft(t, s)
	})
}

func TestUsage(t *testing.T) {
	each(t, Config{Size: 32 * mebi}, func(t *testing.T, s *Snapshotter) {
		mounts := prepare(t, s, "a", "base")
		before, err := s.Usage(t.Context(), "a")
		must(t, err)
		inside(t, mounts, func(dir string) {
			_, err := fill(dir, 4*mebi)
			must(t, err)
			for i := range 100 {
				must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644))
			}
			unix.Sync()
			now, err := s.Usage(t.Context(), "a")
			must(t, err)
			if grown := now.Size - before.Size; grown < 4*mebi || grown > 4*mebi+mebi/2 {
				t.Errorf("%d bytes more", grown)
			}
			// A file, a hundred, and overlayfs's own.
			if grown := now.Inodes - before.Inodes; grown < 101 || grown > 104 {
				t.Errorf("%d inodes more", grown)
			}
			must(t, os.Remove(filepath.Join(dir, "filler")))
			soon(t, func() string {
				now, err := s.Usage(t.Context(), "a")
				must(t, err)
				if now.Size-before.Size <= mebi/2 {
					return ""
				}
				return fmt.Sprintf("%d bytes more after deletion", now.Size-before.Size)
			})
		})
		must(t, s.Commit(t.Context(), "committed", "a"))
		u, err := s.Usage(t.Context(), "committed")
		must(t, err)
		if u.Inodes != 101 { // the directory, and the hundred
			t.Errorf("committed: %+v", u)
		}
		info, err := s.Stat(t.Context(), "committed")
		must(t, err)
		if info.Labels[LabelSize] != "" {
			t.Errorf("a committed layer has the limit %s", info.Labels[LabelSize])
		}
		must(t, s.Remove(t.Context(), "committed"))
		nothingLeft(t, s)
	})
}

func TestBadSizes(t *testing.T) {
	each(t, Config{}, func(t *testing.T, s *Snapshotter) {
		for _, text := range []string{"", "x", "-1", "12", "1e99", "10 parsecs"} {
			_, err := s.Prepare(t.Context(), "bad", "base", size(text))
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), fmt.Sprintf("%q", text)) {
				t.Errorf("size %q: %v", text, err)
			}
		}
		if _, err := s.Stat(t.Context(), "bad"); !errdefs.IsNotFound(err) {
			t.Errorf("a snapshot of a bad size: %v", err)
		}
		nothingLeft(t, s)
	})
}

// A quota's limit can change while the layer is written to.
func TestResize(t *testing.T) {
	each(t, Config{Size: 4 * mebi}, func(t *testing.T, s *Snapshotter) {
		inside(t, prepare(t, s, "a", "base"), func(dir string) {
			if _, err := fill(dir, 6*mebi); !full(err) {
				t.Fatal(err)
			}
			info := snapshots.Info{Name: "a", Labels: map[string]string{LabelSize: "8MiB"}}
			_, err := s.Update(t.Context(), info, "labels."+LabelSize)
			if s.config.Enforcement == Image {
				if !errdefs.IsFailedPrecondition(err) {
					t.Errorf("an image's limit changed: %v", err)
				}
				return
			}
			must(t, err)
			if n, err := fill(dir, 6*mebi); err != nil {
				t.Errorf("%v after %d bytes", err, n)
			}
		})
	})
}

// The machine lost power: nothing is mounted, and a layer without syncing is refused.
func TestRestartOfTheMachine(t *testing.T) {
	each(t, Config{Size: 8 * mebi, Volatile: true}, func(t *testing.T, s *Snapshotter) {
		mounts := prepare(t, s, "a", "base")
		inside(t, mounts, func(dir string) { must(t, os.WriteFile(filepath.Join(dir, "kept"), []byte("x"), 0o644)) })
		must(t, unmountLayers(s))
		s = open(t, s.config)
		mounts, err := s.Mounts(t.Context(), "a")
		must(t, err)
		inside(t, mounts, func(dir string) {
			if _, err := os.Stat(filepath.Join(dir, "kept")); err != nil {
				t.Error(err)
			}
		})
		l, err := s.layer(t.Context(), "a")
		must(t, err)
		work := l.work()
		if l.image.Exists() {
			work = l.image.Work()
		}
		long := time.Now().AddDate(-1, 0, 0)
		must(t, os.Chtimes(filepath.Join(work, "work/incompat/volatile"), long, long))
		if _, err := s.Mounts(t.Context(), "a"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "a was written without syncing") {
			t.Errorf("mounts of a layer from before: %v", err)
		}
		must(t, s.Remove(t.Context(), "a"))
		nothingLeft(t, s)
	})
}

// The daemon was killed between two steps: what has no record is cleared.
func TestRecover(t *testing.T) {
	each(t, Config{Size: 8 * mebi}, func(t *testing.T, s *Snapshotter) {
		prepare(t, s, "kept", "base")
		prepare(t, s, "lost", "base")
		// As if killed in Remove, after the record went.
		must(t, s.store.WithTransaction(t.Context(), true, func(ctx context.Context) error {
			_, _, err := storage.Remove(ctx, "lost")
			return err
		}))
		must(t, s.Close())
		s = open(t, s.config)
		must(t, s.Cleanup(t.Context()))
		mounts, err := s.Mounts(t.Context(), "kept")
		must(t, err)
		inside(t, mounts, func(dir string) {
			if _, err := fill(dir, 12*mebi); !full(err) {
				t.Errorf("the limit is lost: %v", err)
			}
		})
		must(t, s.Remove(t.Context(), "kept"))
		nothingLeft(t, s)
	})
}

// An image is mounted once, whoever asks.
func TestConcurrentMounts(t *testing.T) {
	each(t, Config{Size: 8 * mebi}, func(t *testing.T, s *Snapshotter) {
		prepare(t, s, "a", "base")
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if _, err := s.Mounts(t.Context(), "a"); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := len(loops(t, s)); s.config.Enforcement == Image && n != 1 {
			t.Errorf("%d loop devices", n)
		}
		must(t, s.Remove(t.Context(), "a"))
		nothingLeft(t, s)
	})
}

// The root of a user-namespaced layer is the mapped root's, in an image too.
func TestMappedOwner(t *testing.T) {
	each(t, Config{Size: 8 * mebi}, func(t *testing.T, s *Snapshotter) {
		mounts := prepare(t, s, "a", "base", snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "0:200000:65536",
		}))
		inside(t, mounts, func(dir string) {
			st, err := os.Stat(dir)
			must(t, err)
			if owner := st.Sys().(*syscall.Stat_t); owner.Uid != 100000 || owner.Gid != 200000 || st.Mode().Perm() != 0o755 {
				t.Errorf("owner %d:%d, mode %v", owner.Uid, owner.Gid, st.Mode())
			}
		})
	})
}

func TestMountLabel(t *testing.T) {
	s := open(t, Config{Root: filepath.Join(t.TempDir(), "root"), MountOptions: []string{"xino=off"}})
	prepare(t, s, "extract-1 base", "")
	must(t, s.Commit(t.Context(), "base", "extract-1 base"))
	mounts := prepare(t, s, "a", "base", snapshots.WithLabels(map[string]string{LabelMount: "system_u:object_r:container_file_t:s0:c1,c2"}))
	options := strings.Join(mounts[0].Options, " ")
	for _, want := range []string{`context="system_u:object_r:container_file_t:s0:c1,c2"`, "xino=off"} {
		if !strings.Contains(options, want) {
			t.Errorf("%s is not in %s", want, options)
		}
	}
	if strings.Contains(options, "volatile") {
		t.Errorf("options %s", options)
	}
}

func TestBadConfig(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	for name, c := range map[string]Config{
		`"relative"`:    {Root: "relative"},
		"below":         {Root: root, Size: 1},
		`"fast"`:        {Root: root, Enforcement: "fast"},
		`"upperdir=/x"`: {Root: root, MountOptions: []string{"upperdir=/x"}},
		"set volatile":  {Root: root, MountOptions: []string{"volatile"}},
	} {
		if _, err := New(t.Context(), c); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused configuration made %s", root)
	}
}

// nothingLeft fails where layers have mounts, loop devices, limits or directories
// besides that of "base".
func nothingLeft(t *testing.T, s *Snapshotter) {
	t.Helper()
	must(t, s.Cleanup(t.Context()))
	if left := loops(t, s); len(left) > 0 {
		t.Errorf("loop devices of %v", left)
	}
	if dirs, _ := filepath.Glob(filepath.Join(s.config.Root, "snapshots/*")); len(dirs) > 1 {
		t.Errorf("directories %v", dirs)
	}
	if s.projects != nil {
		soon(t, func() string { return strings.Join(leftProjects(t, s), "; ") })
	}
}

// leftProjects are those of snapshots that are gone and still hold something, or have
// a limit.
func leftProjects(t *testing.T, s *Snapshotter) (left []string) {
	t.Helper()
	ids, err := s.ids(t.Context())
	must(t, err)
	for p := s.projects.first + 1; ; p++ {
		next, found, err := s.projects.fs.Next(p)
		must(t, err)
		if !found || next >= s.projects.first+blockSize {
			return left
		}
		used, limit, err := s.projects.fs.State(next)
		must(t, err)
		// The kernel drops an empty entry in its own time.
		if _, known := ids[fmt.Sprint(next-s.projects.first)]; !known && (used != quota.Usage{} || limit != 0) {
			left = append(left, fmt.Sprintf("project %d has %+v and the limit %d", next, used, limit))
		}
		p = next
	}
}

// soon waits until a check has no complaint: xfs frees what is deleted in the
// background.
func soon(t *testing.T, check func() string) {
	t.Helper()
	complaint := check()
	for deadline := time.Now().Add(20 * time.Second); complaint != "" && time.Now().Before(deadline); complaint = check() {
		time.Sleep(20 * time.Millisecond)
	}
	if complaint != "" {
		t.Error(complaint)
	}
}

// loops are the files below the root that loop devices have.
func loops(t *testing.T, s *Snapshotter) (files []string) {
	t.Helper()
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, device := range devices {
		if file, err := os.ReadFile(device); err == nil && strings.HasPrefix(string(file), s.config.Root) {
			files = append(files, strings.TrimSpace(string(file)))
		}
	}
	return files
}

// A crash kept the record of a snapshot from the disk, and left its directory, which
// has the number of the next one.
func TestDirectoryWithoutRecord(t *testing.T) {
	each(t, Config{}, func(t *testing.T, s *Snapshotter) {
		prepare(t, s, "a", "base")
		l, err := s.layer(t.Context(), "a")
		must(t, err)
		must(t, s.Close())
		number, err := strconv.Atoi(l.id)
		must(t, err)
		must(t, os.MkdirAll(filepath.Join(s.config.Root, "snapshots", strconv.Itoa(number+1), "fs"), 0o755))
		s = open(t, s.config)
		prepare(t, s, "b", "base")
		must(t, s.Remove(t.Context(), "a"))
		must(t, s.Remove(t.Context(), "b"))
		nothingLeft(t, s)
	})
}

// A crash cut off the first snapshot that there was to be.
func TestDirectoriesWithoutRecords(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	for _, name := range []string{"1/fs", "new-123/work"} {
		must(t, os.MkdirAll(filepath.Join(root, "snapshots", name), 0o755))
	}
	s := open(t, Config{Root: root})
	nothingLeft(t, s)
	prepare(t, s, "a", "")
}

// containerd's metadata walks a snapshotter before anything was made in it.
func TestWalkOfNone(t *testing.T) {
	s := open(t, Config{Root: filepath.Join(t.TempDir(), "root")})
	none := func(_ context.Context, info snapshots.Info) error {
		return fmt.Errorf("there is %s", info.Name)
	}
	must(t, s.Walk(t.Context(), none))
	prepare(t, s, "a", "")
	refuse := func(context.Context, snapshots.Info) error { return errdefs.ErrNotFound }
	if err := s.Walk(t.Context(), refuse); !errdefs.IsNotFound(err) {
		t.Errorf("the caller's own error became %v", err)
	}
}

// Roots on one file system that are opened at the same time have numbers of their own.
func TestRootsAtOnce(t *testing.T) {
	t.Run("quota", func(t *testing.T) {
		dir := t.TempDir()
		needQuota(t, dir)
		var opened [8]*Snapshotter
		var all sync.WaitGroup
		for i := range opened {
			all.Go(func() {
				var err error
				if opened[i], err = New(t.Context(), Config{Root: filepath.Join(dir, strconv.Itoa(i))}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		taken := map[quota.Project]int{}
		for i, s := range opened {
			if s == nil {
				continue
			}
			if other, both := taken[s.projects.first]; both {
				t.Errorf("roots %d and %d have the numbers from %d on", other, i, s.projects.first)
			}
			taken[s.projects.first] = i
			must(t, s.Close())
		}
	})
}
