// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const limitBytes = "20971520"

// limitMemory is a start option: 20 MiB, and no way out into swap.
func limitMemory(t *testing.T) func(dir string) {
	return func(dir string) {
		for _, file := range [][2]string{
			{"memory.limit_in_bytes", limitBytes},
			{"memory.memsw.limit_in_bytes", limitBytes},
			{"memory.max", limitBytes},
			{"memory.swap.max", "0"},
		} {
			if _, err := os.Stat(filepath.Join(dir, file[0])); err == nil {
				put(t, dir, file[0], file[1])
			}
		}
	}
}

// watched starts a process and a watch of its cgroup. kills counts the calls.
func watched(t *testing.T, what string) (c *child, g *Group, w *Watch, kills *int, on func(func())) {
	t.Helper()
	l, on := running(t)
	c = start(t, what, limitMemory(t))
	g, err := Of(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	kills = new(int)
	on(func() { w, err = g.WatchOOM(l, func() { *kills++ }) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { on(w.Close) })
	return c, g, w, kills, on
}

func TestOOMIsSeen(t *testing.T) {
	c, _, w, kills, on := watched(t, "hog")
	c.begin(t)
	if state, err := c.Process.Wait(); err != nil || !strings.Contains(state.String(), "killed") {
		t.Fatalf("hog ended with %v, %v", state, err)
	}
	// What a caller does at exit: the kill is known by now, one way or the other.
	total := 0
	on(func() {
		if w.Final() {
			*kills++
		}
		total = *kills
	})
	if total != 1 {
		t.Errorf("seen %d kills at exit, want 1", total)
	}
	on(func() {
		if w.Final() {
			t.Error("one kill is told twice")
		}
	})
}

// Without anyone asking, as for a process of the container that is not its init.
func TestOOMIsTold(t *testing.T) {
	c, _, _, kills, on := watched(t, "hog")
	c.begin(t)
	if _, err := c.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	within(t, "notice", func() (told bool) {
		on(func() { told = *kills == 1 })
		return told
	})
}

func TestKillFromOutsideIsNoOOM(t *testing.T) {
	c, g, w, kills, on := watched(t, "idle")
	if err := c.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	on(func() {
		if w.Final() || *kills != 0 {
			t.Error("taken for an OOM")
		}
	})
	// Nor is the removal, which v1 notifies.
	within(t, "removal", func() bool { return g.Remove() == nil })
	for range 3 {
		on(func() {
			if w.Final() || *kills != 0 {
				t.Error("removal taken for an OOM")
			}
		})
	}
}

// A kill while nobody watched, during an exec in place, is told afterwards.
func TestOOMWhileNotWatched(t *testing.T) {
	c, g, w, kills, on := watched(t, "hog")
	on(w.Close)
	record := g.Encode(nil)
	c.begin(t)
	if _, err := c.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	restored, err := Decode(record)
	if err != nil {
		t.Fatal(err)
	}
	var again *Watch
	on(func() { again, err = restored.WatchOOM(w.l, func() { *kills++ }) })
	if err != nil {
		t.Fatal(err)
	}
	defer on(func() { again.Close() })
	on(func() {})
	on(func() {
		if *kills != 1 {
			t.Errorf("told %d times, want 1", *kills)
		}
	})
}

func TestWatchLeaksNothing(t *testing.T) {
	l, on := running(t)
	c := start(t, "idle", nil)
	g, err := Of(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	for range 3 {
		on(func() {
			w, err := g.WatchOOM(l, func() {})
			if err != nil {
				t.Error(err)
				return
			}
			w.Close()
			w.Close()
		})
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files open, before %d", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// What v2 hosts show, on files of our own: inotify works on any.
func TestOOMEventsV2(t *testing.T) {
	const above = "sys/fs/cgroup/a/memory.events"
	cases := map[string]struct {
		from, to string // memory.events; "gone" removes it
		above    string // of the cgroup above, afterwards
		want     bool
	}{
		"kill":                      {"oom 0\noom_kill 0\n", "oom 1\noom_kill 1\n", "", true},
		"limit of the cgroup above": {"oom 0\noom_kill 0\n", "oom 0\noom_kill 1\n", "", true},
		"no victim":                 {"oom 0\noom_kill 0\n", "oom 1\noom_kill 0\n", "", false},
		"kills before":              {"oom_kill 7\n", "max 1\noom_kill 7\n", "", false},
		"malformed":                 {"oom_kill 0\n", "oom_kill\n\x00oom_kill x\nbla", "", false},
		"empty":                     {"oom_kill 0\n", "", "", false},
		"never there":               {"gone", "gone", "", false},
		"vanished":                  {"oom_kill 0\n", "gone", "", false},
		"vanished with a kill":      {"oom_kill 0\n", "gone", "oom_kill 3\n", true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			l, on := running(t)
			files := map[string]string{}
			if c.from != "gone" {
				files["memory.events"] = c.from
			}
			root := v2Host(t, files)
			file := filepath.Join(root, "sys/fs/cgroup/a/b/memory.events")
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, above), []byte("oom_kill 2\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			g, err := find(root, 42)
			if err != nil {
				t.Fatal(err)
			}
			told := 0
			var w *Watch
			on(func() { w, err = g.WatchOOM(l, func() { told++ }) })
			if err != nil {
				t.Fatal(err)
			}
			defer on(func() { w.Close() })
			// In one step of the loop: at exit nothing has been read yet.
			on(func() {
				switch {
				case c.to != "gone":
					err = os.WriteFile(file, []byte(c.to), 0o644)
				case c.from != "gone":
					// The last event, then the end of the cgroup.
					if err = os.WriteFile(file, []byte(c.from), 0o644); err == nil {
						err = os.Remove(file)
					}
				}
				if c.above != "" {
					_ = os.WriteFile(filepath.Join(root, above), []byte(c.above), 0o644)
				}
				if err != nil {
					t.Error(err)
				}
				if w.Final() {
					told++
				}
			})
			on(func() {})
			on(func() {
				if got := told == 1; got != c.want || told > 1 {
					t.Errorf("told %d times, want %t", told, c.want)
				}
			})
		})
	}
}
