// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"os"
	"strconv"
)

// StartTime returns when process pid began, in clock ticks since boot (field 22
// of proc_pid_stat(5)), or 0 if there is no such process. With the pid it names
// a process for good.
func StartTime(pid int) uint64 { return stat(pid, 22) }

// Parent returns the parent of process pid, or 0 if there is no such process.
func Parent(pid int) int { return int(stat(pid, 4)) }

// stat returns a number of /proc/PID/stat, 0 if there is none.
func stat(pid, field int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	return parseStat(b, field)
}

// parseStat counts from the last parenthesis: the name in front of it, field 2,
// may hold spaces and parentheses itself.
func parseStat(stat []byte, field int) uint64 {
	const first = 3 // behind the name
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0
	}
	fields := bytes.Fields(stat[i+1:])
	if len(fields) <= field-first {
		return 0
	}
	n, _ := strconv.ParseUint(string(fields[field-first]), 10, 64)
	return n
}
