// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"testing"

	"github.com/berthd/berth/integration/image"
)

// What containerd can run is pulled whole.
func TestPullKinds(t *testing.T) {
	r := open(t, nil)
	for _, kind := range image.Kinds {
		if kind.Hostile || kind.Name == "foreign-layer" {
			continue
		}
		t.Run(kind.Name, func(t *testing.T) {
			ref, img := r.push(t, kind.Name+":1", kind.Build)
			result := r.pull(t, ref)
			equal(t, "target", result.Target.Digest, img.Manifest().Digest)
			if !result.Updated {
				t.Error("a new name is said to be up to date")
			}
			again := r.pull(t, ref)
			if again.Updated || len(again.Bytes) > 0 {
				t.Errorf("again: updated %v, fetched %v", again.Updated, again.Bytes)
			}
		})
	}
}
