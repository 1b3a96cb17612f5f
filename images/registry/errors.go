// SPDX-License-Identifier: Apache-2.0

package registry

import "github.com/containerd/errdefs"

// ErrUnavailable says that a registry cannot be reached, or cannot answer now.
// Its class is ErrUnavailable.
var ErrUnavailable = errdefs.ErrUnavailable.WithMessage("registry unavailable")

// Classify returns err with the class that fits what a registry answered.
func Classify(err error) error { return err }
