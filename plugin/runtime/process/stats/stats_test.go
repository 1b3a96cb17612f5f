// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"testing"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestDecode(t *testing.T) {
	at := time.Unix(1700000000, 5).UTC()
	cpu := CPU{Usage: 30 * time.Microsecond, User: 20 * time.Microsecond, System: 10 * time.Microsecond, Periods: 4, ThrottledPeriods: 3, Throttled: 2 * time.Microsecond}
	for name, c := range map[string]struct {
		metrics any
		want    Stats
	}{
		"version 1": {
			&v1.Metrics{
				CPU: &v1.CPUStat{Usage: &v1.CPUUsage{Total: 30000, User: 20000, Kernel: 10000}, Throttling: &v1.Throttle{Periods: 4, ThrottledPeriods: 3, ThrottledTime: 2000}},
				Memory: &v1.MemoryStat{
					Usage: &v1.MemoryEntry{Usage: 100, Limit: math.MaxInt64 - 4095, Max: 120}, Swap: &v1.MemoryEntry{Usage: 130, Limit: math.MaxInt64 - 4095},
					TotalInactiveFile: 40, TotalRSS: 50, TotalCache: 45, TotalPgFault: 7, TotalPgMajFault: 1,
				},
				MemoryOomControl: &v1.MemoryOomControl{OomKill: 2},
				Pids:             &v1.PidsStat{Current: 3, Limit: 10},
				Blkio: &v1.BlkIOStat{
					IoServiceBytesRecursive: []*v1.BlkIOEntry{{Op: "Read", Major: 8, Value: 11}, {Op: "Write", Major: 8, Value: 12}, {Op: "Total", Major: 8, Value: 23}},
					IoServicedRecursive:     []*v1.BlkIOEntry{{Op: "Read", Major: 8, Value: 1}, {Op: "Write", Major: 8, Value: 2}},
				},
				Hugetlb: []*v1.HugetlbStat{{Pagesize: "2MB", Usage: 5, Max: 6}},
			},
			Stats{
				At: at, CPU: cpu, Pids: Pids{3, 10}, Disks: []Disk{{8, 0, 11, 12, 1, 2}}, Hugetlb: []Hugetlb{{"2MB", 5, 6}},
				Memory: Memory{Usage: 100, WorkingSet: 60, RSS: 50, Cache: 45, Swap: 30, Max: 120, Faults: 7, Major: 1, OOMKills: 2},
			},
		},
		"version 2": {
			&v2.Metrics{
				CPU: &v2.CPUStat{
					UsageUsec: 30, UserUsec: 20, SystemUsec: 10, NrPeriods: 4, NrThrottled: 3, ThrottledUsec: 2,
					PSI: &v2.PSIStats{Some: &v2.PSIData{Avg10: 1.5, Total: 9}},
				},
				Memory: &v2.MemoryStat{
					Usage: 100, InactiveFile: 140, Anon: 50, File: 45, UsageLimit: 200, SwapUsage: 30, SwapLimit: math.MaxUint64, MaxUsage: 120,
					Pgfault: 7, Pgmajfault: 1,
				},
				MemoryEvents: &v2.MemoryEvents{OomKill: 2},
				Pids:         &v2.PidsStat{Current: 3, Limit: math.MaxUint64},
				Io:           &v2.IOStat{Usage: []*v2.IOEntry{{Major: 8, Rbytes: 11, Wbytes: 12, Rios: 1, Wios: 2}}},
				Hugetlb:      []*v2.HugeTlbStat{{Pagesize: "2MB", Current: 5, Max: 6}},
			},
			Stats{
				At: at, CPU: withPressure(cpu), Pids: Pids{3, 0}, Disks: []Disk{{8, 0, 11, 12, 1, 2}}, Hugetlb: []Hugetlb{{"2MB", 5, 6}},
				Memory: Memory{Usage: 100, RSS: 50, Cache: 45, Limit: 200, Swap: 30, Max: 120, Faults: 7, Major: 1, OOMKills: 2},
			},
		},
		"empty": {&v2.Metrics{}, Stats{At: at}},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := typeurl.MarshalAnyToProto(c.metrics)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Decode(&types.Metric{ID: "c", Timestamp: timestamppb.New(at), Data: data})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	foreign, err := typeurl.MarshalAnyToProto(&emptypb.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(&types.Metric{ID: "c", Data: foreign}); !errdefs.IsNotImplemented(err) {
		t.Errorf("foreign type: got %v", err)
	}
	if _, err := Decode(nil); !errdefs.IsNotFound(err) {
		t.Errorf("nothing: got %v", err)
	}
}

func withPressure(c CPU) CPU {
	c.Pressure.Some = Stall{Avg10: 1.5, Total: 9 * time.Microsecond}
	return c
}
