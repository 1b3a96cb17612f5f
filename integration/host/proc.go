// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is one entry of /proc.
type process struct {
	pid, ppid int
	comm      string
	state     string
	args      string
}

func (p process) String() string {
	return strconv.Itoa(p.pid) + " " + p.state + " " + p.comm + " [" + p.args + "]"
}

// processes reads /proc. What ends meanwhile is left out.
func processes() map[int]process {
	names, _ := filepath.Glob("/proc/[0-9]*")
	all := make(map[int]process, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(name))
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(name + "/stat")
		if err != nil {
			continue
		}
		// The name in parentheses may itself contain anything.
		open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
		if open < 0 || end < open {
			continue
		}
		rest := strings.Fields(string(stat[end+1:]))
		if len(rest) < 2 {
			continue
		}
		ppid, _ := strconv.Atoi(rest[1])
		args, _ := os.ReadFile(name + "/cmdline")
		all[pid] = process{
			pid: pid, ppid: ppid, comm: string(stat[open+1 : end]), state: rest[0],
			args: strings.TrimSpace(strings.ReplaceAll(string(args), "\x00", " ")),
		}
	}
	return all
}

// end kills a process, a frozen one too: in a frozen cgroup of version 1 SIGKILL
// waits.
func end(pid int) {
	_ = unix.Kill(pid, unix.SIGKILL)
	groups, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	for line := range strings.Lines(string(groups)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[1] == "freezer" && f[2] != "/" {
			_ = os.WriteFile("/sys/fs/cgroup/freezer"+f[2]+"/freezer.state", []byte("THAWED"), 0)
		}
	}
}

// descendants returns the pids below root, root excluded, in order.
func descendants(all map[int]process, roots ...int) []int {
	children := map[int][]int{}
	for pid, p := range all {
		children[p.ppid] = append(children[p.ppid], pid)
	}
	var below []int
	seen := map[int]bool{}
	for todo := slices.Clone(roots); len(todo) > 0; todo = todo[1:] {
		for _, pid := range children[todo[0]] {
			if !seen[pid] {
				seen[pid] = true
				below = append(below, pid)
				todo = append(todo, pid)
			}
		}
	}
	slices.Sort(below)
	return below
}

// mentions tells whether what /proc says of a process names one of the tags:
// its arguments, environment, folders, program or cgroups.
func mentions(pid int, tags ...string) bool {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	var text strings.Builder
	for _, name := range []string{"cmdline", "environ", "cgroup"} {
		b, _ := os.ReadFile(dir + name)
		text.Write(b)
		text.WriteByte('\n')
	}
	for _, name := range []string{"cwd", "root", "exe"} {
		link, _ := os.Readlink(dir + name)
		text.WriteString(link)
		text.WriteByte('\n')
	}
	return slices.ContainsFunc(tags, func(tag string) bool { return strings.Contains(text.String(), tag) })
}
