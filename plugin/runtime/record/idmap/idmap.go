// SPDX-License-Identifier: Apache-2.0

// Package idmap chooses the user and group numbers of user namespaces, and gives a
// tree of files to them where the kernel or the snapshotter cannot map it.
package idmap

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/labels"
)

// Range is consecutive IDs of the host.
type Range struct{ First, Count uint32 }

// DefaultSize is how many IDs a user namespace gets: all that fit two bytes, which
// is what images use.
const DefaultSize = 1 << 16

// Default is the end of what systemd sets apart for containers
// (https://systemd.io/UIDS-GIDS), far from the kubelet's, which begin at 65536.
var Default = Range{First: 1 << 30, Count: 1879048192 - 1<<30}

// Of returns the first range of a user in a file like /etc/subuid (subuid(5)), or
// NotFound.
func Of(user, path string) (Range, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Range{}, fmt.Errorf("%s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return Range{}, err
	}
	defer f.Close()
	return parse(f, user)
}

func parse(r io.Reader, user string) (Range, error) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		if name != user {
			continue
		}
		first, count, _ := strings.Cut(rest, ":")
		f, err1 := strconv.ParseUint(first, 10, 32)
		n, err2 := strconv.ParseUint(count, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return Range{}, fmt.Errorf("range of %s: %w: %w", user, err, errdefs.ErrInvalidArgument)
		}
		return Range{uint32(f), uint32(n)}, nil
	}
	return Range{}, fmt.Errorf("no range of %s: %w", user, errdefs.ErrNotFound)
}

// Choose returns a map of size IDs, 0 for DefaultSize, to the lowest part of the
// range that none of the used maps touches. Without one it returns
// ResourceExhausted.
func (r Range) Choose(size uint32, used []labels.IDMap) (labels.IDMap, error) {
	if size == 0 {
		size = DefaultSize
	}
	type span struct{ from, to uint64 } // without to
	var taken []span
	for _, u := range used {
		for _, m := range slices.Concat(u.UIDs, u.GIDs) {
			taken = append(taken, span{uint64(m.HostID), uint64(m.HostID) + uint64(m.Size)})
		}
	}
	slices.SortFunc(taken, func(a, b span) int { return int(int64(a.from) - int64(b.from)) })
	at, end := uint64(r.First), uint64(r.First)+uint64(r.Count)
	for _, t := range taken {
		if t.from >= at+uint64(size) {
			break
		}
		at = max(at, t.to)
	}
	if at+uint64(size) > end {
		return labels.IDMap{}, fmt.Errorf("%d IDs between %d and %d: all taken: %w", size, r.First, end, errdefs.ErrResourceExhausted)
	}
	one := []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(at), Size: size}}
	return labels.IDMap{UIDs: one, GIDs: slices.Clone(one)}, nil
}

// Equal compares maps as they are written.
func Equal(a, b labels.IDMap) bool {
	return slices.Equal(a.UIDs, b.UIDs) && slices.Equal(a.GIDs, b.GIDs)
}

// Validate tells what is wrong with a map, as InvalidArgument: without a root
// nobody in the container could own its files.
func Validate(m labels.IDMap) error {
	for what, ids := range map[string][]specs.LinuxIDMapping{"user": m.UIDs, "group": m.GIDs} {
		if _, ok := host(ids, 0); !ok {
			return fmt.Errorf("%s ID 0 is not mapped: %w", what, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// host returns what an ID of the container is on the host.
func host(ids []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, m := range ids {
		if id >= m.ContainerID && uint64(id) < uint64(m.ContainerID)+uint64(m.Size) {
			return m.HostID + (id - m.ContainerID), true
		}
	}
	return 0, false
}

// hashDigits are enough that two maps of a machine do not meet.
const hashDigits = 32

// CopyKey names the copy of the snapshot with a chain ID that belongs to a map.
func CopyKey(chain string, m labels.IDMap) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%v %v", m.UIDs, m.GIDs))
	return chain + "-" + hex.EncodeToString(sum[:])[:hashDigits]
}

var copyKey = regexp.MustCompile(`^sha256:[0-9a-f]{64}-[0-9a-f]{` + strconv.Itoa(hashDigits) + `}$`)

// IsCopy tells whether a snapshot's key is CopyKey's.
func IsCopy(key string) bool { return copyKey.MatchString(key) }
