// SPDX-License-Identifier: Apache-2.0

package lease

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// LabelOwner is the label of leases that says which process has made them.
const LabelOwner = "io.berth.owner"

// identity is what tells a process from all others: boot, PID namespace, number, and
// when it was started.
type identity struct{ boot, namespace, pid, started string }

// self names this process.
func self() string {
	i := of(os.Getpid())
	return strings.Join([]string{i.boot, i.namespace, i.pid, i.started}, "/")
}

// gone tells whether the process of that name has ended, for sure. It has not if the
// name makes no sense, or is that of a process that cannot be seen from here.
func gone(name string) bool {
	parts := strings.Split(name, "/")
	if len(parts) != 4 {
		return false
	}
	then := identity{parts[0], parts[1], parts[2], parts[3]}
	pid, err := strconv.Atoi(then.pid)
	if err != nil || then.boot == "" || then.started == "" {
		return false
	}
	now := of(pid)
	switch {
	case now.boot == "":
		return false
	case then.boot != now.boot:
		return true
	case then.namespace != now.namespace:
		return false
	}
	return then.started != now.started
}

// of is the identity of a process; started is empty if there is none.
func of(pid int) identity {
	// What cannot be read is unknown, which gone takes into account.
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	namespace, _ := os.Readlink("/proc/self/ns/pid")
	return identity{
		boot:      strings.TrimSpace(string(boot)),
		namespace: namespace,
		pid:       strconv.Itoa(pid),
		started:   startTime(pid),
	}
}

// startTime is field 22 of proc_pid_stat(5). The second field is in parentheses and
// may contain anything.
func startTime(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	const third = 3
	rest := string(text[strings.LastIndexByte(string(text), ')')+1:])
	if fields := strings.Fields(rest); len(fields) > 22-third {
		return fields[22-third]
	}
	return ""
}
