// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	cimages "github.com/containerd/containerd/v2/core/images"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/integration/image"
)

// many is how many images a list is measured with.
const many = 1000

// BenchmarkList is what a list costs a new process, connecting included: of images
// that berth has recorded, and of images that others have, which must be read.
func BenchmarkList(b *testing.B) {
	layer, err := image.NewLayer(image.Gzip, image.File{Path: "text", Mode: 0o644, Data: []byte("text")})
	if err != nil {
		b.Fatal(err)
	}
	for _, who := range []string{"berth", "others"} {
		s := newStored(b, nil)
		s.leased(func(ctx context.Context) {
			for i := range many {
				img := build(b, image.Variant{Layers: []image.Layer{layer}, Config: v1.ImageConfig{
					Labels: map[string]string{"number": fmt.Sprint(i), "text": strings.Repeat("berth ", 500)},
				}})
				s.write(ctx, img)
				record := cimages.Image{Name: fmt.Sprintf("berth.test/many/%d:1", i), Target: img.Manifest()}
				if who == "berth" {
					err = s.Store().Replace(ctx, record)
				} else {
					_, err = s.d.Client().ImageService().Create(ctx, record)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
		for name, list := range map[string]func(context.Context, *images.Service) (int, error){
			"brief": func(ctx context.Context, s *images.Service) (int, error) {
				list, err := s.List(ctx, images.ListOptions{Brief: true})
				return len(list), err
			},
			"list": func(ctx context.Context, s *images.Service) (int, error) {
				list, err := s.List(ctx, images.ListOptions{})
				return len(list), err
			},
			"summaries": func(ctx context.Context, s *images.Service) (int, error) {
				list, err := s.Summaries(ctx, images.SummaryOptions{})
				return len(list), err
			},
		} {
			b.Run(who+"/"+name, func(b *testing.B) {
				for b.Loop() {
					c, err := client.New(s.d.Socket)
					if err != nil {
						b.Fatal(err)
					}
					fresh, err := images.New(images.Config{Client: c, Namespace: s.ns})
					if err != nil {
						b.Fatal(err)
					}
					if n, err := list(b.Context(), fresh); err != nil || n != many {
						b.Fatal(n, err)
					}
					_ = c.Close()
				}
			})
		}
	}
}
