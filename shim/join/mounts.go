// SPDX-License-Identifier: Apache-2.0

package join

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/shim/pod"
	"github.com/berthd/berth/shim/sandbox"
)

// mount is an entry of a specification's mounts.
type mount struct {
	raw         json.RawMessage
	destination string // absolute and clean
	kind        string
	source      string
}

func (m *mount) UnmarshalJSON(b []byte) error {
	var fields struct {
		Destination string `json:"destination"`
		Type        string `json:"type"`
		Source      string `json:"source"`
	}
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	*m = mount{raw: slices.Clone(b), destination: absolute(fields.Destination), kind: fields.Type, source: fields.Source}
	return nil
}

// depth is the number of names in the destination, what containerd sorts by.
func (m mount) depth() int { return strings.Count(m.destination, "/") }

// bind returns the mount of a pod's file as containerd writes it for its own
// pods.
func bind(source, destination, access string) mount {
	raw, _ := json.Marshal(struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options"`
	}{destination, "bind", source, []string{"rbind", "rprivate", access}}) // strings never fail
	return mount{raw: raw, destination: destination, kind: "bind", source: source}
}

const devShm = "/dev/shm"

// addFiles mounts the pod's files where the specification mounts nothing, and its
// shared memory in the place of the container's own. With the IPC namespace of
// the host containerd has seen to /dev/shm.
func (s *spec) addFiles(dir string, p *pod.Record) {
	access := "rw"
	if s.readonly {
		access = "ro"
	}
	for _, name := range [...]string{sandbox.HostnameFile, sandbox.HostsFile, sandbox.ResolvFile} {
		if destination := "/etc/" + name; s.mountAt(destination) < 0 {
			s.add(bind(filepath.Join(dir, name), destination, access))
		}
	}
	if !p.Shm {
		return
	}
	if i := s.mountAt(devShm); i >= 0 {
		if m := s.mounts[i]; m.kind != "tmpfs" || m.source != "shm" {
			return // the user's: containerd calls its own one so
		}
		s.mounts = slices.Delete(s.mounts, i, i+1)
	}
	s.add(bind(filepath.Join(dir, sandbox.ShmDir), devShm, "rw"))
}

// mountAt returns the index of the mount that is seen at destination, -1 for
// none.
func (s *spec) mountAt(destination string) int {
	for i, m := range slices.Backward(s.mounts) {
		if m.destination == destination {
			return i
		}
	}
	return -1
}

func (s *spec) add(m mount) {
	s.mounts = slices.Insert(s.mounts, s.place(m), m)
	s.files = append(s.files, m.source)
	s.changes = append(s.changes, "mount "+m.destination)
}

// place returns where a mount goes. containerd has its defaults first, of which
// the cgroup is the last, then those of the pod and the user by depth, then
// whatever plugins add. In any order nothing may hide the new mount or be hidden
// by it.
func (s *spec) place(m mount) int {
	start := 1 + slices.IndexFunc(s.mounts, func(o mount) bool { return o.kind == "cgroup" })
	at := start
	for at < len(s.mounts) && s.mounts[at].depth() <= m.depth() && (at == start || s.mounts[at].depth() >= s.mounts[at-1].depth()) {
		at++
	}
	if below := slices.IndexFunc(s.mounts, func(o mount) bool { return within(o.destination, m.destination) }); below >= 0 {
		at = min(at, below)
	}
	for i, o := range slices.Backward(s.mounts) {
		if o.destination == m.destination || within(m.destination, o.destination) {
			return max(at, i+1)
		}
	}
	return at
}
