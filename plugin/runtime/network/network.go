// SPDX-License-Identifier: Apache-2.0

// Package network gives pods their networks: a network namespace of the pod's
// own with CNI's interfaces in it, or the host's network. It remembers in a
// directory per pod what it has done, so that any later process, one that starts
// after a crash too, can look at it or take it away by the pod's id alone.
//
// It does not write a pod's hosts and resolv.conf, and it keeps no addresses in
// records of containerd.
package network

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// ErrNotConfigured (FailedPrecondition) is returned where CNI has no configuration or
// lacks the plugins that it names.
var ErrNotConfigured = errdefs.ErrFailedPrecondition.WithMessage("no network is configured")

// Config says where things are. Fields without a default are mandatory.
type Config struct {
	// State is the directory for what this package remembers. It outlives a reboot,
	// as what CNI's plugins keep may do: see Pods.Dead. One per containerd namespace.
	State string
	// Namespace is containerd's. CNI knows a pod as <Namespace>-<pod id>, so that
	// equal ids of two namespaces do not meet.
	Namespace string
	// ConfDir holds CNI's configurations. Default: /etc/cni/net.d.
	ConfDir string
	// BinDirs hold CNI's plugins. Default: /opt/cni/bin.
	BinDirs []string
	// MaxConfigs is how many of the configurations a pod gets, in the order of
	// their names. Default: 1.
	MaxConfigs int
	// Prefix of the interfaces' names. Default: eth.
	Prefix string
	// Timeout bounds one call of a CNI plugin chain. Default: 2 minutes.
	Timeout time.Duration
}

const (
	defaultConfDir = "/etc/cni/net.d"
	defaultBinDir  = "/opt/cni/bin"
	defaultPrefix  = "eth"
	// defaultTimeout is above what plugins that ask a cluster for addresses take.
	defaultTimeout = 2 * time.Minute
)

func (c *Config) complete() error {
	if !filepath.IsAbs(c.State) {
		return fmt.Errorf("network: state directory %q is not an absolute path: %w", c.State, errdefs.ErrInvalidArgument)
	}
	if !plainID.MatchString(c.Namespace) {
		return fmt.Errorf("network: namespace %q: %w", c.Namespace, errdefs.ErrInvalidArgument)
	}
	if c.ConfDir == "" {
		c.ConfDir = defaultConfDir
	}
	if len(c.BinDirs) == 0 {
		c.BinDirs = []string{defaultBinDir}
	}
	if c.MaxConfigs <= 0 {
		c.MaxConfigs = 1
	}
	if c.Prefix == "" {
		c.Prefix = defaultPrefix
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	return nil
}

// Request asks for a pod's network. It is remembered, for the removal.
type Request struct {
	PodID string `json:"podID"`
	// PodName, PodNamespace and PodUID are Kubernetes' and passed to CNI.
	PodName      string `json:"podName,omitempty"`
	PodNamespace string `json:"podNamespace,omitempty"`
	PodUID       string `json:"podUID,omitempty"`
	// Host asks for the host's network; nothing below matters then.
	Host bool `json:"host,omitempty"`
	// None asks for a network namespace with loopback alone.
	None bool `json:"none,omitempty"`
	// UserNamespace owns the network namespace, if the pod has one.
	UserNamespace *IDMaps `json:"userNamespace,omitempty"`

	// What follows reaches those plugins that ask for the capability.
	Ports       []PortMapping     `json:"ports,omitempty"`
	Bandwidth   *Bandwidth        `json:"bandwidth,omitempty"`
	DNS         *DNS              `json:"dns,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	CgroupPath  string            `json:"cgroupPath,omitempty"`
}

// IDMaps are the maps of a user namespace, one range each.
type IDMaps struct {
	UID IDMap `json:"uid"`
	GID IDMap `json:"gid"`
}

// IDMap maps Size ids from Container on to those from Host on.
type IDMap struct {
	Container uint32 `json:"container"`
	Host      uint32 `json:"host"`
	Size      uint32 `json:"size"`
}

// PortMapping makes a port of the pod reachable at one of the host.
type PortMapping struct {
	HostPort      uint16 `json:"hostPort"` // 0: no mapping
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`         // tcp (default), udp, sctp
	HostIP        string `json:"hostIP,omitempty"` // default: all addresses
}

// Bandwidth limits a pod's traffic. Rates are bits per second, bursts are bits;
// 0 is no limit.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// DNS is what plugins are told of the pod's resolver.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// plainID is what CNI takes for a container's id.
var plainID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

func (r *Request) validate() error {
	var faults []error
	if !plainID.MatchString(r.PodID) {
		faults = append(faults, fmt.Errorf("pod id %q", r.PodID))
	}
	for i := range r.Ports {
		faults = append(faults, r.Ports[i].validate())
	}
	if u := r.UserNamespace; u != nil && (u.UID.Size == 0 || u.GID.Size == 0) {
		faults = append(faults, errors.New("user namespace without ids"))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("network of pod %s: %w: %w", r.PodID, errdefs.ErrInvalidArgument, err)
	}
	return nil
}

func (p *PortMapping) validate() error {
	if p.Protocol = strings.ToLower(p.Protocol); p.Protocol == "" {
		p.Protocol = "tcp"
	}
	if !slices.Contains([]string{"tcp", "udp", "sctp"}, p.Protocol) {
		return fmt.Errorf("protocol %q of port %d", p.Protocol, p.ContainerPort)
	}
	if p.ContainerPort == 0 {
		return fmt.Errorf("host port %d has no container port", p.HostPort)
	}
	if p.HostIP != "" {
		if _, err := netip.ParseAddr(p.HostIP); err != nil {
			return fmt.Errorf("host address of port %d: %w", p.ContainerPort, err)
		}
	}
	return nil
}

// Attachment is a pod's network as it is.
type Attachment struct {
	PodID string `json:"podID"`
	// Host tells that it is the host's; there is nothing else then.
	Host bool `json:"host,omitempty"`
	// Path is the network namespace, a mount.
	Path string `json:"path,omitempty"`
	// Interfaces of the pod, by name; the first carries the pod's addresses.
	Interfaces []Interface `json:"interfaces,omitempty"`
	// DNS is what the plugins say of resolvers.
	DNS DNS `json:"dns,omitzero"`
}

// Interface is one of a pod's.
type Interface struct {
	Name string    `json:"name"`
	MAC  string    `json:"mac,omitempty"`
	IPs  []Address `json:"ips,omitempty"`
}

// Address is one of an interface. Gateway is not valid where there is none.
type Address struct {
	IP      netip.Addr `json:"ip"`
	Gateway netip.Addr `json:"gateway,omitzero"`
}

// IPs are the pod's addresses, the primary one first: the first of IPv4, unless
// there are only those of IPv6. None with the host's network.
func (a *Attachment) IPs() []netip.Addr {
	if len(a.Interfaces) == 0 {
		return nil
	}
	var ips []netip.Addr
	for _, ip := range a.Interfaces[0].IPs {
		ips = append(ips, ip.IP)
	}
	slices.SortStableFunc(ips, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return ips
}
