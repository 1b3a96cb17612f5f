// SPDX-License-Identifier: Apache-2.0

package wire

// EventsService is the ttrpc name of containerd's event service, which has one
// method.
const (
	EventsService = "containerd.services.events.ttrpc.v1.Events"
	ForwardMethod = "Forward"
)

// Event is a message that a shim publishes.
type Event interface {
	Topic() string
	TypeURL() string
	Append(b []byte) []byte
}

// TaskIO is part of TaskCreate.
type TaskIO struct {
	Stdin    string
	Stdout   string
	Stderr   string
	Terminal bool
}

// Append appends the message to b.
func (m *TaskIO) Append(b []byte) []byte {
	b = AppendString(b, 1, m.Stdin)
	b = AppendString(b, 2, m.Stdout)
	b = AppendString(b, 3, m.Stderr)
	return AppendBool(b, 4, m.Terminal)
}

// TaskCreate tells of a container whose init waits to be started.
type TaskCreate struct {
	ContainerID string
	Bundle      string
	Rootfs      []Mount
	IO          TaskIO
	Checkpoint  string
	Pid         uint32
}

// Topic is where the event is published.
func (m *TaskCreate) Topic() string { return "/tasks/create" }

// TypeURL is the type of the message in an Any.
func (m *TaskCreate) TypeURL() string { return "containerd.events.TaskCreate" }

// Append appends the message to b.
func (m *TaskCreate) Append(b []byte) []byte {
	b = AppendString(b, 1, m.ContainerID)
	b = AppendString(b, 2, m.Bundle)
	b = appendMounts(b, 3, m.Rootfs)
	b = AppendTag(b, 4, Bytes)
	mark := Begin(b)
	b = End(m.IO.Append(b), mark)
	b = AppendString(b, 5, m.Checkpoint)
	return AppendVarint(b, 6, uint64(m.Pid))
}

// TaskStart tells that a container's init runs.
type TaskStart struct {
	ContainerID string
	Pid         uint32
}

// Topic is where the event is published.
func (m *TaskStart) Topic() string { return "/tasks/start" }

// TypeURL is the type of the message in an Any.
func (m *TaskStart) TypeURL() string { return "containerd.events.TaskStart" }

// Append appends the message to b.
func (m *TaskStart) Append(b []byte) []byte {
	b = AppendString(b, 1, m.ContainerID)
	return AppendVarint(b, 2, uint64(m.Pid))
}

// TaskDelete tells that a container is gone.
type TaskDelete struct {
	ContainerID string
	Pid         uint32
	ExitStatus  uint32
	ExitedAt    int64
	ID          string // of the process: empty, or the container's again
}

// Topic is where the event is published.
func (m *TaskDelete) Topic() string { return "/tasks/delete" }

// TypeURL is the type of the message in an Any.
func (m *TaskDelete) TypeURL() string { return "containerd.events.TaskDelete" }

// Append appends the message to b.
func (m *TaskDelete) Append(b []byte) []byte {
	b = AppendString(b, 1, m.ContainerID)
	b = AppendVarint(b, 2, uint64(m.Pid))
	b = AppendVarint(b, 3, uint64(m.ExitStatus))
	b = AppendTime(b, 4, m.ExitedAt)
	return AppendString(b, 5, m.ID)
}

// TaskExit tells that a process has ended.
type TaskExit struct {
	ContainerID string
	ID          string // the exec's, or the container's for its init
	Pid         uint32
	ExitStatus  uint32
	ExitedAt    int64
}

// Topic is where the event is published.
func (m *TaskExit) Topic() string { return "/tasks/exit" }

// TypeURL is the type of the message in an Any.
func (m *TaskExit) TypeURL() string { return "containerd.events.TaskExit" }

// Append appends the message to b.
func (m *TaskExit) Append(b []byte) []byte {
	b = AppendString(b, 1, m.ContainerID)
	b = AppendString(b, 2, m.ID)
	b = AppendVarint(b, 3, uint64(m.Pid))
	b = AppendVarint(b, 4, uint64(m.ExitStatus))
	return AppendTime(b, 5, m.ExitedAt)
}

// TaskOOM tells that the kernel killed a process of a container for its memory.
type TaskOOM struct{ ContainerID string }

// Topic is where the event is published.
func (m *TaskOOM) Topic() string { return "/tasks/oom" }

// TypeURL is the type of the message in an Any.
func (m *TaskOOM) TypeURL() string { return "containerd.events.TaskOOM" }

// Append appends the message to b.
func (m *TaskOOM) Append(b []byte) []byte { return AppendString(b, 1, m.ContainerID) }

// TaskExecAdded tells that an exec was registered.
type TaskExecAdded struct {
	ContainerID string
	ExecID      string
}

// Topic is where the event is published.
func (m *TaskExecAdded) Topic() string { return "/tasks/exec-added" }

// TypeURL is the type of the message in an Any.
func (m *TaskExecAdded) TypeURL() string { return "containerd.events.TaskExecAdded" }

// Append appends the message to b.
func (m *TaskExecAdded) Append(b []byte) []byte {
	b = AppendString(b, 1, m.ContainerID)
	return AppendString(b, 2, m.ExecID)
}

// TaskExecStarted tells that an exec runs.
type TaskExecStarted struct {
	ContainerID string
	ExecID      string
	Pid         uint32
}

// Topic is where the event is published.
func (m *TaskExecStarted) Topic() string { return "/tasks/exec-started" }

// TypeURL is the type of the message in an Any.
func (m *TaskExecStarted) TypeURL() string { return "containerd.events.TaskExecStarted" }

// Append appends the message to b.
func (m *TaskExecStarted) Append(b []byte) []byte {
	b = AppendString(b, 1, m.ContainerID)
	b = AppendString(b, 2, m.ExecID)
	return AppendVarint(b, 3, uint64(m.Pid))
}

// TaskPaused tells that a container is frozen.
type TaskPaused struct{ ContainerID string }

// Topic is where the event is published.
func (m *TaskPaused) Topic() string { return "/tasks/paused" }

// TypeURL is the type of the message in an Any.
func (m *TaskPaused) TypeURL() string { return "containerd.events.TaskPaused" }

// Append appends the message to b.
func (m *TaskPaused) Append(b []byte) []byte { return AppendString(b, 1, m.ContainerID) }

// TaskResumed tells that a container runs again.
type TaskResumed struct{ ContainerID string }

// Topic is where the event is published.
func (m *TaskResumed) Topic() string { return "/tasks/resumed" }

// TypeURL is the type of the message in an Any.
func (m *TaskResumed) TypeURL() string { return "containerd.events.TaskResumed" }

// Append appends the message to b.
func (m *TaskResumed) Append(b []byte) []byte { return AppendString(b, 1, m.ContainerID) }

// TaskCheckpointed tells that a checkpoint was written.
type TaskCheckpointed struct {
	ContainerID string
	Checkpoint  string
}

// Topic is where the event is published.
func (m *TaskCheckpointed) Topic() string { return "/tasks/checkpointed" }

// TypeURL is the type of the message in an Any.
func (m *TaskCheckpointed) TypeURL() string { return "containerd.events.TaskCheckpointed" }

// Append appends the message to b.
func (m *TaskCheckpointed) Append(b []byte) []byte {
	b = AppendString(b, 1, m.ContainerID)
	return AppendString(b, 2, m.Checkpoint)
}

// Envelope is containerd.types.Envelope: an event with where and when it was
// published.
type Envelope struct {
	Timestamp int64
	Namespace string
	Topic     string
	Event     Any
}

// Append appends the message to b.
func (m *Envelope) Append(b []byte) []byte {
	b = AppendTime(b, 1, m.Timestamp)
	b = AppendString(b, 2, m.Namespace)
	b = AppendString(b, 3, m.Topic)
	return AppendAny(b, 4, &m.Event)
}

// ForwardRequest hands an event to containerd.
type ForwardRequest struct{ Envelope Envelope }

// Append appends the message to b.
func (m *ForwardRequest) Append(b []byte) []byte {
	b = AppendTag(b, 1, Bytes)
	mark := Begin(b)
	return End(m.Envelope.Append(b), mark)
}
