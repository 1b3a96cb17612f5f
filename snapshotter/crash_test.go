// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// These have a process work on a root, see TestCrashWork: another test kills it, or
// the machine of `make vm-test` loses its power meanwhile and TestCrashCheck looks at
// the disk afterwards.
const (
	crashRoot = "BERTH_TEST_CRASH_ROOT"
	crashWay  = "BERTH_TEST_CRASH_WAY"
)

// TestCrash kills a daemon at moments of chance: no committed layer is lost, and
// nothing is left.
func TestCrash(t *testing.T) {
	for _, way := range ways {
		t.Run(string(way), func(t *testing.T) {
			dir := t.TempDir()
			if way == Quota {
				needQuota(t, dir)
			}
			root := filepath.Join(dir, "root")
			layers := 0
			for range 8 {
				cmd := exec.Command(os.Args[0], "-test.run=^TestCrashWork$")
				cmd.Env = append(os.Environ(), crashRoot+"="+root, crashWay+"="+string(way))
				out, err := cmd.StdoutPipe()
				must(t, err)
				must(t, cmd.Start())
				if line, err := bufio.NewReader(out).ReadString('\n'); !strings.HasPrefix(line, "at work") {
					rest, _ := io.ReadAll(out)
					t.Fatalf("%v: %s%s", err, line, rest)
				}
				time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
				must(t, cmd.Process.Kill())
				_ = cmd.Wait() // it was killed
				layers += crashCheck(t, root, way)
			}
			if layers == 0 {
				t.Error("nothing was done")
			}
		})
	}
}

// TestCrashWork is the process that is killed.
func TestCrashWork(t *testing.T) {
	root := os.Getenv(crashRoot)
	if root == "" {
		t.Skip("TestCrash runs it")
	}
	s, err := New(t.Context(), Config{Root: root, Size: 4 * mebi, Enforcement: Enforcement(os.Getenv(crashWay)), SyncRemove: true})
	must(t, err)
	done, err := os.OpenFile(root+".done", os.O_CREATE|os.O_APPEND|os.O_WRONLY|os.O_SYNC, 0o600)
	must(t, err)
	fmt.Println("at work")
	run := time.Now().UnixNano()
	parent := ""
	for i := 0; ; i++ {
		name := fmt.Sprintf("%d-%d", run, i)
		// A layer of an image, and one from a limited snapshot.
		key := "extract-" + name
		if i%3 == 2 {
			key = "committed-" + name
		}
		mounts, err := s.Prepare(t.Context(), key, parent)
		must(t, err)
		dir := root + ".mount"
		must(t, os.MkdirAll(dir, 0o700))
		must(t, mount.All(mounts, dir))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(strings.Repeat(name, 1000)), 0o600))
		must(t, mount.UnmountAll(dir, 0))
		must(t, s.Commit(t.Context(), name, key))
		_, err = fmt.Fprintln(done, name)
		must(t, err)
		parent = name
		// A container's layer, and another that stays.
		_, err = s.Prepare(t.Context(), "goes-"+name, parent)
		must(t, err)
		must(t, s.Remove(t.Context(), "goes-"+name))
		_, err = s.Prepare(t.Context(), "stays-"+name, parent)
		must(t, err)
		if i == 20 {
			parent, i = "", 0
			run = time.Now().UnixNano()
		}
	}
}

// TestCrashCheck looks at the root of a process that the power's loss ended.
func TestCrashCheck(t *testing.T) {
	root := os.Getenv(crashRoot)
	if root == "" {
		t.Skip("the machine of `make vm-test` runs it")
	}
	if crashCheck(t, root, Enforcement(os.Getenv(crashWay))) == 0 {
		t.Error("nothing was done")
	}
}

// crashCheck opens what the process has left, and removes it. It returns how many
// layers were committed.
func crashCheck(t *testing.T, root string, way Enforcement) (layers int) {
	t.Helper()
	if err := mount.UnmountAll(root+".mount", 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Config{Root: root, Size: 4 * mebi, Enforcement: way})
	must(t, err)
	defer func() { must(t, unmountLayers(s)) }()
	done, err := os.ReadFile(root + ".done")
	must(t, err)
	names := strings.Fields(string(done))
	for _, name := range names {
		key := "view-" + name
		mounts, err := s.View(t.Context(), key, name)
		if err != nil {
			t.Errorf("a committed layer is lost: %v", err)
			continue
		}
		inside(t, mounts, func(dir string) {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != strings.Repeat(name, 1000) {
				t.Errorf("the content of a committed layer is lost: %d bytes, %v", len(b), err)
			}
		})
		must(t, s.Remove(t.Context(), key))
	}
	// Whatever was being made goes as containerd's garbage collection has it, from
	// the children to the parents.
	for range 100 {
		var keys []string
		must(t, s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
			keys = append(keys, info.Name)
			return nil
		}))
		for _, key := range keys {
			if err := s.Remove(t.Context(), key); err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("remove %s: %v", key, err)
			}
		}
		if len(keys) == 0 {
			break
		}
	}
	must(t, os.Truncate(root+".done", 0))
	nothingLeft(t, s)
	return len(names)
}
