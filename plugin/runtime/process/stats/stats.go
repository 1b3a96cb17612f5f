// SPDX-License-Identifier: Apache-2.0

// Package stats reads what the Task API tells about a container's use of the host:
// messages of cgroups of either version, made into one form. It refuses to measure
// anything itself: disks belong to the snapshotter, networks to the pod.
package stats

import (
	"fmt"
	"math"
	"strings"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// Stats is what a container has used. What the kernel does not account is zero;
// a limit of zero is none. In JSON times are in nanoseconds.
type Stats struct {
	At      time.Time `json:"at"` // when it was read
	CPU     CPU       `json:"cpu"`
	Memory  Memory    `json:"memory"`
	Pids    Pids      `json:"pids"`
	Disks   []Disk    `json:"disks,omitempty"`
	Hugetlb []Hugetlb `json:"hugetlb,omitempty"`
	IO      Pressure  `json:"io,omitzero"` // of cgroup version 2
}

// CPU is time of processors, since the container began.
type CPU struct {
	Usage            time.Duration `json:"usage"`
	User             time.Duration `json:"user"`
	System           time.Duration `json:"system"`
	Periods          uint64        `json:"periods"` // of the quota
	ThrottledPeriods uint64        `json:"throttledPeriods"`
	Throttled        time.Duration `json:"throttled"`
	Pressure         Pressure      `json:"pressure,omitzero"`
}

// Memory is in bytes, but for the faults.
type Memory struct {
	Usage      uint64   `json:"usage"`
	WorkingSet uint64   `json:"workingSet"` // usage without inactive file pages, which can go at once
	RSS        uint64   `json:"rss"`        // anonymous memory
	Cache      uint64   `json:"cache"`      // pages of files
	Limit      uint64   `json:"limit"`
	Swap       uint64   `json:"swap"`
	SwapLimit  uint64   `json:"swapLimit"`
	Max        uint64   `json:"max"` // highest usage so far
	Faults     uint64   `json:"faults"`
	Major      uint64   `json:"majorFaults"` // faults that waited for a disk
	OOMKills   uint64   `json:"oomKills"`
	Pressure   Pressure `json:"pressure,omitzero"`
}

// Pids counts processes and threads.
type Pids struct {
	Current uint64 `json:"current"`
	Limit   uint64 `json:"limit"`
}

// Disk is the traffic with a block device.
type Disk struct {
	Major        uint64 `json:"major"`
	Minor        uint64 `json:"minor"`
	ReadBytes    uint64 `json:"readBytes"`
	WrittenBytes uint64 `json:"writtenBytes"`
	Reads        uint64 `json:"reads"`
	Writes       uint64 `json:"writes"`
}

// Hugetlb is memory in pages of a size, in bytes.
type Hugetlb struct {
	Size  string `json:"size"` // of a page, as the kernel writes it: 2MB
	Usage uint64 `json:"usage"`
	Max   uint64 `json:"max"`
}

// Pressure is the share of time in which some, or all, processes had to wait.
type Pressure struct {
	Some Stall `json:"some"`
	Full Stall `json:"full"`
}

// Stall is in percent of the last 10, 60 and 300 seconds, and in all.
type Stall struct {
	Avg10  float64       `json:"avg10"`
	Avg60  float64       `json:"avg60"`
	Avg300 float64       `json:"avg300"`
	Total  time.Duration `json:"total"`
}

// Decode reads a metric as containerd hands it out. It returns NotFound for an
// empty one, and NotImplemented, naming the type, for what is not of a cgroup.
func Decode(m *types.Metric) (*Stats, error) {
	if m.GetData() == nil {
		return nil, fmt.Errorf("statistics of container %s: %w", m.GetID(), errdefs.ErrNotFound)
	}
	data, err := typeurl.UnmarshalAny(m.Data)
	if err != nil {
		return nil, fmt.Errorf("statistics of container %s: type %s: %w: %w", m.ID, m.Data.TypeUrl, errdefs.ErrNotImplemented, err)
	}
	var s *Stats
	switch d := data.(type) {
	case *v1.Metrics:
		s = ofV1(d)
	case *v2.Metrics:
		s = ofV2(d)
	default:
		return nil, fmt.Errorf("statistics of container %s: type %s: %w", m.ID, m.Data.TypeUrl, errdefs.ErrNotImplemented)
	}
	s.At = m.GetTimestamp().AsTime()
	return s, nil
}

func micros(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }

// limit makes zero of the kernel's ways to say that there is none.
func limit(n uint64) uint64 {
	const page = 1 << 16 // the largest that Linux has; version 1 rounds down to one
	if n >= math.MaxInt64-page {
		return 0
	}
	return n
}

func less(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

func ofV1(d *v1.Metrics) *Stats {
	cpu, throttle, mem := d.GetCPU().GetUsage(), d.GetCPU().GetThrottling(), d.GetMemory()
	s := &Stats{
		CPU: CPU{
			Usage: time.Duration(cpu.GetTotal()), User: time.Duration(cpu.GetUser()), System: time.Duration(cpu.GetKernel()),
			Periods: throttle.GetPeriods(), ThrottledPeriods: throttle.GetThrottledPeriods(),
			Throttled: time.Duration(throttle.GetThrottledTime()),
		},
		Memory: Memory{
			Usage: mem.GetUsage().GetUsage(), RSS: mem.GetTotalRSS(), Cache: mem.GetTotalCache(),
			WorkingSet: less(mem.GetUsage().GetUsage(), mem.GetTotalInactiveFile()),
			Limit:      limit(mem.GetUsage().GetLimit()), Max: mem.GetUsage().GetMax(),
			// Version 1 accounts memory and swap together.
			Swap:      less(mem.GetSwap().GetUsage(), mem.GetUsage().GetUsage()),
			SwapLimit: less(limit(mem.GetSwap().GetLimit()), limit(mem.GetUsage().GetLimit())),
			Faults:    mem.GetTotalPgFault(), Major: mem.GetTotalPgMajFault(),
			OOMKills: d.GetMemoryOomControl().GetOomKill(),
		},
		Pids: Pids{d.GetPids().GetCurrent(), limit(d.GetPids().GetLimit())},
	}
	for _, h := range d.GetHugetlb() {
		s.Hugetlb = append(s.Hugetlb, Hugetlb{h.GetPagesize(), h.GetUsage(), h.GetMax()})
	}
	for _, e := range d.GetBlkio().GetIoServiceBytesRecursive() {
		s.disk(e, func(k *Disk) (read, write *uint64) { return &k.ReadBytes, &k.WrittenBytes })
	}
	for _, e := range d.GetBlkio().GetIoServicedRecursive() {
		s.disk(e, func(k *Disk) (read, write *uint64) { return &k.Reads, &k.Writes })
	}
	return s
}

// disk adds an entry of version 1, which has one for each operation.
func (s *Stats) disk(e *v1.BlkIOEntry, in func(*Disk) (read, write *uint64)) {
	at := -1
	for i := range s.Disks {
		if s.Disks[i].Major == e.GetMajor() && s.Disks[i].Minor == e.GetMinor() {
			at = i
		}
	}
	if at < 0 {
		at = len(s.Disks)
		s.Disks = append(s.Disks, Disk{Major: e.GetMajor(), Minor: e.GetMinor()})
	}
	read, write := in(&s.Disks[at])
	switch strings.ToLower(e.GetOp()) {
	case "read":
		*read = e.GetValue()
	case "write":
		*write = e.GetValue()
	}
}

func ofV2(d *v2.Metrics) *Stats {
	cpu, mem := d.GetCPU(), d.GetMemory()
	s := &Stats{
		CPU: CPU{
			Usage: micros(cpu.GetUsageUsec()), User: micros(cpu.GetUserUsec()), System: micros(cpu.GetSystemUsec()),
			Periods: cpu.GetNrPeriods(), ThrottledPeriods: cpu.GetNrThrottled(), Throttled: micros(cpu.GetThrottledUsec()),
			Pressure: pressure(cpu.GetPSI()),
		},
		Memory: Memory{
			Usage: mem.GetUsage(), RSS: mem.GetAnon(), Cache: mem.GetFile(),
			WorkingSet: less(mem.GetUsage(), mem.GetInactiveFile()), Limit: limit(mem.GetUsageLimit()), Max: mem.GetMaxUsage(),
			Swap: mem.GetSwapUsage(), SwapLimit: limit(mem.GetSwapLimit()),
			Faults: mem.GetPgfault(), Major: mem.GetPgmajfault(), OOMKills: d.GetMemoryEvents().GetOomKill(),
			Pressure: pressure(mem.GetPSI()),
		},
		Pids: Pids{d.GetPids().GetCurrent(), limit(d.GetPids().GetLimit())},
		IO:   pressure(d.GetIo().GetPSI()),
	}
	for _, h := range d.GetHugetlb() {
		s.Hugetlb = append(s.Hugetlb, Hugetlb{h.GetPagesize(), h.GetCurrent(), limit(h.GetMax())})
	}
	for _, e := range d.GetIo().GetUsage() {
		s.Disks = append(s.Disks, Disk{
			Major: e.GetMajor(), Minor: e.GetMinor(), ReadBytes: e.GetRbytes(), WrittenBytes: e.GetWbytes(), Reads: e.GetRios(), Writes: e.GetWios(),
		})
	}
	return s
}

func pressure(p *v2.PSIStats) Pressure { return Pressure{stall(p.GetSome()), stall(p.GetFull())} }

func stall(d *v2.PSIData) Stall {
	return Stall{d.GetAvg10(), d.GetAvg60(), d.GetAvg300(), micros(d.GetTotal())}
}
