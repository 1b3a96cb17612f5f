// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"

	"github.com/berthd/berth/images/reference"
)

// Resolver returns a resolver for ref.
func (r *Registry) Resolver(ctx context.Context, ref reference.Reference, a Access) (remotes.Resolver, error) {
	options := config.HostOptions{HostDir: config.HostDirFromRoot(r.config.HostsDir)}
	if a.Credentials != nil {
		options.Credentials = func(string) (string, string, error) {
			name, password := a.Credentials.pair()
			return name, password, nil
		}
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, options)}), nil
}
