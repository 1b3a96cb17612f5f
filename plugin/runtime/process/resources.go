// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strings"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/runtime/process/stats"
)

// Stats returns what the container uses. It returns NotFound if its cgroup is gone.
func (c *Container) Stats(ctx context.Context) (*stats.Stats, error) {
	if c.Spoofed() {
		return &stats.Stats{}, nil
	}
	all, err := c.s.Stats(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	s, ok := all[c.ID]
	if !ok {
		return nil, fmt.Errorf("statistics of container %s: %w", c.ID, errdefs.ErrNotFound)
	}
	return s, nil
}

// Stats returns what containers use, by id: all of the namespace if none is named.
// Those without a cgroup are left out. It is one request to containerd.
func (s *Service) Stats(ctx context.Context, ids ...string) (map[string]*stats.Stats, error) {
	r := &tasks.MetricsRequest{}
	for _, id := range ids {
		r.Filters = append(r.Filters, fmt.Sprintf("id==%q", id))
	}
	answer, err := s.tasks.Metrics(ctx, r)
	if err = native(err); err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	all := make(map[string]*stats.Stats, len(answer.Metrics))
	for _, m := range answer.Metrics {
		if all[m.ID], err = stats.Decode(m); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Update changes the container's limits: those that are given, zero and nil stay
// as they are. A memory limit below what is used is FailedPrecondition, a negative
// one InvalidArgument; swap may not be used beyond it unless r says so. What
// Resources returns changes only after success.
func (c *Container) Update(ctx context.Context, r *specs.LinuxResources) error {
	if c.Spoofed() {
		return nil
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	s := c.StateNoLock()
	if s.Status == Stopped {
		return fmt.Errorf("update container %s: %w", c.ID, ErrContainerStopped)
	}
	r, err := c.checkMemory(ctx, r)
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.ID, err)
	}
	document, err := typeurl.MarshalAnyToProto(r)
	if err != nil {
		return fmt.Errorf("update container %s: %w: %w", c.ID, errdefs.ErrInternal, err)
	}
	_, err = c.s.tasks.Update(ctx, &tasks.UpdateTaskRequest{ContainerID: c.ID, Resources: document})
	if err = native(err); err != nil {
		return fmt.Errorf("update container %s: %w", c.ID, err)
	}
	merged := merge(c.Resources(), r)
	c.change(func(s *State) { s.Resources = merged })
	return c.save()
}

// checkMemory refuses limits that would kill, and returns r with a limit of swap.
func (c *Container) checkMemory(ctx context.Context, r *specs.LinuxResources) (*specs.LinuxResources, error) {
	if r.Memory == nil || r.Memory.Limit == nil || *r.Memory.Limit == 0 {
		return r, nil
	}
	limit := *r.Memory.Limit
	if limit < 0 {
		return nil, fmt.Errorf("memory limit of %d bytes: %w", limit, errdefs.ErrInvalidArgument)
	}
	now, err := c.Stats(ctx)
	if err != nil {
		return nil, err
	}
	if uint64(limit) < now.Memory.Usage {
		return nil, fmt.Errorf("memory limit of %d bytes, %d are used: %w", limit, now.Memory.Usage, errdefs.ErrFailedPrecondition)
	}
	if r.Memory.Swap != nil || !swapAccounted(c.StateNoLock().InitPid) {
		return r, nil
	}
	changed, memory := *r, *r.Memory
	memory.Swap = &limit // of memory and swap together
	changed.Memory = &memory
	return &changed, nil
}

// swapAccounted tells whether the kernel limits the swap of a process's cgroup.
func swapAccounted(pid int) bool {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		_, err = os.Stat(root + "/memory/memory.memsw.limit_in_bytes")
		return err == nil
	}
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			_, err := os.Stat(root + path + "/memory.swap.max")
			return err == nil
		}
	}
	return false
}

// merge returns old with the limits that change says; both stay as they are.
func merge(old, change *specs.LinuxResources) *specs.LinuxResources {
	var r specs.LinuxResources
	if old != nil {
		r = *old
	}
	if change.CPU != nil {
		var cpu specs.LinuxCPU
		if r.CPU != nil {
			cpu = *r.CPU
		}
		set(&cpu.Shares, change.CPU.Shares)
		set(&cpu.Quota, change.CPU.Quota)
		set(&cpu.Burst, change.CPU.Burst)
		set(&cpu.Period, change.CPU.Period)
		set(&cpu.Idle, change.CPU.Idle)
		setText(&cpu.Cpus, change.CPU.Cpus)
		setText(&cpu.Mems, change.CPU.Mems)
		r.CPU = &cpu
	}
	if change.Memory != nil {
		var memory specs.LinuxMemory
		if r.Memory != nil {
			memory = *r.Memory
		}
		set(&memory.Limit, change.Memory.Limit)
		set(&memory.Reservation, change.Memory.Reservation)
		set(&memory.Swap, change.Memory.Swap)
		r.Memory = &memory
	}
	if change.Pids != nil {
		r.Pids = change.Pids
	}
	if change.BlockIO != nil {
		r.BlockIO = change.BlockIO
	}
	if len(change.HugepageLimits) > 0 {
		r.HugepageLimits = change.HugepageLimits
	}
	if len(change.Unified) > 0 {
		unified := make(map[string]string, len(r.Unified)+len(change.Unified))
		for _, m := range []map[string]string{r.Unified, change.Unified} {
			maps.Copy(unified, m)
		}
		r.Unified = unified
	}
	return &r
}

func set[T comparable](to **T, v *T) {
	var zero T
	if v != nil && *v != zero {
		*to = v
	}
}

func setText(to *string, v string) {
	if v != "" {
		*to = v
	}
}
