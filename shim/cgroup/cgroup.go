// SPDX-License-Identifier: Apache-2.0

// Package cgroup is the container's control group: its statistics as
// containerd's metrics messages, its processes, freezer, out-of-memory kills and
// removal, in both cgroup versions. Setting limits is the OCI runtime's business.
//
// Which version counts is decided as containerd and runc do: v2 if it is mounted
// at /sys/fs/cgroup, else v1, also when some controllers of a hybrid host are in
// v2.
//
// A container may have been left in the cgroup of its shim, or in the root (some
// runtimes can be told to). Such a hierarchy is shared: it is read for statistics
// but never killed, frozen or removed.
package cgroup

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/wire"
)

// Type URLs of the two metrics messages.
const (
	MetricsV1URL = "io.containerd.cgroups.v1.Metrics"
	MetricsV2URL = "io.containerd.cgroups.v2.Metrics"
)

// ErrGone is returned when the cgroup does not exist any more.
var ErrGone = fault.New(fault.NotFound, "cgroup does not exist")

// Controllers of cgroup v1 that are asked for by name, and the v2 hierarchy.
type controllers uint16

const (
	hugetlb controllers = 1 << iota
	pids
	cpu
	cpuacct
	memory
	blkio
	rdma
	freezer
	unified
)

var controllerNames = [...]struct {
	name string
	bit  controllers
}{
	{"hugetlb", hugetlb},
	{"pids", pids},
	{"cpu", cpu},
	{"cpuacct", cpuacct},
	{"memory", memory},
	{"blkio", blkio},
	{"rdma", rdma},
	{"freezer", freezer},
}

// hierarchy is the container's place in one mounted cgroup file system.
type hierarchy struct {
	dir    string
	has    controllers
	shared bool // also this process's own cgroup or one above it, or the root
}

// Group is a container's cgroup in all hierarchies. Its methods share a buffer and
// are for the loop, except for those that may block or take long: Pids, Kill,
// Freeze, Thaw and Remove use nothing of it and may run in a job meanwhile.
type Group struct {
	v2        bool
	places    []hierarchy
	pageSizes []string // of huge pages, as the hugetlb controller's files name them
	kills     uint64   // value of the oom_kill counter that has been told
	root      string   // in front of /proc and /sys; empty outside of tests
	files     reader
}

// Of finds the cgroup of the running process pid. It returns NotFound if there
// is no such process.
func Of(pid int) (*Group, error) { return find("", pid) }

// At returns the cgroup at path, from the root of each hierarchy, whether it
// exists yet or not. The bare name of a systemd slice stands for its path.
func At(path string) (*Group, error) { return findPath("", expandSlice(path)) }

// MetricsURL names the message that AppendStats writes.
func (g *Group) MetricsURL() string {
	if g.v2 {
		return MetricsV2URL
	}
	return MetricsV1URL
}

// dir returns the directory that holds c's files, empty if c is not mounted.
func (g *Group) dir(c controllers) string {
	for i := range g.places {
		if p := &g.places[i]; p.has&c != 0 {
			return p.dir
		}
	}
	return ""
}

// AppendStats appends the metrics message to b. It does not allocate when b has
// room. It returns ErrGone if the cgroup has been removed.
func (g *Group) AppendStats(b []byte) ([]byte, error) {
	r := &g.files
	r.found, r.err = false, nil
	start := len(b)
	if g.v2 {
		b = g.appendV2(b)
	} else {
		b = g.appendV1(b)
	}
	switch {
	case r.err != nil:
		return b[:start], fault.Wrap(fault.Internal, "cgroup statistics", r.err)
	case !r.found:
		return b[:start], ErrGone
	}
	return b, nil
}

// MemoryUsage returns the memory charged to the cgroup, in bytes. It returns
// ErrGone also if memory is not accounted.
func (g *Group) MemoryUsage() (uint64, error) {
	r := &g.files
	r.found, r.err = false, nil
	var usage uint64
	if g.v2 {
		usage = r.number(g.dir(unified), "memory.current")
	} else {
		usage = r.number(g.dir(memory), "memory.usage_in_bytes")
	}
	switch {
	case r.err != nil:
		return 0, fault.Wrap(fault.Internal, "memory usage", r.err)
	case !r.found:
		return 0, ErrGone
	}
	return usage, nil
}

// Encode appends g to b, for Decode. The form is protobuf's, so that a newer
// program reads an older one's.
func (g *Group) Encode(b []byte) []byte {
	b = wire.AppendBool(b, 1, g.v2)
	b = wire.AppendVarint(b, 2, g.kills)
	b = wire.AppendStrings(b, 3, g.pageSizes)
	for i := range g.places {
		p := &g.places[i]
		b = wire.AppendTag(b, 4, wire.Bytes)
		mark := wire.Begin(b)
		b = wire.AppendString(b, 1, p.dir)
		b = wire.AppendVarint(b, 2, uint64(p.has))
		b = wire.AppendBool(b, 3, p.shared)
		b = wire.End(b, mark)
	}
	return b
}

// Decode returns the Group that Encode wrote. The cgroup need not exist any more.
func Decode(b []byte) (*Group, error) {
	g := &Group{}
	s := wire.Scan(b)
	for f := (wire.Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			f.Bool(&g.v2)
		case 2:
			g.kills = f.Value
		case 3:
			g.pageSizes = append(g.pageSizes, string(f.Bytes))
		case 4:
			p, err := decodeHierarchy(f.Bytes)
			if err != nil {
				return nil, err
			}
			g.places = append(g.places, p)
		}
	}
	return g, fault.In("cgroup record", s.Err())
}

func decodeHierarchy(b []byte) (hierarchy, error) {
	var p hierarchy
	s := wire.Scan(b)
	for f := (wire.Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			p.dir = string(f.Bytes)
		case 2:
			p.has = controllers(f.Value)
		case 3:
			f.Bool(&p.shared)
		}
	}
	// What is not plainly the path of a cgroup must never be killed or removed.
	if s.Err() == nil && (!strings.HasPrefix(p.dir, "/") || strings.Contains(p.dir+"/", "/../")) {
		return p, fault.New(fault.InvalidArgument, "cgroup record: bad path "+p.dir)
	}
	return p, fault.In("cgroup record", s.Err())
}

// gone tells whether err means that a cgroup, or a file of it, does not exist:
// an open file of a removed cgroup reads ENODEV.
func gone(err error) bool { return err == unix.ENOENT || err == unix.ENODEV }
