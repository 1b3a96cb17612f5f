// SPDX-License-Identifier: Apache-2.0

package image

import (
	"github.com/containerd/containerd/v2/client"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
)

// Host is what a program brings along for its service.
type Host struct {
	// Client is the connection to containerd; it stays the caller's.
	Client *client.Client
	// Namespace is containerd's.
	Namespace string
	// Snapshotter unpacks images; empty is containerd's default.
	Snapshotter string
	// Mounts is the directory below which images are mounted; empty is the
	// service's default.
	Mounts string
	// Choose selects one of several registries for a short name, where
	// registries.conf wants somebody to be asked. Nil: there is nobody to ask.
	Choose func(name string, candidates []reference.Reference) (reference.Reference, error)
	// PullCommand makes the same service in another process and calls its ServePull.
	// Empty: there are no pulls in a cgroup of their own.
	PullCommand []string
}

// Service returns the service that the configuration describes. It makes no
// request. Files that are wrong are ErrInvalidArgument.
func (c *Config) Service(h Host) (*images.Service, error) {
	config := c.registry()
	config.Choose = h.Choose
	r, err := registry.New(config)
	if err != nil {
		return nil, err
	}
	return images.New(images.Config{
		Client: h.Client, Namespace: h.Namespace, Snapshotter: h.Snapshotter, Mounts: h.Mounts,
		Registry:       r,
		Policy:         c.policy(),
		Pins:           c.PinnedImages,
		PauseImage:     c.PauseImage,
		DecryptionKeys: c.DecryptionKeysPath,
		MaxDownloads:   c.MaxConcurrentDownloads,
		MaxUploads:     c.MaxConcurrentUploads,
		MaxUnpacked:    int64(c.MaxUnpackedSize),
		PullCommand:    h.PullCommand,
	})
}
