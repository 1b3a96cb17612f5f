// SPDX-License-Identifier: Apache-2.0

// Package idmap translates the owners of files between a user namespace and the
// host: numbers, the files of a folder, and the entries of a layer's archive. It
// refuses to know snapshots and containers.
package idmap

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Map is the mapping of a user namespace. The zero value maps nothing: every id is
// itself.
type Map struct {
	UIDs []specs.LinuxIDMapping
	GIDs []specs.LinuxIDMapping
}

// Empty tells whether every id is itself.
func (m Map) Empty() bool { return len(m.UIDs) == 0 && len(m.GIDs) == 0 }

// Validate wants each id to have one meaning, and a root, which owns the root folder
// of a container. Its class is ErrInvalidArgument.
func (m Map) Validate() error {
	if m.Empty() {
		return nil
	}
	for _, ids := range [][]specs.LinuxIDMapping{m.UIDs, m.GIDs} {
		if err := validate(ids); err != nil {
			return fmt.Errorf("id map: %w", err)
		}
	}
	_, _, err := m.ToHost(0, 0)
	return err
}

func validate(ids []specs.LinuxIDMapping) error {
	for i, a := range ids {
		if a.Size == 0 || a.ContainerID+a.Size < a.ContainerID || a.HostID+a.Size < a.HostID {
			return fmt.Errorf("%s: empty or too large: %w", text(ids[i:i+1]), errdefs.ErrInvalidArgument)
		}
		for _, b := range ids[:i] {
			if overlap(a.ContainerID, b.ContainerID, a.Size, b.Size) || overlap(a.HostID, b.HostID, a.Size, b.Size) {
				return fmt.Errorf("%s: an id twice: %w", text([]specs.LinuxIDMapping{b, a}), errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}

func overlap(a, b, sizeA, sizeB uint32) bool { return a < b+sizeB && b < a+sizeA }

// ToHost translates the owner of a file in the namespace to the host's. An id that is
// not mapped is an error of the class ErrFailedPrecondition.
func (m Map) ToHost(uid, gid int) (int, int, error) {
	return m.translate(uid, gid, func(e specs.LinuxIDMapping) (from, to uint32) { return e.ContainerID, e.HostID })
}

// ToContainer translates the owner of a file on the host to that in the namespace. An
// id that is not mapped is an error of the class ErrFailedPrecondition.
func (m Map) ToContainer(uid, gid int) (int, int, error) {
	return m.translate(uid, gid, func(e specs.LinuxIDMapping) (from, to uint32) { return e.HostID, e.ContainerID })
}

type direction func(specs.LinuxIDMapping) (from, to uint32)

func (m Map) translate(uid, gid int, by direction) (int, int, error) {
	if m.Empty() {
		return uid, gid, nil
	}
	u, ok := find(m.UIDs, uid, by)
	if !ok {
		return 0, 0, fmt.Errorf("user %d is not in the id map %s: %w", uid, text(m.UIDs), errdefs.ErrFailedPrecondition)
	}
	g, ok := find(m.GIDs, gid, by)
	if !ok {
		return 0, 0, fmt.Errorf("group %d is not in the id map %s: %w", gid, text(m.GIDs), errdefs.ErrFailedPrecondition)
	}
	return u, g, nil
}

func find(ids []specs.LinuxIDMapping, id int, by direction) (int, bool) {
	for _, e := range ids {
		from, to := by(e)
		if offset := int64(id) - int64(from); offset >= 0 && offset < int64(e.Size) {
			return int(int64(to) + offset), true
		}
	}
	return 0, false
}

// text is the form of containerd's labels, and a stable one: equal maps have equal
// texts.
func text(ids []specs.LinuxIDMapping) string {
	ids = slices.SortedFunc(slices.Values(ids), func(a, b specs.LinuxIDMapping) int { return int(int64(a.ContainerID) - int64(b.ContainerID)) })
	var parts []string
	for _, e := range ids {
		parts = append(parts, fmt.Sprintf("%d:%d:%d", e.ContainerID, e.HostID, e.Size))
	}
	return strings.Join(parts, ",")
}

// Labels are those by which containerd's snapshotters know the map of a snapshot,
// none for the empty map.
func (m Map) Labels() map[string]string {
	if m.Empty() {
		return nil
	}
	return map[string]string{
		snapshots.LabelSnapshotUIDMapping: text(m.UIDs),
		snapshots.LabelSnapshotGIDMapping: text(m.GIDs),
	}
}

// Parse reads the map out of a snapshot's labels; without those it is empty. Its
// class is ErrInvalidArgument if they are of another form.
func Parse(labels map[string]string) (Map, error) {
	var m Map
	var err error
	if m.UIDs, err = parse(labels[snapshots.LabelSnapshotUIDMapping]); err != nil {
		return Map{}, err
	}
	m.GIDs, err = parse(labels[snapshots.LabelSnapshotGIDMapping])
	return m, err
}

func parse(label string) ([]specs.LinuxIDMapping, error) {
	if label == "" {
		return nil, nil
	}
	var ids []specs.LinuxIDMapping
	for part := range strings.SplitSeq(label, ",") {
		var e specs.LinuxIDMapping
		if _, err := fmt.Sscanf(part, "%d:%d:%d", &e.ContainerID, &e.HostID, &e.Size); err != nil {
			return nil, fmt.Errorf("id map %q: %w: %w", label, errdefs.ErrInvalidArgument, err)
		}
		ids = append(ids, e)
	}
	return ids, nil
}
