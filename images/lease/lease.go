// SPDX-License-Identifier: Apache-2.0

// Package lease makes the leases that protect what an operation is working on, and
// tells those whose operation was killed from those that are in use. Who makes a lease
// deletes it.
package lease

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
)

// timeout is for a containerd that does not answer.
const timeout = 10 * time.Second

// Create makes a lease of this process, and waits for it though ctx ends meanwhile:
// containerd goes on with the request, and nobody would know what to delete.
func Create(ctx context.Context, manager leases.Manager, opts ...leases.Opt) (leases.Lease, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	return manager.Create(ctx, append(opts, leases.WithLabel(LabelOwner, self()))...)
}

// InUse tells whether a lease has an owner that still runs, as far as can be seen. A
// lease without one is nobody's.
func InUse(l leases.Lease) bool {
	whose, owned := l.Labels[LabelOwner]
	return owned && !gone(whose)
}
