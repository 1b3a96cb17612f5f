// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/process"
)

// view is what there is of a namespace, or of a part of it, at one time: three
// lists, whatever their length. Records of both kinds are joined by package labels.
type view struct {
	containers map[string]containers.Container
	tasks      map[string]*task.Process
	pods       []labels.PodEntry
	rest       []labels.Entry
}

// fewTasks is up to how many tasks are asked for one by one: the list of all costs
// containerd a call to each shim.
const fewTasks = 16

// look reads the records that match any of the filters; none of them are all
// records.
func (s *Service) look(ctx context.Context, ofContainers, ofSandboxes []string) (*view, error) {
	cs, err := s.containers.List(ctx, ofContainers...)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var ss []sandbox.Sandbox
	if ofSandboxes == nil || len(ofSandboxes) > 0 {
		if ss, err = s.sandboxes.store.List(ctx, ofSandboxes...); err != nil {
			return nil, fmt.Errorf("list sandboxes: %w", err)
		}
	}
	return s.join(ctx, cs, ss)
}

// join completes records with their tasks.
func (s *Service) join(ctx context.Context, cs []containers.Container, ss []sandbox.Sandbox) (*view, error) {
	v := &view{containers: make(map[string]containers.Container, len(cs))}
	for _, c := range cs {
		v.containers[c.ID] = c
	}
	var err error
	if v.tasks, err = s.listTasks(ctx, cs); err != nil {
		return nil, err
	}
	v.pods, v.rest = labels.Group(cs, ss)
	return v, nil
}

func (s *Service) listTasks(ctx context.Context, cs []containers.Container) (map[string]*task.Process, error) {
	found := make(map[string]*task.Process)
	if len(cs) > fewTasks {
		all, err := s.tasks.List(ctx, &tasks.ListTasksRequest{})
		if err != nil {
			return nil, fmt.Errorf("list tasks: %w", errgrpc.ToNative(err))
		}
		for _, t := range all.Tasks {
			found[t.ID] = t
		}
		return found, nil
	}
	for _, c := range cs {
		t, err := s.tasks.Get(ctx, &tasks.GetRequest{ContainerID: c.ID})
		if err := errgrpc.ToNative(err); errdefs.IsNotFound(err) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("task of container %s: %w", c.ID, err)
		}
		found[c.ID] = t.Process
	}
	return found, nil
}

// Pods lists pods, newest first, those of others too.
func (s *Service) Pods(ctx context.Context, f PodFilter) ([]Pod, error) {
	ctx = s.in(ctx)
	v, err := s.look(ctx, nil, nil)
	if err != nil {
		return nil, err
	}
	var pods []Pod
	for _, p := range s.describePods(ctx, v) {
		if f.match(&p) && !p.unfinished {
			pods = append(pods, p)
		}
	}
	return pods, nil
}

func (f *PodFilter) match(p *Pod) bool {
	return strings.HasPrefix(string(p.ID), f.ID) &&
		(f.Name == "" || f.Name == p.Name || f.Name == p.FullName) &&
		(f.Namespace == "" || f.Namespace == p.Namespace) &&
		(f.State == "" || f.State == p.State) && contains(p.Labels, f.Labels)
}

func contains(all, some map[string]string) bool {
	for key, value := range some {
		if got, ok := all[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// Containers lists containers, newest first.
func (s *Service) Containers(ctx context.Context, f ContainerFilter) ([]Container, error) {
	ctx = s.in(ctx)
	var ofContainers []string
	if f.Pod != "" {
		p, err := s.findPod(ctx, f.Pod)
		if err != nil {
			return nil, err
		}
		return slices.DeleteFunc(s.describePods(ctx, p.view)[0].Containers, func(c Container) bool { return !f.match(&c) }), nil
	}
	if len(f.Labels) > 0 {
		ofContainers = []string{labels.Selector(f.Labels)}
	}
	v, err := s.look(ctx, ofContainers, []string{})
	if err != nil {
		return nil, err
	}
	var cs []Container
	for _, p := range v.pods {
		for _, m := range p.Members {
			if !unfinished(&m) {
				cs = append(cs, s.describe(v, m))
			}
		}
	}
	if f.AllOwners {
		for _, e := range v.rest {
			cs = append(cs, s.describe(v, e))
		}
	}
	cs = slices.DeleteFunc(cs, func(c Container) bool { return !f.match(&c) })
	slices.SortStableFunc(cs, func(a, b Container) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return cs, nil
}

func (f *ContainerFilter) match(c *Container) bool {
	return strings.HasPrefix(string(c.ID), f.ID) &&
		(f.Name == "" || f.Name == c.Name || f.Name == c.FullName) &&
		(f.State == "" || f.State == c.State) && contains(c.Labels, f.Labels)
}

// describePods describes all pods of a view. Pods whose state is in no list and no
// file are asked for it, all at the same time: those of other shims.
func (s *Service) describePods(ctx context.Context, v *view) []Pod {
	pods := make([]Pod, len(v.pods))
	var wg sync.WaitGroup
	turns := make(chan struct{}, fewTasks)
	for i := range v.pods {
		pods[i] = s.describePod(v, &v.pods[i])
		if e := &v.pods[i]; pods[i].State == PodUnknown && e.Sandbox {
			wg.Go(func() {
				turns <- struct{}{}
				defer func() { <-turns }()
				pods[i].State = s.sandboxes.state(ctx, e.ID)
			})
		}
	}
	wg.Wait()
	return pods
}

func (s *Service) describePod(v *view, e *labels.PodEntry) Pod {
	m := &e.Metadata
	p := Pod{
		ID: PodID(e.ID), Name: first(m.Pod.Name, m.Pod.FullName), FullName: m.Pod.FullName, Namespace: m.Pod.Namespace, UID: m.Pod.UID,
		Attempt: m.Pod.Attempt, Owner: e.Owner.String(), CreatedAt: m.CreatedAt,
		Labels: maps.Clone(m.Labels), Annotations: maps.Clone(m.Annotations),
		Handler: m.Settings.RuntimeHandler, LogDirectory: m.Settings.LogDirectory,
		Orphaned: e.Orphaned, Warnings: slices.Clone(e.Warnings), unfinished: unfinished(&e.Entry),
	}
	if e.Err != nil {
		p.Warnings = append(p.Warnings, e.Err.Error())
	}
	p.State = s.podState(v, e)
	if e.Owner == labels.OwnerBerth {
		if a, err := s.network.Find(e.ID); err == nil {
			p.HostNetwork, p.NetworkNamespace, p.IPs = a.Host, a.Path, a.IPs()
		}
	}
	for _, member := range e.Members {
		if !unfinished(&member) {
			p.Containers = append(p.Containers, s.describe(v, member))
		}
	}
	return p
}

// unfinished tells of what is being created, or was not to the end. It can be removed
// and is in no list.
func unfinished(e *labels.Entry) bool {
	return e.Owner == labels.OwnerBerth && e.Err == nil && !e.Metadata.Created
}

func (s *Service) podState(v *view, e *labels.PodEntry) PodState {
	switch {
	case e.Owner == labels.OwnerBerth:
		ready := s.sandboxes.look(e.ID) == PodReady
		if e.Metadata.ImageID != "" { // it has a task
			ready = living(v.tasks[e.ID])
		}
		if e.Orphaned || !e.Metadata.Created || !ready || s.wasStopped(e) {
			return PodNotReady
		}
		return PodReady
	case e.Infra != nil: // a pause container
		if living(v.tasks[e.ID]) {
			return PodReady
		}
		return PodNotReady
	case e.Orphaned:
		return PodNotReady
	}
	return s.sandboxes.look(e.ID)
}

func living(t *task.Process) bool { return t != nil && t.Status != task.Status_STOPPED }

// wasStopped tells what the infra container's state says: a stop of the pod begins
// there.
func (s *Service) wasStopped(e *labels.PodEntry) bool {
	if e.Infra == nil {
		return false
	}
	c, err := s.processes.Container(s.processConfig(e.Infra, nil))
	if err != nil || c.FromDisk() != nil {
		return true // damaged
	}
	return c.StateNoLock().Status == process.Stopped
}

// describe tells of a container what the lists and its own directory say.
func (s *Service) describe(v *view, e labels.Entry) Container {
	m, record := &e.Metadata, v.containers[e.ID]
	c := Container{
		ID: ContainerID(e.ID), Name: first(m.MetadataName, m.Name, e.ID), FullName: m.Name, Attempt: m.Attempt,
		PodID: PodID(m.Pod.ID), PodName: first(m.Pod.Name, m.Pod.FullName), Namespace: m.Pod.Namespace,
		Owner: e.Owner.String(), Runtime: record.Runtime.Name, Image: m.ImageName, ImageID: m.ImageID, CreatedAt: m.CreatedAt,
		Labels: maps.Clone(m.Labels), Annotations: maps.Clone(m.Annotations),
		LogPath: m.Settings.LogPath, TTY: m.Settings.Terminal, Stdin: m.Settings.Stdin,
		StopSignal: m.Settings.StopSignal, User: m.Settings.User, RestoredFrom: m.Settings.RestoredFrom,
		Snapshotter: record.Snapshotter, snapshot: record.SnapshotKey, Warnings: slices.Clone(e.Warnings),
	}
	if e.Err != nil {
		c.Warnings = append(c.Warnings, e.Err.Error())
	}
	t := v.tasks[e.ID]
	if e.Owner != labels.OwnerBerth {
		c.observe(t, e.Owner)
		return c
	}
	c.WorkDirectory, c.RunDirectory = s.workDir(e.ID), s.runDir(e.ID)
	p, err := s.processes.Container(s.processConfig(&e, nil))
	if err == nil {
		err = p.FromDisk()
	}
	if err != nil {
		c.State = ContainerUnknown
		if !m.Created && errdefs.IsNotFound(err) { // being created
			c.State = ContainerCreated
		} else {
			c.Warnings = append(c.Warnings, err.Error())
		}
		if t != nil { // it is damaged, and there
			c.observe(t, e.Owner)
		}
		return c
	}
	p.Observe(t)
	c.took(p.StateNoLock(), t)
	return c
}

// observe takes the state of a foreign container from its task. Without one, CRI's
// have ended: it makes the task when it starts them.
func (c *Container) observe(t *task.Process, owner labels.Owner) {
	switch {
	case t != nil:
		c.Pid = int(t.Pid)
		c.State = map[task.Status]ContainerState{
			task.Status_CREATED: ContainerCreated, task.Status_RUNNING: ContainerRunning,
			task.Status_PAUSED: ContainerPaused, task.Status_PAUSING: ContainerPaused, task.Status_STOPPED: ContainerExited,
		}[t.Status]
		if t.Status == task.Status_STOPPED {
			code := int32(t.ExitStatus)
			c.Pid, c.ExitCode, c.FinishedAt = 0, &code, t.ExitedAt.AsTime()
		}
	case owner == labels.OwnerCRI:
		c.State = ContainerExited
	default:
		c.State = ContainerCreated
	}
	if c.State == "" {
		c.State = ContainerUnknown
	}
}

// took takes the state of one of berth's. A process that the document has and
// containerd has not is gone.
func (c *Container) took(st process.State, t *task.Process) {
	c.StartedAt, c.FinishedAt, c.Error = st.Started, st.Finished, st.Error
	switch st.Status {
	case process.Created:
		c.State = ContainerCreated
	case process.Running:
		c.State = ContainerRunning
	case process.Paused:
		c.State = ContainerPaused
	default:
		c.State = ContainerExited
	}
	gone := t == nil && st.InitPid > 0 && st.Init().Living() != nil
	switch {
	case c.State == ContainerExited:
		c.ExitCode, c.Reason = st.ExitCode, st.Reason()
	case gone:
		c.State, c.Reason = ContainerExited, "Unknown"
	default:
		c.Pid = st.InitPid
		if st.Unwatched || t == nil && st.InitPid > 0 {
			c.Warnings = append(c.Warnings, process.Unwatched)
		}
	}
}

// first returns the first text that is not empty.
func first(texts ...string) string {
	for _, s := range texts {
		if s != "" {
			return s
		}
	}
	return ""
}
