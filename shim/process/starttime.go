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
func StartTime(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	return parseStartTime(b)
}

// parseStartTime counts from the last parenthesis: the name in front of it, field
// 2, may hold spaces and parentheses itself.
func parseStartTime(stat []byte) uint64 {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0
	}
	fields := bytes.Fields(stat[i+1:])
	const field = 22 - 3 // the first one here is field 3
	if len(fields) <= field {
		return 0
	}
	n, _ := strconv.ParseUint(string(fields[field]), 10, 64)
	return n
}
