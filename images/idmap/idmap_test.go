// SPDX-License-Identifier: Apache-2.0

package idmap_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/images/idmap"
)

var shifted = idmap.Map{
	UIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}, {ContainerID: 1000, HostID: 200000, Size: 1}},
	GIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 300000, Size: 65536}},
}

// Capabilities of a file: net_bind_service, effective.
var (
	version2 = []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	version3 = append(append([]byte{1, 0, 0, 3}, version2[4:]...), 0xa0, 0x86, 1, 0) // of the root that is 100000
)

func TestTranslate(t *testing.T) {
	for _, c := range []struct {
		uid, gid         int // in the namespace
		hostUID, hostGID int
	}{{0, 0, 100000, 300000}, {999, 5, 100999, 300005}, {1000, 65535, 200000, 365535}} {
		uid, gid, err := shifted.ToHost(c.uid, c.gid)
		if err != nil || uid != c.hostUID || gid != c.hostGID {
			t.Errorf("ToHost(%d, %d): got %d, %d, %v", c.uid, c.gid, uid, gid, err)
		}
		uid, gid, err = shifted.ToContainer(c.hostUID, c.hostGID)
		if err != nil || uid != c.uid || gid != c.gid {
			t.Errorf("ToContainer(%d, %d): got %d, %d, %v", c.hostUID, c.hostGID, uid, gid, err)
		}
	}
	if _, _, err := shifted.ToContainer(0, 300000); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("user 0: got %v", err)
	}
	if _, _, err := shifted.ToHost(0, 65536); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("group 65536: got %v", err)
	}
	if uid, gid, err := (idmap.Map{}).ToHost(7, 8); err != nil || uid != 7 || gid != 8 {
		t.Errorf("empty: got %d, %d, %v", uid, gid, err)
	}
}

func TestValidate(t *testing.T) {
	if err := errors.Join(shifted.Validate(), idmap.Map{}.Validate()); err != nil {
		t.Error(err)
	}
	root := specs.LinuxIDMapping{HostID: 1, Size: 1}
	for name, bad := range map[string][]specs.LinuxIDMapping{
		"no root":      {{ContainerID: 1, HostID: 1, Size: 1}},
		"empty":        {root, {ContainerID: 5, HostID: 5}},
		"too large":    {root, {ContainerID: 5, HostID: 1 << 31, Size: 1 << 31}},
		"twice inside": {root, {ContainerID: 0, HostID: 5, Size: 1}},
		"twice out":    {{HostID: 4, Size: 4}, {ContainerID: 9, HostID: 6, Size: 4}},
	} {
		if err := (idmap.Map{UIDs: bad, GIDs: []specs.LinuxIDMapping{root}}).Validate(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestLabels(t *testing.T) {
	back, err := idmap.Parse(shifted.Labels())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(shifted, back); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if m, err := idmap.Parse(nil); err != nil || !m.Empty() {
		t.Errorf("no labels: got %v, %v", m, err)
	}
	if _, err := idmap.Parse(map[string]string{"containerd.io/snapshot/uidmapping": "0:x"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad label: got %v", err)
	}
}

func TestShift(t *testing.T) {
	root := t.TempDir()
	old := time.Unix(1600000000, 123456789)
	files := map[string]uint32{"folder/plain": 0o644, "folder/setuid": 0o4755, "folder/capable": 0o755, "sticky": 0o1777}
	if err := os.Mkdir(root+"/folder", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range files {
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Lchown(path, 999, 7), unix.Chmod(path, mode), os.Chtimes(path, old, old)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(root+"/folder/capable", "security.capability", version2, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink("/etc/passwd", root+"/folder/link"), os.Link(root+"/sticky", root+"/again"), os.Chtimes(root+"/folder", old, old)); err != nil {
		t.Fatal(err)
	}
	if err := idmap.Shift(t.Context(), root, shifted); err != nil {
		t.Fatal(err)
	}
	for name, mode := range files {
		info, err := os.Lstat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Uid != 100999 || st.Gid != 300007 || st.Mode&0o7777 != mode || !info.ModTime().Equal(old) {
			t.Errorf("%s: got owner %d:%d, mode %o, time %v", name, st.Uid, st.Gid, st.Mode, info.ModTime())
		}
	}
	link, err := os.Lstat(root + "/folder/link")
	if err != nil {
		t.Fatal(err)
	}
	if st := link.Sys().(*syscall.Stat_t); st.Uid != 100000 {
		t.Errorf("link: got owner %d", st.Uid)
	}
	if st, _ := os.Stat("/etc/passwd"); st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Fatal("followed a link out of the folder")
	}
	if st, _ := os.Stat(root + "/folder"); !st.ModTime().Equal(old) || st.Sys().(*syscall.Stat_t).Uid != 100000 {
		t.Errorf("folder: got time %v", st.ModTime())
	}
	got := make([]byte, 64)
	n, err := unix.Getxattr(root+"/folder/capable", "security.capability", got)
	if err != nil || !bytes.Equal(got[:n], version2) {
		t.Errorf("capabilities: got %v, %v", got[:max(n, 0)], err)
	}
	// A second time is a mistake: the owners are the host's already.
	if err := idmap.Shift(t.Context(), root, shifted); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), root) {
		t.Errorf("second time: got %v, want an error naming the file", err)
	}
}

func TestUnshift(t *testing.T) {
	archive := func(headers ...*tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(w, strings.NewReader(strings.Repeat("x", 600)), h.Size); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	const capability = "SCHILY.xattr.security.capability"
	in := archive(
		&tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755, Uid: 100000, Gid: 300000},
		&tar.Header{Typeflag: tar.TypeReg, Name: "etc/file", Size: 600, Mode: 0o4755, Uid: 200000, Gid: 300005, PAXRecords: map[string]string{capability: string(version3), "SCHILY.xattr.user.x": "y"}},
		&tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh.gone"},
	)
	var out bytes.Buffer
	if err := idmap.Unshift(&out, bytes.NewReader(in), shifted); err != nil {
		t.Fatal(err)
	}
	want := archive(
		&tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755},
		&tar.Header{Typeflag: tar.TypeReg, Name: "etc/file", Size: 600, Mode: 0o4755, Uid: 1000, Gid: 5, PAXRecords: map[string]string{capability: string(version2), "SCHILY.xattr.user.x": "y"}},
		&tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh.gone"},
	)
	if diff := cmp.Diff(list(t, want), list(t, out.Bytes())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	err := idmap.Unshift(io.Discard, bytes.NewReader(archive(&tar.Header{Name: "strange", Uid: 5})), shifted)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "strange") {
		t.Errorf("got %v, want an error naming the entry", err)
	}
}

// list is the entries of an archive, whose contents must be complete.
func list(t *testing.T, archive []byte) (all []tar.Header) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); err != nil || n != h.Size {
			t.Errorf("%s: %d bytes, %v", h.Name, n, err)
		}
		//lint:ignore SA1019 repeats PAXRecords
		h.Xattrs = nil
		all = append(all, *h)
	}
}
