// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"github.com/berthd/berth/images/reference"
)

// ErrRejected says that the policy was asked and refuses the image. The text
// begins with CRI's name for it, by which the kubelet knows it. Its class is
// ErrPermissionDenied.
var ErrRejected = errdefs.ErrPermissionDenied.WithMessage("SignatureValidationFailed: signature rejected")

// ErrUnavailable says that the signatures cannot be had, for want of credentials for
// example. Its class is ErrUnavailable.
var ErrUnavailable = errdefs.ErrUnavailable.WithMessage("cannot be fetched")

// Subject is an image to judge.
type Subject struct {
	// Reference is the name by which the user asks for the image. It chooses the
	// rules, and the signature has to have been made for it.
	Reference reference.Reference
	// Digest is what the name was resolved to and what will be used: that of the
	// index if there is one. A signature for it covers all manifests it lists.
	Digest digest.Digest
	// System says how to reach the registry that the signatures are in or beside:
	// credentials, certificates, registries.conf. nil: as the system has it.
	System *types.SystemContext
}

// validate returns the references that the image has for the rules and for the
// registry.
func (s Subject) validate() (asked, exact types.ImageReference, err error) {
	pinned, err := s.Reference.WithDigest(s.Digest)
	if err != nil {
		return nil, nil, fmt.Errorf("signature policy: %w", err)
	}
	if s.Reference.Digest() != "" && s.Reference != pinned {
		return nil, nil, fmt.Errorf("signature policy: %s was resolved to %s: %w", s.Reference.Text(), s.Digest, errdefs.ErrInvalidArgument)
	}
	asked, err = docker.ParseReference("//" + s.Reference.Text())
	if err == nil {
		exact, err = docker.ParseReference("//" + pinned.Text())
	}
	if err != nil {
		return nil, nil, fmt.Errorf("signature policy: %s: %w: %w", s.Reference.Text(), err, errdefs.ErrInvalidArgument)
	}
	return asked, exact, nil
}

// Verify returns nil if the policy allows the image, and ErrRejected with the
// reason if it does not. Nothing but the manifest and the signatures is fetched,
// and these only if a rule asks for signatures; if they cannot be had the error is
// ErrUnavailable, or that of ctx. ErrInvalid and ErrInvalidArgument are possible, too.
// It blocks as long as the registry does: bound it by ctx.
func (p *Policy) Verify(ctx context.Context, s Subject) error {
	asked, exact, err := s.validate()
	if err != nil {
		return err
	}
	unread := &unread{ref: asked}
	if err := p.judge(ctx, s, unread); !unread.wanted {
		return err
	}
	system := types.SystemContext{}
	if s.System != nil {
		system = *s.System
	}
	if p.registriesDir != "" {
		system.RegistriesDirPath = p.registriesDir
	}
	source, err := exact.NewImageSource(ctx, &system)
	if err != nil {
		return unavailable(ctx, s, err)
	}
	defer source.Close()
	img := image.UnparsedInstance(source, nil)
	// Read before they are judged, so that what cannot be had is not taken for what
	// is refused. The manifest was read when the source was opened.
	if _, err := img.Signatures(ctx); err != nil {
		return unavailable(ctx, s, err)
	}
	return p.judge(ctx, s, image.UnparsedInstanceWithReference(img, asked))
}

// judge applies the rules to an image.
func (p *Policy) judge(ctx context.Context, s Subject, img types.UnparsedImage) error {
	// One for each call: a context serves one call at a time.
	rules, err := signature.NewPolicyContext(p.rules)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	defer func() { _ = rules.Destroy() }() // fails only while it is in use
	allowed, err := rules.IsRunningImageAllowed(ctx, img)
	if allowed && err == nil {
		return nil
	}
	// All but the policy's own files has been read by now.
	if file := (*fs.PathError)(nil); errors.As(err, &file) {
		return fmt.Errorf("%w for %s: %w", ErrInvalid, s.Reference.Text(), err)
	}
	return fmt.Errorf("%w: %s (%s): %w", ErrRejected, s.Reference.Text(), s.Digest, err)
}

// unavailable is what Verify returns if something could not be fetched.
func unavailable(ctx context.Context, s Subject, err error) error {
	class := ErrUnavailable
	if ctx.Err() != nil {
		class = ctx.Err()
	}
	return fmt.Errorf("signatures of %s (%s): %w: %w", s.Reference.Text(), s.Digest, class, err)
}

// unread is an image of which only the name is known. It learns whether that is
// enough: rules like accept and reject ask for no more, and need no registry.
type unread struct {
	ref    types.ImageReference
	wanted bool
}

var _ types.UnparsedImage = (*unread)(nil)

var errUnread = errors.New("not read yet")

func (u *unread) Reference() types.ImageReference { return u.ref }

func (u *unread) Manifest(context.Context) ([]byte, string, error) {
	u.wanted = true
	return nil, "", errUnread
}

func (u *unread) Signatures(context.Context) ([][]byte, error) {
	u.wanted = true
	return nil, errUnread
}
