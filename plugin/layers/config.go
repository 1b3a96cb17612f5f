// SPDX-License-Identifier: Apache-2.0

// Package layers joins the snapshotter with its configuration, in whichever program
// it runs: its keys, its defaults, and what it says of itself to containerd.
package layers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

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
	// SlowChown has containerd copy an image's files, with their owners changed, for
	// containers with a user namespace, where the kernel cannot map the owners (before
	// Linux 5.19). Default: such containers are refused there.
	SlowChown bool `toml:"slow_chown"`
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
// snapshotter at root, which need not be there yet. It leaves nothing.
func Supported(root string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the snapshotter mounts, and needs root: %w", errdefs.ErrNotImplemented)
	}
	dir := existing(root)
	typed, err := fs.SupportsDType(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", root, err)
	}
	if !typed {
		return fmt.Errorf("the file system of %s has no types in its directories (xfs: ftype=1): %w", root, errdefs.ErrNotImplemented)
	}
	// A mount has the kernel load what it lacks.
	err = overlayutils.SupportsMultipleLowerDir(dir)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("the kernel has no overlayfs (modprobe overlay): %w", errdefs.ErrNotImplemented)
	}
	if err != nil {
		return fmt.Errorf("the file system of %s cannot be below an overlay: %w: %w", root, err, errdefs.ErrNotImplemented)
	}
	return nil
}

// existing is the part of a path that is there, whose file system the rest will have.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

// Capabilities are what the snapshotter can do on this host, in containerd's words.
func (c *Config) Capabilities() []string {
	var capabilities []string
	if !c.SlowChown {
		capabilities = append(capabilities, "only-remap-ids")
	}
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
