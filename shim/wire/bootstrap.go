// SPDX-License-Identifier: Apache-2.0

package wire

// Levels of BootstrapParams.LogLevel that matter to a shim: below info is more
// verbose. The numbers are those of log/slog.
const (
	LogLevelTrace = -8
	LogLevelDebug = -4
	LogLevelInfo  = 0
)

// BootstrapParams is containerd.runtime.bootstrap.v1.BootstrapParams, what
// containerd 2.3 and later write to the standard input of `start`. Values of
// Extensions alias the message.
type BootstrapParams struct {
	InstanceID             string
	Namespace              string
	LogLevel               int32
	ContainerdVersion      string
	ContainerdTtrpcAddress string
	ContainerdGrpcAddress  string
	ContainerdBinary       string
	Extensions             []Any
	SocketDir              string
}

// Append appends the message to b.
func (m *BootstrapParams) Append(b []byte) []byte {
	b = AppendString(b, 1, m.InstanceID)
	b = AppendString(b, 2, m.Namespace)
	b = AppendVarint(b, 3, uint64(m.LogLevel))
	b = AppendString(b, 4, m.ContainerdVersion)
	b = AppendString(b, 5, m.ContainerdTtrpcAddress)
	b = AppendString(b, 6, m.ContainerdGrpcAddress)
	b = AppendString(b, 7, m.ContainerdBinary)
	b = appendExtensions(b, 8, m.Extensions)
	return AppendString(b, 9, m.SocketDir)
}

// Decode replaces m by the message in b.
func (m *BootstrapParams) Decode(b []byte) error {
	*m = BootstrapParams{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.InstanceID, "")
		case 2:
			s.String(&f, &m.Namespace, "")
		case 3:
			f.Int32(&m.LogLevel)
		case 4:
			s.String(&f, &m.ContainerdVersion, "")
		case 5:
			s.String(&f, &m.ContainerdTtrpcAddress, "")
		case 6:
			s.String(&f, &m.ContainerdGrpcAddress, "")
		case 7:
			s.String(&f, &m.ContainerdBinary, "")
		case 8:
			s.extension(&f, &m.Extensions)
		case 9:
			s.String(&f, &m.SocketDir, "")
		}
	}
	return s.Err()
}

// BootstrapResult is containerd.runtime.bootstrap.v1.BootstrapResult, the answer
// of `start`. Values of Extensions alias the message. Capabilities are left out:
// none is defined yet but the unspecified one.
type BootstrapResult struct {
	Version    int32
	Address    string
	Protocol   string
	Metadata   []KeyValue
	Extensions []Any
}

// Append appends the message to b.
func (m *BootstrapResult) Append(b []byte) []byte {
	b = AppendVarint(b, 1, uint64(m.Version))
	b = AppendString(b, 2, m.Address)
	b = AppendString(b, 3, m.Protocol)
	b = appendMap(b, 5, m.Metadata)
	return appendExtensions(b, 6, m.Extensions)
}

// Decode replaces m by the message in b.
func (m *BootstrapResult) Decode(b []byte) error {
	*m = BootstrapResult{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			f.Int32(&m.Version)
		case 2:
			s.String(&f, &m.Address, "")
		case 3:
			s.String(&f, &m.Protocol, "")
		case 5:
			s.entry(&f, &m.Metadata)
		case 6:
			s.extension(&f, &m.Extensions)
		}
	}
	return s.Err()
}

// appendExtensions appends a repeated Extension field. An Extension is a message
// around one Any.
func appendExtensions(b []byte, num int, list []Any) []byte {
	for i := range list {
		b = AppendTag(b, num, Bytes)
		mark := Begin(b)
		b = End(AppendAny(b, 1, &list[i]), mark)
	}
	return b
}

func (s *Scanner) extension(f *Field, dst *[]Any) {
	if f.Type != Bytes {
		return
	}
	var value Any
	inner := Scan(f.Bytes)
	for g := (Field{}); inner.Next(&g); {
		if g.Num == 1 {
			inner.Any(&g, &value)
		}
	}
	s.nested(inner.err)
	*dst = append(*dst, value)
}

// RuntimeVersion is part of RuntimeInfo.
type RuntimeVersion struct {
	Version  string
	Revision string
}

// Append appends the message to b.
func (m *RuntimeVersion) Append(b []byte) []byte {
	b = AppendString(b, 1, m.Version)
	return AppendString(b, 2, m.Revision)
}

// RuntimeInfo is containerd.types.RuntimeInfo, the answer of `-info`. Features
// holds the OCI runtime's features as JSON, see FeaturesURL.
type RuntimeInfo struct {
	Name        string
	Version     RuntimeVersion
	Options     Any
	Features    Any
	Annotations []KeyValue
}

// Append appends the message to b.
func (m *RuntimeInfo) Append(b []byte) []byte {
	b = AppendString(b, 1, m.Name)
	b = AppendTag(b, 2, Bytes)
	mark := Begin(b)
	b = End(m.Version.Append(b), mark)
	b = AppendAny(b, 3, &m.Options)
	b = AppendAny(b, 4, &m.Features)
	return appendMap(b, 5, m.Annotations)
}
