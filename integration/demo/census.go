// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"

	"github.com/berthd/berth/integration/host"
)

// counted are the kinds of a census that a person cares about. Descriptors are
// left to the tests: containerd's come and go with its clients.
var counted = []string{
	"processes", "mounts", "cgroups", "sockets", "bundles", "files", "netns", "snapshots", "leases", "containers",
	"pods",
}

// census is the daemon's and, as "pods", the folders of pods' shims.
func (d *demo) census() (host.Census, error) {
	c, err := d.daemon.Census()
	if err != nil {
		return nil, err
	}
	c["pods"], err = filepath.Glob(d.daemon.State() + "/io.containerd.sandbox.controller.v1.shim/*/*")
	return c, err
}

// leftBehind waits until everything is as it was before.
func (d *demo) leftBehind(ctx context.Context, before host.Census) error {
	if err := d.forgetImages(ctx); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err := poll(limit, func() (struct{}, error) {
		after, err := d.census()
		return struct{}{}, errors.Join(err, difference(before, after))
	})
	if err != nil {
		return fmt.Errorf("left behind:\n%w", err)
	}
	heading("Left behind: nothing (%s)", strings.Join(counted, ", "))
	return nil
}

// forgetImages removes the pulled images and with them their snapshots.
func (d *demo) forgetImages(ctx context.Context) error {
	list, err := d.client.ImageService().List(ctx)
	if err != nil {
		return err
	}
	for _, img := range list {
		if img.Name == host.Busybox {
			continue // was there before
		}
		if err := d.client.ImageService().Delete(ctx, img.Name, images.SynchronousDelete()); err != nil {
			return fmt.Errorf("delete %s: %w", img.Name, err)
		}
	}
	return nil
}

func difference(before, after host.Census) error {
	var errs []error
	for _, kind := range counted {
		for _, line := range after[kind] {
			if !slices.Contains(before[kind], line) {
				errs = append(errs, fmt.Errorf("  %s: %s", kind, line))
			}
		}
	}
	return errors.Join(errs...)
}
