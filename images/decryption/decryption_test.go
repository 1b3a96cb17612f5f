// SPDX-License-Identifier: Apache-2.0

package decryption

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	// Others than root must find the way.
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"good/a.pem": 0o644, "good/below/b.pem": 0o644, "bad/secret.pem": 0o600} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"good/link.pem": "a.pem", "link": "good"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]int{"": 0, filepath.Join(dir, "none"): 0, filepath.Join(dir, "good"): 2} {
		if keys, err := Load(name); err != nil || len(keys.private) != want {
			t.Errorf("%q: %d keys, %v, want %d", name, len(keys.private), err, want)
		}
	}
	for name, names := range map[string]string{"link": "link", "good/a.pem": "a.pem"} {
		if _, err := Load(filepath.Join(dir, name)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), names) {
			t.Errorf("%s: %v, want InvalidArgument and %s", name, err, names)
		}
	}
	// A33: root can read everything, so that for once another reads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const nobody = 65534
	if _, err := unix.SetfsuidRetUid(nobody); err != nil {
		t.Fatal(err)
	}
	_, err := Load(filepath.Join(dir, "bad"))
	if _, back := unix.SetfsuidRetUid(0); back != nil {
		t.Fatal(back)
	}
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "bad/secret.pem") {
		t.Errorf("a key that cannot be read: %v, want InvalidArgument and its name", err)
	}
}
