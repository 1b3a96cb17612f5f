// SPDX-License-Identifier: Apache-2.0

package argument

import (
	"encoding/csv"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/plugin/runtime"
)

// Volume reads what -v takes: SOURCE:TARGET[:OPTIONS]. A relative source, which
// begins with a dot, is taken from the working directory.
func Volume(text string) (runtime.Mount, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return runtime.Mount{}, invalid("volume %q, want SOURCE:TARGET[:ro]", text)
	}
	m := runtime.Mount{Source: parts[0], Target: parts[1], Create: true}
	switch {
	case strings.HasPrefix(m.Source, "."):
		path, err := filepath.Abs(m.Source)
		if err != nil {
			return runtime.Mount{}, err
		}
		m.Source = path
	case !filepath.IsAbs(m.Source):
		return runtime.Mount{}, invalid("volume %q: %q is no path; berth has no named volumes", text, m.Source)
	}
	if len(parts) < 3 {
		return m, nil
	}
	for option := range strings.SplitSeq(parts[2], ",") {
		if err := volumeOption(&m, option); err != nil {
			return runtime.Mount{}, invalid("volume %q: option %q", text, option)
		}
	}
	return m, nil
}

func volumeOption(m *runtime.Mount, option string) error {
	switch option {
	case "rw", "":
	case "ro":
		m.Readonly = true
	case "rro":
		m.Readonly, m.RecursiveReadonly = true, true
	case "z", "Z":
		m.Relabel = true
	case "bind", "rbind", "nosuid", "nodev", "noexec", "suid", "dev", "exec":
		m.Options = append(m.Options, option)
	case "private", "rprivate", "shared", "rshared", "slave", "rslave":
		return propagation(m, option)
	default:
		return invalid("option %q", option)
	}
	return nil
}

// propagation: the service has the recursive kinds, which docker's users mean too.
func propagation(m *runtime.Mount, word string) error {
	switch strings.TrimPrefix(word, "r") {
	case "private":
		m.Propagation = "private"
	case "slave":
		m.Propagation = "rslave"
	case "shared":
		m.Propagation = "rshared"
	default:
		return invalid("propagation %q", word)
	}
	return nil
}

// Mount reads what --mount takes: type=bind,src=/a,dst=/b,ro and the like. Types
// are bind, tmpfs and image.
func Mount(text string) (runtime.Mount, error) {
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return runtime.Mount{}, invalid("mount %q", text)
	}
	m := runtime.Mount{Type: "bind"}
	for _, field := range fields {
		key, value, given := strings.Cut(field, "=")
		if err := mountField(&m, strings.ToLower(key), value, given); err != nil {
			return runtime.Mount{}, invalid("mount %q: %q", text, field)
		}
	}
	switch m.Type {
	case "image":
		m.Image, m.Source, m.Type = m.Source, "", ""
		m.Readonly = true // it is others' too
	case "tmpfs":
		m.Source = "tmpfs"
	case "bind":
		if !filepath.IsAbs(m.Source) {
			return runtime.Mount{}, invalid("mount %q: source %q is no absolute path", text, m.Source)
		}
		m.Type = ""
	default:
		return runtime.Mount{}, invalid("mount %q: type %q, want bind, tmpfs or image", text, m.Type)
	}
	return m, nil
}

func mountField(m *runtime.Mount, key, value string, given bool) error {
	switch key {
	case "type":
		m.Type = value
	case "source", "src":
		m.Source = value
	case "destination", "dst", "target":
		m.Target = value
	case "readonly", "ro":
		m.Readonly = !given || value == "true" || value == "1"
	case "bind-recursive":
		m.RecursiveReadonly = value == "readonly"
		if value != "readonly" && value != "enabled" && value != "writable" {
			return invalid("recursive %q", value)
		}
	case "bind-propagation":
		return propagation(m, value)
	case "subpath", "image-subpath":
		m.SubPath = value
	case "tmpfs-size":
		if _, err := Size(value); err != nil {
			return err
		}
		m.Options = append(m.Options, "size="+value)
	case "tmpfs-mode":
		m.Options = append(m.Options, "mode="+value)
	default:
		return invalid("field %q", key)
	}
	return nil
}

// Tmpfs reads what --tmpfs takes: TARGET[:OPTIONS].
func Tmpfs(text string) runtime.Mount {
	target, options, given := strings.Cut(text, ":")
	m := runtime.Mount{Type: "tmpfs", Source: "tmpfs", Target: target, Options: []string{"nosuid", "nodev", "noexec"}}
	if given {
		m.Options = append(m.Options, strings.Split(options, ",")...)
	}
	return m
}

// Device reads what --device takes: SOURCE[:TARGET][:rwm].
func Device(text string) (runtime.Device, error) {
	parts := strings.Split(text, ":")
	d := runtime.Device{Source: parts[0]}
	for i, part := range parts[1:] {
		switch {
		case filepath.IsAbs(part) && i == 0:
			d.Target = part
		case part != "" && strings.Trim(part, "rwm") == "" && d.Permissions == "":
			d.Permissions = part
		default:
			return runtime.Device{}, invalid("device %q, want SOURCE[:TARGET][:rwm]", text)
		}
	}
	if !filepath.IsAbs(d.Source) {
		return runtime.Device{}, invalid("device %q: %q is no absolute path", text, d.Source)
	}
	return d, nil
}
