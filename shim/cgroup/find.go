// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/mountinfo"
)

// membership is one line of /proc/PID/cgroup: "4:cpu,cpuacct:/a/b", in v2 "0::/a/b".
type membership struct {
	controllers string // comma separated, empty in v2
	path        string // relative to the root of our cgroup namespace
}

// find is Of with another place for /proc and /sys.
func find(root string, pid int) (*Group, error) {
	in, err := memberships(root + "/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return nil, err
	}
	self, err := memberships(root + "/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	g, err := locate(root, in, self)
	if err == nil && len(g.places) == 0 {
		err = fault.New(fault.NotFound, "cgroup of process "+strconv.Itoa(pid)+": no hierarchy is mounted")
	}
	return g, err
}

// findPath is At with another place for /proc and /sys.
func findPath(root, path string) (*Group, error) {
	self, err := memberships(root + "/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	in := make([]membership, len(self))
	for i := range self {
		in[i] = membership{self[i].controllers, path}
	}
	return locate(root, in, self)
}

// expandSlice returns the path of a systemd slice, whose name says which slices it
// is in: a-b.slice is in a.slice (systemd.slice(5)). Other paths stay.
func expandSlice(path string) string {
	name, found := strings.CutSuffix(path, ".slice")
	if !found || strings.Contains(name, "/") {
		return path
	}
	var full strings.Builder
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '-' && i > 0 {
			full.WriteString("/" + name[:i] + ".slice")
		}
	}
	return full.String()
}

// locate finds the directories of a cgroup that is at in, for a process at self.
func locate(root string, in, self []membership) (*Group, error) {
	g := &Group{root: root, pageSizes: hugePageSizes(root + "/sys/kernel/mm/hugepages")}
	var all controllers
	seen := make([]bool, len(in))
	err := mountinfo.Each(root+mountinfo.Self, func(m *mountinfo.Mount) bool {
		i := hierarchyOf(m, in)
		if i < 0 || seen[i] {
			return true
		}
		p, found := place(root, m, in[i], self)
		if !found {
			return true // a part of the hierarchy that does not hold the process
		}
		seen[i] = true
		all |= p.has
		g.v2 = g.v2 || p.has == unified && string(m.Point) == "/sys/fs/cgroup"
		g.places = append(g.places, p)
		return len(g.places) < len(in)
	})
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "cgroup mounts", err)
	}
	g.v2 = g.v2 || all == unified
	g.kills, _ = g.oomKills()
	return g, nil
}

// place returns where the process whose membership is m sits below a mount point.
func place(root string, mount *mountinfo.Mount, m membership, self []membership) (hierarchy, bool) {
	// Without a cgroup namespace of our own, a container we run in may have only
	// its part of the hierarchy mounted.
	rest, found := strings.CutPrefix(m.path, strings.TrimSuffix(string(mount.Root), "/"))
	if !found || rest != "" && rest[0] != '/' {
		return hierarchy{}, false
	}
	p := hierarchy{
		dir:    root + strings.TrimSuffix(string(mount.Point)+rest, "/"),
		shared: isShared(m, self),
	}
	if m.controllers == "" {
		p.has = unified
	}
	for _, c := range controllerNames {
		if has(m.controllers, c.name) {
			p.has |= c.bit
		}
	}
	return p, true
}

// hierarchyOf returns the index of the hierarchy in list that m mounts, -1 if it
// is none of them. A v1 mount has its controllers among its options.
func hierarchyOf(m *mountinfo.Mount, list []membership) int {
	v1 := string(m.FSType) == "cgroup"
	if !v1 && string(m.FSType) != "cgroup2" {
		return -1
	}
	options := string(m.Options)
	for i := range list {
		first, _, _ := strings.Cut(list[i].controllers, ",")
		if v1 && first != "" && has(options, first) || !v1 && first == "" {
			return i
		}
	}
	return -1
}

// isShared tells whether the process's cgroup is the root, ours, or one above ours.
func isShared(m membership, self []membership) bool {
	if m.path == "/" || strings.HasPrefix(m.path, "/..") {
		return true
	}
	for i := range self {
		if self[i].controllers == m.controllers {
			rest, found := strings.CutPrefix(self[i].path, m.path)
			return found && (rest == "" || rest[0] == '/')
		}
	}
	return true
}

// memberships reads a /proc/PID/cgroup. A path of a process that has outlived its
// cgroup ends in " (deleted)": there is nothing to find.
func memberships(file string) ([]membership, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil, fault.Wrap(fault.NotFound, "cgroup of a process", err)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "cgroup of a process", err)
	}
	var list []membership
	for line := range strings.Lines(string(text)) {
		_, line, _ = strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		names, path, found := strings.Cut(line, ":")
		if !found || !strings.HasPrefix(path, "/") || strings.HasSuffix(path, " (deleted)") {
			continue
		}
		list = append(list, membership{names, path})
	}
	return list, nil
}

// has tells whether name is in the comma separated list.
func has(list, name string) bool {
	for list != "" {
		var first string
		if first, list, _ = strings.Cut(list, ","); first == name {
			return true
		}
	}
	return false
}

// hugePageSizes lists the sizes as the hugetlb controller names its files: 2MB,
// 1GB. None if the kernel has no huge pages.
func hugePageSizes(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var sizes []string
	for _, e := range entries {
		text, found := strings.CutPrefix(e.Name(), "hugepages-")
		kb, err := strconv.Atoi(strings.TrimSuffix(text, "kB"))
		if !found || err != nil {
			continue
		}
		unit := "KB"
		switch {
		case kb >= 1<<20:
			kb, unit = kb>>20, "GB"
		case kb >= 1<<10:
			kb, unit = kb>>10, "MB"
		}
		sizes = append(sizes, strconv.Itoa(kb)+unit)
	}
	return sizes
}
