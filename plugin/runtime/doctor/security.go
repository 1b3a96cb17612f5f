// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (d *Doctor) security(context.Context) []Check {
	var checks []Check
	effective := d.capabilities()
	for _, c := range []struct {
		name, neededFor string
		bit             int
		without         Status
	}{
		{"CAP_SYS_ADMIN", "everything: mounts and namespaces", unix.CAP_SYS_ADMIN, Missing},
		{"CAP_NET_ADMIN", "networks of pods", unix.CAP_NET_ADMIN, Missing},
		{"CAP_SYS_PTRACE", "checkpoints; joining namespaces of others", unix.CAP_SYS_PTRACE, Warn},
		{"CAP_SYS_RESOURCE", "negative oom_score_adj, limits above the hard ones, CRIU", unix.CAP_SYS_RESOURCE, Warn},
		{"CAP_BPF", "rules for devices with cgroups of version 2", unix.CAP_BPF, Warn},
	} {
		there := effective&(1<<c.bit) != 0
		checks = append(checks, feature{c.name, c.neededFor, "run as root, outside of a container that lacks it", c.without}.is(there, presence(there)))
	}
	actions := d.read("/proc/sys/kernel/seccomp/actions_avail")
	checks = append(checks,
		feature{"seccomp", "seccomp profiles", "build the kernel with CONFIG_SECCOMP_FILTER", Warn}.
			is(strings.Contains(actions, "errno"), "actions: %s", actions),
		feature{"seccomp notifier", "containers that are stopped at forbidden calls", "run Linux 5.6 or newer", Warn}.
			is(strings.Contains(actions, "user_notif"), presence(strings.Contains(actions, "user_notif"))),
		d.appArmor(), d.selinux(),
	)
	return checks
}

// capabilities are the effective ones of this process.
func (d *Doctor) capabilities() uint64 {
	for line := range strings.Lines(d.read("/proc/self/status")) {
		if text, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, _ := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			return set
		}
	}
	return 0
}

func (d *Doctor) appArmor() Check {
	f := feature{"AppArmor", "AppArmor profiles of containers", "enable it (kernel command line: apparmor=1) and install apparmor_parser", Warn}
	if d.read("/sys/module/apparmor/parameters/enabled") != "Y" {
		return f.is(false, "not enabled in the kernel")
	}
	// containerd looks for it there, to load its default profile.
	_, err := os.Stat(d.at("/sbin/apparmor_parser"))
	return f.by(err, "enabled")
}

func (d *Doctor) selinux() Check {
	f := feature{"SELinux", "SELinux labels of containers", "enable it (kernel command line: security=selinux selinux=1) and load a policy", Warn}
	switch mode := d.read("/sys/fs/selinux/enforce"); mode {
	case "":
		return f.is(false, "not enabled")
	case "1":
		return f.is(true, "enforcing")
	default:
		return f.is(true, fmt.Sprintf("permissive (%s)", mode))
	}
}
