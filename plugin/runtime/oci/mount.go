// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
)

// mounts adds the request's mounts to the default ones. The pod's own files (hosts,
// hostname, resolv.conf, shm) are put in place by the shim, where the request leaves
// them out.
func (r *Request) mounts() oci.SpecOpts {
	return option(func(s *specs.Spec) error {
		defaults := append(s.Mounts, specs.Mount{
			Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"},
		})
		if r.Pod != nil {
			shareWithHost(defaults, s)
		}
		s.Mounts = nil
		targets := map[string]bool{}
		for _, m := range r.Mounts {
			targets[path.Clean(m.Target)] = true
		}
		for _, m := range defaults {
			if !targets[m.Destination] && !(targets["/dev"] && strings.HasPrefix(m.Destination, "/dev/")) {
				s.Mounts = append(s.Mounts, m)
			}
		}
		mine := slices.Clone(r.Mounts)
		slices.SortStableFunc(mine, func(a, b Mount) int { return depth(a.Target) - depth(b.Target) })
		for _, m := range mine {
			added, err := r.mount(&m, s)
			if err != nil {
				return fmt.Errorf("mount %s: %w", m.Target, err)
			}
			s.Mounts = append(s.Mounts, added)
		}
		return nil
	})
}

// shareWithHost changes the default mounts that show something of a namespace which
// the pod shares with the host.
func shareWithHost(defaults []specs.Mount, s *specs.Spec) {
	for i, m := range defaults {
		switch {
		case m.Destination == "/dev/shm" && !has(s, specs.IPCNamespace):
			defaults[i] = specs.Mount{
				Destination: m.Destination, Type: "bind", Source: "/dev/shm",
				Options: []string{"rbind", "rw", "nosuid", "noexec", "nodev"},
			}
		case m.Destination == "/sys" && has(s, specs.UserNamespace) && !has(s, specs.NetworkNamespace):
			// The kernel mounts sysfs for the owner of the network namespace only.
			defaults[i] = specs.Mount{
				Destination: m.Destination, Type: "bind", Source: "/sys",
				Options: []string{"rbind", "ro", "nosuid", "noexec", "nodev"},
			}
		}
	}
}

func depth(target string) int { return strings.Count(path.Clean(target), "/") }

func (r *Request) mount(m *Mount, s *specs.Spec) (specs.Mount, error) {
	access := "rw"
	switch {
	case m.RecursiveReadOnly:
		access = "rro"
	case m.ReadOnly:
		access = "ro"
	}
	to := specs.Mount{Destination: m.Target, Type: m.Type, Source: m.Source, Options: append(slices.Clone(m.Options), access)}
	if !m.bind() {
		return to, nil
	}
	source, err := resolve(m)
	if err != nil {
		return to, err
	}
	propagation, err := m.propagate(source, s)
	if err != nil {
		return to, err
	}
	to.Type, to.Source = "bind", source
	to.Options = append([]string{"rbind", propagation}, to.Options...)
	if m.Mapped {
		to.UIDMappings, to.GIDMappings = s.Linux.UIDMappings, s.Linux.GIDMappings
	}
	if l := r.Security.MountLabel; m.Relabel && l != "" {
		if err := label.Relabel(source, l, false); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return to, fmt.Errorf("label %s: %w: %w", source, err, errdefs.ErrInternal)
		}
	}
	return to, nil
}

// resolve returns what a source is. A link is followed now: in the container's
// mount namespace it might lead elsewhere.
func resolve(m *Mount) (string, error) {
	source, err := filepath.EvalSymlinks(m.Source)
	if errors.Is(err, fs.ErrNotExist) && m.Create {
		const mode = 0o755 // as CRI and Docker do
		if err = os.MkdirAll(m.Source, mode); err == nil {
			source, err = filepath.EvalSymlinks(m.Source)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return source, err
}

// propagate returns the option, having looked whether the source can do that. The
// root has to let through what its mounts let through.
func (m *Mount) propagate(source string, s *specs.Spec) (string, error) {
	if m.Propagation == Private {
		return "rprivate", nil
	}
	info, err := mount.Lookup(source)
	if err != nil {
		return "", fmt.Errorf("propagation of %s: %w", source, err)
	}
	shared, slave := false, false
	for field := range strings.FieldsSeq(info.Optional) {
		shared = shared || strings.HasPrefix(field, "shared:")
		slave = slave || strings.HasPrefix(field, "master:")
	}
	if m.Propagation == Bidirectional {
		if !shared {
			return "", fmt.Errorf("%s is on %s, which is not shared: %w", source, info.Mountpoint, errdefs.ErrFailedPrecondition)
		}
		s.Linux.RootfsPropagation = "rshared"
		return "rshared", nil
	}
	if !shared && !slave {
		return "", fmt.Errorf("%s is on %s, which is neither shared nor a slave: %w", source, info.Mountpoint, errdefs.ErrFailedPrecondition)
	}
	if s.Linux.RootfsPropagation == "" {
		s.Linux.RootfsPropagation = "rslave"
	}
	return "rslave", nil
}
