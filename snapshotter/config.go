// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/docker/go-units"

	"github.com/berthd/berth/snapshotter/image"
)

// Labels of a snapshot that this snapshotter reads. They pass through containerd's
// metadata, which keeps others from its snapshotters.
const (
	// LabelSize is how much may be written to an active snapshot: bytes, or a number
	// with a unit ("64MiB", "1g"); "0" is no limit, whatever the default. Of a
	// snapshot with a limit it tells which.
	LabelSize = "containerd.io/snapshot/berth.size"
	// LabelMount is the SELinux label that the snapshot's files appear with.
	LabelMount = "containerd.io/snapshot/berth.mount-label"
)

// Enforcement is how the size of a layer is limited.
type Enforcement string

const (
	// Auto is Quota where the file system has it, else Image.
	Auto Enforcement = "auto"
	// Quota is a project quota. ext4 and xfs have it, mounted with prjquota.
	Quota Enforcement = "quota"
	// Image is a file system of its own in a file.
	Image Enforcement = "image"
)

// Config is what a Snapshotter is made of.
type Config struct {
	// Root is where layers and their records are. It is made if it is missing.
	Root string
	// Size is the limit, in bytes, of active snapshots that do not name one; 0 is
	// none. It is not for snapshots that an image is unpacked to.
	Size int64
	// Enforcement is how limits are held; "" is Auto.
	Enforcement Enforcement
	// MountOptions are added to those of each overlay.
	MountOptions []string
	// Volatile leaves out syncing containers' layers to the disk: what was written
	// before a power loss may be lost, and such a layer is refused after one.
	Volatile bool
	// SyncRemove deletes a snapshot's files in Remove. Otherwise they wait for
	// Cleanup, which containerd's garbage collection calls.
	SyncRemove bool
	// RemapIDs says that the kernel has id-mapped mounts.
	RemapIDs bool
}

// Validate returns all faults; they are ErrInvalidArgument.
func (c *Config) Validate() error {
	var faults []error
	if !filepath.IsAbs(c.Root) {
		faults = append(faults, fmt.Errorf("root %q is not an absolute path", c.Root))
	}
	if c.Size != 0 && c.Size < image.MinBytes {
		faults = append(faults, fmt.Errorf("size %d is below the least, %d bytes", c.Size, image.MinBytes))
	}
	switch c.Enforcement {
	case "":
		c.Enforcement = Auto
	case Auto, Quota, Image:
	default:
		faults = append(faults, fmt.Errorf("enforcement %q is none of auto, quota and image", c.Enforcement))
	}
	for _, option := range c.MountOptions {
		name, _, _ := strings.Cut(option, "=")
		switch name {
		case "upperdir", "workdir", "lowerdir", "lowerdir+", "datadir+":
			faults = append(faults, fmt.Errorf("mount option %q is the snapshotter's to give", option))
		case "volatile":
			faults = append(faults, errors.New("mount option volatile: set volatile instead"))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("snapshotter: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// limit is what may be written to a snapshot, 0 for no limit: what its labels say,
// else the default, which what unpacks images does not get.
func (c *Config) limit(key string, labels map[string]string) (int64, error) {
	for _, label := range []string{LabelSize, snapshots.LabelSnapshotMaxSize} {
		text, ok := labels[label]
		if !ok {
			continue
		}
		bytes, err := units.RAMInBytes(text)
		if err != nil || bytes < 0 || bytes > 0 && bytes < image.MinBytes {
			return 0, fmt.Errorf("label %s: %q is no size of at least %d bytes: %w", label, text, image.MinBytes, errdefs.ErrInvalidArgument)
		}
		return bytes, nil
	}
	// containerd's metadata has the caller's key last: NAMESPACE/NUMBER/KEY.
	if strings.HasPrefix(filepath.Base(key), snapshots.UnpackKeyPrefix+"-") {
		return 0, nil
	}
	return c.Size, nil
}
