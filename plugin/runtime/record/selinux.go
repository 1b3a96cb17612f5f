// SPDX-License-Identifier: Apache-2.0

package record

import (
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
)

// machine is the Labeler that asks the machine's policy.
type machine struct{}

func (machine) Label(options []string) (process, mountLabel string, err error) {
	process, mountLabel, err = label.InitLabels(options)
	if err != nil {
		return "", "", fmt.Errorf("SELinux labels %v: %w: %w", options, err, errdefs.ErrInvalidArgument)
	}
	return process, mountLabel, nil
}

func (machine) Release(process string) { selinux.ReleaseLabel(process) }

// labelled adds the mount label to the options of filesystems that take one. A bind
// mount shows files that have labels of their own.
func labelled(mounts []mount.Mount, mountLabel string) []mount.Mount {
	if mountLabel == "" {
		return mounts
	}
	for i, m := range mounts {
		kind := m.Type[strings.LastIndex(m.Type, "/")+1:] // before it: what the mount manager does first
		if kind == "overlay" || kind == "tmpfs" {
			mounts[i].Options = append(m.Options, fmt.Sprintf("context=%q", mountLabel))
		}
	}
	return mounts
}
