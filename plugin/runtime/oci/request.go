// SPDX-License-Identifier: Apache-2.0

// Package oci makes the runtime specification of a pod's member: what the image
// says, what the request says over it, what the pod is. The parts are those of
// containerd's pkg/oci; what this package owns is which of them apply, in which
// order, and what a container gets that asks for nothing: what containerd's CRI
// plugin would give it.
//
// It makes nothing else: no record, no directory but the missing sources of mounts
// that ask for it.
package oci

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Request asks for the specification of a container.
type Request struct {
	// Image is the configuration of the image; nil: there is none, and Command is
	// mandatory.
	Image *ocispec.Image
	// Pod is the specification of the pod's infra container: its namespaces are
	// joined as they are written there, except that of processes if it has no path;
	// its CgroupsPath is the parent of the container's cgroup, a systemd slice if it
	// ends in .slice; its maps of IDs apply; its Hostname is the variable HOSTNAME.
	// nil: the container is in no pod, and has namespaces of its own.
	Pod *specs.Spec

	// Command and Args replace the image's entry point and arguments as they do in
	// Kubernetes: a Command leaves out the image's arguments, too.
	Command, Args []string
	// Env are KEY=VALUE, over the image's.
	Env []string
	// WorkDir; empty: the image's, else /.
	WorkDir string
	// User as an image writes it: name or number, group after a colon; empty: the
	// image's. The groups that the image's /etc/group has for it are added.
	User string
	// Groups are added, by number or name.
	Groups []string
	// TTY gives the process a terminal.
	TTY bool

	// Mounts are bound in the order of their depth. They take the place of default
	// ones with the same target; below a mount at /dev there are none.
	Mounts    []Mount
	Devices   []Device
	Resources Resources
	Security  Security
	// Rlimits; nil: those of containerd.
	Rlimits []specs.POSIXRlimit
	// OOMScoreAdj of the process; nil: as containerd's.
	OOMScoreAdj *int
	// Annotations of the specification. Among them have to be those that
	// labels.Metadata.SpecAnnotations gives: by them the shim knows the pod.
	Annotations map[string]string
}

// Mount is something that the container sees at Target.
type Mount struct {
	// Source on the host. For a Type other than "bind" or empty, what that
	// filesystem takes.
	Source, Target, Type string
	// Options of mount(8), besides those below.
	Options []string
	// ReadOnly; with RecursiveReadOnly what is mounted below it as well, which is
	// for Private mounts only and needs Linux 5.12.
	ReadOnly, RecursiveReadOnly bool
	Propagation                 Propagation
	// Mapped shows the files to a user namespace as they are owned on the host.
	Mapped bool
	// Relabel gives the files the container's SELinux label.
	Relabel bool
	// Create makes the Source, a directory, if it is missing.
	Create bool
}

// Propagation is which mounts made below a bind mount later are seen by the other
// side.
type Propagation uint8

const (
	// Private: neither side sees the other's.
	Private Propagation = iota
	// FromHost: the container sees the host's. The source has to be on a mount that
	// is shared, or a slave.
	FromHost
	// Bidirectional: both sides do. The source has to be on a mount that is shared.
	Bidirectional
)

// Device is a device of the host, or a folder of them.
type Device struct {
	// Source on the host, Target in the container; an empty one is the same.
	Source, Target string
	// Permissions of r, w, m; empty: all.
	Permissions string
}

// Resources are limits. Zero is none.
type Resources struct {
	CPUPeriod uint64 // microseconds
	CPUQuota  int64  // microseconds in each period
	CPUShares uint64
	// CPUs and Mems are lists, as 0-3,5.
	CPUs, Mems string
	Memory     int64 // bytes
	Swap       int64 // bytes, of memory and swap together
	Pids       int64
	// Hugepages are bytes by page size, as 2MB.
	Hugepages map[string]uint64
	// Unified are files of cgroup version 2.
	Unified map[string]string
}

// Security is what the process may do. The zero value is containerd's default.
type Security struct {
	// Privileged gives it all capabilities and devices, and takes away seccomp,
	// AppArmor and what hides parts of /proc and /sys. PrivilegedWithoutDevices
	// leaves out the devices.
	Privileged, PrivilegedWithoutDevices bool
	// Add and Drop are capabilities, with or without CAP_; ALL is all. What is
	// dropped by name is not added by ALL, and the other way round.
	Add, Drop []string
	// Ambient capabilities stay when a process of another user than root begins.
	Ambient         []string
	NoNewPrivileges bool
	ReadOnlyRootfs  bool
	// Seccomp is the path of a profile as the runtime specification has it;
	// "unconfined"; or empty, for containerd's default profile.
	Seccomp string
	// AppArmor is a loaded profile; "unconfined"; or empty, for containerd's default
	// profile where the machine has AppArmor.
	AppArmor string
	// ProcessLabel and MountLabel are SELinux'.
	ProcessLabel, MountLabel string
	// MaskedPaths and ReadonlyPaths; nil: the default ones, empty: none.
	MaskedPaths, ReadonlyPaths []string
}

// Unconfined is a profile that is none.
const Unconfined = "unconfined"

// validate returns all that is wrong, joined, as InvalidArgument.
func (r *Request) validate() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...))
	}
	if r.Image == nil && len(r.Command) == 0 {
		fault("neither image nor command")
	}
	if r.WorkDir != "" && !path.IsAbs(r.WorkDir) {
		fault("working directory %q: not an absolute path", r.WorkDir)
	}
	for _, e := range r.Env {
		if key, _, ok := strings.Cut(e, "="); key == "" || !ok {
			fault("environment %q: not KEY=VALUE", key)
		}
	}
	for _, m := range r.Mounts {
		if err := m.validate(); err != nil {
			fault("mount %s: %w", m.Target, err)
		}
	}
	for _, d := range r.Devices {
		if !path.IsAbs(d.Source) || d.Target != "" && !path.IsAbs(d.Target) || strings.Trim(d.Permissions, "rwm") != "" {
			fault("device %s at %q, %q", d.Source, d.Target, d.Permissions)
		}
	}
	for _, list := range [][]string{r.Security.Add, r.Security.Drop, r.Security.Ambient} {
		for _, c := range list {
			if c = capability(c); c != allCapabilities && !slices.Contains(cap.Known(), c) {
				fault("capability %q", c)
			}
		}
	}
	for _, p := range []string{r.Security.Seccomp} {
		if p != "" && p != Unconfined && !filepath.IsAbs(p) {
			fault("seccomp profile %q: not an absolute path", p)
		}
	}
	if o := r.OOMScoreAdj; o != nil && (*o < -1000 || *o > 1000) { // proc_pid_oom_score_adj(5)
		fault("OOM score %d", *o)
	}
	return errors.Join(faults...)
}

func (m *Mount) validate() error {
	switch {
	case !path.IsAbs(m.Target) || path.Clean(m.Target) == "/":
		return errors.New("the target has to be an absolute path, and not /")
	case m.bind() && !filepath.IsAbs(m.Source):
		return fmt.Errorf("the source %q has to be an absolute path", m.Source)
	case !m.bind() && (m.Propagation != Private || m.Relabel || m.Create || m.Mapped || m.RecursiveReadOnly):
		return fmt.Errorf("%s takes nothing of bind mounts", m.Type)
	case m.RecursiveReadOnly && !m.ReadOnly:
		return errors.New("recursively read-only, but not read-only")
	case m.RecursiveReadOnly && m.Propagation != Private:
		return errors.New("recursively read-only, but not private")
	case m.Propagation > Bidirectional:
		return errors.New("unknown propagation")
	}
	return nil
}

func (m *Mount) bind() bool { return m.Type == "" || m.Type == "bind" }
