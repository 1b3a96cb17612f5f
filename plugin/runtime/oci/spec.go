// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Build makes the specification. The record has the container's ID, Snapshotter and
// SnapshotKey: users are looked up in the snapshot, through the client. ctx has
// containerd's namespace. A request that makes no sense, a user that is not in the
// image and the like are InvalidArgument.
func Build(ctx context.Context, client oci.Client, c *containers.Container, r *Request) (*specs.Spec, error) {
	err := r.validate()
	if err != nil {
		return nil, err
	}
	s, err := oci.GenerateSpec(ctx, client, c,
		oci.WithoutRunMount, oci.WithDefaultUnixDevices,
		r.process(), r.user(), r.namespaces(c.ID), r.mounts(), r.security(), r.devices(), r.resources(),
		oci.WithAnnotations(r.Annotations))
	if err != nil {
		return nil, class(err)
	}
	return s, nil
}

// class gives errors of pkg/oci a class: they say that the request does not fit the
// image or the host.
func class(err error) error {
	for _, is := range []func(error) bool{
		errdefs.IsInvalidArgument, errdefs.IsNotFound, errdefs.IsFailedPrecondition, errdefs.IsUnavailable,
		errdefs.IsPermissionDenied, errdefs.IsInternal, errdefs.IsNotImplemented, errdefs.IsCanceled, errdefs.IsDeadlineExceeded,
	} {
		if is(err) {
			return err
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
}

// option is a part of the specification that asks nobody.
func option(set func(*specs.Spec) error) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error { return set(s) }
}

// defaultPath is what containers get whose image does not say.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (r *Request) process() oci.SpecOpts {
	dir := r.WorkDir
	env := []string{defaultPath}
	if i := r.Image; i != nil {
		if len(i.Config.Env) > 0 {
			env = slices.Clone(i.Config.Env)
		}
		if dir == "" {
			dir = i.Config.WorkingDir
		}
	}
	if dir == "" {
		dir = "/"
	}
	if r.Pod != nil && r.Pod.Hostname != "" {
		env = append(env, "HOSTNAME="+r.Pod.Hostname)
	}
	tty := func(context.Context, oci.Client, *containers.Container, *specs.Spec) error { return nil }
	if r.TTY {
		tty = oci.WithTTY
	}
	return oci.Compose(
		option(r.setArgs),
		option(func(s *specs.Spec) error {
			s.Process.Rlimits = slices.Clone(r.Rlimits)
			s.Process.OOMScoreAdj = r.OOMScoreAdj
			return nil
		}),
		oci.WithEnv(env), tty, oci.WithEnv(r.Env), oci.WithProcessCwd(dir))
}

func (r *Request) setArgs(s *specs.Spec) error {
	command, args := r.Command, r.Args
	if i := r.Image; i != nil && len(command) == 0 {
		command = i.Config.Entrypoint
		if len(args) == 0 {
			args = i.Config.Cmd
		}
	}
	s.Process.Args = slices.Concat(command, args)
	if len(s.Process.Args) == 0 {
		return fmt.Errorf("no command, neither of the request nor of the image: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func (r *Request) user() oci.SpecOpts {
	name := r.User
	if name == "" && r.Image != nil {
		name = r.Image.Config.User
	}
	if name == "" {
		name = "0"
	}
	return func(ctx context.Context, client oci.Client, c *containers.Container, s *specs.Spec) error {
		if err := oci.WithUser(name)(ctx, client, c, s); err != nil {
			return fmt.Errorf("user %s: %w", name, err)
		}
		if err := oci.WithAdditionalGIDs(strconv.FormatUint(uint64(s.Process.User.UID), 10))(ctx, client, c, s); err != nil {
			return fmt.Errorf("groups of user %s: %w", name, err)
		}
		if len(r.Groups) == 0 {
			return nil
		}
		if err := oci.WithAppendAdditionalGroups(r.Groups...)(ctx, client, c, s); err != nil {
			return fmt.Errorf("groups %q: %w", r.Groups, err)
		}
		return nil
	}
}

// namespaces joins the pod: its namespaces, maps and cgroup.
func (r *Request) namespaces(id string) oci.SpecOpts {
	return option(func(s *specs.Spec) error {
		pod := r.Pod
		if pod != nil {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
			if pod.Linux != nil {
				s.Linux.Namespaces = append(s.Linux.Namespaces, pod.Linux.Namespaces...)
				s.Linux.UIDMappings = slices.Clone(pod.Linux.UIDMappings)
				s.Linux.GIDMappings = slices.Clone(pod.Linux.GIDMappings)
				if parent := pod.Linux.CgroupsPath; parent != "" {
					s.Linux.CgroupsPath = cgroup(parent, id)
				}
			}
			// The hostname is that of the namespace.
			s.Hostname = ""
		}
		if cgroups.Mode() == cgroups.Unified && !r.Security.Privileged {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}
		return nil
	})
}

// cgroup is the container's below its pod's, as runtimes write it: with systemd it
// is a scope in a slice.
func cgroup(parent, id string) string {
	if strings.HasSuffix(parent, ".slice") {
		return path.Base(parent) + ":berth:" + id
	}
	return path.Join(parent, id)
}

// has tells whether the container has a namespace of a kind, its own or the pod's.
// Without, it is in the host's.
func has(s *specs.Spec, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
}

func (r *Request) resources() oci.SpecOpts {
	q := &r.Resources
	return option(func(s *specs.Spec) error {
		to := s.Linux.Resources
		if q.CPUPeriod != 0 || q.CPUQuota != 0 || q.CPUShares != 0 || q.CPUs != "" || q.Mems != "" {
			to.CPU = &specs.LinuxCPU{
				Period: some(q.CPUPeriod), Quota: some(q.CPUQuota), Shares: some(q.CPUShares), Cpus: q.CPUs, Mems: q.Mems,
			}
		}
		if q.Memory != 0 || q.Swap != 0 {
			to.Memory = &specs.LinuxMemory{Limit: some(q.Memory), Swap: some(q.Swap)}
		}
		if q.Pids != 0 {
			to.Pids = &specs.LinuxPids{Limit: &q.Pids}
		}
		for _, size := range slices.Sorted(maps.Keys(q.Hugepages)) {
			to.HugepageLimits = append(to.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: q.Hugepages[size]})
		}
		if len(q.Unified) > 0 {
			to.Unified = maps.Clone(q.Unified)
		}
		return nil
	})
}

// some is nil for zero.
func some[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
