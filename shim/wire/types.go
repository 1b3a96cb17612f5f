// SPDX-License-Identifier: Apache-2.0

package wire

// Type URLs of values that are JSON inside an Any (containerd's typeurl registers
// them so).
const (
	SpecURL           = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
	ProcessURL        = "types.containerd.io/opencontainers/runtime-spec/1/Process"
	LinuxResourcesURL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
	FeaturesURL       = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
)

// Any is google.protobuf.Any. Without a type it stands for no message.
type Any struct {
	TypeURL string
	Value   []byte
}

// Is tells whether the value is of the type that name is the URL of. containerd's
// typeurl writes bare names, protobuf's own helper a host in front; readers accept
// both.
func (m *Any) Is(name string) bool {
	host := len(m.TypeURL) - len(name)
	if host <= 0 {
		return m.TypeURL == name
	}
	return m.TypeURL[host-1] == '/' && m.TypeURL[host:] == name
}

// Append appends the message to b.
func (m *Any) Append(b []byte) []byte {
	b = AppendString(b, 1, m.TypeURL)
	if len(m.Value) > 0 {
		b = AppendBytes(b, 2, m.Value)
	}
	return b
}

// Decode replaces m by the message in b. Value aliases b.
func (m *Any) Decode(b []byte) error {
	before := m.TypeURL
	*m = Any{}
	return m.merge(b, before)
}

func (m *Any) merge(b []byte, before string) error {
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.TypeURL, before)
		case 2:
			f.View(&m.Value)
		}
	}
	return s.Err()
}

// AppendAny appends a field holding m. An Any without type and value is absent.
func AppendAny(b []byte, num int, m *Any) []byte {
	if m.TypeURL == "" && len(m.Value) == 0 {
		return b
	}
	b = AppendTag(b, num, Bytes)
	mark := Begin(b)
	return End(m.Append(b), mark)
}

// Mount is containerd.types.Mount.
type Mount struct {
	Type    string
	Source  string
	Target  string
	Options []string
}

// Append appends the message to b.
func (m *Mount) Append(b []byte) []byte {
	b = AppendString(b, 1, m.Type)
	b = AppendString(b, 2, m.Source)
	b = AppendString(b, 3, m.Target)
	return AppendStrings(b, 4, m.Options)
}

// Decode replaces m by the message in b.
func (m *Mount) Decode(b []byte) error {
	*m = Mount{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.Type, "")
		case 2:
			s.String(&f, &m.Source, "")
		case 3:
			s.String(&f, &m.Target, "")
		case 4:
			s.Strings(&f, &m.Options)
		}
	}
	return s.Err()
}

// appendMounts appends a repeated Mount field.
func appendMounts(b []byte, num int, mounts []Mount) []byte {
	for i := range mounts {
		b = AppendTag(b, num, Bytes)
		mark := Begin(b)
		b = End(mounts[i].Append(b), mark)
	}
	return b
}

// KeyValue is an entry of a map<string, string>. Of equal keys the last counts.
type KeyValue struct{ Key, Value string }

// Append appends the message to b.
func (m *KeyValue) Append(b []byte) []byte {
	b = AppendString(b, 1, m.Key)
	return AppendString(b, 2, m.Value)
}

// Decode replaces m by the message in b.
func (m *KeyValue) Decode(b []byte) error {
	*m = KeyValue{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.Key, "")
		case 2:
			s.String(&f, &m.Value, "")
		}
	}
	return s.Err()
}

func appendMap(b []byte, num int, entries []KeyValue) []byte {
	for i := range entries {
		b = AppendTag(b, num, Bytes)
		mark := Begin(b)
		b = End(entries[i].Append(b), mark)
	}
	return b
}

// entry adds an entry of a map field.
func (s *Scanner) entry(f *Field, dst *[]KeyValue) {
	if f.Type != Bytes {
		return
	}
	var e KeyValue
	s.nested(e.Decode(f.Bytes))
	*dst = append(*dst, e)
}
