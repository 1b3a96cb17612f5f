// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// deleted is what Linux adds to the name of a program that was replaced.
const deleted = " (deleted)"

// running is a process of a program.
type running struct {
	pid  int
	args []string
}

// processesOf returns the processes of this machine that run a program, or one that it
// has replaced under the same name. The calling process is none of them.
func processesOf(name string) []running {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	program, err := os.Stat(name)
	if err != nil {
		return nil
	}
	var found []running
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		exe := filepath.Join("/proc", e.Name(), "exe")
		info, err := os.Stat(exe)
		if err != nil {
			continue // it has ended, or is the kernel's
		}
		link, _ := os.Readlink(exe)
		if !os.SameFile(info, program) && link != name+deleted {
			continue
		}
		args, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		var words []string
		for word := range bytes.SplitSeq(bytes.TrimSuffix(args, []byte{0}), []byte{0}) {
			words = append(words, string(word))
		}
		found = append(found, running{pid: pid, args: words})
	}
	return found
}

// flag returns the value of a flag in the process's arguments.
func (r running) flag(name string) string {
	for i, arg := range r.args {
		if strings.TrimLeft(arg, "-") == name && strings.HasPrefix(arg, "-") && i+1 < len(r.args) {
			return r.args[i+1]
		}
	}
	return ""
}

// String names a shim by whose it is, and others by their number.
func (r running) String() string {
	if id := r.flag("id"); id != "" {
		return r.flag("namespace") + "/" + id
	}
	return "process " + strconv.Itoa(r.pid)
}

// searchPathOf returns the PATH of a process that runs a program, or "" if there is
// none.
func searchPathOf(program string) string {
	for _, r := range processesOf(program) {
		environment, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(r.pid), "environ"))
		if err != nil {
			continue
		}
		for entry := range strings.SplitSeq(string(environment), "\x00") {
			if path, ok := strings.CutPrefix(entry, "PATH="); ok {
				return path
			}
		}
	}
	return ""
}
