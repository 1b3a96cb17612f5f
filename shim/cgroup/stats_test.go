// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"maps"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"

	cgroups "github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"github.com/containerd/cgroups/v3/cgroup2"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
)

// sorted puts repeated messages whose order has no meaning into one.
func sorted(m *v2.Metrics) *v2.Metrics {
	sort.Slice(m.Hugetlb, func(i, j int) bool { return m.Hugetlb[i].Pagesize < m.Hugetlb[j].Pagesize })
	return m
}

// Our message equals the library's, of the same live cgroup.
func TestStatsOfHost(t *testing.T) {
	// Not cpu.max: the first limit of a v2 machine makes its kernel patch itself,
	// which an emulated one may not survive.
	c := start(t, "work", func(dir string) {
		for name, value := range map[string]string{
			"pids.max": "77", "cpu.cfs_quota_us": "30000", "memory.limit_in_bytes": "268435456",
			"memory.max": "268435456",
		} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				put(t, dir, name, value)
			}
		}
	})
	g, err := Of(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	c.begin(t)
	c.line(t)
	// A stopped process keeps most counters still.
	if err := c.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}

	read := func() (proto.Message, error) {
		cg, err := cgroup1.Load(cgroup1.PidPath(c.Process.Pid))
		if err != nil {
			return nil, err
		}
		return cg.Stat(cgroup1.IgnoreNotExist)
	}
	if cgroups.Mode() == cgroups.Unified {
		read = func() (proto.Message, error) {
			path, err := cgroup2.PidGroupPath(c.Process.Pid)
			if err != nil {
				return nil, err
			}
			cg, err := cgroup2.Load(path)
			if err != nil {
				return nil, err
			}
			m, err := cg.Stat()
			if err == nil {
				m = sorted(m)
			}
			return m, err
		}
	}
	// Equal before and after means that nothing moved while we read.
	var diff string
	for range 50 {
		before, err := read()
		if err != nil {
			t.Fatal(err)
		}
		b, err := g.AppendStats(nil)
		if err != nil {
			t.Fatal(err)
		}
		after, err := read()
		if err != nil {
			t.Fatal(err)
		}
		ours := before.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(b, ours); err != nil {
			t.Fatal(err)
		}
		if url, _ := typeurl.TypeURL(before); url != g.MetricsURL() {
			t.Fatalf("type is %s, want %s", g.MetricsURL(), url)
		}
		if m, ok := ours.(*v2.Metrics); ok {
			sorted(m)
		}
		if diff = cmp.Diff(before, ours, protocmp.Transform()); diff == "" {
			checkFilled(t, ours)
			return
		}
		if proto.Equal(before, after) {
			break
		}
	}
	t.Errorf("metrics (-library +ours):\n%s", diff)
}

// checkFilled guards against comparing nothing with nothing.
func checkFilled(t *testing.T, m proto.Message) {
	t.Helper()
	switch m := m.(type) {
	case *v1.Metrics:
		if m.Pids.Limit != 77 || m.CPU.Usage.Total == 0 || m.Memory.Usage.Limit != 268435456 || m.Memory.TotalRSS == 0 {
			t.Errorf("metrics lack what was set: %v", m)
		}
	case *v2.Metrics:
		if m.Pids.Limit != 77 || m.CPU.UsageUsec == 0 || m.Memory.UsageLimit != 268435456 || m.Memory.Anon == 0 {
			t.Errorf("metrics lack what was set: %v", m)
		}
	}
}

func TestStatsDoNotAllocate(t *testing.T) {
	c := start(t, "work", nil)
	g, err := Of(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	c.begin(t)
	c.line(t)
	buf := make([]byte, 0, 16<<10)
	if n := testing.AllocsPerRun(20, func() {
		if _, err := g.AppendStats(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := g.MemoryUsage(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a poll allocates %v times", n)
	}
}

func TestStatsOfRemovedCgroup(t *testing.T) {
	c := start(t, "work", nil)
	g, err := Of(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	c.begin(t)
	c.line(t)
	if usage, err := g.MemoryUsage(); err != nil || usage == 0 {
		t.Errorf("memory usage %d, %v", usage, err)
	}
	c.end()
	within(t, "removal", func() bool { return g.Remove() == nil })
	for _, dir := range c.dirs {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is still there", dir)
		}
	}
	// The hierarchies that the process shares with the test are none of it.
	if b, err := g.AppendStats([]byte("x")); err != ErrGone || string(b) != "x" {
		t.Errorf("got %q, %v, want ErrGone", b, err)
	}
	if _, err := g.Pids(nil); err != ErrGone {
		t.Errorf("Pids: %v, want ErrGone", err)
	}
	if err := g.Kill(); err != nil {
		t.Errorf("Kill: %v", err)
	}
	if err := g.Remove(); err != nil {
		t.Errorf("second Remove: %v", err)
	}
}

// fakeHost makes the files of a host with one process, 42, in /a/b.
func fakeHost(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const cgroup2Mount = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"

func v2Host(t *testing.T, files map[string]string) string {
	all := map[string]string{
		"proc/self/cgroup":    "0::/containerd\n",
		"proc/42/cgroup":      "0::/a/b\n",
		"proc/self/mountinfo": "22 27 0:21 / /proc rw - proc proc rw\n" + cgroup2Mount,
	}
	for name, text := range files {
		all["sys/fs/cgroup/a/b/"+name] = text
	}
	return fakeHost(t, all)
}

// What the library makes of the same files.
func TestStatsV2(t *testing.T) {
	pressure := "some avg10=0.07 avg60=12.30 avg300=99.99 total=123456789\nfull avg10=0.00 avg60=0.01 avg300=1.00 total=42\n"
	full := map[string]string{
		"pids.current":    "7\n",
		"pids.max":        "max\n",
		"cpu.stat":        "usage_usec 1001\nuser_usec 602\nsystem_usec 403\nnice_usec 9\ncore_sched.force_idle_usec 0\nnr_periods 5\nnr_throttled 4\nthrottled_usec 3\nnr_bursts 2\nburst_usec 1\n",
		"cpu.pressure":    pressure,
		"memory.stat":     memoryStatText(memoryV2) + "workingset_refault_anon 5\n",
		"memory.current":  "4096000\n",
		"memory.max":      "max\n",
		"memory.peak":     "5000000\n",
		"memory.pressure": pressure,
		"memory.events":   "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nsock_throttled 7\n",

		"memory.swap.current": "11\n",
		"memory.swap.max":     "22\n",
		"memory.swap.peak":    "33\n",

		"io.stat":      "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n259:1 \n253:7 rbytes=18446744073709551615 cost.usage=1\n",
		"io.pressure":  "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
		"rdma.max":     "mlx4_0 hca_handle=max hca_object=3000\n",
	}
	for _, size := range hugePageSizes("/sys/kernel/mm/hugepages") {
		full["hugetlb."+size+".current"] = "2097152\n"
		full["hugetlb."+size+".max"] = "max\n"
		full["hugetlb."+size+".events"] = "max 9\n"
	}
	without := func(names ...string) map[string]string {
		m := map[string]string{}
		maps.Copy(m, full)
		for _, name := range names {
			delete(m, name)
		}
		return m
	}
	for name, files := range map[string]map[string]string{
		"everything":     full,
		"no memory":      without("memory.stat", "memory.current", "memory.max", "memory.peak", "memory.events", "memory.pressure"),
		"no swap":        without("memory.swap.current", "memory.swap.max", "memory.swap.peak"),
		"no pressure":    without("cpu.pressure", "io.pressure", "memory.pressure"),
		"cpu.stat alone": {"cpu.stat": full["cpu.stat"]},
		"longer than the buffer": func() map[string]string {
			m := without()
			m["io.stat"] = strings.Repeat("8:16 rbytes=123456789 wbytes=123456789 rios=1 wios=1\n", 300)
			return m
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			root := v2Host(t, files)
			for _, e := range must(os.ReadDir("/sys/kernel/mm/hugepages")) {
				if err := os.MkdirAll(filepath.Join(root, "sys/kernel/mm/hugepages", e.Name()), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			g, err := find(root, 42)
			if err != nil {
				t.Fatal(err)
			}
			b, err := g.AppendStats(nil)
			if err != nil {
				t.Fatal(err)
			}
			var ours v2.Metrics
			if err := proto.Unmarshal(b, &ours); err != nil {
				t.Fatal(err)
			}
			library, err := cgroup2.Load("/a/b", cgroup2.WithMountpoint(filepath.Join(root, "sys/fs/cgroup")))
			if err != nil {
				t.Fatal(err)
			}
			want, err := library.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(sorted(want), sorted(&ours), protocmp.Transform()); diff != "" {
				t.Errorf("metrics (-library +ours):\n%s", diff)
			}
		})
	}
	t.Run("nothing", func(t *testing.T) {
		g, err := find(v2Host(t, map[string]string{}), 42)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.AppendStats(nil); err != ErrGone {
			t.Errorf("got %v, want ErrGone", err)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// memoryStatText is a memory.stat in which every value is another.
func memoryStatText(fields []keyed) string {
	var b strings.Builder
	for i, f := range fields {
		b.WriteString(f.key + " " + strconv.Itoa(1000+i) + "\n")
	}
	return b.String()
}

// v1Host has what this machine may lack: combined controllers, CFQ, huge pages.
func v1Host(t *testing.T, files map[string]string) string {
	all := map[string]string{
		"proc/self/cgroup": "5:memory:/containerd\n4:blkio:/\n3:cpu,cpuacct:/\n2:hugetlb:/\n1:name=systemd:/\n",
		"proc/42/cgroup":   "5:memory:/a/b\n4:blkio:/a/b\n3:cpu,cpuacct:/a/b\n2:hugetlb:/a/b\n1:name=systemd:/a/b\n",
		"proc/self/mountinfo": `31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro
35 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
36 31 0:31 / /var/chroot/memory rw - cgroup cgroup rw,memory
33 31 0:30 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
34 31 0:32 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb
39 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
`,
	}
	maps.Copy(all, files)
	return fakeHost(t, all)
}

func TestStatsV1(t *testing.T) {
	root := v1Host(t, map[string]string{
		"sys/fs/cgroup/memory/a/b/memory.stat":                        memoryStatText(memoryV1),
		"sys/fs/cgroup/memory/a/b/memory.usage_in_bytes":              "10\n",
		"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes":              "9223372036854771712\n",
		"sys/fs/cgroup/memory/a/b/memory.kmem.failcnt":                "3\n",
		"sys/fs/cgroup/memory/a/b/memory.oom_control":                 "oom_kill_disable 1\nunder_oom 1\noom_kill 2\n",
		"sys/fs/cgroup/cpu,cpuacct/a/b/cpuacct.stat":                  "user 150\nsystem 25\n",
		"sys/fs/cgroup/cpu,cpuacct/a/b/cpuacct.usage":                 "1750000000\n",
		"sys/fs/cgroup/cpu,cpuacct/a/b/cpuacct.usage_percpu":          "1750000000 0 -5 \n",
		"sys/fs/cgroup/cpu,cpuacct/a/b/cpu.stat":                      "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n",
		"sys/fs/cgroup/blkio/a/b/blkio.io_serviced_recursive":         "8:0 Read 5\n8:0 Total 5\n8:9 Write 6\nTotal 11\n",
		"sys/fs/cgroup/blkio/a/b/blkio.sectors_recursive":             "8:0 99\n",
		"sys/fs/cgroup/hugetlb/a/b/hugetlb.2MB.usage_in_bytes":        "4194304\n",
		"sys/fs/cgroup/hugetlb/a/b/hugetlb.2MB.failcnt":               "1\n",
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages":       "0\n",
		"sys/fs/cgroup/blkio/a/b/blkio.throttle.io_serviced":          "8:0 Read 1000\n",
		"sys/fs/cgroup/blkio/a/b/blkio.io_service_bytes_recursive":    "Total 0\n",
		"sys/fs/cgroup/blkio/a/b/blkio.throttle.io_service_bytes":     "",
		"sys/fs/cgroup/cpu,cpuacct/a/b/some/nested/cgroup.procs":      "",
		"sys/fs/cgroup/memory/a/b/memory.kmem.tcp.max_usage_in_bytes": "max\n",
	})
	if err := os.MkdirAll(root+"/sys/dev/block", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../devices/block/cciss!c0d0", root+"/sys/dev/block/8:0"); err != nil {
		t.Fatal(err)
	}
	g, err := find(root, 42)
	if err != nil {
		t.Fatal(err)
	}
	b, err := g.AppendStats(nil)
	if err != nil {
		t.Fatal(err)
	}
	var got v1.Metrics
	if err := proto.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	var memory v1.MemoryStat
	fields := memory.ProtoReflect().Descriptor().Fields()
	for i, f := range memoryV1 {
		number := protoreflect.FieldNumber(f.num)
		memory.ProtoReflect().Set(fields.ByNumber(number), protoreflect.ValueOfUint64(uint64(1000+i)))
	}
	memory.Usage = &v1.MemoryEntry{Usage: 10, Limit: 9223372036854771712}
	memory.Swap = &v1.MemoryEntry{}
	memory.Kernel = &v1.MemoryEntry{Failcnt: 3}
	memory.KernelTCP = &v1.MemoryEntry{}
	want := v1.Metrics{
		Hugetlb: []*v1.HugetlbStat{{Usage: 4194304, Failcnt: 1, Pagesize: "2MB"}},
		CPU: &v1.CPUStat{
			Usage:      &v1.CPUUsage{Total: 1750000000, User: 1500000000, Kernel: 250000000, PerCPU: []uint64{1750000000, 0, 0}},
			Throttling: &v1.Throttle{Periods: 1, ThrottledPeriods: 2, ThrottledTime: 3},
		},
		Memory:           &memory,
		MemoryOomControl: &v1.MemoryOomControl{OomKillDisable: 1, UnderOom: 1, OomKill: 2},
		Blkio: &v1.BlkIOStat{
			IoServicedRecursive: []*v1.BlkIOEntry{
				{Op: "Read", Device: "/dev/cciss/c0d0", Major: 8, Value: 5},
				{Op: "Total", Device: "/dev/cciss/c0d0", Major: 8, Value: 5},
				{Op: "Write", Major: 8, Minor: 9, Value: 6},
			},
			SectorsRecursive: []*v1.BlkIOEntry{{Device: "/dev/cciss/c0d0", Major: 8, Value: 99}},
		},
	}
	if diff := cmp.Diff(&want, &got, protocmp.Transform()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestParseNumber(t *testing.T) {
	for text, want := range map[string]uint64{
		"0": 0, "42": 42, "18446744073709551615": math.MaxUint64, "-1": 0, "-99999999999999999999999": 0,
	} {
		if got, ok := parseNumber([]byte(text)); got != want || !ok && text[0] != '-' {
			t.Errorf("%q: got %d, %t", text, got, ok)
		}
	}
	for _, text := range []string{"", "-", "18446744073709551616", "1a", "max", " 1", "99999999999999999999999999"} {
		if got, ok := parseNumber([]byte(text)); ok {
			t.Errorf("%q: got %d, want a refusal", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("some avg10=0.07 avg60=12.30 avg300=99.99 total=1\n8:0 rbytes=1\nmlx hca_handle=max hca_object=1\nanon 5\n8:0 Read 6\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		// Whatever the kernel writes, the message must stay one that can be read.
		b := appendPressure(nil, 7, text)
		var cpu v2.CPUStat
		if err := proto.Unmarshal(b, &cpu); err != nil {
			t.Fatal(err)
		}
		var io v2.IOStat
		if err := proto.Unmarshal(appendIO(nil, 1, text), &io); err != nil {
			t.Fatal(err)
		}
		var memory v2.MemoryStat
		if err := proto.Unmarshal(appendKeyed(nil, text, memoryV2), &memory); err != nil {
			t.Fatal(err)
		}
		// Any text that is one decimal is read as strconv does.
		decimal := strings.TrimSpace(string(text))
		if want, err := strconv.ParseFloat(decimal, 64); err == nil && plainDecimal(decimal) {
			if got := parseDecimal([]byte(decimal)); got != want {
				t.Errorf("%q: got %v, want %v", decimal, got, want)
			}
		}
	})
}

// plainDecimal is what pressure files hold: few digits, two of them a fraction.
func plainDecimal(s string) bool {
	whole, fraction, _ := strings.Cut(s, ".")
	return len(whole) > 0 && len(whole) < 10 && len(fraction) < 4 && strings.Trim(whole+fraction, "0123456789") == ""
}
