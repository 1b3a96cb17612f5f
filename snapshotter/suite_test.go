// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
)

// containerd's conformance suite, for each way to hold a limit.
func TestSuite(t *testing.T) {
	for _, c := range []struct {
		name   string
		config Config
	}{
		{"none", Config{}},
		{"image", Config{Size: 32 << 20, Enforcement: Image}},
		{"quota", Config{Size: 32 << 20, Enforcement: Quota}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.config.Enforcement == Quota {
				needQuota(t, t.TempDir())
			}
			// The name tells the suite what overlayfs cannot do: rename a lower directory.
			testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				config := c.config
				config.Root = root
				s, err := New(ctx, config)
				if err != nil {
					return nil, nil, err
				}
				return s, func() error { return unmountLayers(s) }, nil
			})
		})
	}
}
