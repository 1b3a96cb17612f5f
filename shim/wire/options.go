// SPDX-License-Identifier: Apache-2.0

package wire

// Type URLs of the options that callers hand to a runtime.
const (
	OptionsURL           = "containerd.runc.v1.Options"
	CheckpointOptionsURL = "containerd.runc.v1.CheckpointOptions"
	ProcessDetailsURL    = "containerd.runc.v1.ProcessDetails"
	RuntimeOptionsURL    = "runtimeoptions.v1.Options"
)

// Options is containerd.runc.v1.Options without its deprecated task API address
// and version (fields 12 and 13), which a shim that brings its own ignores.
type Options struct {
	NoPivotRoot   bool
	NoNewKeyring  bool
	ShimCgroup    string
	IoUID         uint32
	IoGID         uint32
	BinaryName    string
	Root          string
	SystemdCgroup bool
	CriuImagePath string
	CriuWorkPath  string
}

// Append appends the message to b.
func (m *Options) Append(b []byte) []byte {
	b = AppendBool(b, 1, m.NoPivotRoot)
	b = AppendBool(b, 2, m.NoNewKeyring)
	b = AppendString(b, 3, m.ShimCgroup)
	b = AppendVarint(b, 4, uint64(m.IoUID))
	b = AppendVarint(b, 5, uint64(m.IoGID))
	b = AppendString(b, 6, m.BinaryName)
	b = AppendString(b, 7, m.Root)
	b = AppendBool(b, 9, m.SystemdCgroup)
	b = AppendString(b, 10, m.CriuImagePath)
	return AppendString(b, 11, m.CriuWorkPath)
}

// Decode replaces m by the message in b.
func (m *Options) Decode(b []byte) error {
	*m = Options{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			f.Bool(&m.NoPivotRoot)
		case 2:
			f.Bool(&m.NoNewKeyring)
		case 3:
			s.String(&f, &m.ShimCgroup, "")
		case 4:
			f.Uint32(&m.IoUID)
		case 5:
			f.Uint32(&m.IoGID)
		case 6:
			s.String(&f, &m.BinaryName, "")
		case 7:
			s.String(&f, &m.Root, "")
		case 9:
			f.Bool(&m.SystemdCgroup)
		case 10:
			s.String(&f, &m.CriuImagePath, "")
		case 11:
			s.String(&f, &m.CriuWorkPath, "")
		}
	}
	return s.Err()
}

// CheckpointOptions is containerd.runc.v1.CheckpointOptions.
type CheckpointOptions struct {
	Exit                bool
	OpenTCP             bool
	ExternalUnixSockets bool
	Terminal            bool
	FileLocks           bool
	EmptyNamespaces     []string
	CgroupsMode         string
	ImagePath           string
	WorkPath            string
	ParentPath          string
}

// Append appends the message to b.
func (m *CheckpointOptions) Append(b []byte) []byte {
	b = AppendBool(b, 1, m.Exit)
	b = AppendBool(b, 2, m.OpenTCP)
	b = AppendBool(b, 3, m.ExternalUnixSockets)
	b = AppendBool(b, 4, m.Terminal)
	b = AppendBool(b, 5, m.FileLocks)
	b = AppendStrings(b, 6, m.EmptyNamespaces)
	b = AppendString(b, 7, m.CgroupsMode)
	b = AppendString(b, 8, m.ImagePath)
	b = AppendString(b, 9, m.WorkPath)
	return AppendString(b, 10, m.ParentPath)
}

// Decode replaces m by the message in b.
func (m *CheckpointOptions) Decode(b []byte) error {
	*m = CheckpointOptions{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			f.Bool(&m.Exit)
		case 2:
			f.Bool(&m.OpenTCP)
		case 3:
			f.Bool(&m.ExternalUnixSockets)
		case 4:
			f.Bool(&m.Terminal)
		case 5:
			f.Bool(&m.FileLocks)
		case 6:
			s.Strings(&f, &m.EmptyNamespaces)
		case 7:
			s.String(&f, &m.CgroupsMode, "")
		case 8:
			s.String(&f, &m.ImagePath, "")
		case 9:
			s.String(&f, &m.WorkPath, "")
		case 10:
			s.String(&f, &m.ParentPath, "")
		}
	}
	return s.Err()
}

// ProcessDetails is containerd.runc.v1.ProcessDetails, by which Pids marks the
// process of an exec.
type ProcessDetails struct{ ExecID string }

// Append appends the message to b.
func (m *ProcessDetails) Append(b []byte) []byte { return AppendString(b, 1, m.ExecID) }

// RuntimeOptions is runtimeoptions.v1.Options: a path to a configuration, or its
// text. ConfigBody aliases the message.
type RuntimeOptions struct {
	TypeURL    string
	ConfigPath string
	ConfigBody []byte
}

// Append appends the message to b.
func (m *RuntimeOptions) Append(b []byte) []byte {
	b = AppendString(b, 1, m.TypeURL)
	b = AppendString(b, 2, m.ConfigPath)
	if len(m.ConfigBody) > 0 {
		b = AppendBytes(b, 3, m.ConfigBody)
	}
	return b
}

// Decode replaces m by the message in b.
func (m *RuntimeOptions) Decode(b []byte) error {
	*m = RuntimeOptions{}
	s := Scan(b)
	for f := (Field{}); s.Next(&f); {
		switch f.Num {
		case 1:
			s.String(&f, &m.TypeURL, "")
		case 2:
			s.String(&f, &m.ConfigPath, "")
		case 3:
			f.View(&m.ConfigBody)
		}
	}
	return s.Err()
}
