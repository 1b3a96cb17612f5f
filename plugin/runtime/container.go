// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"io"
	"time"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/process"
	"github.com/berthd/berth/plugin/runtime/process/stats"
)

// ContainerState is a container's.
type ContainerState string

// States of containers. CRI sees a paused one as running.
const (
	ContainerCreated ContainerState = "Created"
	ContainerRunning ContainerState = "Running"
	ContainerPaused  ContainerState = "Paused"
	ContainerExited  ContainerState = "Exited"
	ContainerUnknown ContainerState = "Unknown"
)

// Container is a container as a listing shows it, whoever made it. The maps are the
// caller's.
type Container struct {
	ID ContainerID `json:"id"`
	// Name is what it is called in its pod; FullName is unique, and empty for
	// foreign containers.
	Name     string         `json:"name"`
	FullName string         `json:"fullName,omitempty"`
	Attempt  labels.Attempt `json:"attempt"`
	// PodID and PodName are empty without a pod.
	PodID     PodID          `json:"podID,omitempty"`
	PodName   string         `json:"podName,omitempty"`
	Namespace string         `json:"namespace,omitempty"`
	State     ContainerState `json:"state"`
	Owner     string         `json:"owner"` // berth, cri or other
	Runtime   string         `json:"runtime"`
	// Image is as the user typed it, ImageID the digest of its configuration.
	Image     string    `json:"image,omitempty"`
	ImageID   string    `json:"imageID,omitempty"`
	CreatedAt time.Time `json:"createdAt"`

	// Pid is that of the first process, 0 if it has none.
	Pid int `json:"pid,omitempty"`
	// StartedAt and FinishedAt are zero if that has not been, or is not known.
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	// ExitCode is nil while it runs, and when nobody knows.
	ExitCode *int32 `json:"exitCode,omitempty"`
	// Reason is CRI's: Completed, Error, OOMKilled, Unknown, ...
	Reason string `json:"reason,omitempty"`
	// Error says why it could not be started, or what berth ended it for.
	Error string `json:"error,omitempty"`

	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// LogPath is absolute, or empty without a log.
	LogPath       string   `json:"logPath,omitempty"`
	TTY           bool     `json:"tty,omitempty"`
	Stdin         bool     `json:"stdin,omitempty"`
	StopSignal    string   `json:"stopSignal,omitempty"`
	User          string   `json:"user,omitempty"`
	RestoredFrom  string   `json:"restoredFrom,omitempty"`
	WorkDirectory string   `json:"workDirectory,omitempty"` // outlives a reboot
	RunDirectory  string   `json:"runDirectory,omitempty"`
	Snapshotter   string   `json:"snapshotter,omitempty"`
	Warnings      []string `json:"warnings,omitempty"`

	snapshot string // the key
}

// ContainerFilter selects containers. Fields that are set must all match.
type ContainerFilter struct {
	ID     string // the beginning of it
	Name   string // name or unique name
	Pod    string // a ref
	Labels map[string]string
	State  ContainerState
	// AllOwners includes containers that are in no pod: ctr's and nerdctl's.
	AllOwners bool
}

// Size of a terminal, in characters.
type Size = process.Size

// ExecRequest asks for a process in a running container.
type ExecRequest struct {
	// Command replaces that of the container's process; the rest is as with it,
	// where nothing is said.
	Command []string
	Env     []string
	WorkDir string
	User    string
	TTY     bool
	// Stdin and the others may be nil. With TTY all output comes on Stdout. A Read
	// of Stdin may still wait when Exec has returned.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Size is that of the terminal at first. Resize changes it, the last one counts;
	// the caller closes it, or not.
	Size   Size
	Resize <-chan Size
	// DetachKeys, typed one after the other, leave the process alone; see
	// process.ParseDetachKeys. The error is process.ErrDetached.
	DetachKeys []byte
	// Detach returns as soon as the process runs, which has no streams.
	Detach bool
}

// ExecResult is what ExecSync saw.
type ExecResult struct {
	Stdout, Stderr []byte
	// ExitCode is -1 when the time was over.
	ExitCode int32
}

// AttachRequest connects to the container's first process. Fields that are nil are
// not connected.
type AttachRequest struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size
	DetachKeys     []byte // as in ExecRequest
	// Started, if not nil, is closed once no output is missed any more.
	Started chan<- struct{}
}

// ContainerStats is what a container has used.
type ContainerStats struct {
	ID      ContainerID `json:"id"`
	Name    string      `json:"name"`
	PodID   PodID       `json:"podID,omitempty"`
	PodName string      `json:"podName,omitempty"`
	stats.Stats
	// Layer is what the writable layer takes on disk, in bytes.
	Layer uint64 `json:"layer"`
}

// Process is a line of Top.
type Process struct {
	PID     int    `json:"pid"`
	PPID    int    `json:"ppid"`
	User    string `json:"user"`
	State   string `json:"state"`
	Exec    string `json:"exec,omitempty"` // the exec that it was started as
	Command string `json:"command"`
}

// CheckpointRequest says where a checkpoint goes: to Archive, a file, or Image, a
// record in containerd's store. With neither it stays in the container's directory.
type CheckpointRequest struct {
	Archive, Image string
	// LeaveRunning: else the container is stopped.
	LeaveRunning bool
	TCP          bool // connections that are open are kept
}

// RestoreRequest makes a container of a checkpoint's Archive or Image.
type RestoreRequest struct {
	Archive, Image string
	// ContainerRequest overrides what the checkpoint says; its Image is the one
	// that the checkpointed container had.
	ContainerRequest
}
