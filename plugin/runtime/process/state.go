// SPDX-License-Identifier: Apache-2.0

package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/runtime/process/identity"
)

// The states of a container, in the Status of its State. CRI sees a paused one as
// running.
const (
	Created = specs.StateCreated
	Running = specs.StateRunning
	Stopped = specs.StateStopped
	Paused  = specs.ContainerState("paused")
)

// UnknownExit stands for an exit code that nobody has seen, where a number must
// stand: it is what a lost process has on the Task API.
const UnknownExit = 255

// State is what is known of a container's process: the document state.json.
type State struct {
	specs.State

	Created  time.Time `json:"created,omitzero"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	// ExitCode is that of the first process, or 128 and the signal; nil: unknown.
	ExitCode      *int32 `json:"exitCode,omitempty"`
	OOMKilled     bool   `json:"oomKilled,omitempty"`
	SeccompKilled bool   `json:"seccompKilled,omitempty"`
	// Unwatched: the shim has died and the process lives. Nobody writes its log, lets
	// clients attach or will see its exit code.
	Unwatched bool `json:"unwatched,omitempty"`
	// Error says why the container could not be started or was ended by berth.
	Error string `json:"error,omitempty"`

	// InitPid, InitStartTime and InitBoot are the identity of the first process.
	InitPid       int    `json:"initPid,omitempty"`
	InitStartTime string `json:"initStartTime,omitempty"`
	InitBoot      string `json:"initBoot,omitempty"`

	CheckpointedAt time.Time `json:"checkpointedTime,omitzero"`
	// Resources are the limits in force if they are not those of the specification.
	Resources *specs.LinuxResources `json:"resources,omitempty"`
}

// clone returns a copy that shares nothing that changes.
func (s *State) clone() State {
	c := *s
	if s.ExitCode != nil {
		code := *s.ExitCode
		c.ExitCode = &code
	}
	return c // Resources and Annotations are replaced, never changed
}

// Init is the identity of the first process.
func (s State) Init() identity.Process {
	return identity.Process{Pid: s.InitPid, Start: s.InitStartTime, Boot: s.InitBoot}
}

// SetInitPid records who the first process is. It is set once: the second time it
// returns FailedPrecondition and changes nothing.
func (s *State) SetInitPid(pid int) error {
	if s.InitPid != 0 || s.InitStartTime != "" {
		return fmt.Errorf("init process %d: %d was recorded before: %w", pid, s.InitPid, errdefs.ErrFailedPrecondition)
	}
	p, err := identity.Of(pid)
	if err != nil {
		return fmt.Errorf("init process: %w", err)
	}
	s.Pid, s.InitPid, s.InitStartTime, s.InitBoot = p.Pid, p.Pid, p.Start, p.Boot
	return nil
}

// renew forgets an earlier process, for a container that is made again, as from a
// checkpoint.
func (s *State) renew() {
	*s = State{
		State:   specs.State{Version: s.Version, ID: s.ID, Status: Created, Annotations: s.Annotations},
		Created: s.Created, CheckpointedAt: s.CheckpointedAt,
	}
}

// Code is the exit code as a number: UnknownExit for an unknown one, 0 while the
// container has not ended.
func (s State) Code() int32 {
	switch {
	case s.Status != Stopped:
		return 0
	case s.ExitCode == nil:
		return UnknownExit
	}
	return *s.ExitCode
}

// Reason says in a word how a container that has ended did, as CRI has it; empty
// for others.
func (s State) Reason() string {
	switch {
	case s.Status != Stopped:
		return ""
	case s.OOMKilled:
		return "OOMKilled"
	case s.SeccompKilled:
		return "seccomp killed"
	case s.ExitCode == nil && s.Error == "":
		return "Unknown"
	case s.ExitCode != nil && *s.ExitCode == 0:
		return "Completed"
	}
	return "Error"
}

// write puts the document at path, whole or not at all. Without the directory it is
// NotFound: the container has been removed.
func (s *State) write(path string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInternal, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("%w: %w", class(err), err)
	}
	_, err = f.Write(b)
	if err == nil {
		// A rename may reach the disk before what it names.
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrUnknown, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// readState reads what write wrote. A file that is missing is NotFound (and
// os.ErrNotExist), one that is not whole or another container's is DataLoss.
func readState(path, id string) (State, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return State{}, fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	if err != nil {
		return State{}, fmt.Errorf("%w: %w", errdefs.ErrUnknown, err)
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return State{}, fmt.Errorf("%s: %w: %w", path, errdefs.ErrDataLoss, err)
	}
	if s.ID != id {
		return State{}, fmt.Errorf("%s: is of container %q: %w", path, s.ID, errdefs.ErrDataLoss)
	}
	s.backfill()
	return s, nil
}

// backfill completes a document of a form that had no identity of the process.
// Whoever has the number now is taken for it: the caller has to ask for the
// status before it relies on that.
func (s *State) backfill() {
	if s.InitPid == 0 && s.Status != Stopped {
		s.InitPid = s.Pid
	}
	if s.InitPid > 0 && s.InitStartTime == "" {
		if p, err := identity.Of(s.InitPid); err == nil {
			s.InitStartTime, s.InitBoot = p.Start, p.Boot
		}
	}
}

// TruncateAndReadFile cuts the file at path to size bytes and returns its
// content: so a file that others write cannot fill memory.
func TruncateAndReadFile(path string, size int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && info.Size() > size {
		err = os.Truncate(path, size)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", class(err), err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", class(err), err)
	}
	return b[:min(int64(len(b)), size)], nil // it may have grown
}

// class is the class of an error of the file system.
func class(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errdefs.ErrNotFound
	}
	return errdefs.ErrUnknown
}
