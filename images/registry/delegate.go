// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images/reference"
)

// Delegate returns the registry of ref as a source for containerd's transfer service
// on this host, if that will reach it just as the resolver does: registries.conf says
// nothing of it, nor does the call but for a name and a password, and its hosts.toml,
// if there is one, is among containerd's. Otherwise it returns nil. Containerd asks
// for credentials when it needs them, until ctx ends.
func (r *Registry) Delegate(ctx context.Context, ref reference.Reference, a Access) (*registry.OCIRegistry, error) {
	sources, err := r.sources(ref)
	if err != nil {
		return nil, err
	}
	own := source{ref: ref, own: true}
	if len(sources) != 1 || sources[0] != own || a.PlainHTTP || a.SkipVerify || a.token() != "" {
		return nil, nil
	}
	// What containerd forgives by itself are hosts of this machine.
	if r.Insecure(ctx, ref.Host()) {
		if local, err := docker.MatchLocalhost(ref.Host()); err != nil || !local {
			return nil, nil
		}
	}
	dir, err := r.hostDir(ref.Host())
	switch {
	case errdefs.IsNotFound(err):
		dir = ""
	case err != nil:
		return nil, err
	case filepath.Dir(dir) != filepath.Clean(r.config.HostsDir):
		return nil, nil
	default:
		dir = filepath.Dir(dir)
	}
	return registry.NewOCIRegistry(ctx, ref.Text(), registry.WithHostDir(dir),
		registry.WithCredentials(helper{r.credentials(own, a)}))
}

// helper answers containerd's questions for credentials.
type helper struct {
	credentials func(host string) (name, secret string, err error)
}

// GetCredentials implements registry.CredentialHelper.
func (h helper) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	name, secret, err := h.credentials(host)
	return registry.Credentials{Host: host, Username: name, Secret: secret}, err
}
