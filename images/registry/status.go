// SPDX-License-Identifier: Apache-2.0

package registry

import "github.com/containerd/containerd/v2/core/remotes/docker"

// GetStatus tells a Resolver's caller what has become of a blob that was pushed, by
// remotes.MakeRefKey: whether the registry had it, or took it from another
// repository.
func (s *resolver) GetStatus(blob string) (docker.Status, error) { return s.tracker.GetStatus(blob) }
