// SPDX-License-Identifier: Apache-2.0

package listing

import (
	"context"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/store"
)

// A10: what lists have read is kept as long as the image is there, and a single image
// is not remembered.
func TestDetails(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	list := func(digests ...digest.Digest) (all []Image) {
		for _, d := range digests {
			all = append(all, Image{Digest: d, Target: v1.Descriptor{Digest: d}})
		}
		return all
	}
	reads := 0
	read := func(_ context.Context, targets []v1.Descriptor) map[digest.Digest]store.Details {
		found := map[digest.Digest]store.Details{}
		for _, target := range targets {
			reads++
			found[target.Digest] = store.Details{Config: v1.Image{Author: target.Digest.String()}}
		}
		return found
	}
	var d details
	for _, step := range []struct {
		name         string
		list         []Image
		all          bool
		reads, known int
	}{
		{"one that is not known", list(a), false, 1, 0},
		{"all", list(a, b), true, 3, 2},
		{"all again", list(a, b), true, 3, 2},
		{"one that is known", list(b), false, 3, 2},
		{"all that are left", list(b), true, 3, 1},
		{"one without a manifest", []Image{{}}, true, 3, 0},
	} {
		d.fill(t.Context(), read, step.list, step.all)
		if reads != step.reads || len(d.known) != step.known {
			t.Errorf("%s: read %d, know %d, want %d and %d", step.name, reads, len(d.known), step.reads, step.known)
		}
		for _, img := range step.list {
			if img.Digest != "" && img.OCIConfig.Author != img.Digest.String() {
				t.Errorf("%s: %+v", step.name, img)
			}
		}
	}
}
