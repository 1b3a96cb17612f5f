// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"

	"go.podman.io/image/v5/docker"

	"github.com/berthd/berth/images/reference"
)

// Tags lists the tags of ref's repository.
func (r *Registry) Tags(ctx context.Context, ref reference.Reference, a Access) ([]string, error) {
	parsed, err := docker.NewReference(ref.Named())
	if err != nil {
		return nil, fmt.Errorf("tags of %s: %w", ref, err)
	}
	return docker.GetRepositoryTags(ctx, r.SystemFor(ctx, ref, a), parsed)
}
