// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	hostapparmor "github.com/containerd/containerd/v2/pkg/apparmor"
)

const (
	allCapabilities = "CAP_ALL"
	// defaultAppArmor is the name that the default profile is loaded under.
	defaultAppArmor = "berth.apparmor.d"
)

// capability is the name as the kernel has it.
func capability(name string) string {
	return "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
}

func (r *Request) security() oci.SpecOpts {
	q := &r.Security
	return func(ctx context.Context, client oci.Client, c *containers.Container, s *specs.Spec) error {
		s.Process.NoNewPrivileges = q.NoNewPrivileges
		s.Root.Readonly = q.ReadOnlyRootfs
		if q.MaskedPaths != nil {
			s.Linux.MaskedPaths = slices.Clone(q.MaskedPaths)
		}
		if q.ReadonlyPaths != nil {
			s.Linux.ReadonlyPaths = slices.Clone(q.ReadonlyPaths)
		}
		s.Process.SelinuxLabel, s.Linux.MountLabel = q.ProcessLabel, q.MountLabel
		if q.Privileged {
			if err := oci.WithPrivileged(ctx, client, c, s); err != nil {
				return err
			}
			// SELinux is the caller's affair: the label may be that of a privileged one.
			s.Process.SelinuxLabel = q.ProcessLabel
		}
		if err := q.setCapabilities(s); err != nil {
			return err
		}
		if q.Privileged {
			return nil
		}
		if err := q.setAppArmor()(ctx, client, c, s); err != nil {
			return err
		}
		return q.setSeccomp(ctx, client, c, s) // which depends on the capabilities
	}
}

func (q *Security) setCapabilities(s *specs.Spec) error {
	have := s.Process.Capabilities.Bounding
	if named(q.Add, allCapabilities) {
		all, err := cap.Current()
		if err != nil {
			return fmt.Errorf("capabilities of this process: %w: %w", err, errdefs.ErrInternal)
		}
		have = all
	}
	if named(q.Drop, allCapabilities) {
		have = nil
	}
	set := slices.DeleteFunc(slices.Clone(have), func(c string) bool { return named(q.Drop, c) })
	for _, c := range q.Add {
		if c = capability(c); c != allCapabilities && !slices.Contains(set, c) {
			set = append(set, c)
		}
	}
	p := s.Process.Capabilities
	p.Bounding, p.Permitted, p.Effective = set, slices.Clone(set), slices.Clone(set)
	// Inheritable ones would let a process get them back from a file (CVE-2022-24769).
	p.Inheritable, p.Ambient = nil, nil
	for _, c := range q.Ambient {
		if c = capability(c); slices.Contains(set, c) {
			p.Inheritable, p.Ambient = append(p.Inheritable, c), append(p.Ambient, c)
		}
	}
	return nil
}

func named(list []string, c string) bool {
	return slices.ContainsFunc(list, func(name string) bool { return capability(name) == c })
}

func (q *Security) setSeccomp(ctx context.Context, client oci.Client, c *containers.Container, s *specs.Spec) error {
	switch q.Seccomp {
	case "":
		return seccomp.WithDefaultProfile()(ctx, client, c, s)
	case Unconfined:
		s.Linux.Seccomp = nil
		return nil
	}
	b, err := os.ReadFile(q.Seccomp)
	if err != nil {
		return fmt.Errorf("seccomp profile: %w: %w", err, errdefs.ErrNotFound)
	}
	s.Linux.Seccomp = &specs.LinuxSeccomp{}
	if err := json.Unmarshal(b, s.Linux.Seccomp); err != nil {
		return fmt.Errorf("seccomp profile %s: %w: %w", q.Seccomp, err, errdefs.ErrInvalidArgument)
	}
	if s.Linux.Seccomp.DefaultAction == "" {
		return fmt.Errorf("seccomp profile %s: no default action: %w", q.Seccomp, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (q *Security) setAppArmor() oci.SpecOpts {
	none := option(func(*specs.Spec) error { return nil })
	switch {
	case q.AppArmor == Unconfined:
		return none
	case q.AppArmor == "" && hostapparmor.HostSupports():
		return apparmor.WithDefaultProfile(defaultAppArmor)
	case q.AppArmor == "":
		return none
	case !hostapparmor.HostSupports():
		return option(func(*specs.Spec) error {
			return fmt.Errorf("AppArmor profile %s: the machine has no AppArmor: %w", q.AppArmor, errdefs.ErrFailedPrecondition)
		})
	}
	return apparmor.WithProfile(q.AppArmor)
}

func (r *Request) devices() oci.SpecOpts {
	q := &r.Security
	return func(ctx context.Context, client oci.Client, c *containers.Container, s *specs.Spec) error {
		if q.Privileged && !q.PrivilegedWithoutDevices {
			if err := oci.Compose(oci.WithHostDevices, oci.WithAllDevicesAllowed)(ctx, client, c, s); err != nil {
				return fmt.Errorf("devices of the host: %w", err)
			}
		}
		for _, d := range r.Devices {
			target, permissions := d.Target, d.Permissions
			if target == "" {
				target = d.Source
			}
			if permissions == "" {
				permissions = "rwm"
			}
			if err := oci.WithDevices(d.Source, target, permissions)(ctx, client, c, s); err != nil {
				return fmt.Errorf("device %s: %w", d.Source, err)
			}
		}
		return nil
	}
}
