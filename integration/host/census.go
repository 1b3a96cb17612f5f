// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

// settleTime is how long things may take to go away by themselves.
const settleTime = 15 * time.Second

// Census lists by kind everything a container can leave behind: "processes",
// "mounts", "cgroups", "fds" (of containerd and of each shim), "sockets",
// "bundles", "files", "snapshots", "leases", "containers", "netns".
type Census map[string][]string

// Census counts what belongs to the daemon now. Records are left out while
// containerd is down.
func (d *Daemon) Census() (Census, error) {
	c := Census{"mounts": d.mounts(), "cgroups": d.cgroups(false)}
	for _, p := range d.processes() {
		if p.pid == d.Pid() {
			continue
		}
		c.add("processes", p.String())
		if strings.HasPrefix(p.comm, "containerd-shim") {
			c["fds"] = append(c["fds"], descriptors(fmt.Sprintf("%s %d", p.comm, p.pid), p.pid)...)
		}
	}
	if d.Pid() != 0 {
		// Without its number: it may have been restarted.
		// And without its handles of processes, some of which it leaves to the
		// collector of garbage.
		c["fds"] = append(c["fds"], slices.DeleteFunc(descriptors("containerd", d.Pid()), func(line string) bool {
			return strings.Contains(line, "anon_inode:[pidfd]")
		})...)
	}
	c["sockets"] = entries(d.Dir + "/s/*")
	c["netns"] = entries(d.State()+"/*/netns/*", d.State()+"/netns/*")
	for _, root := range []string{d.State(), d.Dir + "/root"} {
		c["bundles"] = append(c["bundles"], entries(root+"/io.containerd.runtime.v2.task/*/*")...)
	}
	c["files"] = append(entries(d.Dir+"/tmp/*", d.Dir+"/fifo/*"), d.runFiles()...)
	for _, pod := range d.pods() {
		c["files"] = append(c["files"], entries(pod, pod+"/*", pod+"/members/*")...)
		c["mounts"] = append(c["mounts"], mountsBelow(pod)...)
	}
	return c, d.records(c)
}

func (c Census) add(kind, line string) { c[kind] = append(c[kind], line) }

func (d *Daemon) records(c Census) error {
	if d.client == nil {
		return nil
	}
	for _, ns := range d.namespaces() {
		ctx, cancel := context.WithTimeout(d.Context(context.Background()), 10*time.Second)
		defer cancel()
		ctx = withNamespace(ctx, ns)
		containers, err := d.client.ContainerService().List(ctx)
		if err != nil {
			return err
		}
		for _, r := range containers {
			c.add("containers", ns+"/"+r.ID)
		}
		leases, err := d.client.LeasesService().List(ctx)
		if err != nil {
			return err
		}
		for _, l := range leases {
			c.add("leases", ns+"/"+l.ID)
		}
		err = d.client.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			c.add("snapshots", ns+"/"+i.Name)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) namespaces() []string {
	if d.options.CRI {
		return []string{d.Namespace, "k8s.io"}
	}
	return []string{d.Namespace}
}

// Settle waits until a census holds nothing that was not there before and fails
// t with the difference if it does in the end. What has gone is no fault: an
// earlier test's remains may take their time. Use:
//
//	defer d.Settle(t, d.Count(t))
func (d *Daemon) Settle(t testing.TB, before Census) {
	t.Helper()
	d.settle(t, before, settleTime, func() {})
}

// SettleKilled is Settle where callers of containerd were killed, see ForgetSockets. A
// shim that nobody has connected to ends itself after a minute.
func (d *Daemon) SettleKilled(t testing.TB, before Census) {
	t.Helper()
	d.settle(t, before, 90*time.Second, d.ForgetSockets)
}

// ForgetSockets removes the sockets of shims that no process has. containerd kills a
// shim's `start` when its own caller is gone, and calls no `delete` then: the socket of
// one that was about to start its shim stays.
func (d *Daemon) ForgetSockets() {
	sockets := entries(d.Dir + "/s/*")
	// Asking the socket would be the connection that a shim waits for.
	bound, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return
	}
	for _, socket := range sockets {
		if !strings.Contains(string(bound), socket) {
			_ = os.Remove(socket)
		}
	}
}

func (d *Daemon) settle(t testing.TB, before Census, limit time.Duration, each func()) {
	t.Helper()
	if t.Failed() {
		return // a test that stopped halfway has not cleaned up
	}
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		each()
		after, err := d.Census()
		left := after.without(before)
		if err == nil && len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left behind (%v): %s", err, left)
			return
		}
	}
}

// Count is Census for tests.
func (d *Daemon) Count(t testing.TB) Census {
	t.Helper()
	c, err := d.Census()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// without returns what c has and before has not.
func (c Census) without(before Census) Census {
	left := Census{}
	for kind, lines := range c {
		for _, line := range lines {
			if !slices.Contains(before[kind], line) {
				left.add(kind, line)
			}
		}
	}
	return left
}

// String lists a census by kind, a line each.
func (c Census) String() string {
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(c)) {
		for _, line := range slices.Sorted(slices.Values(c[kind])) {
			fmt.Fprintf(&b, "\n  %s: %s", kind, line)
		}
	}
	return b.String()
}

// processes are containerd, its shims, their children and the containers'
// processes, wherever they have been moved to.
func (d *Daemon) processes() []process {
	all := processes()
	var roots []int
	for pid, p := range all {
		// The first process of a pod says nothing of where it belongs, and as an
		// orphan it may be any daemon's.
		orphan := p.comm == "berth-init" && p.ppid == os.Getppid()
		if orphan || pid != os.Getpid() && pid != os.Getppid() && mentions(pid, d.Dir+"/", d.tag) {
			roots = append(roots, pid)
		}
	}
	pids := slices.Compact(slices.Sorted(slices.Values(append(descendants(all, roots...), roots...))))
	var mine []process
	for _, pid := range pids {
		mine = append(mine, all[pid])
	}
	return mine
}

// pods are the directories that pods without a pause container have outside of
// the daemon's folder. One whose record does not say whose it is may be
// anybody's and so is the daemon's too.
func (d *Daemon) pods() []string {
	dirs := entries("/run/berth/sandboxes/*/*")
	return slices.DeleteFunc(dirs, func(dir string) bool {
		record, err := os.ReadFile(dir + "/pod.json")
		return err == nil && strings.Contains(string(record), "/"+filepath.Base(base)+"x") && // a daemon of this run
			!strings.Contains(string(record), "/"+d.Namespace+"/") && !strings.Contains(string(record), "/"+d.Namespace+`"`)
	})
}

// mounts returns the mount points below the daemon's folder.
func (d *Daemon) mounts() []string { return mountsBelow(d.Dir) }

// mountsBelow returns the mount points below a folder, in the order in which
// they were mounted.
func mountsBelow(dir string) []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	defer f.Close()
	var points []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points
}

// cgroups returns the cgroups whose path names the daemon's namespace, deepest
// first; the one that is called after it only if parents is set: it stays.
func (d *Daemon) cgroups(parents bool) []string {
	found := cgroupsNaming(d.Namespace)
	if parents {
		return found
	}
	return slices.DeleteFunc(found, d.isParent)
}

// cgroupsNaming returns the cgroups with a word in their path, deepest first.
func cgroupsNaming(word string) []string {
	var found []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() || !strings.Contains(path, word) {
			return nil //nolint:nilerr // what vanishes during the walk is gone
		}
		// See useOCI for folders that are no cgroups.
		var st unix.Statfs_t
		if unix.Statfs(path, &st) == nil && st.Type != unix.TMPFS_MAGIC {
			found = append(found, path)
		}
		return nil
	})
	slices.Reverse(found)
	return found
}

func (d *Daemon) isParent(path string) bool {
	name := filepath.Base(path)
	return name == d.Namespace || name == d.Namespace+".slice"
}

// runFiles are entries below /run that name the daemon's namespace: runtime
// state, sockets. The folder called after the namespace itself may stay.
func (d *Daemon) runFiles() []string {
	var found []string
	for _, root := range []string{"/run/containerd", "/run/berth", "/run/runc", "/run/crun"} {
		_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.Contains(path, "/"+d.Namespace+"/") {
				found = append(found, path)
			}
			return nil
		})
	}
	return found
}

// descriptors counts the open descriptors of a process by what they are:
// numbers of sockets and pipes differ, how many there are should not.
func descriptors(name string, pid int) []string {
	links := map[string]int{}
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		link, err := os.Readlink(dir + e.Name())
		if err != nil {
			continue
		}
		if i := strings.Index(link, ":["); i > 0 && !strings.HasPrefix(link, "anon_inode") {
			link = link[:i]
		}
		links[link]++
	}
	var lines []string
	for link, n := range links {
		for i := range n {
			lines = append(lines, fmt.Sprintf("%s: %s no. %d", name, link, i+1))
		}
	}
	return lines
}

func entries(patterns ...string) []string {
	var all []string
	for _, pattern := range patterns {
		found, _ := filepath.Glob(pattern)
		all = append(all, found...)
	}
	return all
}
