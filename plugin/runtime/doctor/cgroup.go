// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"cmp"
	"context"
	"slices"
	"strings"
)

func (d *Doctor) cgroups(context.Context) []Check {
	mode, controllers := d.hierarchy()
	checks := []Check{
		feature{"cgroups", "limits, statistics and notices of memory shortage", "mount the cgroup file system at /sys/fs/cgroup", Missing}.
			is(mode != "", "%s", cmp.Or(mode, "nothing is mounted")),
	}
	if mode == "hybrid" {
		checks = append(checks, feature{
			"cgroup hierarchy", "crun, memory.high, pressure statistics, killing all processes at once",
			"boot with systemd.unified_cgroup_hierarchy=1", Warn,
		}.is(false, "version 1 with an empty version 2 beside it"))
	}
	for _, c := range []struct {
		names     []string // any of them, by version
		neededFor string
		without   Status
	}{
		{[]string{"cpu"}, "cpu limits and shares", Missing},
		{[]string{"cpuset"}, "cpus and memory nodes of a container", Warn},
		{[]string{"memory"}, "memory limits, OOM notices, statistics", Missing},
		{[]string{"pids"}, "limits of processes", Missing},
		{[]string{"io", "blkio"}, "limits and statistics of disks", Warn},
		{[]string{"hugetlb"}, "limits of huge pages", Warn},
	} {
		there := slices.ContainsFunc(c.names, func(name string) bool { return slices.Contains(controllers, name) })
		checks = append(checks, feature{"cgroup " + c.names[0], c.neededFor, "enable the controller: kernel command line (cgroup_enable=" + c.names[0] + ") or its parent's cgroup.subtree_control", c.without}.
			is(there, presence(there)))
	}
	if mode != "version 2" { // there these are no controllers
		for _, c := range []struct{ name, neededFor string }{{"devices", "access to devices"}, {"freezer", "pause, checkpoint"}} {
			there := slices.Contains(controllers, c.name)
			checks = append(checks, feature{"cgroup " + c.name, c.neededFor, "mount the controller below /sys/fs/cgroup", Missing}.
				is(there, presence(there)))
		}
	}
	systemd := d.exists("/run/systemd/system")
	swap := d.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes") || mode == "version 2" && d.read("/proc/swaps") != ""
	checks = append(checks,
		feature{"swap accounting", "limits of swap", "boot with swapaccount=1", Warn}.is(swap, presence(swap)),
		feature{"systemd", "cgroups through systemd (systemd_cgroup)", "leave systemd_cgroup off", Warn}.
			is(systemd, presence(systemd)),
	)
	return checks
}

func presence(there bool) string {
	if there {
		return "there"
	}
	return "not there"
}

// hierarchy returns what kind of cgroups the machine has, "" for none, and the
// controllers that can be used.
func (d *Doctor) hierarchy() (mode string, controllers []string) {
	const top = "/sys/fs/cgroup"
	if d.exists(top + "/cgroup.controllers") {
		return "version 2", strings.Fields(d.read(top + "/cgroup.controllers"))
	}
	for line := range strings.Lines(d.read("/proc/self/cgroup")) {
		// 4:memory:/path, for version 1; several may share a hierarchy.
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) < 2 || fields[1] == "" {
			continue
		}
		for name := range strings.SplitSeq(fields[1], ",") {
			if d.exists(top + "/" + name) {
				controllers = append(controllers, name)
			}
		}
	}
	switch {
	case len(controllers) == 0:
		return "", nil
	case d.exists(top + "/unified/cgroup.procs"):
		return "hybrid", controllers
	}
	return "version 1", controllers
}
