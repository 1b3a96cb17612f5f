// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images/idmap"
	"github.com/berthd/berth/images/layer"
	"github.com/berthd/berth/images/mount"
)

// What the methods for containers' layers take and give.
type (
	Layer     = layer.Layer
	LayerSize = layer.Size
	Change    = layer.Change
	IDMap     = idmap.Map
)

// LayerRequest says what a container is to write to.
type LayerRequest struct {
	// ID is the container's.
	ID string
	// Image is what it is made from, by name or ID; empty for an empty root.
	Image string
	// Platform selects a variant of the image, as in "linux/arm64"; empty: the one
	// for this host.
	Platform string
	// Init makes what the container finds beside the image; see
	// layer.PrepareRequest.
	Init func(root string) error
	// IDs maps the container's users to the host's.
	IDs IDMap
	// MountLabel is SELinux' for the container's files, empty without one.
	MountLabel string
}

// CreateLayer makes what a container writes to, in a lease that is called like the
// container, and unpacks the image if need be. On an error nothing of it is left. The
// classes are those of layer.Layers' Prepare. It is CreateLayer and PrepareSnapshot of
// the ImageService.
func (s *Service) CreateLayer(ctx context.Context, r LayerRequest) (*Layer, error) {
	p := layer.PrepareRequest{ID: r.ID, Init: r.Init, IDs: r.IDs, MountLabel: r.MountLabel}
	if r.Image != "" {
		var err error
		if p.Parent, err = s.inspector().Choose(ctx, r.Image, r.Platform); err != nil {
			return nil, err
		}
	}
	return s.layers().Prepare(ctx, p)
}

// Layer finds what CreateLayer made. Its class is ErrNotFound if there is none. It is
// GetLayerByID of the ImageService.
func (s *Service) Layer(ctx context.Context, id string) (*Layer, error) {
	return s.layers().Layer(ctx, id)
}

// ReleaseLayer unmounts and removes what CreateLayer made. That it is gone already is
// no error. It is ReleaseLayer of the ImageService.
func (s *Service) ReleaseLayer(ctx context.Context, id string) error {
	return s.layers().Release(ctx, id)
}

// Mount adds a user to the mount of a container's files and returns its root; the
// container may be anybody's. It is Mount of the ImageService.
func (s *Service) Mount(ctx context.Context, container string) (string, error) {
	return s.layers().Mount(ctx, container)
}

// Unmount takes a user from the mount of a container's files. The error is
// mount.ErrNotMounted if there is none. It is Unmount of the ImageService.
func (s *Service) Unmount(ctx context.Context, container string) error {
	return s.layers().Unmount(ctx, container)
}

// Perform mounts a container's files for the length of a call. It is
// PerformWithBaseFS of the ImageService.
func (s *Service) Perform(ctx context.Context, container string, fn func(root string) error) error {
	return s.layers().Perform(ctx, container, fn)
}

// Changes lists the files that a container has added, modified and deleted, in the
// order of their paths. It is Changes of the ImageService.
func (s *Service) Changes(ctx context.Context, container string) ([]Change, error) {
	return s.layers().Changes(ctx, container)
}

// ContainerSize measures a container's files; a container that does not exist has
// none. It is GetContainerLayerSize of the ImageService.
func (s *Service) ContainerSize(ctx context.Context, container string) (LayerSize, error) {
	return s.layers().ContainerSize(ctx, container)
}

// LayerDiskUsage is how many bytes the unpacked layers of all images take, each
// counted once. It is LayerDiskUsage of the ImageService.
func (s *Service) LayerDiskUsage(ctx context.Context) (int64, error) {
	all, err := s.lister.DiskUsage(ctx)
	return all.Layers, err
}

// LayerStoreStatus describes where layers are, as pairs of a name and a value. It is
// LayerStoreStatus of the ImageService.
func (s *Service) LayerStoreStatus() [][2]string {
	return [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}
}

// DistributionServices is empty: containerd has them. It is DistributionServices of
// the ImageService.
func (s *Service) DistributionServices() struct{} { return struct{}{} }

// LayerFolders is of Windows alone: its class is ErrNotImplemented. It is
// GetLayerFolders of the ImageService.
func (s *Service) LayerFolders(context.Context, string) ([]string, error) {
	return nil, fmt.Errorf("folders of a layer: %w", errdefs.ErrNotImplemented)
}

// LayerMountID is of another kind of storage: its class is ErrNotImplemented. It is
// GetLayerMountID of the ImageService.
func (s *Service) LayerMountID(context.Context, string) (string, error) {
	return "", fmt.Errorf("mount ID of a layer: %w", errdefs.ErrNotImplemented)
}

// Cleanup removes what mounts have left behind that are gone, after a reboot for
// example. What is mounted stays: others may use it. It is Cleanup of the ImageService.
func (s *Service) Cleanup(ctx context.Context) error { return s.layers().Sweep(ctx) }

func (s *Service) layers() *layer.Layers {
	return layer.New(layer.Config{
		Client:    s.client,
		Namespace: s.config.Namespace,
		Unpacker:  s.unpacker,
		Mounts:    s.mounts(),
	})
}

func (s *Service) mounts() *mount.Mounts {
	return mount.New(filepath.Join(s.config.Mounts, s.config.Namespace), s.client.MountManager())
}
