// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	runc "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/network"
	"github.com/berthd/berth/plugin/runtime/process/identity"
)

// Stats returns what containers use; all that run if there is no ref. What is gone
// is left out.
func (s *Service) Stats(ctx context.Context, refs ...string) ([]ContainerStats, error) {
	ctx = s.in(ctx)
	var list []Container
	for _, ref := range refs {
		v, e, err := s.findContainer(ctx, ref)
		if err != nil {
			return nil, err
		}
		list = append(list, s.describe(v, *e))
	}
	if len(refs) == 0 {
		all, err := s.Containers(ctx, ContainerFilter{})
		if err != nil {
			return nil, err
		}
		for _, c := range all {
			if c.running() {
				list = append(list, c)
			}
		}
	}
	return s.statsOf(ctx, list)
}

func (s *Service) statsOf(ctx context.Context, list []Container) ([]ContainerStats, error) {
	if len(list) == 0 {
		return nil, nil
	}
	var ids []string
	for _, c := range list {
		ids = append(ids, string(c.ID))
	}
	used, err := s.processes.Stats(ctx, ids...)
	if err != nil {
		return nil, err
	}
	var all []ContainerStats
	for _, c := range list {
		u := used[string(c.ID)]
		if u == nil {
			continue
		}
		st := ContainerStats{ID: c.ID, Name: c.Name, PodID: c.PodID, PodName: c.PodName, Stats: *u}
		if c.Snapshotter != "" {
			// One that is gone uses nothing.
			if usage, err := s.config.Client.SnapshotService(c.Snapshotter).Usage(ctx, c.snapshot); err == nil {
				st.Layer = uint64(usage.Size)
			}
		}
		all = append(all, st)
	}
	return all, nil
}

// PodStats returns what pods use; all that are ready if there is no ref. What is
// gone is left out.
func (s *Service) PodStats(ctx context.Context, refs ...string) ([]PodStats, error) {
	ctx = s.in(ctx)
	var pods []Pod
	for _, ref := range refs {
		p, err := s.Pod(ctx, ref)
		if err != nil {
			return nil, err
		}
		pods = append(pods, p)
	}
	if len(refs) == 0 {
		var err error
		if pods, err = s.Pods(ctx, PodFilter{State: PodReady}); err != nil {
			return nil, err
		}
	}
	var running []Container
	for _, p := range pods {
		for _, c := range p.Containers {
			if c.running() {
				running = append(running, c)
			}
		}
	}
	used, err := s.statsOf(ctx, running)
	if err != nil {
		return nil, err
	}
	all := make([]PodStats, len(pods))
	for i, p := range pods {
		all[i] = PodStats{ID: p.ID, Name: p.Name, At: time.Now()}
		for _, c := range used {
			if c.PodID == p.ID {
				all[i].add(c)
			}
		}
		if p.NetworkNamespace != "" {
			all[i].Network, _ = networkStats(p.NetworkNamespace) // nothing of one that is gone
		}
	}
	return all, nil
}

// add adds a member to the pod's sums.
func (p *PodStats) add(c ContainerStats) {
	p.Containers = append(p.Containers, c)
	p.CPU.Usage += c.CPU.Usage
	p.CPU.User += c.CPU.User
	p.CPU.System += c.CPU.System
	p.CPU.Throttled += c.CPU.Throttled
	for _, sum := range []struct {
		at *uint64
		of uint64
	}{
		{&p.Memory.Usage, c.Memory.Usage},
		{&p.Memory.WorkingSet, c.Memory.WorkingSet},
		{&p.Memory.RSS, c.Memory.RSS},
		{&p.Memory.Cache, c.Memory.Cache},
		{&p.Memory.Swap, c.Memory.Swap},
		{&p.Memory.Faults, c.Memory.Faults},
		{&p.Memory.Major, c.Memory.Major},
		{&p.Memory.OOMKills, c.Memory.OOMKills},
		{&p.Pids, c.Stats.Pids.Current},
	} {
		*sum.at += sum.of
	}
}

// networkStats reads the interfaces of a network namespace from within.
func networkStats(path string) (list []NetworkStats, err error) {
	n, err := ns.GetNS(path)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	var text []byte
	if err := n.Do(func(ns.NetNS) (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	}); err != nil {
		return nil, err
	}
	return parseNetDev(text), nil
}

// parseNetDev reads /proc/net/dev (proc(5)): after two lines of headings, a line for
// each interface, with eight counters of what came in and eight of what went out.
func parseNetDev(text []byte) (list []NetworkStats) {
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		name, counters, found := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(counters)
		const columns, out = 16, 8
		if name = strings.TrimSpace(name); !found || len(fields) < columns || name == "lo" {
			continue
		}
		count := func(i int) uint64 {
			n, _ := strconv.ParseUint(fields[i], 10, 64) // the kernel writes numbers
			return n
		}
		list = append(list, NetworkStats{
			Interface: name, ReceivedBytes: count(0), ReceivedPackets: count(1), ReceivedErrors: count(2),
			SentBytes: count(out), SentPackets: count(out + 1), SentErrors: count(out + 2),
		})
	}
	return list
}

// PortForward connects stream to a TCP port in the pod, and closes it in the end. A
// pod that is not ready is FailedPrecondition.
func (s *Service) PortForward(ctx context.Context, ref string, port uint16, stream io.ReadWriteCloser) error {
	p, err := s.Pod(ctx, ref)
	if err == nil && p.State != PodReady {
		err = fmt.Errorf("forward port %d of pod %s: it is %s: %w", port, p.ID, p.State, errdefs.ErrFailedPrecondition)
	}
	if err == nil && p.Owner != labels.OwnerBerth.String() {
		err = fmt.Errorf("forward port %d of pod %s: its network is not known: %w", port, p.ID, ErrForeign)
	}
	if err != nil {
		return errors.Join(err, stream.Close())
	}
	if err := network.PortForward(ctx, p.NetworkNamespace, port, stream); err != nil {
		return fmt.Errorf("pod %s: %w", p.ID, err)
	}
	return nil
}

// Mount mounts the root filesystem, or counts one more user of it, and returns where.
// While the container has a task it is that one's, which counts nobody.
func (s *Service) Mount(ctx context.Context, ref string) (path string, err error) {
	err = s.do(ctx, ref, func(ctx context.Context, m *member) error {
		if bundle := m.StateNoLock().Bundle; bundle != "" {
			root := filepath.Join(bundle, "rootfs")
			if mounted, err := mountinfo.Mounted(root); err == nil && mounted {
				path = root
				return nil
			}
		}
		path, err = s.records.Mount(ctx, m.ID)
		return err
	})
	return path, err
}

// Unmount takes it off, whoever else uses it. What is not mounted is a success.
func (s *Service) Unmount(ctx context.Context, ref string) error {
	err := s.do(ctx, ref, func(ctx context.Context, m *member) error { return s.records.UnmountAll(ctx, m.ID) })
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Top lists the container's processes.
func (s *Service) Top(ctx context.Context, ref string) (list []Process, err error) {
	ctx = s.in(ctx)
	_, e, err := s.findContainer(ctx, ref)
	if err != nil {
		return nil, err
	}
	answer, err := s.tasks.ListPids(ctx, &tasks.ListPidsRequest{ContainerID: e.ID})
	if err = errgrpc.ToNative(err); err != nil {
		return nil, fmt.Errorf("processes of container %s: %w", e.ID, err)
	}
	execs := make(map[int]string)
	for _, p := range answer.Processes {
		list = append(list, Process{PID: int(p.Pid)})
		if exec := execOf(p.Info); exec != "" {
			execs[int(p.Pid)] = exec
		}
	}
	for i := range list {
		list[i].Exec = execs[list[i].PID]
		list[i].read()
	}
	return list, nil
}

// read completes a line of Top from proc(5), as far as the process is still there.
func (p *Process) read() {
	dir := "/proc/" + strconv.Itoa(p.PID)
	if s, err := identity.Stat(p.PID); err == nil {
		p.State, p.PPID = s.State, s.Parent
	}
	if b, err := os.ReadFile(dir + "/cmdline"); err == nil {
		p.Command = strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
	}
	if p.Command == "" {
		if b, err := os.ReadFile(dir + "/comm"); err == nil {
			p.Command = "[" + strings.TrimSpace(string(b)) + "]"
		}
	}
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil {
		p.User = strconv.Itoa(int(st.Uid))
		if u, err := user.LookupId(p.User); err == nil {
			p.User = u.Username
		}
	}
}

// execOf is the exec that a process was started as, if any.
func execOf(info typeurl.Any) string {
	if info == nil {
		return ""
	}
	v, err := typeurl.UnmarshalAny(info)
	if d, ok := v.(*runc.ProcessDetails); err == nil && ok {
		return d.ExecID
	}
	return ""
}
