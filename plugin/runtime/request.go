// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/network"
	"github.com/berthd/berth/plugin/runtime/record"
)

// Typed IDs. Both are containerd's: at most 76 characters.
type (
	PodID       string
	ContainerID string
)

// PodRequest asks for a pod. Name is mandatory; what is not set is as a Kubernetes
// pod has it that does not mention it.
type PodRequest struct {
	// Name, Namespace, UID and Attempt are Kubernetes'. The unique name of the pod
	// is made of all four if there is a UID, else of Name and Namespace.
	Name      string
	Namespace string
	UID       string
	Attempt   labels.Attempt
	// ID of the pod; empty: made up.
	ID PodID
	// Hostname; empty: the host's, as with CRI.
	Hostname string

	Labels      map[string]string
	Annotations map[string]string
	// Handler is the runtime handler; empty: the default one.
	Handler string

	// NoNetwork leaves the pod with loopback alone.
	NoNetwork bool
	// HostNetwork, HostPID and HostIPC share the host's namespaces. SharePID gives
	// all members one process namespace, whose init the pod has then.
	HostNetwork, HostPID, HostIPC, SharePID bool
	// UserNS gives the pod a user namespace, with maps as asked or chosen; nil: the
	// host's.
	UserNS *record.IDMappings

	// DNS of the pod; nil: the host's resolv.conf.
	DNS *network.DNS
	// Hosts are added to the pod's /etc/hosts.
	Hosts        []Host
	PortMappings []network.PortMapping
	Bandwidth    *network.Bandwidth
	// Sysctls apply to namespaces that the pod owns, others are refused.
	Sysctls map[string]string
	// CgroupParent is the cgroup above the members', made if it is missing. Empty:
	// one of the pod's own.
	CgroupParent string
	// LogDirectory is where relative log paths of members begin; empty: in the
	// pod's directory.
	LogDirectory string
	SELinux      *SELinux

	madeFor ContainerID // and removed with it
}

// Host is a line of /etc/hosts.
type Host struct {
	IP    netip.Addr
	Names []string
}

// SELinux are the parts of a label.
type SELinux struct{ User, Role, Type, Level string }

// ContainerRequest asks for a container. Image or Rootfs is mandatory.
type ContainerRequest struct {
	// Pod is a ref. Empty: a pod is made for the container, with its name, from
	// NewPod, and removed with the container.
	Pod    string
	NewPod PodRequest
	// Name within the pod. Empty: made up.
	Name    string
	Attempt labels.Attempt
	// ID of the container; empty: made up.
	ID ContainerID

	// Image is the reference as the user typed it. ImageRecord names the image's
	// record in containerd's store; empty: Image, in its full form. It must have
	// been pulled.
	Image       string
	ImageRecord string
	// Platform of the image as os/arch/variant; empty: the host's.
	Platform string

	// Command and Args replace the image's entry point and arguments as they do in
	// Kubernetes.
	Command, Args []string
	// Env are KEY=VALUE, over the image's.
	Env     []string
	WorkDir string
	// User as a container's image writes it: name or number, group after a colon;
	// empty: the image's. Groups are added.
	User   string
	Groups []uint32
	// StopSignal is a name or number; empty: the image's.
	StopSignal string

	// TTY gives it a terminal. Stdin keeps its input open; StdinOnce closes it with
	// the first attached client's.
	TTY, Stdin, StdinOnce bool

	Mounts    []Mount
	Devices   []Device
	Resources Resources
	Ulimits   []Ulimit // nil: the shim's
	Security  Security

	Labels      map[string]string
	Annotations map[string]string

	// LogPath is the log in Kubernetes' format, absolute or below the pod's log
	// directory. Empty: <name>/<attempt>.log there. NoLog: none is written.
	LogPath string
	NoLog   bool
	// LogMaxSize, in bytes, begins a new file; LogMaxFiles are kept. Zero: the
	// shim's configuration.
	LogMaxSize  int64
	LogMaxFiles int

	restoredFrom string // archive or image
}

// Mount is one of a container's.
type Mount struct {
	// Source is a path on the host, a file system type's source, or nothing for an
	// image volume.
	Source string
	// Target is the path in the container.
	Target string
	// Type of the file system; empty or "bind": Source is bound.
	Type    string
	Options []string
	// Image mounts the root file system of an image, its SubPath if set.
	Image, SubPath              string
	Readonly, RecursiveReadonly bool
	// Propagation is private (default), rslave or rshared.
	Propagation string
	// Relabel gives Source the container's SELinux label.
	Relabel bool
	// Create makes Source, a directory, if it is missing.
	Create bool
}

// Device is one of the host's in a container.
type Device struct {
	Source, Target string // empty Target: Source
	Permissions    string // of r, w, m; empty: all
}

// Ulimit limits what a process may have.
type Ulimit struct {
	Name       string // as setrlimit(2) has it, without RLIMIT_: nofile
	Soft, Hard uint64 // math.MaxUint64: none
}

// Resources limit a container. Zero is no limit, and for an update: as it was.
type Resources struct {
	CPUPeriod  uint64 // microseconds
	CPUQuota   int64  // microseconds of each period
	CPUShares  uint64
	CPUs, Mems string // lists, as 0-3,5
	Memory     int64  // bytes
	Swap       int64  // bytes, memory and swap together
	Pids       int64
	// OOMScoreAdj of the first process; nil: as containerd's. An update cannot change it.
	OOMScoreAdj *int
	// Hugepages, in bytes, by page size as 2MB.
	Hugepages map[string]uint64
	// Unified are files of cgroup version 2.
	Unified map[string]string
}

// Security of a container.
type Security struct {
	Privileged      bool
	ReadonlyRootfs  bool
	NoNewPrivileges bool
	// AddCapabilities and DropCapabilities are with or without CAP_; ALL is all.
	AddCapabilities, DropCapabilities []string
	// Seccomp is a profile: a path, "unconfined", or empty for the default.
	Seccomp string
	// AppArmor is a loaded profile, "unconfined", or empty for the default.
	AppArmor string
	SELinux  *SELinux
	// MaskedPaths and ReadonlyPaths; nil: the runtime's default.
	MaskedPaths, ReadonlyPaths []string
}

// names are what Kubernetes and Docker take for those of pods and containers. No
// slash and no underscore at the begin: full names are made of them.
var names = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func checkName(what, name string) error {
	const most = 253 // of Kubernetes
	if name == "" {
		return fmt.Errorf("%s: no name: %w", what, errdefs.ErrInvalidArgument)
	}
	if len(name) > most || !names.MatchString(name) {
		return fmt.Errorf("%s: name %q: %w", what, name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// ulimits are those of setrlimit(2).
var ulimits = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
	"sigpending", "stack",
}

func (r *PodRequest) validate() error {
	faults := []error{checkName("pod", r.Name)}
	if r.Namespace != "" {
		faults = append(faults, checkName("namespace of the pod", r.Namespace))
	}
	if r.UID != "" {
		faults = append(faults, checkName("UID of the pod", r.UID))
	}
	if r.ID != "" {
		faults = append(faults, identifiers.Validate(string(r.ID)))
	}
	if r.HostPID && r.SharePID {
		faults = append(faults, fmt.Errorf("process namespace both of the host and of the pod: %w", errdefs.ErrInvalidArgument))
	}
	if r.HostNetwork && r.NoNetwork {
		faults = append(faults, fmt.Errorf("both the host's network and none: %w", errdefs.ErrInvalidArgument))
	}
	for _, h := range r.Hosts {
		if !h.IP.IsValid() || len(h.Names) == 0 || slices.ContainsFunc(h.Names, func(n string) bool { return n == "" || strings.ContainsAny(n, " \t\n#") }) {
			faults = append(faults, fmt.Errorf("host %s %q: %w", h.IP, h.Names, errdefs.ErrInvalidArgument))
		}
	}
	if (r.HostNetwork || r.NoNetwork) && len(r.PortMappings) > 0 {
		faults = append(faults, fmt.Errorf("port mappings without a network of the pod's own: %w", errdefs.ErrInvalidArgument))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("create pod %q: %w", r.Name, err)
	}
	return nil
}

func (r *ContainerRequest) validate() error {
	var faults []error
	if r.Name != "" || r.Pod != "" {
		faults = append(faults, checkName("container", r.Name))
	}
	if r.ID != "" {
		faults = append(faults, identifiers.Validate(string(r.ID)))
	}
	if r.Image == "" {
		faults = append(faults, fmt.Errorf("no image: %w", errdefs.ErrInvalidArgument))
	}
	if r.StdinOnce && !r.Stdin {
		faults = append(faults, fmt.Errorf("input for one client without input: %w", errdefs.ErrInvalidArgument))
	}
	for _, e := range r.Env {
		if key, _, _ := strings.Cut(e, "="); key == "" {
			faults = append(faults, fmt.Errorf("environment %q: no name: %w", e, errdefs.ErrInvalidArgument))
		}
	}
	for _, l := range r.Ulimits {
		if !slices.Contains(ulimits, l.Name) || l.Soft > l.Hard {
			faults = append(faults, fmt.Errorf("limit %s of %d, and %d at most: %w", l.Name, l.Soft, l.Hard, errdefs.ErrInvalidArgument))
		}
	}
	for _, m := range r.Mounts {
		if !strings.HasPrefix(m.Target, "/") {
			faults = append(faults, fmt.Errorf("mount target %q: not an absolute path: %w", m.Target, errdefs.ErrInvalidArgument))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("create container %q: %w", r.Name, err)
	}
	return nil
}
