// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"fmt"
	"slices"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/pelletier/go-toml/v2"
)

// Shim is the name of berth's runtime in containerd's records.
const Shim = "io.containerd.berth.v1"

// Runtime is how containerd is told of a handler, in records of containers and
// sandboxes alike.
type Runtime struct {
	// Name is that of a runtime, or the path of a shim.
	Name string
	// Options are nil if there is nothing to say.
	Options *runtimeoptions.Options
}

// overrides are what a handler changes of the shim's settings, the names being
// those of shim.toml.
type overrides struct {
	Runtime         string   `toml:"runtime,omitempty"`
	Root            string   `toml:"root,omitempty"`
	SystemdCgroup   bool     `toml:"systemd_cgroup,omitempty"`
	CreateTimeout   string   `toml:"create_timeout,omitempty"`
	MinMemory       int64    `toml:"min_memory,omitempty"`
	ExecCPUAffinity string   `toml:"exec_cpu_affinity,omitempty"`
	NoSyncLog       bool     `toml:"no_sync_log,omitempty"`
	MonitorCgroup   string   `toml:"monitor_cgroup,omitempty"`
	MonitorEnv      []string `toml:"monitor_env,omitempty"`
	ExitDir         string   `toml:"exit_dir,omitempty"`
	PodProcess      bool     `toml:"pod_process,omitempty"`
}

// Use is what a runtime is wanted for. The zero value is a container of the machine's
// platform.
type Use struct {
	Platform string // as os/arch/variant
	// ExitDir is where berth's shim leaves exit codes; empty: nowhere.
	ExitDir string
	// PodProcess gives a pod a process of its own.
	PodProcess bool
}

// Runtime returns how containerd runs a pod or container with this handler. What the handler does not set is left to the
// host's shim.toml, the runtime's path too if it is the default's name.
func (h *Handler) Runtime(use Use) (*Runtime, error) {
	path, err := h.PlatformPath(use.Platform)
	if err != nil {
		return nil, err
	}
	if h.IsVM() {
		r := &Runtime{Name: path}
		if h.ConfigPath != "" {
			r.Options = &runtimeoptions.Options{ConfigPath: h.ConfigPath}
		}
		return r, nil
	}
	s := overrides{
		Runtime: path, Root: h.Root, SystemdCgroup: h.SystemdCgroup, MinMemory: int64(h.MinMemory),
		ExecCPUAffinity: h.ExecCPUAffinity, NoSyncLog: h.NoSyncLog, MonitorCgroup: h.MonitorCgroup, MonitorEnv: h.MonitorEnv,
		ExitDir: use.ExitDir, PodProcess: use.PodProcess,
	}
	if path == defaultHandler {
		s.Runtime = ""
	}
	if h.CreateTimeout.Duration > 0 {
		s.CreateTimeout = h.CreateTimeout.String()
	}
	body, err := toml.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("runtime handler %q: %w", h.Name, err)
	}
	r := &Runtime{Name: Shim}
	if len(body) > 0 {
		r.Options = &runtimeoptions.Options{ConfigBody: body}
	}
	return r, nil
}

// Features are what a handler's runtime can do besides running containers.
type Features struct {
	// IDMap: id-mapped mounts, and with them user namespaces of pods.
	IDMap bool
	// RecursiveReadOnly: mounts that are read-only with all below them.
	RecursiveReadOnly bool
	// Checkpoint: the runtime says that it was built with it. It needs CRIU too.
	Checkpoint bool
}

// informer is containerd's client, as far as it is needed here.
type informer interface {
	RuntimeInfo(ctx context.Context, runtimePath string, runtimeOptions any) (*client.RuntimeInfo, error)
}

// checkpointAnnotation is runc's, in its features.
const checkpointAnnotation = "org.opencontainers.runc.checkpoint.enabled"

// Features asks the handler's runtime through containerd. A runtime that cannot
// tell has none, and the error says why; callers may go on with them.
func (h *Handler) Features(ctx context.Context, c informer) (Features, error) {
	r, err := h.Runtime(Use{})
	if err != nil {
		return Features{}, err
	}
	var options any // not a nil pointer in an interface
	if r.Options != nil {
		options = r.Options
	}
	info, err := c.RuntimeInfo(ctx, r.Name, options)
	if err != nil {
		return Features{}, fmt.Errorf("features of runtime handler %q: %w", h.Name, err)
	}
	f, ok := info.Features.(*features.Features)
	if !ok {
		return Features{}, nil
	}
	found := Features{
		RecursiveReadOnly: slices.Contains(f.MountOptions, "rro"),
		Checkpoint:        f.Annotations[checkpointAnnotation] == "true",
	}
	if l := f.Linux; l != nil && l.MountExtensions != nil && l.MountExtensions.IDMap != nil {
		found.IDMap = l.MountExtensions.IDMap.Enabled != nil && *l.MountExtensions.IDMap.Enabled
	}
	return found, nil
}
