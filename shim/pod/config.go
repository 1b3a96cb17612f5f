// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"strconv"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/wire"
)

// configURL is the type of CRI's description of a pod.
const configURL = "runtime.v1.PodSandboxConfig"

// Namespace modes of CRI.
const (
	modePod       = 0
	modeContainer = 1
	modeNode      = 2
)

// config is what is looked at in CRI's runtime.v1.PodSandboxConfig. The names in
// JSON are those of Kubernetes' Go types.
type config struct {
	Metadata    metadata          `json:"metadata"`
	Hostname    string            `json:"hostname,omitempty"`
	LogDir      string            `json:"log_directory,omitempty"`
	DNS         *dns              `json:"dns_config,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Linux       linux             `json:"linux"`
}

type metadata struct {
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Attempt   uint32 `json:"attempt,omitempty"`
}

type dns struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

type linux struct {
	CgroupParent string            `json:"cgroup_parent,omitempty"`
	Security     security          `json:"security_context"`
	Sysctls      map[string]string `json:"sysctls,omitempty"`
	Resources    *resources        `json:"resources,omitempty"`
}

type security struct {
	Namespaces namespaceModes `json:"namespace_options"`
	SELinux    *selinux       `json:"selinux_options,omitempty"`
}

type namespaceModes struct {
	Network int32   `json:"network,omitempty"`
	PID     int32   `json:"pid,omitempty"`
	IPC     int32   `json:"ipc,omitempty"`
	User    *userns `json:"userns_options,omitempty"`
}

type userns struct {
	Mode int32     `json:"mode,omitempty"`
	UIDs []Mapping `json:"uids,omitempty"`
	GIDs []Mapping `json:"gids,omitempty"`
}

// Mapping maps a range of ids of a user namespace.
type Mapping struct {
	HostID      uint32 `json:"host_id"`
	ContainerID uint32 `json:"container_id"`
	Length      uint32 `json:"length"`
}

type selinux struct {
	User  string `json:"user,omitempty"`
	Role  string `json:"role,omitempty"`
	Type  string `json:"type,omitempty"`
	Level string `json:"level,omitempty"`
}

// resources are the sums over the pod's containers. They are annotations of the
// sandbox; limits are the kubelet's affair, which sets them on the pod's cgroup.
type resources struct {
	CPUPeriod int64 `json:"cpu_period,omitempty"`
	CPUQuota  int64 `json:"cpu_quota,omitempty"`
	CPUShares int64 `json:"cpu_shares,omitempty"`
	Memory    int64 `json:"memory_limit_in_bytes,omitempty"`
}

// decodeConfig reads the options of a request. None at all are a pod with the
// defaults of all.
func decodeConfig(options *wire.Any) (*config, error) {
	c := &config{}
	switch {
	case options.TypeURL == "" && len(options.Value) == 0:
		return c, nil
	case !options.Is(configURL):
		return nil, fault.New(fault.InvalidArgument, "options of a sandbox: type "+strconv.Quote(options.TypeURL)+": want "+configURL)
	}
	return c, fault.In(configURL, c.decode(options.Value))
}

// fields calls visit for each field of the message b.
func fields(b []byte, visit func(s *wire.Scanner, f *wire.Field) error) error {
	s := wire.Scan(b)
	for f := (wire.Field{}); s.Next(&f); {
		if err := visit(&s, &f); err != nil {
			return err
		}
	}
	return s.Err()
}

// message decodes a nested message. Parts of a message that comes in several are
// merged, as protobuf's readers do: so decode adds to what is there.
func message(f *wire.Field, decode func([]byte) error) error {
	if f.Type != wire.Bytes {
		return nil
	}
	return decode(f.Bytes)
}

// part is message for one that may be absent.
func part[T any](f *wire.Field, at **T, decode func(*T, []byte) error) error {
	if f.Type != wire.Bytes {
		return nil
	}
	if *at == nil {
		*at = new(T)
	}
	return decode(*at, f.Bytes)
}

// entry adds an entry of a map.
func entry(f *wire.Field, at *map[string]string) error {
	if f.Type != wire.Bytes {
		return nil
	}
	var key, value string
	err := fields(f.Bytes, func(s *wire.Scanner, f *wire.Field) error {
		switch f.Num {
		case 1:
			s.String(f, &key, "")
		case 2:
			s.String(f, &value, "")
		}
		return nil
	})
	if *at == nil {
		*at = map[string]string{}
	}
	(*at)[key] = value
	return err
}

func (c *config) decode(b []byte) error {
	return fields(b, func(s *wire.Scanner, f *wire.Field) error {
		switch f.Num {
		case 1:
			return message(f, c.Metadata.decode)
		case 2:
			s.String(f, &c.Hostname, "")
		case 3:
			s.String(f, &c.LogDir, "")
		case 4:
			return part(f, &c.DNS, (*dns).decode)
		case 6:
			return entry(f, &c.Labels)
		case 7:
			return entry(f, &c.Annotations)
		case 8:
			return message(f, c.Linux.decode)
		}
		return nil
	})
}

func (m *metadata) decode(b []byte) error {
	return fields(b, func(s *wire.Scanner, f *wire.Field) error {
		switch f.Num {
		case 1:
			s.String(f, &m.Name, "")
		case 2:
			s.String(f, &m.UID, "")
		case 3:
			s.String(f, &m.Namespace, "")
		case 4:
			f.Uint32(&m.Attempt)
		}
		return nil
	})
}

func (d *dns) decode(b []byte) error {
	return fields(b, func(s *wire.Scanner, f *wire.Field) error {
		switch f.Num {
		case 1:
			s.Strings(f, &d.Servers)
		case 2:
			s.Strings(f, &d.Searches)
		case 3:
			s.Strings(f, &d.Options)
		}
		return nil
	})
}

func (l *linux) decode(b []byte) error {
	return fields(b, func(s *wire.Scanner, f *wire.Field) error {
		switch f.Num {
		case 1:
			s.String(f, &l.CgroupParent, "")
		case 2:
			return message(f, l.Security.decode)
		case 3:
			return entry(f, &l.Sysctls)
		case 5:
			return part(f, &l.Resources, (*resources).decode)
		}
		return nil
	})
}

func (c *security) decode(b []byte) error {
	return fields(b, func(_ *wire.Scanner, f *wire.Field) error {
		switch f.Num {
		case 1:
			return message(f, c.Namespaces.decode)
		case 2:
			return part(f, &c.SELinux, (*selinux).decode)
		}
		return nil
	})
}

func (n *namespaceModes) decode(b []byte) error {
	return fields(b, func(_ *wire.Scanner, f *wire.Field) error {
		switch f.Num {
		case 1:
			f.Int32(&n.Network)
		case 2:
			f.Int32(&n.PID)
		case 3:
			f.Int32(&n.IPC)
		case 5:
			return part(f, &n.User, (*userns).decode)
		}
		return nil
	})
}

func (u *userns) decode(b []byte) error {
	return fields(b, func(_ *wire.Scanner, f *wire.Field) error {
		var m Mapping
		switch f.Num {
		case 1:
			f.Int32(&u.Mode)
		case 2, 3:
			if f.Type != wire.Bytes {
				return nil
			}
			if err := m.decode(f.Bytes); err != nil {
				return err
			}
			if f.Num == 2 {
				u.UIDs = append(u.UIDs, m)
			} else {
				u.GIDs = append(u.GIDs, m)
			}
		}
		return nil
	})
}

func (m *Mapping) decode(b []byte) error {
	return fields(b, func(_ *wire.Scanner, f *wire.Field) error {
		switch f.Num {
		case 1:
			f.Uint32(&m.HostID)
		case 2:
			f.Uint32(&m.ContainerID)
		case 3:
			f.Uint32(&m.Length)
		}
		return nil
	})
}

func (l *selinux) decode(b []byte) error {
	return fields(b, func(s *wire.Scanner, f *wire.Field) error {
		switch f.Num {
		case 1:
			s.String(f, &l.User, "")
		case 2:
			s.String(f, &l.Role, "")
		case 3:
			s.String(f, &l.Type, "")
		case 4:
			s.String(f, &l.Level, "")
		}
		return nil
	})
}

func (r *resources) decode(b []byte) error {
	return fields(b, func(_ *wire.Scanner, f *wire.Field) error {
		if f.Type != wire.Varint {
			return nil
		}
		switch f.Num {
		case 1:
			r.CPUPeriod = int64(f.Value)
		case 2:
			r.CPUQuota = int64(f.Value)
		case 3:
			r.CPUShares = int64(f.Value)
		case 4:
			r.Memory = int64(f.Value)
		}
		return nil
	})
}
