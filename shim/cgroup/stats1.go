// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/wire"
)

// nsPerTick converts cpuacct.stat: USER_HZ is 100 on every Linux.
const nsPerTick = 1e9 / 100

// memoryV1 maps memory.stat to io.containerd.cgroups.v1.MemoryStat.
var memoryV1 = []keyed{
	{"cache", 1},
	{"rss", 2},
	{"rss_huge", 3},
	{"mapped_file", 4},
	{"dirty", 5},
	{"writeback", 6},
	{"pgpgin", 7},
	{"pgpgout", 8},
	{"pgfault", 9},
	{"pgmajfault", 10},
	{"inactive_anon", 11},
	{"active_anon", 12},
	{"inactive_file", 13},
	{"active_file", 14},
	{"unevictable", 15},
	{"hierarchical_memory_limit", 16},
	{"hierarchical_memsw_limit", 17},
	{"total_cache", 18},
	{"total_rss", 19},
	{"total_rss_huge", 20},
	{"total_mapped_file", 21},
	{"total_dirty", 22},
	{"total_writeback", 23},
	{"total_pgpgin", 24},
	{"total_pgpgout", 25},
	{"total_pgfault", 26},
	{"total_pgmajfault", 27},
	{"total_inactive_anon", 28},
	{"total_active_anon", 29},
	{"total_inactive_file", 30},
	{"total_active_file", 31},
	{"total_unevictable", 32},
}

// memoryEntriesV1 are the MemoryEntry fields of MemoryStat and their files.
var memoryEntriesV1 = [...]struct {
	num    int
	prefix string
}{
	{33, "memory."},
	{34, "memory.memsw."},
	{35, "memory.kmem."},
	{36, "memory.kmem.tcp."},
}

var oomControlV1 = []keyed{
	{"oom_kill_disable", 1},
	{"under_oom", 2},
	{"oom_kill", 3},
}

var throttlingV1 = []keyed{
	{"nr_periods", 1},
	{"nr_throttled", 2},
	{"throttled_time", 3},
}

// blkioV1 are the files of BlkIOStat: those of the CFQ scheduler (Linux < 5.0)
// and, when they are absent or empty, those of the throttling policy.
var (
	blkioV1 = []keyed{
		{"blkio.io_service_bytes_recursive", 1},
		{"blkio.io_serviced_recursive", 2},
		{"blkio.io_queued_recursive", 3},
		{"blkio.io_service_time_recursive", 4},
		{"blkio.io_wait_time_recursive", 5},
		{"blkio.io_merged_recursive", 6},
		{"blkio.time_recursive", 7},
		{"blkio.sectors_recursive", 8},
	}
	blkioThrottleV1 = []keyed{
		{"blkio.throttle.io_service_bytes", 1},
		{"blkio.throttle.io_serviced", 2},
	}
)

// appendV1 appends io.containerd.cgroups.v1.Metrics. As in containerd's library,
// the CPU message and its parts are always there, others when their controller is.
func (g *Group) appendV1(b []byte) []byte {
	r := &g.files
	if dir := g.dir(hugetlb); dir != "" {
		b = g.appendHugetlbV1(b, dir)
	}
	if dir := g.dir(pids); dir != "" {
		var mark int
		b, mark = begin(b, 2)
		b = wire.AppendVarint(b, 1, r.number(dir, "pids.current"))
		b = wire.AppendVarint(b, 2, r.number(dir, "pids.max"))
		b = wire.End(b, mark)
	}
	b = g.appendCPUV1(b)
	if dir := g.dir(memory); dir != "" {
		b = g.appendMemoryV1(b, dir)
	}
	if dir := g.dir(blkio); dir != "" {
		b = g.appendBlkioV1(b, dir)
	}
	if dir := g.dir(rdma); dir != "" {
		var mark int
		b, mark = begin(b, 6)
		b = appendRdma(b, 1, r.read(dir, "rdma.current"))
		b = appendRdma(b, 2, r.read(dir, "rdma.max"))
		b = wire.End(b, mark)
	}
	return b
}

func (g *Group) appendHugetlbV1(b []byte, dir string) []byte {
	r := &g.files
	for _, size := range g.pageSizes {
		var mark int
		b, mark = begin(b, 1)
		b = wire.AppendVarint(b, 1, r.number(dir, "hugetlb.", size, ".usage_in_bytes"))
		b = wire.AppendVarint(b, 2, r.number(dir, "hugetlb.", size, ".max_usage_in_bytes"))
		b = wire.AppendVarint(b, 3, r.number(dir, "hugetlb.", size, ".failcnt"))
		b = wire.AppendString(b, 4, size)
		b = wire.End(b, mark)
	}
	return b
}

func (g *Group) appendCPUV1(b []byte) []byte {
	r := &g.files
	b, message := begin(b, 3)
	b, mark := begin(b, 1)
	acct := g.dir(cpuacct)
	b = wire.AppendVarint(b, 1, r.number(acct, "cpuacct.usage"))
	text := r.read(acct, "cpuacct.stat")
	user, _ := valueIn(text, "user")
	system, _ := valueIn(text, "system")
	b = wire.AppendVarint(b, 2, system*nsPerTick)
	b = wire.AppendVarint(b, 3, user*nsPerTick)
	if text = bytes.TrimSpace(r.read(acct, "cpuacct.usage_percpu")); len(text) > 0 {
		b = appendPacked(b, 4, text)
	}
	b = wire.End(b, mark)
	b, mark = begin(b, 2)
	b = appendKeyed(b, r.read(g.dir(cpu), "cpu.stat"), throttlingV1)
	b = wire.End(b, mark)
	return wire.End(b, message)
}

// appendPacked appends a packed repeated field of the numbers in text, which are
// separated by single spaces.
func appendPacked(b []byte, num int, text []byte) []byte {
	b, mark := begin(b, num)
	for len(text) > 0 {
		var number []byte
		number, text = cut(text, ' ')
		v, _ := parseNumber(number)
		b = binary.AppendUvarint(b, v)
	}
	return wire.End(b, mark)
}

func (g *Group) appendMemoryV1(b []byte, dir string) []byte {
	r := &g.files
	b, message := begin(b, 4)
	b = appendKeyed(b, r.read(dir, "memory.stat"), memoryV1)
	for i := range memoryEntriesV1 {
		e := &memoryEntriesV1[i]
		var mark int
		b, mark = begin(b, e.num)
		b = wire.AppendVarint(b, 1, r.number(dir, e.prefix, "limit_in_bytes"))
		b = wire.AppendVarint(b, 2, r.number(dir, e.prefix, "usage_in_bytes"))
		b = wire.AppendVarint(b, 3, r.number(dir, e.prefix, "max_usage_in_bytes"))
		b = wire.AppendVarint(b, 4, r.number(dir, e.prefix, "failcnt"))
		b = wire.End(b, mark)
	}
	b = wire.End(b, message)
	b, message = begin(b, 9)
	b = appendKeyed(b, r.read(dir, "memory.oom_control"), oomControlV1)
	return wire.End(b, message)
}

func (g *Group) appendBlkioV1(b []byte, dir string) []byte {
	b, message := begin(b, 5)
	b = g.appendBlkioFiles(b, dir, blkioV1)
	if len(b) == message {
		b = g.appendBlkioFiles(b, dir, blkioThrottleV1)
	}
	return wire.End(b, message)
}

// appendBlkioFiles appends a BlkIOEntry for each line of the files: "8:0 Read 42",
// or "8:0 42". The file's sum, "Total 42", has no device and is left out.
func (g *Group) appendBlkioFiles(b []byte, dir string, files []keyed) []byte {
	r := &g.files
	var name deviceName
	for i := range files {
		text := r.read(dir, files[i].key)
		for len(text) > 0 {
			var line []byte
			line, text = cut(text, '\n')
			device, rest := cut(line, ' ')
			op, value := cut(rest, ' ')
			if len(value) == 0 {
				op, value = nil, op
			}
			majorText, minorText := cut(device, ':')
			major, ok1 := parseNumber(majorText)
			minor, ok2 := parseNumber(minorText)
			v, ok3 := parseNumber(value)
			if !ok1 || !ok2 || !ok3 {
				continue
			}
			var mark int
			b, mark = begin(b, files[i].num)
			if len(op) > 0 {
				b = wire.AppendBytes(b, 1, op)
			}
			if path := name.find(g.root, device); len(path) > 0 {
				b = wire.AppendBytes(b, 2, path)
			}
			b = wire.AppendVarint(b, 3, major)
			b = wire.AppendVarint(b, 4, minor)
			b = wire.AppendVarint(b, 5, v)
			b = wire.End(b, mark)
		}
	}
	return b
}

// deviceName finds the /dev path of a block device, and remembers the last one:
// each device has a line for every operation.
type deviceName struct {
	device [24]byte // "major:minor"
	nd     int
	name   [64]byte
	nn     int
}

const devDir = "/dev/"

// find returns the path for device, "major:minor", empty if it is not known. The
// link /sys/dev/block/8:1 ends in the name, with "!" where the name has "/".
func (d *deviceName) find(root string, device []byte) []byte {
	if len(device) > len(d.device) {
		return nil
	}
	if bytes.Equal(device, d.device[:d.nd]) {
		return d.name[:d.nn]
	}
	d.nd = copy(d.device[:], device)
	d.nn = 0
	var path, link [256]byte
	p := append(path[:0], root...)
	p = append(p, "/sys/dev/block/"...)
	p = append(p, device...)
	p = append(p, 0)
	at := unix.AT_FDCWD
	n, _, errno := unix.Syscall6(unix.SYS_READLINKAT, uintptr(at), uintptr(unsafe.Pointer(&p[0])),
		uintptr(unsafe.Pointer(&link[0])), uintptr(len(link)), 0, 0)
	if errno != 0 {
		return nil
	}
	base := link[:n]
	base = base[bytes.LastIndexByte(base, '/')+1:]
	if len(devDir)+len(base) > len(d.name) {
		return nil
	}
	d.nn = copy(d.name[:], devDir)
	for _, c := range base {
		if c == '!' {
			c = '/'
		}
		d.name[d.nn] = c
		d.nn++
	}
	return d.name[:d.nn]
}
