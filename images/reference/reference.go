// SPDX-License-Identifier: Apache-2.0

package reference

import (
	_ "crypto/sha256" // go-digest takes its hashes from the registered ones
	_ "crypto/sha512"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Reference is the name of an image in a registry: a registry, a repository in
// it, and either a tag or a digest. Values are made by Parse and FromNamed
// alone, compare with ==, and serve as keys of maps. To use the zero value is a
// bug of the caller: every method panics on it.
//
// There is no String method on purpose, see Text; the verbs of package fmt work.
type Reference struct {
	host, path string
	tag        string        // empty when there is a digest
	digest     digest.Digest // empty when there is a tag
}

// Parse reads a name as people type it: without a registry it is one of
// docker.io, a single word there is below library/, and without a tag and a
// digest the tag is latest. When both a tag and a digest are given the digest
// wins and the tag is dropped. A name that cannot be one is ErrInvalidArgument;
// when it is an image's ID the error is ErrCannotParseImageID, too.
func Parse(s string) (Reference, error) {
	if IsFullID(s) {
		return Reference{}, fmt.Errorf("image name %q: %w", s, ErrCannotParseImageID)
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fmt.Errorf("image name %q: %w: %w", s, err, errdefs.ErrInvalidArgument)
	}
	r := FromNamed(named)
	// The parser takes Foo/bar for a repository of a registry called Foo.
	if r.host != "localhost" && !strings.ContainsAny(r.host, ".:") {
		return Reference{}, fmt.Errorf("image name %q: repository name must be lowercase: %w", s, errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// FromNamed returns the Reference of a name that the parser of
// distribution/reference has normalised, with the rules of Parse about tag and
// digest.
func FromNamed(named reference.Named) Reference {
	r := Reference{host: reference.Domain(named), path: reference.Path(named)}
	if digested, ok := named.(reference.Digested); ok {
		r.digest = digested.Digest()
		return r
	}
	r.tag = "latest"
	if tagged, ok := named.(reference.Tagged); ok {
		r.tag = tagged.Tag()
	}
	return r
}

// Text returns the whole reference, "registry/path:tag" or
// "registry/path@digest", which Parse reads back to the same value. It is the
// name of a record in containerd's image store. It is meant for use outside of
// this process: inside pass the Reference itself.
func (r Reference) Text() string {
	if r.digest != "" {
		return r.Repository() + "@" + string(r.digest)
	}
	return r.Repository() + ":" + r.tag
}

// Familiar returns what people call the image: Text without what Parse would
// add again, apart from the tag.
func (r Reference) Familiar() string {
	return reference.FamiliarString(r.Named())
}

// Host returns the registry, "host" or "host:port".
func (r Reference) Host() string {
	r.check()
	return r.host
}

// Path returns the repository's place in its registry.
func (r Reference) Path() string {
	r.check()
	return r.path
}

// Repository returns "registry/path".
func (r Reference) Repository() string {
	r.check()
	return r.host + "/" + r.path
}

// Tag returns the tag, or "" when the reference has a digest.
func (r Reference) Tag() string {
	r.check()
	return r.tag
}

// Digest returns the digest, or "" when the reference has a tag.
func (r Reference) Digest() digest.Digest {
	r.check()
	return r.digest
}

// WithTag returns the reference to another tag of the same repository. A tag
// that cannot be one is ErrInvalidArgument.
func (r Reference) WithTag(tag string) (Reference, error) {
	named, err := reference.WithTag(reference.TrimNamed(r.Named()), tag)
	if err != nil {
		return Reference{}, fmt.Errorf("tag %q of %s: %w: %w", tag, r.Repository(), err, errdefs.ErrInvalidArgument)
	}
	return FromNamed(named), nil
}

// WithDigest returns the reference to what has that digest in the same
// repository. A digest that cannot be one is ErrInvalidArgument.
func (r Reference) WithDigest(d digest.Digest) (Reference, error) {
	r.check()
	if err := d.Validate(); err != nil {
		return Reference{}, fmt.Errorf("digest %q of %s: %w: %w", d, r.Repository(), err, errdefs.ErrInvalidArgument)
	}
	return Reference{host: r.host, path: r.path, digest: d}, nil
}

// Named returns the reference as the libraries for images take it.
func (r Reference) Named() reference.Named {
	named, err := reference.ParseNormalizedNamed(r.Text())
	if err != nil {
		panic("reference: " + err.Error()) // it was parsed when the value was made
	}
	return named
}

// Format writes Text, whatever the verb; %q quotes it.
func (r Reference) Format(f fmt.State, verb rune) { format(f, verb, r.Text()) }

var _ fmt.Formatter = Reference{}

func (r Reference) check() {
	if r.host == "" {
		panic("reference: use of an empty image reference")
	}
}
