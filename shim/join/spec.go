// SPDX-License-Identifier: Apache-2.0

package join

import (
	"bytes"
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/pod"
)

// Annotations of containerd's CRI plugin.
const (
	sandboxIDAnnotation     = "io.kubernetes.cri.sandbox-id"
	containerTypeAnnotation = "io.kubernetes.cri.container-type"
)

// marker begins the paths that containerd makes of the process number 0.
const marker = "/proc/0/ns/"

// object is JSON of which only some members are looked at: the others stay the
// bytes that they are.
type object = map[string]json.RawMessage

// spec is a config.json that is being rewritten.
type spec struct {
	top, linux object
	namespaces []namespace
	mounts     []mount

	sandboxID  string
	member     bool // of a pod, by the annotations
	readonly   bool // the root filesystem
	mountLabel string

	pins    map[string]string // namespaces of the pod that are joined, by OCI type
	joined  bool              // namespaces were rewritten
	files   []string          // of the pod, that mounts were added for
	changes []string          // in words
}

type namespace struct {
	raw  object
	kind string // OCI type
	path string
}

// parse reads a config.json as far as Join is concerned with it.
func parse(raw []byte) (*spec, error) {
	s := &spec{pins: map[string]string{}}
	if err := decode("config", raw, &s.top); err != nil {
		return nil, err
	}
	var annotations map[string]string
	if err := decode("annotations", s.top["annotations"], &annotations); err != nil {
		return nil, err
	}
	s.sandboxID = annotations[sandboxIDAnnotation]
	s.member = s.sandboxID != "" && annotations[containerTypeAnnotation] == "container"
	var root struct {
		Readonly bool `json:"readonly"`
	}
	if err := decode("root", s.top["root"], &root); err != nil {
		return nil, err
	}
	s.readonly = root.Readonly
	if err := decode("mounts", s.top["mounts"], &s.mounts); err != nil {
		return nil, err
	}
	return s, s.parseLinux()
}

func (s *spec) parseLinux() error {
	if err := decode("linux", s.top["linux"], &s.linux); err != nil {
		return err
	}
	if err := decode("linux.mountLabel", s.linux["mountLabel"], &s.mountLabel); err != nil {
		return err
	}
	var all []object
	if err := decode("linux.namespaces", s.linux["namespaces"], &all); err != nil {
		return err
	}
	for _, raw := range all {
		ns := namespace{raw: raw}
		if err := decode("linux.namespaces: type", raw["type"], &ns.kind); err != nil {
			return err
		}
		if err := decode("linux.namespaces: path", raw["path"], &ns.path); err != nil {
			return err
		}
		s.namespaces = append(s.namespaces, ns)
	}
	return nil
}

// decode is json.Unmarshal that takes no bytes for a member that is not there.
func decode(what string, raw []byte, to any) error {
	if raw == nil {
		return nil
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return fault.Wrap(fault.InvalidArgument, what, err)
	}
	return nil
}

// marked tells whether any namespace is to be one of a pod without processes.
func (s *spec) marked() bool {
	return slices.ContainsFunc(s.namespaces, func(ns namespace) bool { return strings.HasPrefix(ns.path, marker) })
}

// joinNamespaces puts the pod's namespaces where containerd has put its marker.
// One that the pod shares with the host goes: without an entry the runtime
// leaves the container in it. Paths of processes, which are those of containers
// that an ephemeral one is to see into, are not touched.
func (s *spec) joinNamespaces(p *pod.Record) error {
	left := s.namespaces[:0]
	for _, ns := range s.namespaces {
		of := p.Namespaces[ns.kind]
		if strings.HasPrefix(ns.path, marker) {
			s.joined = true
			switch {
			case of.Mode == pod.Node:
				s.changes = append(s.changes, ns.kind+" namespace of the host")
				continue
			case of.Mode != pod.Own:
				return fault.New(fault.FailedPrecondition, "the pod has no "+ns.kind+" namespace to join")
			}
			ns.path = of.Path
			ns.raw["path"], _ = json.Marshal(of.Path) // a string never fails
			s.changes = append(s.changes, ns.kind+" namespace "+of.Path)
		}
		if ns.path != "" && ns.path == of.Path {
			s.pins[ns.kind] = ns.path
		}
		left = append(left, ns)
	}
	s.namespaces = left
	return nil
}

// encode returns the rewritten config.json.
func (s *spec) encode() []byte {
	if s.joined {
		all := make([][]byte, len(s.namespaces))
		for i, ns := range s.namespaces {
			all[i] = encodeObject(ns.raw)
		}
		s.linux["namespaces"] = encodeArray(all)
		s.top["linux"] = encodeObject(s.linux)
	}
	if len(s.files) > 0 {
		all := make([][]byte, len(s.mounts))
		for i, m := range s.mounts {
			all[i] = m.raw
		}
		s.top["mounts"] = encodeArray(all)
	}
	return encodeObject(s.top)
}

// encodeObject and encodeArray put together what was read. json.Marshal would
// check and copy all of it again for each level.
func encodeObject(o object) json.RawMessage {
	if o == nil {
		return json.RawMessage("null")
	}
	b := []byte{'{'}
	for _, name := range slices.Sorted(maps.Keys(o)) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		quoted, _ := json.Marshal(name) // a string never fails
		b = append(append(append(b, quoted...), ':'), o[name]...)
	}
	return append(b, '}')
}

func encodeArray(all [][]byte) json.RawMessage {
	return append(append([]byte{'['}, bytes.Join(all, []byte{','})...), ']')
}

// within tells whether path is below dir, both absolute and clean.
func within(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/"))
	return ok && strings.HasPrefix(rest, "/") && path != dir
}

// absolute is the place in the container that a mount's destination means.
func absolute(destination string) string { return filepath.Join("/", destination) }
