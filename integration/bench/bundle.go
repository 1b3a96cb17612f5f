// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/berthd/berth/integration/host"
)

// bundle is a container's folder made without a task, for running something
// else than containerd over it.
type bundle struct {
	*box
	id, dir string
}

// bundle makes a record, a bundle folder with config.json, and its mounted root.
func (b *bench) bundle(ctx context.Context, r host.Runtime, spec ...oci.SpecOpts) (*bundle, error) {
	x, err := b.record(ctx, r, spec...)
	if err != nil {
		return nil, err
	}
	u := &bundle{box: x, id: x.container.ID(), dir: b.daemon.Dir + "/tmp/" + x.container.ID()}
	if err := os.MkdirAll(u.dir+"/rootfs", 0o711); err != nil {
		return nil, err
	}
	s, err := x.container.Spec(ctx)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return u, os.WriteFile(u.dir+"/config.json", text, 0o644)
}

// mounts are those of the bundle's root.
func (b *bench) mounts(ctx context.Context, u *bundle) ([]mount.Mount, error) {
	return b.daemon.Client().SnapshotService("overlayfs").Mounts(ctx, u.id)
}

func (b *bench) mountRoot(ctx context.Context, u *bundle) error {
	ms, err := b.mounts(ctx, u)
	if err != nil {
		return err
	}
	return mount.All(ms, u.dir+"/rootfs")
}

func (u *bundle) remove(ctx context.Context) error {
	return errors.Join(
		mount.UnmountAll(u.dir+"/rootfs", 0),
		os.RemoveAll(u.dir),
		u.box.remove(ctx),
	)
}
