// SPDX-License-Identifier: Apache-2.0

package wire

// SandboxService is the ttrpc name of the Sandbox API.
const SandboxService = "containerd.runtime.sandbox.v1.Sandbox"

// CreateSandboxRequest asks for a sandbox. Options.Value aliases the request.
type CreateSandboxRequest struct {
	SandboxID   string
	BundlePath  string
	Rootfs      []Mount
	Options     Any
	NetnsPath   string
	Annotations []KeyValue
}

// Decode replaces m by the message in b.
func (m *CreateSandboxRequest) Decode(b []byte) error {
	*m = CreateSandboxRequest{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.SandboxID, "")
		case 2:
			s.String(&f, &m.BundlePath, "")
		case 3:
			s.mounts(&f, &m.Rootfs)
		case 4:
			s.Any(&f, &m.Options)
		case 5:
			s.String(&f, &m.NetnsPath, "")
		case 6:
			s.entry(&f, &m.Annotations)
		}
	}
	return s.Err()
}

// SandboxRequest is what most requests about a sandbox say.
type SandboxRequest struct{ SandboxID string }

// Decode replaces m by the message in b. It does not allocate when the id is the
// one that m has.
func (m *SandboxRequest) Decode(b []byte) error { return decodeKey(b, &m.SandboxID, nil) }

// StartSandboxResponse answers StartSandbox.
type StartSandboxResponse struct {
	Pid       uint32
	CreatedAt int64 // Unix nanoseconds
	Spec      Any
}

// Append appends the message to b.
func (m *StartSandboxResponse) Append(b []byte) []byte {
	b = AppendVarint(b, 1, uint64(m.Pid))
	b = AppendTime(b, 2, m.CreatedAt)
	return AppendAny(b, 3, &m.Spec)
}

// Platform is containerd.types.Platform.
type Platform struct {
	OS           string
	Architecture string
	Variant      string
}

// PlatformResponse answers Platform.
type PlatformResponse struct{ Platform Platform }

// Append appends the message to b.
func (m *PlatformResponse) Append(b []byte) []byte {
	b = AppendTag(b, 1, Bytes)
	mark := Begin(b)
	b = AppendString(b, 1, m.Platform.OS)
	b = AppendString(b, 2, m.Platform.Architecture)
	b = AppendString(b, 3, m.Platform.Variant)
	return End(b, mark)
}

// StopSandboxRequest asks to stop a sandbox.
type StopSandboxRequest struct {
	SandboxID   string
	TimeoutSecs uint32 // for what runs to end by itself
}

// Decode replaces m by the message in b.
func (m *StopSandboxRequest) Decode(b []byte) error {
	*m = StopSandboxRequest{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch {
		case f.Num == 1:
			s.String(&f, &m.SandboxID, "")
		case f.Num == 2 && f.Type == Varint:
			m.TimeoutSecs = uint32(f.Value)
		}
	}
	return s.Err()
}

// WaitSandboxResponse answers WaitSandbox.
type WaitSandboxResponse struct {
	ExitStatus uint32
	ExitedAt   int64 // Unix nanoseconds
}

// Append appends the message to b.
func (m *WaitSandboxResponse) Append(b []byte) []byte {
	b = AppendVarint(b, 1, uint64(m.ExitStatus))
	return AppendTime(b, 2, m.ExitedAt)
}

// SandboxStatusRequest asks for the state of a sandbox.
type SandboxStatusRequest struct {
	SandboxID string
	Verbose   bool
}

// Decode replaces m by the message in b. It does not allocate when the id is the
// one that m has.
func (m *SandboxStatusRequest) Decode(b []byte) error {
	last := m.SandboxID
	*m = SandboxStatusRequest{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.SandboxID, last)
		case 2:
			f.Bool(&m.Verbose)
		}
	}
	return s.Err()
}

// States of a sandbox, as SandboxStatusResponse spells them.
const (
	SandboxReady    = "SANDBOX_READY"
	SandboxNotReady = "SANDBOX_NOTREADY"
)

// SandboxStatusResponse answers SandboxStatus.
type SandboxStatusResponse struct {
	SandboxID string
	Pid       uint32
	State     string
	Info      []KeyValue
	CreatedAt int64 // Unix nanoseconds
	ExitedAt  int64
	Extra     Any
}

// Append appends the message to b.
func (m *SandboxStatusResponse) Append(b []byte) []byte {
	b = AppendString(b, 1, m.SandboxID)
	b = AppendVarint(b, 2, uint64(m.Pid))
	b = AppendString(b, 3, m.State)
	b = appendMap(b, 4, m.Info)
	b = AppendTime(b, 5, m.CreatedAt)
	b = AppendTime(b, 6, m.ExitedAt)
	return AppendAny(b, 7, &m.Extra)
}

// AppendSandboxMetrics appends a SandboxMetricsResponse about sandbox id, taken at
// the Unix nanosecond at. append writes the metrics, of type url, in place; nil
// leaves them out. It allocates nothing if append does not.
func AppendSandboxMetrics(b []byte, id string, at int64, url string, metrics func([]byte) ([]byte, error)) ([]byte, error) {
	b = AppendTag(b, 1, Bytes)
	metric := Begin(b)
	b = AppendTime(b, 1, at)
	b = AppendString(b, 2, id)
	b = AppendTag(b, 3, Bytes)
	data := Begin(b)
	b = AppendString(b, 1, url)
	if metrics != nil {
		b = AppendTag(b, 2, Bytes)
		value := Begin(b)
		var err error
		if b, err = metrics(b); err != nil {
			return b, err
		}
		b = End(b, value)
	}
	return End(End(b, data), metric), nil
}
