// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// Volume is Kata's "virtual volume": what its guest is to mount by itself. It
// comes in an option of a mount that the host cannot make.
type Volume struct {
	Type    VolumeType `json:"volume_type"`
	Source  string     `json:"source,omitempty"`
	FSType  string     `json:"fs_type,omitempty"`
	Options []string   `json:"options,omitempty"`

	// One of these belongs to some of the types.
	Direct    *VolumeMetadata `json:"direct_volume,omitempty"`
	ImagePull *VolumeMetadata `json:"image_pull,omitempty"`
	Nydus     *NydusImage     `json:"nydus_image,omitempty"`
	DMVerity  *DMVerity       `json:"dm_verity,omitempty"`
}

// VolumeType says what a Volume is of.
type VolumeType string

// Kata's types of volumes.
const (
	DirectBlock     VolumeType = "direct_block"
	ImageRawBlock   VolumeType = "image_raw_block"
	LayerRawBlock   VolumeType = "layer_raw_block"
	ImageNydusBlock VolumeType = "image_nydus_block"
	LayerNydusBlock VolumeType = "layer_nydus_block"
	ImageNydusFS    VolumeType = "image_nydus_fs"
	LayerNydusFS    VolumeType = "layer_nydus_fs"
	ImageGuestPull  VolumeType = "image_guest_pull"
)

// VolumeMetadata is free text by key.
type VolumeMetadata struct {
	Metadata map[string]string `json:"metadata"`
}

// NydusImage describes an image of the nydus types.
type NydusImage struct {
	Config      string `json:"config"`
	SnapshotDir string `json:"snapshot_dir"`
}

// DMVerity protects a raw block device.
type DMVerity struct {
	HashType  string `json:"hashtype"`
	Hash      string `json:"hash"`
	BlockNum  uint64 `json:"blocknum"`
	BlockSize uint64 `json:"blocksize"`
	HashSize  uint64 `json:"hashsize"`
	Offset    uint64 `json:"offset"`
}

const (
	volumeOption    = "io.katacontainers.volume="
	volumeMountType = "fuse.nydus-overlayfs"
)

func (v *Volume) validate() error {
	if v == nil {
		return errors.New("nil")
	}
	switch v.Type {
	case DirectBlock:
		if v.Direct == nil {
			return errors.New("no direct_volume")
		}
	case ImageRawBlock, LayerRawBlock: // dm_verity may be there
	case ImageNydusBlock, LayerNydusBlock, ImageNydusFS, LayerNydusFS:
		if v.Nydus == nil {
			return errors.New("no nydus_image")
		}
	case ImageGuestPull:
		if v.ImagePull == nil {
			return errors.New("no image_pull")
		}
	default:
		return fmt.Errorf("unknown type %q", v.Type)
	}
	return nil
}

// EncodeVolume returns the mount option that carries v. Nil, an unknown type, or
// one whose part is missing is InvalidArgument.
func EncodeVolume(v *Volume) (string, error) {
	if err := v.validate(); err != nil {
		return "", fmt.Errorf("kata volume: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("kata volume: %w", err)
	}
	return volumeOption + base64.StdEncoding.EncodeToString(b), nil
}

// DecodeVolume is EncodeVolume's reverse.
func DecodeVolume(option string) (*Volume, error) {
	text, ok := strings.CutPrefix(option, volumeOption)
	if !ok {
		return nil, fmt.Errorf("kata volume: no such option: %w", errdefs.ErrInvalidArgument)
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("kata volume: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	var v *Volume
	if err = json.Unmarshal(b, &v); err == nil {
		err = v.validate()
	}
	if err != nil {
		return nil, fmt.Errorf("kata volume: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return v, nil
}

// GuestPull returns the root filesystem of a container whose image the guest
// pulls by itself. Metadata is passed on to it.
func GuestPull(image string, metadata map[string]string) ([]mount.Mount, error) {
	option, err := EncodeVolume(&Volume{Type: ImageGuestPull, Source: image, FSType: "overlay", ImagePull: &VolumeMetadata{metadata}})
	if err != nil {
		return nil, err
	}
	return []mount.Mount{{Type: volumeMountType, Source: image, Options: []string{option}}}, nil
}

// VolumesOf returns the volumes in a mount's options, in order.
func VolumesOf(m mount.Mount) ([]*Volume, error) {
	var found []*Volume
	for option := range slices.Values(m.Options) {
		if !strings.HasPrefix(option, volumeOption) {
			continue
		}
		v, err := DecodeVolume(option)
		if err != nil {
			return nil, err
		}
		found = append(found, v)
	}
	return found, nil
}
