// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/plugin/labels"
)

const (
	// sandboxer is containerd's controller for sandboxes that are a shim's affair.
	sandboxer = "shim"
	// shimState is where berth's shim has its pods. It does not depend on Config:
	// containerd starts the shim, also for the kubelet.
	shimState = "/run/berth/sandboxes"
	// sandboxStop is what a pod's shim gets to end, its members being gone.
	sandboxStop = time.Second
	// shutdownPatience is more than containerd needs to forget a shim that has died.
	shutdownPatience = 5 * time.Second
	shutdownPause    = 50 * time.Millisecond
)

// sandboxes are the pods' shims, through containerd.
type sandboxes struct {
	store      sandbox.Store
	controller sandbox.Controller
	namespace  string
}

func newSandboxes(c *client.Client, namespace string) sandboxes {
	return sandboxes{c.SandboxStore(), c.SandboxController(sandboxer), namespace}
}

// start starts the shim of a pod, and the pod. The netns is empty for the host's.
// After an error no shim is left.
func (s sandboxes) start(ctx context.Context, record sandbox.Sandbox, config *cri.PodSandboxConfig, netns string) error {
	err := s.controller.Create(ctx, record, sandbox.WithOptions(config), sandbox.WithNetNSPath(netns))
	if err != nil {
		return fmt.Errorf("create sandbox %s: %w", record.ID, cause{err})
	}
	if _, err := s.controller.Start(ctx, record.ID); err != nil {
		return fmt.Errorf("start sandbox %s: %w", record.ID, cause{err})
	}
	return nil
}

// cause is an error without what containerd and the shim say before the reason: which
// pod it is, callers say themselves.
type cause struct{ error }

// preface is as "failed to create sandbox ID: create sandbox ID: pod ID: ".
var preface = regexp.MustCompile(`^((failed to )?([a-z]+ sandbox|pod) [A-Za-z0-9._-]+: )+`)

func (c cause) Error() string { return preface.ReplaceAllString(c.error.Error(), "") }
func (c cause) Unwrap() error { return c.error }

// addHosts adds to the hosts file of a pod, which its members have.
func (s sandboxes) addHosts(id PodID, hosts []Host) error {
	if len(hosts) == 0 {
		return nil
	}
	var text strings.Builder
	for _, h := range hosts {
		fmt.Fprintf(&text, "%s\t%s\n", h.IP, strings.Join(h.Names, " "))
	}
	f, err := os.OpenFile(filepath.Join(shimState, s.namespace, string(id), "hosts"), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(text.String())
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("hosts file of the pod: %w: %w", errdefs.ErrInternal, err)
	}
	return nil
}

// stop ends the pod; its namespaces go. One that is not there has ended, and one whose
// shim is no sandbox's ends with its task.
func (s sandboxes) stop(ctx context.Context, id PodID) error {
	err := s.controller.Stop(ctx, string(id), sandbox.WithTimeout(sandboxStop))
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsNotImplemented(err) {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	return nil
}

// state asks the pod's shim.
func (s sandboxes) state(ctx context.Context, id string) PodState {
	status, err := s.controller.Status(ctx, id, false)
	switch {
	case err != nil:
		return PodUnknown
	case status.State == "SANDBOX_READY":
		return PodReady
	}
	return PodNotReady
}

// shutdown ends the shim, and the pod with it.
func (s sandboxes) shutdown(ctx context.Context, id PodID) error {
	// If a shutdown is in progress, or the shim is just dying, the answer is an
	// error until containerd has forgotten the shim.
	deadline := time.Now().Add(shutdownPatience)
	for {
		err := s.controller.Shutdown(ctx, string(id))
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("shut down sandbox %s: %w", id, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("shut down sandbox %s: %w", id, errors.Join(context.Cause(ctx), err))
		case <-time.After(shutdownPause):
		}
	}
}

// look tells what there is of a pod that berth's shim has, which makes the directory
// whole or not at all, notes there that the pod has stopped, and removes it in the end,
// or when it is found dead. It is asked for each pod of a listing and so asks nobody
// else. Another shim's pod is PodUnknown, and so is one that is gone.
func (s sandboxes) look(id string) PodState {
	dir := filepath.Join(shimState, s.namespace, id)
	if _, err := os.Stat(filepath.Join(dir, "pod.json")); err != nil {
		return PodUnknown
	}
	if _, err := os.Stat(filepath.Join(dir, "stopped")); err == nil {
		return PodNotReady
	}
	return PodReady
}

// config is the pod as a shim is told of it, in CRI's words.
func (r *PodRequest) config(m *labels.Metadata) *cri.PodSandboxConfig {
	c := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: r.Name, Namespace: r.Namespace, Uid: r.UID, Attempt: uint32(r.Attempt)},
		Hostname:     r.Hostname,
		LogDirectory: m.Settings.LogDirectory,
		Labels:       r.Labels,
		Annotations:  m.Annotations,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: r.CgroupParent,
			Sysctls:      r.Sysctls,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: r.namespaces(m.IDMap),
				SelinuxOptions:   r.SELinux.cri(),
			},
		},
	}
	if d := r.DNS; d != nil {
		c.DnsConfig = &cri.DNSConfig{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	return c
}

func (r *PodRequest) namespaces(ids labels.IDMap) *cri.NamespaceOption {
	n := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
	if r.HostNetwork {
		n.Network = cri.NamespaceMode_NODE
	}
	if r.HostIPC {
		n.Ipc = cri.NamespaceMode_NODE
	}
	switch {
	case r.HostPID:
		n.Pid = cri.NamespaceMode_NODE
	case r.SharePID:
		n.Pid = cri.NamespaceMode_POD
	}
	if len(ids.UIDs) > 0 {
		n.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: criMaps(ids.UIDs), Gids: criMaps(ids.GIDs)}
	}
	return n
}

func criMaps(maps []specs.LinuxIDMapping) []*cri.IDMapping {
	var list []*cri.IDMapping
	for _, m := range maps {
		list = append(list, &cri.IDMapping{HostId: m.HostID, ContainerId: m.ContainerID, Length: m.Size})
	}
	return list
}

func (l *SELinux) cri() *cri.SELinuxOption {
	if l == nil {
		return nil
	}
	return &cri.SELinuxOption{User: l.User, Role: l.Role, Type: l.Type, Level: l.Level}
}
