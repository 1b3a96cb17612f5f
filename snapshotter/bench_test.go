// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
)

// BenchmarkUsage asks for the usage of 500 layers with 1,000 files each, as the CRI
// plugin does every ten seconds: by the project quota, and by walking as containerd's
// overlayfs snapshotter does. It needs a file system with project quotas:
//
//	snapshotter.test -test.run=- -test.bench=Usage -test.benchtime=1x
func BenchmarkUsage(b *testing.B) {
	const layers, files = 500, 1000
	root := filepath.Join(b.TempDir(), "root")
	s, err := New(b.Context(), Config{Root: root, Size: 64 * mebi, Enforcement: Quota})
	if err != nil {
		b.Skip(err)
	}
	defer s.Close()
	for i := range layers {
		mounts, err := s.Prepare(b.Context(), fmt.Sprint(i), "")
		if err != nil {
			b.Fatal(err)
		}
		dir := filepath.Join(b.TempDir(), "mounted")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			b.Fatal(err)
		}
		if err := mount.All(mounts, dir); err != nil {
			b.Fatal(err)
		}
		for n := range files {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(n)), nil, 0o600); err != nil {
				b.Fatal(err)
			}
		}
		if err := mount.UnmountAll(dir, 0); err != nil {
			b.Fatal(err)
		}
	}
	for name, usage := range map[string]func(context.Context, string) (snapshots.Usage, error){
		"quota": s.Usage, "walk": s.Snapshotter.Usage,
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				for i := range layers {
					if u, err := usage(b.Context(), fmt.Sprint(i)); err != nil || u.Inodes < files {
						b.Fatalf("%+v, %v", u, err)
					}
				}
			}
		})
	}
}
