// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/integration/host"
)

// pick returns the name that the machine's cgroup version uses.
func pick(v1, v2 string) string {
	if host.Unified() {
		return v2
	}
	return v1
}

// cgroupOf returns the folder of a process's cgroup; controller matters on
// version 1 only.
func cgroupOf(t testing.TB, pid int, controller string) string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.SplitN(lines.Text(), ":", 3)
		switch {
		case host.Unified() && fields[0] == "0":
			return filepath.Join("/sys/fs/cgroup", fields[2])
		case !host.Unified() && slices.Contains(strings.Split(fields[1], ","), controller):
			return filepath.Join("/sys/fs/cgroup", controller, fields[2])
		}
	}
	t.Fatalf("process %d is in no %s cgroup", pid, controller)
	return ""
}
