// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/labels"
)

func TestOlder(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{{"3.16", "3.16", false}, {"3.15.9", "3.16", true}, {"3.9", "3.16", true}, {"4.1", "3.16", false}, {"3.16.1", "3.16", false}, {"", "3.16", true}} {
		if got := older(c.a, c.b); got != c.want {
			t.Errorf("%q older than %q: %v", c.a, c.b, got)
		}
	}
}

func tarOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = 1
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSplitLayer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "diff.tar")
	deleted, err := splitLayer(bytes.NewReader(tarOf(t,
		tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "etc/.wh.passwd", Typeflag: tar.TypeReg},
		tar.Header{Name: "etc/hosts", Typeflag: tar.TypeReg},
		tar.Header{Name: "opt/.wh..wh..opq", Typeflag: tar.TypeReg},
	)), path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"etc/passwd", "opt"}, deleted); diff != "" {
		t.Error(diff)
	}
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(b, []byte("etc/hosts")) || bytes.Contains(b, []byte(".wh.")) {
		t.Errorf("%v: %q", err, b)
	}
}

// An archive comes from elsewhere.
func TestHostileArchives(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"path outside": {{Name: "../x", Typeflag: tar.TypeReg}},
		"absolute":     {{Name: "/x", Typeflag: tar.TypeReg}},
		"link":         {{Name: "checkpoint", Linkname: "/etc", Typeflag: tar.TypeSymlink}, {Name: "checkpoint/inventory.img", Typeflag: tar.TypeReg}},
		"hard link":    {{Name: "x", Linkname: "/etc/passwd", Typeflag: tar.TypeLink}},
		"device":       {{Name: "x", Typeflag: tar.TypeChar}},
		"twice":        {{Name: "x", Typeflag: tar.TypeReg}, {Name: "x", Typeflag: tar.TypeReg}},
		"no inventory": {{Name: "config.dump", Typeflag: tar.TypeReg}},
		"no config":    {{Name: "checkpoint/inventory.img", Typeflag: tar.TypeReg}},
		"bad config":   {{Name: "checkpoint/inventory.img", Typeflag: tar.TypeReg}, {Name: "config.dump", Typeflag: tar.TypeReg}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "a.tar")
			if err := os.WriteFile(path, tarOf(t, headers...), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Import(context.Background(), path, filepath.Join(dir, "to"))
			if err == nil || name != "twice" && !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v", err)
			}
			if left, _ := os.ReadDir(dir); len(left) != 1 {
				t.Errorf("left: %v", left)
			}
		})
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/text", []byte("this is no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Import(context.Background(), dir+"/text", dir+"/to"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("text: %v", err)
	}
	if _, err := Import(context.Background(), dir+"/none", dir+"/to"); !errdefs.IsNotFound(err) {
		t.Errorf("no file: %v", err)
	}
}

func TestSpecFor(t *testing.T) {
	volume := t.TempDir()
	c := &Checkpoint{Config: Config{ID: "c"}, Spec: &specs.Spec{
		Process:     &specs.Process{},
		Annotations: map[string]string{"a": "b", labels.AnnotationSandboxID: "old", labels.AnnotationContainerType: "container"},
		Mounts: []specs.Mount{
			{Destination: "/data", Type: "bind", Source: "/nowhere"},
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/gone", Type: "bind", Source: "/nowhere"},
		},
		Linux: &specs.Linux{CgroupsPath: "/old", Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace, Path: "/old/net"}, {Type: specs.IPCNamespace, Path: "/old/ipc"}, {Type: specs.UTSNamespace, Path: "/old/uts"},
		}},
	}}
	if _, err := c.SpecFor(Target{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/data") {
		t.Errorf("missing source: %v", err)
	}
	s, err := c.SpecFor(Target{
		PodID: "new", CgroupPath: "/new", Sources: map[string]string{"/data": volume, "/gone": ""}, Annotations: map[string]string{"c": "d"},
		Namespaces: map[specs.LinuxNamespaceType]string{specs.UTSNamespace: ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &specs.Spec{
		Process:     &specs.Process{},
		Annotations: map[string]string{"a": "b", "c": "d", labels.AnnotationSandboxID: "new", labels.AnnotationContainerType: "container"},
		Mounts:      []specs.Mount{{Destination: "/data", Type: "bind", Source: volume}, {Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{CgroupsPath: "/new", Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace, Path: "/proc/0/ns/net"}, {Type: specs.IPCNamespace, Path: "/proc/0/ns/ipc"}, {Type: specs.UTSNamespace},
		}},
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
	if c.Spec.Linux.CgroupsPath != "/old" || c.Spec.Mounts[0].Source != "/nowhere" || c.Spec.Annotations[labels.AnnotationSandboxID] != "old" {
		t.Error("the checkpoint was changed")
	}
}
