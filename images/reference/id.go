// SPDX-License-Identifier: Apache-2.0

// Package reference owns the two ways to say which image is meant: the ID of an
// image that is stored here, and the name of an image in a registry. Both are
// parsed once and are well-formed from then on, so no other package passes bare
// strings around. It refuses to know stores and registries: that a value is
// well-formed does not mean that such an image exists.
package reference

import (
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// idLength is the length of a SHA-256 sum in hexadecimal digits.
const idLength = 64

// ErrCannotParseImageID says that 64 hexadecimal digits, which can only be an
// ID, stand where the name of an image is wanted. Its class is
// ErrInvalidArgument.
var ErrCannotParseImageID = errdefs.ErrInvalidArgument.WithMessage("cannot parse image ID")

// ID is the ID of an image: the SHA-256 sum of its configuration. Values are
// made by ParseID alone, compare with ==, and serve as keys of maps. To use the
// zero value is a bug of the caller: every method panics on it.
//
// There is no String method on purpose: an ID turned into a string is a name
// for somebody else. See Hex; the verbs of package fmt work.
type ID struct{ hex string }

// ParseID returns the ID that consists of exactly 64 lower-case hexadecimal
// digits. Anything else, a "sha256:" in front included, is ErrInvalidArgument.
func ParseID(s string) (ID, error) {
	if !IsFullID(s) {
		return ID{}, fmt.Errorf("image ID %q: not %d lower-case hexadecimal digits: %w", s, idLength, errdefs.ErrInvalidArgument)
	}
	return ID{s}, nil
}

// IDFromDigest returns the ID of the image whose configuration has that digest.
// A digest of another algorithm than SHA-256 is ErrInvalidArgument.
func IDFromDigest(config digest.Digest) (ID, error) {
	if err := config.Validate(); err != nil {
		return ID{}, fmt.Errorf("image ID of %q: %w: %w", config, err, errdefs.ErrInvalidArgument)
	}
	if config.Algorithm() != digest.SHA256 {
		return ID{}, fmt.Errorf("image ID of %q: not SHA-256: %w", config, errdefs.ErrInvalidArgument)
	}
	return ID{config.Encoded()}, nil
}

// IsFullID tells whether ParseID accepts s.
func IsFullID(s string) bool {
	return len(s) == idLength && IsHex(s)
}

// IsHex tells whether s consists of lower-case hexadecimal digits only, as the
// beginning of an ID does. The empty string does.
func IsHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Hex returns the 64 digits. It is meant FOR USE OUTSIDE OF THIS PROCESS ONLY,
// as in the answer to a client or on a terminal; inside pass the ID itself.
func (id ID) Hex() string {
	if id.hex == "" {
		panic("reference: use of an empty image ID")
	}
	return id.hex
}

// Digest returns the digest of the image's configuration.
func (id ID) Digest() digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, id.Hex())
}

// Format writes the digits, whatever the verb; %q quotes them.
func (id ID) Format(f fmt.State, verb rune) { format(f, verb, id.Hex()) }

var _ fmt.Formatter = ID{}

func format(f fmt.State, verb rune, text string) {
	if verb == 'q' {
		text = fmt.Sprintf("%q", text)
	}
	_, _ = io.WriteString(f, text) // fmt.State keeps what it could not write to itself
}
