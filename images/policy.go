// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
)

// VerifyRequest asks whether an image of a registry may be used.
type VerifyRequest struct {
	// Reference is the name by which the user asks for it.
	Reference reference.Reference
	// Digest is what the name was resolved to; empty: the registry is asked.
	Digest digest.Digest
	// PolicyNamespace is the namespace whose policy counts: that of the pod, to
	// the kubelet. Empty: the policy for all.
	PolicyNamespace string
	// Access to the registry that has the image's signatures.
	Access registry.Access
}

// Verify holds an image of a registry against the signature policy and returns the
// digest that was judged; no layer is fetched. The error is that of
// policy.Policy's Verify or of policy.Load, or what the registry answered. Pulls
// do the same before they fetch anything.
func (s *Service) Verify(ctx context.Context, r VerifyRequest) (digest.Digest, error) {
	// First, since without a policy nobody is asked anything.
	rules, err := policy.Load(s.config.Policy, r.PolicyNamespace)
	if err != nil {
		return "", err
	}
	if r.Digest == "" {
		if r.Digest, err = s.resolve(ctx, r.Reference, r.Access); err != nil {
			return "", err
		}
	}
	return r.Digest, rules.Verify(ctx, policy.Subject{
		Reference: r.Reference,
		Digest:    r.Digest,
		System:    s.registry.SystemFor(ctx, r.Reference, r.Access),
	})
}

// resolve asks a registry for the digest that a name has now.
func (s *Service) resolve(ctx context.Context, ref reference.Reference, access registry.Access) (digest.Digest, error) {
	resolver, err := s.registry.Resolver(ctx, ref, access)
	if err != nil {
		return "", err
	}
	_, desc, err := resolver.Resolve(ctx, ref.Text())
	if err != nil {
		return "", fmt.Errorf("resolve %s: %w", ref.Text(), registry.Classify(err))
	}
	return desc.Digest, nil
}

// AllowedRequest asks whether a stored image may be used.
type AllowedRequest struct {
	// Reference is the name by which the user asks for it: the policy's rules go
	// by it, and signatures have to have been made for it.
	Reference reference.Reference
	// Image is the stored image, by name or ID; empty: Reference.
	Image string
	// PolicyNamespace is as in VerifyRequest.
	PolicyNamespace string
	// Access to the registry that has the image's signatures: containerd's stores
	// do not keep them.
	Access registry.Access
}

// Allowed holds a stored image against the signature policy, as it is now. It
// returns what Verify does, and store.ErrImageDoesNotExist. It is
// IsRunningImageAllowed of the ImageServer.
func (s *Service) Allowed(ctx context.Context, r AllowedRequest) error {
	if r.Image == "" {
		r.Image = r.Reference.Text()
	}
	image, err := s.store.Resolve(ctx, r.Image)
	if err != nil {
		return err
	}
	_, err = s.Verify(ctx, VerifyRequest{
		Reference:       r.Reference,
		Digest:          image.Target.Digest,
		PolicyNamespace: r.PolicyNamespace,
		Access:          r.Access,
	})
	return err
}
