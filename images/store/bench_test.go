// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/integration/image"
)

// many is how many images a listing is measured with.
const many = 1000

// BenchmarkFacts is what lists cost: of images whose records tell their facts, and
// of images that others recorded.
func BenchmarkFacts(b *testing.B) {
	for _, who := range []string{"berth", "others"} {
		r := open(b, nil)
		make := r.replace
		if who == "others" {
			make = r.foreign
		}
		for i := range many {
			make(b, fmt.Sprintf("berth.test/many/%d:1", i), config(b, i))
		}
		b.Run(who, func(b *testing.B) {
			for b.Loop() {
				all, err := r.Records(b.Context())
				if err != nil || len(all) != many {
					b.Fatal(len(all), err)
				}
				facts, err := r.Facts(b.Context(), all)
				if err != nil {
					b.Fatal(err)
				}
				for _, f := range facts {
					if f.Err != nil {
						b.Fatal(f.Err)
					}
				}
			}
		})
		b.Run(who+"/records", func(b *testing.B) {
			for b.Loop() {
				_, _ = r.Records(b.Context())
			}
		})
		b.Run(who+"/blobs", func(b *testing.B) {
			for b.Loop() {
				_ = r.d.Client().ContentStore().Walk(r.Context(b.Context()), func(content.Info) error { return nil })
			}
		})
	}
}

// config is an image with a configuration of the usual size.
func config(t testing.TB, i int) *image.Image {
	return build(t, image.Variant{Config: v1.ImageConfig{Labels: map[string]string{
		"number": fmt.Sprint(i), "text": strings.Repeat("berth ", 500),
	}}})
}
