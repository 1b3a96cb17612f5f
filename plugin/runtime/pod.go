// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"net/netip"
	"time"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/process/stats"
)

// PodState is a pod's.
type PodState string

// States of pods. A pod is ready while its namespaces are there.
const (
	PodReady    PodState = "Ready"
	PodNotReady PodState = "NotReady"
	// PodUnknown is the state of a foreign pod that does not tell.
	PodUnknown PodState = "Unknown"
)

// Pod is a pod as a listing shows it, whoever made it. The maps are the caller's.
type Pod struct {
	ID PodID `json:"id"`
	// Name is what people call it; FullName is unique, and empty for foreign pods.
	Name      string `json:"name"`
	FullName  string `json:"fullName,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	UID       string `json:"uid,omitempty"`
	// Attempt may be labels.UnknownAttempt.
	Attempt   labels.Attempt `json:"attempt"`
	State     PodState       `json:"state"`
	Owner     string         `json:"owner"` // berth, cri or other
	CreatedAt time.Time      `json:"createdAt"`

	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Handler     string            `json:"handler,omitempty"`
	// LogDirectory is where relative log paths begin.
	LogDirectory string `json:"logDirectory,omitempty"`

	// HostNetwork, NetworkNamespace and IPs are known of berth's pods only.
	HostNetwork      bool         `json:"hostNetwork,omitempty"`
	NetworkNamespace string       `json:"networkNamespace,omitempty"`
	IPs              []netip.Addr `json:"ips,omitempty"`

	// Containers are the members, newest first.
	Containers []Container `json:"containers,omitempty"`
	// Orphaned: only members are left of the pod.
	Orphaned bool `json:"orphaned,omitempty"`
	// Warnings tell where its records contradict each other or are damaged.
	Warnings []string `json:"warnings,omitempty"`

	unfinished bool
}

// PodFilter selects pods. Fields that are set must all match.
type PodFilter struct {
	ID        string // the beginning of it
	Name      string // name or unique name
	Namespace string
	Labels    map[string]string
	State     PodState
}

// RemoveOptions are those of removing.
type RemoveOptions struct {
	// Force removes what runs, after killing it at once, and what is not berth's.
	Force bool
	// Timeout is what running containers get to end by themselves; only without
	// Force is it an error that some run, and only if it is zero.
	Timeout time.Duration
}

// PodStats is what a pod has used: the sum of its members, and each of them.
type PodStats struct {
	ID         PodID            `json:"id"`
	Name       string           `json:"name"`
	At         time.Time        `json:"at"`
	CPU        stats.CPU        `json:"cpu"`
	Memory     stats.Memory     `json:"memory"`
	Pids       uint64           `json:"pids"`
	Network    []NetworkStats   `json:"network,omitempty"`
	Containers []ContainerStats `json:"containers,omitempty"`
}

// NetworkStats are the counters of an interface.
type NetworkStats struct {
	Interface       string `json:"interface"`
	ReceivedBytes   uint64 `json:"receivedBytes"`
	ReceivedPackets uint64 `json:"receivedPackets"`
	ReceivedErrors  uint64 `json:"receivedErrors"`
	SentBytes       uint64 `json:"sentBytes"`
	SentPackets     uint64 `json:"sentPackets"`
	SentErrors      uint64 `json:"sentErrors"`
}
