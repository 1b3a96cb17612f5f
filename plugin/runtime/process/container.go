// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/process/control"
	"github.com/berthd/berth/plugin/runtime/process/identity"
)

var (
	// ErrNotInitialized is returned for a container that has no process yet.
	ErrNotInitialized = identity.ErrNotInitialized
	// ErrNotFound is returned for a container whose process has ended.
	ErrNotFound = identity.ErrNotFound
	// ErrReused is returned when another process has the number of the container's
	// by now. It is not living, and is never signalled.
	ErrReused = identity.ErrReused
	// ErrContainerStopped is returned for a container that has ended.
	ErrContainerStopped = errdefs.ErrFailedPrecondition.WithMessage("container is already stopped")
	// ErrContainerPaused is returned where a paused container is refused.
	ErrContainerPaused = errdefs.ErrFailedPrecondition.WithMessage("container is paused")
	// ErrStopping refuses execs in a container that is being killed.
	ErrStopping = errdefs.ErrFailedPrecondition.WithMessage("container is being killed")
)

// Container is the process side of a container. Safe for concurrent use, apart
// from Config, which is not to be changed.
type Container struct {
	Config
	s *Service

	// operation is held, by a value in it, during an operation that changes the
	// container. mu may be taken while it is held, never the other way round.
	operation chan struct{}

	mu    sync.Mutex // guards state
	state State

	stopping stopping
	execs    execs
}

// begin waits for earlier operations; end lets the next one begin.
func (c *Container) begin(ctx context.Context) error {
	select {
	case c.operation <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s: wait for an earlier operation: %w", c.ID, context.Cause(ctx))
	}
}

func (c *Container) end() { <-c.operation }

// change changes the state in memory.
func (c *Container) change(f func(*State)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.state)
}

// State returns a copy of the state, after an operation that is in progress.
func (c *Container) State(ctx context.Context) (State, error) {
	if err := c.begin(ctx); err != nil {
		return State{}, err
	}
	defer c.end()
	return c.StateNoLock(), nil
}

// StateNoLock returns a copy of the state as it is now. It does not wait; it is
// for lists.
func (c *Container) StateNoLock() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.clone()
}

// StatePath is where the state is kept.
func (c *Container) StatePath() string { return filepath.Join(c.Dir, "state.json") }

// CheckpointPath is where a checkpoint is made. It is persistent.
func (c *Container) CheckpointPath() string { return filepath.Join(c.Dir, "checkpoint") }

// ToDisk keeps the state, whole or not at all.
func (c *Container) ToDisk(ctx context.Context) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	return c.save()
}

// save is ToDisk within an operation: so documents are written in order.
func (c *Container) save() error {
	s := c.StateNoLock()
	if err := s.write(c.StatePath()); err != nil {
		return fmt.Errorf("keep state of container %s: %w", c.ID, err)
	}
	return nil
}

// FromDisk takes the state that ToDisk kept. It does not tell whether the process
// of an older document still is the container's: call Refresh before relying on it.
func (c *Container) FromDisk() error {
	s, err := readState(c.StatePath(), c.ID)
	if err != nil {
		return fmt.Errorf("state of container %s: %w", c.ID, err)
	}
	c.change(func(now *State) { *now = s })
	return nil
}

// SetCheckpointedAt notes that the container has been checkpointed, and keeps it.
func (c *Container) SetCheckpointedAt(ctx context.Context, at time.Time) error {
	return c.note(ctx, func(s *State) { s.CheckpointedAt = at })
}

// SetSeccompKilled notes that the container was ended for the system calls that
// text lists, and keeps it.
func (c *Container) SetSeccompKilled(ctx context.Context, text string) error {
	return c.note(ctx, func(s *State) { s.SeccompKilled, s.Error = true, text })
}

// SetStartFailed notes that the container could not be started, and keeps it: it
// has begun and ended when it was created. cause may be nil.
func (c *Container) SetStartFailed(ctx context.Context, cause error) error {
	return c.note(ctx, startFailed(cause))
}

func startFailed(cause error) func(*State) {
	return func(s *State) {
		s.Started, s.Finished = s.Created, s.Created
		if cause != nil {
			s.Error = cause.Error()
		}
	}
}

func (c *Container) note(ctx context.Context, f func(*State)) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	c.change(f)
	return c.save()
}

// Spoofed tells that the record stands for a pod and has no task: it is of no image. A
// process of the pod's own, if it has one, is its shim's affair. Operations succeed
// without effect.
func (c *Container) Spoofed() bool { return c.IsInfra() && c.Metadata.ImageID == "" }

// IsInfra tells that the container stands for its pod.
func (c *Container) IsInfra() bool { return c.Metadata.Kind == labels.KindInfra }

// Description is namespace/pod/container, for logs.
func (c *Container) Description() string {
	name := c.Metadata.MetadataName
	if c.IsInfra() {
		name = "POD"
	} else if name == "" {
		name = c.Metadata.Name
	}
	return strings.Join([]string{c.Metadata.Pod.Namespace, c.Metadata.Pod.Name, name}, "/")
}

// StopSignal is the signal that asks the process to end: the image's, SIGTERM if
// that is empty or unknown.
func (c *Container) StopSignal() unix.Signal {
	const last = 64 // SIGRTMAX
	sig, err := signal.ParseSignal(strings.TrimSpace(c.Metadata.Settings.StopSignal))
	if err != nil || sig < 1 || sig > last {
		return syscall.SIGTERM
	}
	return sig
}

// Living returns nil while the recorded process exists, or ErrNotInitialized,
// ErrNotFound or ErrReused.
func (c *Container) Living() error {
	_, err := c.ProcessState()
	return err
}

// Pid returns the number of the process, after the check of Living.
func (c *Container) Pid() (int, error) {
	s := c.StateNoLock()
	if err := c.living(s.Init()); err != nil {
		return 0, err
	}
	return s.InitPid, nil
}

// ProcessState returns the letter that proc(5) has for the state of the process,
// or Living's error.
func (c *Container) ProcessState() (string, error) {
	s := c.StateNoLock()
	letter, err := s.Init().State()
	if err != nil {
		return "", fmt.Errorf("container %s: %w", c.ID, err)
	}
	return letter, nil
}

// ShimPid returns the number of the shim that looks after the process, after the
// check of Living: it is the process's parent.
func (c *Container) ShimPid() (int, error) {
	pid, err := c.Pid()
	if err != nil {
		return 0, err
	}
	s, err := identity.Stat(pid)
	if err != nil {
		return 0, fmt.Errorf("shim of container %s: %w", c.ID, err)
	}
	return s.Parent, nil
}

func (c *Container) living(p identity.Process) error {
	if err := p.Living(); err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	return nil
}

// ShouldBeStopped tells whether asking the process to end makes sense: it returns
// ErrContainerStopped, which callers may take for success, or ErrContainerPaused.
// Stop does not mind the latter: it resumes the container first.
func (c *Container) ShouldBeStopped() error {
	switch c.StateNoLock().Status {
	case Stopped:
		return fmt.Errorf("container %s: %w", c.ID, ErrContainerStopped)
	case Paused:
		return fmt.Errorf("container %s: %w", c.ID, ErrContainerPaused)
	}
	return nil
}

// shim is how the container's shim is reached.
func (c *Container) shim() control.Shim {
	return control.Shim{Bundle: c.StateNoLock().Bundle, ID: c.ID}
}

// ImageRef is what CRI calls the image: a digest in a repository if one is known,
// else its ID.
func (c *Container) ImageRef() string {
	if c.RepoDigest != "" {
		return c.RepoDigest
	}
	return c.Metadata.ImageID
}

// CRI returns the container as CRI lists it. The copy is the caller's.
func (c *Container) CRI() *cri.Container {
	s := c.StateNoLock()
	m := &c.Metadata
	return &cri.Container{
		Id: c.ID, PodSandboxId: m.Pod.ID, Metadata: &cri.ContainerMetadata{Name: m.MetadataName, Attempt: uint32(m.Attempt)},
		Image: &cri.ImageSpec{Image: c.ImageName, UserSpecifiedImage: m.ImageName}, ImageRef: c.ImageRef(), ImageId: m.ImageID,
		State: s.CRI(), CreatedAt: s.Created.UnixNano(), Labels: maps.Clone(m.Labels), Annotations: maps.Clone(m.Annotations),
	}
}

// CRI returns CRI's word for the state.
func (s State) CRI() cri.ContainerState {
	switch s.Status {
	case Created:
		return cri.ContainerState_CONTAINER_CREATED
	case Running, Paused:
		return cri.ContainerState_CONTAINER_RUNNING
	case Stopped:
		return cri.ContainerState_CONTAINER_EXITED
	}
	return cri.ContainerState_CONTAINER_UNKNOWN
}

// CRIAttributes returns what identifies the container in CRI's events. The copy is
// the caller's.
func (c *Container) CRIAttributes() *cri.ContainerAttributes {
	l := c.CRI()
	return &cri.ContainerAttributes{Id: l.Id, Metadata: l.Metadata, Labels: l.Labels, Annotations: l.Annotations}
}

// Resources returns the limits in force, nil if they are not known. They are not to
// be changed.
func (c *Container) Resources() *specs.LinuxResources {
	s := c.StateNoLock()
	switch {
	case s.Resources != nil:
		return s.Resources
	case c.Spec != nil && c.Spec.Linux != nil:
		return c.Spec.Linux.Resources
	}
	return nil
}
