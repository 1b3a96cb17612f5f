// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Builder makes an image of a kind under a full reference.
type Builder func(ref string) (*Image, error)

// Kind is a kind of image that software meets.
type Kind struct {
	Name    string
	Build   Builder
	Hostile bool // unpacking it must not harm the machine, and may fail
}

// Kinds are all of them but the large ones, Bomb and Noise.
var Kinds = []Kind{
	{Name: "multi-platform", Build: MultiPlatform},
	{Name: "attested", Build: Attested},
	{Name: "schema-2", Build: Schema2},
	{Name: "zstd", Build: ZstdLayers},
	{Name: "uncompressed", Build: PlainLayers},
	{Name: "empty-layer", Build: EmptyLayer},
	{Name: "no-layers", Build: NoLayers},
	{Name: "duplicate-layers", Build: DuplicateLayers},
	{Name: "foreign-layer", Build: Foreign},
	{Name: "128-layers", Build: ManyLayers(128)},
	{Name: "traversal", Build: Traversal("/berth-outside"), Hostile: true},
	{Name: "symlink", Build: SymlinkOut("/berth-outside"), Hostile: true},
	{Name: "symlink-below", Build: SymlinkBelow("/berth-outside"), Hostile: true},
	{Name: "hard-link", Build: HardLinkOut("/etc/passwd"), Hostile: true},
	{Name: "device", Build: Special(fs.ModeDevice), Hostile: true},
	{Name: "fifo", Build: Special(fs.ModeNamedPipe), Hostile: true},
}

// MultiPlatform is an index of linux/amd64 and linux/arm64.
func MultiPlatform(ref string) (*Image, error) {
	var variants []Variant
	for _, arch := range []string{"amd64", "arm64"} {
		layers, err := stack(Gzip, []File{text("etc/arch", arch)})
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", ref, err)
		}
		variants = append(variants, Variant{Platform: v1.Platform{OS: "linux", Architecture: arch}, Layers: layers})
	}
	return Build(ref, variants...)
}

// Attested is an index of an image and an attestation, as BuildKit makes it.
func Attested(ref string) (*Image, error) {
	return of(ref, Variant{Attested: true}, Gzip, []File{text("etc/name", "attested")})
}

// Schema2 has Docker's media types, and annotations that such a manifest may not have.
func Schema2(ref string) (*Image, error) {
	return of(ref, Variant{Docker: true, Annotations: map[string]string{"berth.test/kind": "schema 2"}},
		Gzip, []File{text("etc/name", "schema 2")})
}

// ZstdLayers has two layers compressed by zstd.
func ZstdLayers(ref string) (*Image, error) {
	return of(ref, Variant{}, Zstd, []File{text("a", "1")}, []File{text("b", "2")})
}

// PlainLayers has two layers that are not compressed.
func PlainLayers(ref string) (*Image, error) {
	return of(ref, Variant{}, Plain, []File{text("a", "1")}, []File{text("b", "2")})
}

// EmptyLayer has a layer without entries between two others.
func EmptyLayer(ref string) (*Image, error) {
	return of(ref, Variant{}, Gzip, []File{text("a", "1")}, nil, []File{text("b", "2")})
}

// NoLayers has none.
func NoLayers(ref string) (*Image, error) { return Build(ref, Variant{}) }

// DuplicateLayers has one layer three times, in two places.
func DuplicateLayers(ref string) (*Image, error) {
	same := []File{text("same", "same")}
	return of(ref, Variant{}, Gzip, same, []File{text("other", "other")}, same, same)
}

// Foreign has a layer that may not be distributed, and does not contain it.
func Foreign(ref string) (*Image, error) {
	layers, err := stack(Gzip, []File{text("a", "1")})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	foreign, err := ForeignLayer(text("windows", "base"))
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return Build(ref, Variant{Layers: append([]Layer{foreign}, layers...)})
}

// ManyLayers has n layers of one file each.
func ManyLayers(n int) Builder {
	return func(ref string) (*Image, error) {
		var layers [][]File
		for i := range n {
			layers = append(layers, []File{text(fmt.Sprintf("layer-%03d", i), fmt.Sprint(i))})
		}
		return of(ref, Variant{}, Gzip, layers...)
	}
}

// Traversal has a file whose name climbs out of the root to outside, a path.
func Traversal(outside string) Builder {
	return hostile([]File{text(strings.Repeat("../", 40)+strings.TrimPrefix(outside, "/"), "escaped")})
}

// SymlinkOut links to outside, a folder, and writes through the link.
func SymlinkOut(outside string) Builder {
	return hostile([]File{link("out", outside), text("out/escaped", "escaped")})
}

// SymlinkBelow is SymlinkOut with the link in a layer below.
func SymlinkBelow(outside string) Builder {
	return hostile([]File{link("out", outside)}, []File{text("out/escaped", "escaped")})
}

// HardLinkOut has hard links to outside, a file, and writes to one of them.
func HardLinkOut(outside string) Builder {
	climbing := strings.Repeat("../", 40) + strings.TrimPrefix(outside, "/")
	return hostile([]File{
		{Path: "climbing", Mode: 0o644, Link: climbing},
		{Path: "absolute", Mode: 0o644, Link: outside},
		text("absolute", "escaped"),
	})
}

// Special has a node of a type: fs.ModeDevice or fs.ModeNamedPipe.
func Special(mode fs.FileMode) Builder {
	return hostile([]File{{Path: "node", Mode: mode | 0o666}})
}

// Bomb is a layer of size zeros, a multiple of 16 MiB. Nobody is to unpack it to its
// end, so the digest that the configuration has for it is a wrong one.
func Bomb(size int64) Builder {
	return func(ref string) (*Image, error) {
		data, err := zeros(size, io.Discard)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", ref, err)
		}
		layer := Layer{desc: describe(string(Gzip), data), diff: digest.FromBytes(data), data: data}
		return Build(ref, Variant{Layers: []Layer{layer}})
	}
}

// Noise has layers of size bytes each that do not compress.
func Noise(layers, size int) Builder {
	return func(ref string) (*Image, error) {
		var v Variant
		for i := range layers {
			layer, err := NoiseLayer(byte(i), size)
			if err != nil {
				return nil, fmt.Errorf("image %s: %w", ref, err)
			}
			v.Layers = append(v.Layers, layer)
		}
		return Build(ref, v)
	}
}

func hostile(layers ...[]File) Builder {
	return func(ref string) (*Image, error) { return of(ref, Variant{}, Gzip, layers...) }
}

// of is an image of v with layers of these files.
func of(ref string, v Variant, format Format, layers ...[]File) (*Image, error) {
	var err error
	if v.Layers, err = stack(format, layers...); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return Build(ref, v)
}

func stack(format Format, layers ...[]File) ([]Layer, error) {
	var made []Layer
	for _, files := range layers {
		layer, err := NewLayer(format, files...)
		if err != nil {
			return nil, err
		}
		made = append(made, layer)
	}
	return made, nil
}

func text(path, data string) File { return File{Path: path, Mode: 0o644, Data: []byte(data)} }

func link(path, target string) File {
	return File{Path: path, Mode: fs.ModeSymlink | 0o777, Link: target}
}
