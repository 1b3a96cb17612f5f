// SPDX-License-Identifier: Apache-2.0

package cgroup

import "github.com/berthd/berth/shim/wire"

var cpuV2 = []keyed{
	{"usage_usec", 1},
	{"user_usec", 2},
	{"system_usec", 3},
	{"nr_periods", 4},
	{"nr_throttled", 5},
	{"throttled_usec", 6},
	{"nr_bursts", 8},
	{"burst_usec", 9},
}

// memoryV2 maps memory.stat to io.containerd.cgroups.v2.MemoryStat. The keys are
// those of containerd's library: newer kernels split workingset_refault and
// workingset_activate in two, which the message cannot carry.
var memoryV2 = []keyed{
	{"anon", 1},
	{"file", 2},
	{"kernel_stack", 3},
	{"slab", 4},
	{"sock", 5},
	{"shmem", 6},
	{"file_mapped", 7},
	{"file_dirty", 8},
	{"file_writeback", 9},
	{"anon_thp", 10},
	{"inactive_anon", 11},
	{"active_anon", 12},
	{"inactive_file", 13},
	{"active_file", 14},
	{"unevictable", 15},
	{"slab_reclaimable", 16},
	{"slab_unreclaimable", 17},
	{"pgfault", 18},
	{"pgmajfault", 19},
	{"workingset_refault", 20},
	{"workingset_activate", 21},
	{"workingset_nodereclaim", 22},
	{"pgrefill", 23},
	{"pgscan", 24},
	{"pgsteal", 25},
	{"pgactivate", 26},
	{"pgdeactivate", 27},
	{"pglazyfree", 28},
	{"pglazyfreed", 29},
	{"thp_fault_alloc", 30},
	{"thp_collapse_alloc", 31},
}

var memoryEventsV2 = []keyed{
	{"low", 1},
	{"high", 2},
	{"max", 3},
	{"oom", 4},
	{"oom_kill", 5},
	{"oom_group_kill", 6},
}

// appendV2 appends io.containerd.cgroups.v2.Metrics. As in containerd's library,
// every part is there, empty if its controller is not enabled, except for events
// and pressure.
func (g *Group) appendV2(b []byte) []byte {
	r, dir := &g.files, g.dir(unified)
	b, mark := begin(b, 1)
	b = wire.AppendVarint(b, 1, r.limit(dir, "pids.current"))
	b = wire.AppendVarint(b, 2, r.limit(dir, "pids.max"))
	b = wire.End(b, mark)

	b, mark = begin(b, 2)
	b = appendKeyed(b, r.read(dir, "cpu.stat"), cpuV2)
	b = appendPressure(b, 7, r.read(dir, "cpu.pressure"))
	b = wire.End(b, mark)

	b, mark = begin(b, 4)
	b = g.appendMemoryV2(b, dir)
	b = wire.End(b, mark)

	if text := r.read(dir, "memory.events"); len(text) > 0 {
		b, mark = begin(b, 8)
		b = appendKeyed(b, text, memoryEventsV2)
		b = wire.End(b, mark)
	}

	b, mark = begin(b, 5)
	b = appendRdma(b, 1, r.read(dir, "rdma.current"))
	b = appendRdma(b, 2, r.read(dir, "rdma.max"))
	b = wire.End(b, mark)

	b, mark = begin(b, 6)
	b = appendIO(b, 1, r.read(dir, "io.stat"))
	b = appendPressure(b, 2, r.read(dir, "io.pressure"))
	b = wire.End(b, mark)

	for _, size := range g.pageSizes {
		b, mark = begin(b, 7)
		b = wire.AppendVarint(b, 1, r.limit(dir, "hugetlb.", size, ".current"))
		b = wire.AppendVarint(b, 2, r.limit(dir, "hugetlb.", size, ".max"))
		b = wire.AppendString(b, 3, size)
		b = wire.AppendVarint(b, 4, r.value("max", dir, "hugetlb.", size, ".events"))
		b = wire.End(b, mark)
	}
	return b
}

func (g *Group) appendMemoryV2(b []byte, dir string) []byte {
	r := &g.files
	text := r.read(dir, "memory.stat")
	if len(text) == 0 {
		return b
	}
	b = appendKeyed(b, text, memoryV2)
	b = wire.AppendVarint(b, 32, r.limit(dir, "memory.current"))
	b = wire.AppendVarint(b, 33, r.limit(dir, "memory.max"))
	b = wire.AppendVarint(b, 34, r.limit(dir, "memory.swap.current"))
	b = wire.AppendVarint(b, 35, r.limit(dir, "memory.swap.max"))
	b = wire.AppendVarint(b, 36, r.limit(dir, "memory.peak"))
	b = wire.AppendVarint(b, 37, r.limit(dir, "memory.swap.peak"))
	return appendPressure(b, 38, r.read(dir, "memory.pressure"))
}

// appendPressure appends a PSIStats of a pressure file, nothing if text is empty:
//
//	some avg10=0.00 avg60=0.12 avg300=1.05 total=12345
//	full avg10=0.00 avg60=0.00 avg300=0.00 total=0
func appendPressure(b []byte, num int, text []byte) []byte {
	if len(text) == 0 {
		return b
	}
	b, message := begin(b, num)
	for len(text) > 0 {
		var line []byte
		line, text = cut(text, '\n')
		kind, rest := cut(line, ' ')
		var mark int
		switch string(kind) {
		case "some":
			b, mark = begin(b, 1)
		case "full":
			b, mark = begin(b, 2)
		default:
			continue
		}
		for len(rest) > 0 {
			var pair []byte
			pair, rest = cut(rest, ' ')
			key, value := cut(pair, '=')
			switch string(key) {
			case "avg10":
				b = wire.AppendFloat64(b, 1, parseDecimal(value))
			case "avg60":
				b = wire.AppendFloat64(b, 2, parseDecimal(value))
			case "avg300":
				b = wire.AppendFloat64(b, 3, parseDecimal(value))
			case "total":
				v, _ := parseNumber(value)
				b = wire.AppendVarint(b, 4, v)
			}
		}
		b = wire.End(b, mark)
	}
	return wire.End(b, message)
}

// appendIO appends an IOEntry for each line of io.stat: "8:0 rbytes=1 wbytes=2
// rios=3 wios=4 dbytes=0 dios=0". A device without numbers is left out.
func appendIO(b []byte, num int, text []byte) []byte {
	for len(text) > 0 {
		var line []byte
		line, text = cut(text, '\n')
		device, rest := cut(line, ' ')
		majorText, minorText := cut(device, ':')
		major, ok1 := parseNumber(majorText)
		minor, ok2 := parseNumber(minorText)
		if !ok1 || !ok2 || rest == nil {
			continue
		}
		var mark int
		b, mark = begin(b, num)
		b = wire.AppendVarint(b, 1, major)
		b = wire.AppendVarint(b, 2, minor)
		for len(rest) > 0 {
			var pair []byte
			pair, rest = cut(rest, ' ')
			key, value := cut(pair, '=')
			v, _ := parseNumber(value)
			switch string(key) {
			case "rbytes":
				b = wire.AppendVarint(b, 3, v)
			case "wbytes":
				b = wire.AppendVarint(b, 4, v)
			case "rios":
				b = wire.AppendVarint(b, 5, v)
			case "wios":
				b = wire.AppendVarint(b, 6, v)
			}
		}
		b = wire.End(b, mark)
	}
	return b
}
