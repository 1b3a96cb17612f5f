// SPDX-License-Identifier: Apache-2.0

package wire

// TaskService is the ttrpc name of the Task API that berth's shims serve.
const TaskService = "containerd.task.v2.Task"

// Status is containerd.v1.types.Status, the state of a process.
type Status int32

// The states of a process.
const (
	StatusUnknown Status = 0
	StatusCreated Status = 1
	StatusRunning Status = 2
	StatusStopped Status = 3
	StatusPaused  Status = 4
	StatusPausing Status = 5
)

// CreateTaskRequest asks for a container. Options.Value aliases the request.
type CreateTaskRequest struct {
	ID               string
	Bundle           string
	Rootfs           []Mount
	Terminal         bool
	Stdin            string
	Stdout           string
	Stderr           string
	Checkpoint       string
	ParentCheckpoint string
	Options          Any
}

// Decode replaces m by the message in b.
func (m *CreateTaskRequest) Decode(b []byte) error {
	*m = CreateTaskRequest{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.ID, "")
		case 2:
			s.String(&f, &m.Bundle, "")
		case 3:
			s.mounts(&f, &m.Rootfs)
		case 4:
			f.Bool(&m.Terminal)
		case 5:
			s.String(&f, &m.Stdin, "")
		case 6:
			s.String(&f, &m.Stdout, "")
		case 7:
			s.String(&f, &m.Stderr, "")
		case 8:
			s.String(&f, &m.Checkpoint, "")
		case 9:
			s.String(&f, &m.ParentCheckpoint, "")
		case 10:
			s.Any(&f, &m.Options)
		}
	}
	return s.Err()
}

// CreateTaskResponse answers Create.
type CreateTaskResponse struct{ Pid uint32 }

// Append appends the message to b.
func (m *CreateTaskResponse) Append(b []byte) []byte {
	return AppendVarint(b, 1, uint64(m.Pid))
}

// StartRequest asks to start the container's init or an exec.
type StartRequest struct{ ID, ExecID string }

// Decode replaces m by the message in b.
func (m *StartRequest) Decode(b []byte) error { return decodeKey(b, &m.ID, &m.ExecID) }

// StartResponse answers Start.
type StartResponse struct{ Pid uint32 }

// Append appends the message to b.
func (m *StartResponse) Append(b []byte) []byte {
	return AppendVarint(b, 1, uint64(m.Pid))
}

// DeleteRequest asks to forget a process that has ended.
type DeleteRequest struct{ ID, ExecID string }

// Decode replaces m by the message in b.
func (m *DeleteRequest) Decode(b []byte) error { return decodeKey(b, &m.ID, &m.ExecID) }

// DeleteResponse answers Delete; the shim's `delete` command prints it.
type DeleteResponse struct {
	Pid        uint32
	ExitStatus uint32
	ExitedAt   int64
}

// Append appends the message to b.
func (m *DeleteResponse) Append(b []byte) []byte {
	b = AppendVarint(b, 1, uint64(m.Pid))
	b = AppendVarint(b, 2, uint64(m.ExitStatus))
	return AppendTime(b, 3, m.ExitedAt)
}

// ExecProcessRequest registers an exec. Spec.Value aliases the request.
type ExecProcessRequest struct {
	ID       string
	ExecID   string
	Terminal bool
	Stdin    string
	Stdout   string
	Stderr   string
	Spec     Any
}

// Decode replaces m by the message in b.
func (m *ExecProcessRequest) Decode(b []byte) error {
	*m = ExecProcessRequest{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.ID, "")
		case 2:
			s.String(&f, &m.ExecID, "")
		case 3:
			f.Bool(&m.Terminal)
		case 4:
			s.String(&f, &m.Stdin, "")
		case 5:
			s.String(&f, &m.Stdout, "")
		case 6:
			s.String(&f, &m.Stderr, "")
		case 7:
			s.Any(&f, &m.Spec)
		}
	}
	return s.Err()
}

// ResizePtyRequest sets the size of a terminal.
type ResizePtyRequest struct {
	ID     string
	ExecID string
	Width  uint32
	Height uint32
}

// Decode replaces m by the message in b.
func (m *ResizePtyRequest) Decode(b []byte) error {
	*m = ResizePtyRequest{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.ID, "")
		case 2:
			s.String(&f, &m.ExecID, "")
		case 3:
			f.Uint32(&m.Width)
		case 4:
			f.Uint32(&m.Height)
		}
	}
	return s.Err()
}

// StateRequest asks for the state of a process.
type StateRequest struct{ ID, ExecID string }

// Decode replaces m by the message in b.
func (m *StateRequest) Decode(b []byte) error { return decodeKey(b, &m.ID, &m.ExecID) }

// StateResponse answers State.
type StateResponse struct {
	ID         string
	Bundle     string
	Pid        uint32
	Status     Status
	Stdin      string
	Stdout     string
	Stderr     string
	Terminal   bool
	ExitStatus uint32
	ExitedAt   int64
	ExecID     string
}

// Append appends the message to b.
func (m *StateResponse) Append(b []byte) []byte {
	b = AppendString(b, 1, m.ID)
	b = AppendString(b, 2, m.Bundle)
	b = AppendVarint(b, 3, uint64(m.Pid))
	b = AppendVarint(b, 4, uint64(m.Status))
	b = AppendString(b, 5, m.Stdin)
	b = AppendString(b, 6, m.Stdout)
	b = AppendString(b, 7, m.Stderr)
	b = AppendBool(b, 8, m.Terminal)
	b = AppendVarint(b, 9, uint64(m.ExitStatus))
	b = AppendTime(b, 10, m.ExitedAt)
	return AppendString(b, 11, m.ExecID)
}

// KillRequest asks to send a signal.
type KillRequest struct {
	ID     string
	ExecID string
	Signal uint32
	All    bool
}

// Decode replaces m by the message in b.
func (m *KillRequest) Decode(b []byte) error {
	*m = KillRequest{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.ID, "")
		case 2:
			s.String(&f, &m.ExecID, "")
		case 3:
			f.Uint32(&m.Signal)
		case 4:
			f.Bool(&m.All)
		}
	}
	return s.Err()
}

// CloseIORequest asks to close a process's input.
type CloseIORequest struct {
	ID     string
	ExecID string
	Stdin  bool
}

// Decode replaces m by the message in b.
func (m *CloseIORequest) Decode(b []byte) error {
	*m = CloseIORequest{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.ID, "")
		case 2:
			s.String(&f, &m.ExecID, "")
		case 3:
			f.Bool(&m.Stdin)
		}
	}
	return s.Err()
}

// PidsRequest asks for the processes of a container.
type PidsRequest struct{ ID string }

// Decode replaces m by the message in b.
func (m *PidsRequest) Decode(b []byte) error { return decodeKey(b, &m.ID, nil) }

// ProcessInfo is containerd.v1.types.ProcessInfo. Info holds ProcessDetails for
// an exec.
type ProcessInfo struct {
	Pid  uint32
	Info Any
}

// Append appends the message to b.
func (m *ProcessInfo) Append(b []byte) []byte {
	b = AppendVarint(b, 1, uint64(m.Pid))
	return AppendAny(b, 2, &m.Info)
}

// PidsResponse answers Pids.
type PidsResponse struct{ Processes []ProcessInfo }

// Append appends the message to b.
func (m *PidsResponse) Append(b []byte) []byte {
	for i := range m.Processes {
		b = AppendTag(b, 1, Bytes)
		mark := Begin(b)
		b = End(m.Processes[i].Append(b), mark)
	}
	return b
}

// PauseRequest asks to freeze a container.
type PauseRequest struct{ ID string }

// Decode replaces m by the message in b.
func (m *PauseRequest) Decode(b []byte) error { return decodeKey(b, &m.ID, nil) }

// ResumeRequest asks to thaw a container.
type ResumeRequest struct{ ID string }

// Decode replaces m by the message in b.
func (m *ResumeRequest) Decode(b []byte) error { return decodeKey(b, &m.ID, nil) }

// CheckpointTaskRequest asks to write a checkpoint. Options holds
// CheckpointOptions; its value aliases the request.
type CheckpointTaskRequest struct {
	ID      string
	Path    string
	Options Any
}

// Decode replaces m by the message in b.
func (m *CheckpointTaskRequest) Decode(b []byte) error {
	*m = CheckpointTaskRequest{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.ID, "")
		case 2:
			s.String(&f, &m.Path, "")
		case 3:
			s.Any(&f, &m.Options)
		}
	}
	return s.Err()
}

// UpdateTaskRequest asks to change a container's limits. Resources.Value aliases
// the request.
type UpdateTaskRequest struct {
	ID          string
	Resources   Any
	Annotations []KeyValue
}

// Decode replaces m by the message in b.
func (m *UpdateTaskRequest) Decode(b []byte) error {
	*m = UpdateTaskRequest{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.ID, "")
		case 2:
			s.Any(&f, &m.Resources)
		case 3:
			s.entry(&f, &m.Annotations)
		}
	}
	return s.Err()
}

// WaitRequest asks for the exit of a process, once it has come.
type WaitRequest struct{ ID, ExecID string }

// Decode replaces m by the message in b.
func (m *WaitRequest) Decode(b []byte) error { return decodeKey(b, &m.ID, &m.ExecID) }

// WaitResponse answers Wait.
type WaitResponse struct {
	ExitStatus uint32
	ExitedAt   int64
}

// Append appends the message to b.
func (m *WaitResponse) Append(b []byte) []byte {
	b = AppendVarint(b, 1, uint64(m.ExitStatus))
	return AppendTime(b, 2, m.ExitedAt)
}

// StatsRequest asks for a container's metrics.
type StatsRequest struct{ ID string }

// Decode replaces m by the message in b.
func (m *StatsRequest) Decode(b []byte) error { return decodeKey(b, &m.ID, nil) }

// StatsResponse answers Stats. Without a copy of the metrics: AppendStats.
type StatsResponse struct{ Stats Any }

// Append appends the message to b.
func (m *StatsResponse) Append(b []byte) []byte { return AppendAny(b, 1, &m.Stats) }

// AppendStats appends a StatsResponse whose metrics, of type url, the function
// append writes in place. It allocates nothing if append does not.
func AppendStats(b []byte, url string, metrics func([]byte) ([]byte, error)) ([]byte, error) {
	b = AppendTag(b, 1, Bytes)
	outer := Begin(b)
	b = AppendString(b, 1, url)
	b = AppendTag(b, 2, Bytes)
	inner := Begin(b)
	b, err := metrics(b)
	if err != nil {
		return b, err
	}
	return End(End(b, inner), outer), nil
}

// ConnectRequest asks who serves a container.
type ConnectRequest struct{ ID string }

// Decode replaces m by the message in b.
func (m *ConnectRequest) Decode(b []byte) error { return decodeKey(b, &m.ID, nil) }

// ConnectResponse answers Connect. TaskPid is 0 while there is no process.
type ConnectResponse struct {
	ShimPid uint32
	TaskPid uint32
	Version string
}

// Append appends the message to b.
func (m *ConnectResponse) Append(b []byte) []byte {
	b = AppendVarint(b, 1, uint64(m.ShimPid))
	b = AppendVarint(b, 2, uint64(m.TaskPid))
	return AppendString(b, 3, m.Version)
}

// ShutdownRequest asks the shim to end.
type ShutdownRequest struct {
	ID  string
	Now bool
}

// Decode replaces m by the message in b.
func (m *ShutdownRequest) Decode(b []byte) error {
	*m = ShutdownRequest{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.ID, "")
		case 2:
			f.Bool(&m.Now)
		}
	}
	return s.Err()
}

// decodeKey decodes a request that names a container (field 1) and, where the
// message has one, an exec (field 2; else exec is nil). These are the requests
// that containerd polls with, hence no allocation for the names of last time.
func decodeKey(b []byte, id, exec *string) error {
	lastID, lastExec := *id, ""
	*id = ""
	if exec != nil {
		lastExec, *exec = *exec, ""
	}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch {
		case f.Num == 1:
			s.String(&f, id, lastID)
		case f.Num == 2 && exec != nil:
			s.String(&f, exec, lastExec)
		}
	}
	return s.Err()
}

// mounts adds an element of a repeated Mount field.
func (s *Scanner) mounts(f *Field, dst *[]Mount) {
	if f.Type != Bytes {
		return
	}
	var m Mount
	s.nested(m.Decode(f.Bytes))
	*dst = append(*dst, m)
}
