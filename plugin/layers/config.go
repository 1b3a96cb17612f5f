// SPDX-License-Identifier: Apache-2.0

// Package layers joins the snapshotter with its configuration, in whichever program
// it runs: its keys, its defaults, and what it says of itself to containerd.
package layers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/sys/userns"

	"github.com/berthd/berth/snapshotter"
)

// Name is the snapshotter's name in containerd.
const Name = "berth"

// Config is the section of the snapshotter, in containerd's configuration and in
// berth's own, /etc/berth/berth.toml. The zero value is the default.
type Config struct {
	// RootPath is where layers are. Default: a directory below containerd's root,
	// and /var/lib/berth/snapshotter in the proxy.
	RootPath string `toml:"root_path"`
	// Size limits what a container can write to its root, such as "10GiB". Default:
	// no limit. A snapshot's label containerd.io/snapshot/berth.size wins.
	Size string `toml:"size"`
	// Enforcement says how: "quota" (project quotas of ext4 and xfs), "image" (a
	// file system in a file for each container), or "auto": quota where there is one.
	Enforcement string `toml:"enforcement"`
	// MountOptions are added to those of each overlay.
	MountOptions []string `toml:"mount_options"`
	// Volatile leaves out syncing what containers write: faster, and a layer does
	// not outlive a power loss.
	Volatile bool `toml:"volatile"`
	// SyncRemove deletes a snapshot's files at once, not at the next garbage
	// collection.
	SyncRemove bool `toml:"sync_remove"`
}

// Validate returns all faults, each with its key; they are InvalidArgument.
func (c *Config) Validate() error {
	_, err := c.resolve("/")
	return err
}

// resolve is the snapshotter's own configuration.
func (c *Config) resolve(root string) (snapshotter.Config, error) {
	if c.RootPath != "" {
		root = c.RootPath
	}
	s := snapshotter.Config{
		Root: root, Enforcement: snapshotter.Enforcement(c.Enforcement), MountOptions: c.MountOptions,
		Volatile: c.Volatile, SyncRemove: c.SyncRemove, RemapIDs: remaps(),
	}
	var faults []error
	if c.Size != "" {
		size, err := units.RAMInBytes(c.Size)
		if err != nil {
			faults = append(faults, fmt.Errorf("size %q: %w: %w", c.Size, err, errdefs.ErrInvalidArgument))
		}
		s.Size = size
	}
	return s, errors.Join(append(faults, s.Validate())...)
}

// Open opens the snapshotter; root is for a configuration that names none.
func (c *Config) Open(ctx context.Context, root string) (*snapshotter.Snapshotter, error) {
	s, err := c.resolve(root)
	if err != nil {
		return nil, err
	}
	return snapshotter.New(ctx, s)
}

// Root is where layers are; root is for a configuration that names none.
func (c *Config) Root(root string) string {
	if c.RootPath != "" {
		return c.RootPath
	}
	return root
}

// Supported returns ErrNotImplemented with the reason where the host cannot have the
// snapshotter. It makes nothing.
func Supported() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the snapshotter mounts, and needs root: %w", errdefs.ErrNotImplemented)
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(known)) {
		if strings.TrimSpace(strings.TrimPrefix(line, "nodev")) == "overlay" {
			return nil
		}
	}
	return fmt.Errorf("the kernel has no overlayfs (modprobe overlay): %w", errdefs.ErrNotImplemented)
}

// Capabilities are what the snapshotter can do on this host, in containerd's words.
func Capabilities() []string {
	// "only-": containerd must not copy and chown a root file system instead.
	capabilities := []string{"only-remap-ids"}
	if remaps() {
		capabilities = append(capabilities, "remap-ids")
	}
	if !userns.RunningInUserNS() { // unpacking layers side by side makes whiteouts with mknod
		capabilities = append(capabilities, snapshots.RebaseCap)
	}
	return capabilities
}

// Platform is the platform of the layers.
func Platform() string { return "linux/" + runtime.GOARCH }

// remaps tells whether the kernel has id-mapped mounts of overlays.
func remaps() bool {
	ok, err := overlayutils.SupportsIDMappedMounts()
	return err == nil && ok
}
