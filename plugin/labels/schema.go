// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// field is a part of Metadata that has a label. An empty value is no label.
type field struct {
	key       string
	mandatory bool
	get       func(*Metadata) string
	set       func(*Metadata, string) error
}

// fields is the schema. Kind comes first: the meaning of others depends on it.
var fields = []field{
	{keyKind, true, func(m *Metadata) string { return m.Kind.String() }, setKind},
	text(keyPodID, true, func(m *Metadata) *string { return &m.Pod.ID }),
	text(keyPodFullName, true, func(m *Metadata) *string { return &m.Pod.FullName }),
	text(keyPodName, false, func(m *Metadata) *string { return &m.Pod.Name }),
	text(keyPodNamespace, false, func(m *Metadata) *string { return &m.Pod.Namespace }),
	text(keyPodUID, false, func(m *Metadata) *string { return &m.Pod.UID }),
	number(keyPodAttempt, func(m *Metadata) *Attempt { return &m.Pod.Attempt }),
	text(keyName, true, func(m *Metadata) *string { return &m.Name }),
	{keyContainerName, false, containerName, setContainerName},
	{keyMetadataName, false, infraMetadataName, setInfraMetadataName},
	number(keyAttempt, func(m *Metadata) *Attempt { return &m.Attempt }),
	text(keyImageName, false, func(m *Metadata) *string { return &m.ImageName }),
	text(keyImageID, false, func(m *Metadata) *string { return &m.ImageID }),
	{keyCreatedAt, true, createdAt, setCreatedAt},
	text(keyMountLabel, false, func(m *Metadata) *string { return &m.MountLabel }),
	flag(keyPrivileged, func(m *Metadata) *bool { return &m.Privileged }),
	flag(keyCreated, func(m *Metadata) *bool { return &m.Created }),
}

// schemaKeys are the keys of fields.
var schemaKeys = func() []string {
	var keys []string
	for _, f := range fields {
		keys = append(keys, f.key)
	}
	return keys
}()

func ofSchema(key string) bool { return key == keyManaged || slices.Contains(schemaKeys, key) }

func text(key string, mandatory bool, at func(*Metadata) *string) field {
	return field{
		key, mandatory,
		func(m *Metadata) string { return *at(m) },
		func(m *Metadata, v string) error { *at(m) = v; return nil },
	}
}

func number(key string, at func(*Metadata) *Attempt) field {
	get := func(m *Metadata) string {
		if *at(m) == 0 {
			return ""
		}
		return at(m).String()
	}
	return field{key, false, get, func(m *Metadata, v string) error {
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil || Attempt(n) == UnknownAttempt {
			return errors.New("not an attempt")
		}
		*at(m) = Attempt(n)
		return nil
	}}
}

func flag(key string, at func(*Metadata) *bool) field {
	get := func(m *Metadata) string {
		if *at(m) {
			return yes
		}
		return ""
	}
	return field{key, false, get, func(m *Metadata, v string) error {
		if v != yes {
			return errors.New("neither " + yes + " nor absent")
		}
		*at(m) = true
		return nil
	}}
}

func setKind(m *Metadata, v string) error {
	switch v {
	case kindInfra:
		m.Kind = KindInfra
	case kindContainer:
		m.Kind = KindContainer
	default:
		return errors.New("neither " + kindInfra + " nor " + kindContainer)
	}
	return nil
}

func containerName(m *Metadata) string {
	if m.Kind == KindInfra {
		return infraName
	}
	return m.MetadataName
}

func setContainerName(m *Metadata, v string) error {
	if m.Kind != KindInfra {
		m.MetadataName = v
	}
	return nil
}

func infraMetadataName(m *Metadata) string {
	if m.Kind == KindInfra {
		return m.MetadataName
	}
	return ""
}

func setInfraMetadataName(m *Metadata, v string) error {
	if m.Kind == KindInfra {
		m.MetadataName = v
	}
	return nil
}

func createdAt(m *Metadata) string { return strconv.FormatInt(m.CreatedAt.Unix(), 10) }

func setCreatedAt(m *Metadata, v string) error {
	seconds, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return errors.New("not a number of seconds")
	}
	m.CreatedAt = time.Unix(seconds, 0).UTC()
	return nil
}

// schemaOf reads the version of a record that says it is berth's.
func schemaOf(labels map[string]string) (uint32, error) {
	v := labels[keyManaged]
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("label %s: value %q: not a version: %w", keyManaged, clip(v), ErrUndecodable)
	}
	return uint32(n), nil
}
