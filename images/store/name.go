// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/reference"
)

// What names of records that keep an image without a name begin with: berth's,
// and moby's, which may work in the same namespace.
const (
	danglingPrefix     = "berth-dangling@"
	mobyDanglingPrefix = "moby-dangling@"
)

// DanglingName is the name of the record that keeps an image which has no name.
func DanglingName(target digest.Digest) string { return danglingPrefix + target.String() }

// Kind says what the name of a record stands for.
type Kind uint8

// The kinds of records.
const (
	// KindTag is "registry/path:tag".
	KindTag Kind = iota + 1
	// KindDigest is "registry/path@digest".
	KindDigest
	// KindID is the digest of a configuration, as containerd's CRI plugin
	// records it for the image's ID.
	KindID
	// KindDangling keeps an image that has no name.
	KindDangling
	// KindForeign is a name that cannot be that of an image in a registry: to
	// containerd names are free text.
	KindForeign
)

// User tells whether people know the image by such a name.
func (k Kind) User() bool { return k == KindTag || k == KindDigest || k == KindForeign }

// ParseName returns what the name of a record stands for. The reference is valid
// for KindTag and KindDigest only.
func ParseName(name string) (Kind, reference.Reference) {
	if IsDangling(name) {
		return KindDangling, reference.Reference{}
	}
	if d, err := digest.Parse(name); err == nil && d != "" {
		return KindID, reference.Reference{}
	}
	ref, err := reference.Parse(name)
	switch {
	case err != nil || ref.Text() != name:
		// A name that would be normalised to another is not found by people who
		// type it, and means another image to all tools.
		return KindForeign, reference.Reference{}
	case ref.Digest() != "":
		return KindDigest, ref
	}
	return KindTag, ref
}

// IsDangling tells whether a record's name is that of an image without a name,
// as berth or moby writes it.
func IsDangling(name string) bool {
	for _, prefix := range []string{danglingPrefix, mobyDanglingPrefix} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			_, err := digest.Parse(rest)
			return err == nil
		}
	}
	return false
}

// LabelParent is the label of a record whose image was made from another one, as
// moby has it: the digest of that one's target.
const LabelParent = "org.mobyproject.image.parent"

// WithNames returns the records by which people know the image.
func WithNames(records []images.Image) []images.Image {
	var named []images.Image
	for _, r := range records {
		if kind, _ := ParseName(r.Name); kind.User() {
			named = append(named, r)
		}
	}
	return named
}

// Came is when the first of an image's records was made.
func Came(records []images.Image) time.Time {
	return slices.MinFunc(records, func(a, b images.Image) int { return a.CreatedAt.Compare(b.CreatedAt) }).CreatedAt
}

// Names are those by which people know an image.
type Names struct {
	Tags     []string // sorted
	Digested []reference.Reference

	tagged  []reference.Reference // as Tags are
	repos   map[string]bool
	targets map[digest.Digest]bool
}

// NamesOf returns the names that an image's records have, which are in the order of
// their names. Those that are not names of images in a registry are left out, and
// logged.
func NamesOf(ctx context.Context, records []images.Image) Names {
	n := Names{repos: map[string]bool{}, targets: map[digest.Digest]bool{}}
	for _, r := range records {
		kind, ref := ParseName(r.Name)
		switch kind {
		case KindTag:
			n.Tags, n.tagged = append(n.Tags, r.Name), append(n.tagged, ref)
		case KindDigest:
			n.Digested = append(n.Digested, ref)
			n.targets[ref.Digest()] = true
		case KindForeign:
			log.G(ctx).WithField("image", r.Name).Warn("the name of an image record is not one of a registry's")
			continue
		default:
			continue
		}
		n.repos[ref.Repository()] = true
		n.targets[r.Target.Digest] = true
	}
	return n
}

// Digests are "repository@digest" for each repository and each digest, sorted.
func (n Names) Digests() []string {
	var all []string
	for repo := range n.repos {
		for d := range n.targets {
			all = append(all, repo+"@"+d.String())
		}
	}
	slices.Sort(all)
	return all
}

// First is the first tag, else the first digest; nil without either.
func (n Names) First() *reference.Reference {
	for _, ref := range append(n.tagged, n.Digested...) {
		return &ref
	}
	return nil
}
