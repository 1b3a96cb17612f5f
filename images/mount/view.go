// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
)

// View mounts something read-only for the length of a call. The name tells
// concurrent ones apart.
func (m *Mounts) View(ctx context.Context, name string, mounts []mount.Mount, fn func(root string) error) error {
	return m.during(ctx, name, mounts, mount.WithReadonlyTempMount, fn)
}

// Temporary mounts something for the length of a call. The name tells concurrent
// ones apart.
func (m *Mounts) Temporary(ctx context.Context, name string, mounts []mount.Mount, fn func(root string) error) error {
	return m.during(ctx, name, mounts, mount.WithTempMount, fn)
}

func (m *Mounts) during(
	ctx context.Context, name string, mounts []mount.Mount,
	with func(context.Context, []mount.Mount, func(string) error) error, fn func(root string) error,
) error {
	mounts, err := m.activate(ctx, activation(name), mounts, mount.WithTemporary)
	if err != nil {
		return fmt.Errorf("mount %s: %w", name, err)
	}
	err = with(ctx, mounts, fn)
	return errors.Join(err, m.deactivate(context.WithoutCancel(ctx), activation(name)))
}
