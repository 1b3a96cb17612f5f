// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
)

// Verify holds an image of a registry, by the digest that its name was resolved to,
// against the policy for a namespace, as pulls of the service do. The error is that
// of policy.Load or of policy.Policy's Verify. Policies are read for each call.
func (c *Config) Verify(ctx context.Context, namespace string, ref reference.Reference, d digest.Digest) error {
	rules, err := policy.Load(c.policy(), namespace)
	if err != nil {
		return err
	}
	r, err := registry.New(c.registry())
	if err != nil {
		return err
	}
	return rules.Verify(ctx, policy.Subject{Reference: ref, Digest: d, System: r.SystemFor(ctx, ref, registry.Access{})})
}

func (c *Config) policy() policy.Config {
	return policy.Config{Path: c.SignaturePolicy, Dir: c.SignaturePolicyDir, RegistriesDir: c.SignatureRegistriesDir}
}

func (c *Config) registry() registry.Config {
	return registry.Config{
		HostsDir: c.HostsDir, CertsDir: c.CertsDir,
		RegistriesConf: c.RegistriesConf, RegistriesConfDir: c.RegistriesConfDir,
		Insecure: c.InsecureRegistries,
		AuthFile: c.GlobalAuthFile, DockerConfigDir: c.DockerConfigDir,
	}
}
