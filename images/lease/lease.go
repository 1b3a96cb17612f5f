// SPDX-License-Identifier: Apache-2.0

// Package lease makes the leases that protect what an operation is working on. Who
// makes one deletes it.
package lease

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
)

// timeout is for a containerd that does not answer.
const timeout = 10 * time.Second

// Create makes a lease, and waits for it though ctx ends meanwhile: containerd goes on
// with the request, and nobody would know what to delete.
func Create(ctx context.Context, manager leases.Manager, opts ...leases.Opt) (leases.Lease, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	return manager.Create(ctx, opts...)
}
