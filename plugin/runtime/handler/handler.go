// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/shim/options"
)

// Type is what kind of program a handler's runtime is.
type Type string

const (
	// OCI is a runtime such as runc, which berth's shim executes.
	OCI Type = "oci"
	// VM is a containerd shim of its own, which runs containers in virtual
	// machines.
	VM Type = "vm"
	// Pod is CRI-O's name for one monitor per pod. berth takes it for OCI: its
	// shim already keeps what a pod shares in one process, and a monitor per
	// container keeps their failures apart.
	Pod Type = "pod"
)

// Handler is a named way of running containers. The TOML keys are those of
// CRI-O, without "runtime_" and "container_".
type Handler struct {
	// Name is the key of the handler's table.
	Name string `toml:"-"`
	// Type: "oci" (default), "vm" or "pod".
	Type Type `toml:"type"`
	// Path is the runtime: with OCI a path, or a name that the shim looks up in
	// containerd's PATH, with VM the absolute path of a shim.
	Path string `toml:"path"`
	// Root is the runtime's state directory. Default: the shim's. OCI only.
	Root string `toml:"root"`
	// ConfigPath is the shim's own configuration. VM only.
	ConfigPath string `toml:"config_path"`
	// PlatformRuntimePaths replaces Path for images of a platform ("linux/arm64").
	PlatformRuntimePaths map[string]string `toml:"platform_runtime_paths"`
	// InheritDefaultRuntime takes from the default handler what says which runtime
	// this is and how it is run, where nothing is said here.
	InheritDefaultRuntime bool `toml:"inherit_default_runtime"`

	// AllowedAnnotations are those that pods may direct the runtime with. An entry
	// also allows itself with ".<container>" or "/<container>" appended.
	AllowedAnnotations []string `toml:"allowed_annotations"`
	// DefaultAnnotations are given to pods that do not set them.
	DefaultAnnotations map[string]string `toml:"default_annotations"`
	// PrivilegedWithoutHostDevices keeps the host's devices from privileged
	// containers.
	PrivilegedWithoutHostDevices bool `toml:"privileged_without_host_devices"`
	// SeccompProfile for containers that name none: an absolute path, "unconfined",
	// or "" for the default profile.
	SeccompProfile string `toml:"seccomp_profile"`

	// MinMemory is the least memory limit of a container: bytes, or a text such as
	// "12MiB". 0: 12 MiB, or 500 KiB with crun.
	MinMemory options.Size `toml:"min_memory"`
	// CreateTimeout bounds the runtime's create: seconds or a text such as "4m". 0:
	// the shim's default; the shim raises what is below 30 s. OCI only.
	CreateTimeout options.Duration `toml:"create_timeout"`
	// ExecCPUAffinity says where execs begin: "first" is the first CPU of the
	// container's cpuset, "" the runtime's choice. OCI only.
	ExecCPUAffinity string `toml:"exec_cpu_affinity"`
	// NoSyncLog does not wait for the disk at the end of a log. OCI only.
	NoSyncLog bool `toml:"no_sync_log"`
	// SystemdCgroup makes cgroups through systemd. OCI only.
	SystemdCgroup bool `toml:"systemd_cgroup"`
	// MonitorCgroup is an existing cgroup for shims. OCI only.
	MonitorCgroup string `toml:"monitor_cgroup"`
	// MonitorEnv is added to the runtime's environment: "KEY=VALUE". OCI only.
	MonitorEnv []string `toml:"monitor_env"`
	// PullImage has the runtime pull images itself: they come as a volume (see
	// Volume) and not as a root filesystem. VM only.
	PullImage bool `toml:"runtime_pull_image"`
	// StreamWebsockets is CRI-O's switch of its pod type. Accepted there, without
	// effect: berth has no streaming server.
	StreamWebsockets bool `toml:"stream_websockets"`
}

// handlerName is what Kubernetes takes for a handler of a RuntimeClass.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// IsVM tells whether containers run in virtual machines.
func (h *Handler) IsVM() bool { return h.Type == VM }

func (h *Handler) inherit(from *Handler) {
	if h.Path == "" {
		h.Path, h.PlatformRuntimePaths = from.Path, maps.Clone(from.PlatformRuntimePaths)
	}
	take(&h.Type, from.Type)
	take(&h.Root, from.Root)
	take(&h.ConfigPath, from.ConfigPath)
	take(&h.MinMemory, from.MinMemory)
	take(&h.CreateTimeout, from.CreateTimeout)
	take(&h.ExecCPUAffinity, from.ExecCPUAffinity)
	take(&h.NoSyncLog, from.NoSyncLog)
	take(&h.SystemdCgroup, from.SystemdCgroup)
	take(&h.MonitorCgroup, from.MonitorCgroup)
	take(&h.PullImage, from.PullImage)
	if h.MonitorEnv == nil {
		h.MonitorEnv = slices.Clone(from.MonitorEnv)
	}
}

func take[T comparable](dst *T, v T) {
	var zero T
	if *dst == zero {
		*dst = v
	}
}

// faults returns all, each beginning with its key.
func (h *Handler) faults() []error {
	var faults []error
	fail := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf(key+": "+format, args...))
	}
	if !slices.Contains([]Type{"", OCI, VM, Pod}, h.Type) {
		fail("type", "%q is none of oci, vm, pod", h.Type)
	}
	if err := h.program(h.Path); err != nil && h.Path != "" {
		fail("path", "%w", err)
	}
	for _, platform := range slices.Sorted(maps.Keys(h.PlatformRuntimePaths)) {
		if !strings.Contains(platform, "/") {
			fail("platform_runtime_paths", "%q is not a platform such as linux/amd64", platform)
		}
		if err := executable(h.PlatformRuntimePaths[platform]); err != nil {
			fail("platform_runtime_paths", "%s: %w", platform, err)
		}
	}
	for _, m := range h.misplaced() {
		fail(m.key, "only for handlers of type %s", m.of)
	}
	for _, f := range []struct{ key, path string }{{"root", h.Root}, {"config_path", h.ConfigPath}, {"seccomp_profile", h.SeccompProfile}} {
		if f.path == "" || f.key == "seccomp_profile" && f.path == "unconfined" {
			continue
		}
		if !filepath.IsAbs(f.path) {
			fail(f.key, "%q is not an absolute path", f.path)
		} else if _, err := os.Stat(f.path); err != nil && f.key != "root" {
			fail(f.key, "%w", err)
		}
	}
	if h.ExecCPUAffinity != "" && h.ExecCPUAffinity != "first" {
		fail("exec_cpu_affinity", "%q is neither empty nor \"first\"", h.ExecCPUAffinity)
	}
	if h.CreateTimeout.Duration < 0 {
		fail("create_timeout", "%s is negative", h.CreateTimeout)
	}
	for _, pair := range h.MonitorEnv {
		if strings.IndexByte(pair, '=') <= 0 {
			fail("monitor_env", "%q is not KEY=VALUE", pair)
		}
	}
	if slices.Contains(h.AllowedAnnotations, "") {
		fail("allowed_annotations", "an entry is empty")
	}
	return faults
}

// misplaced are the keys that are set and mean nothing to the handler's type.
func (h *Handler) misplaced() (keys []struct{ key, of string }) {
	for _, k := range []struct {
		key   string
		set   bool
		of    string
		right bool
	}{
		{"root", h.Root != "", "oci", !h.IsVM()},
		{"no_sync_log", h.NoSyncLog, "oci", h.Type == "" || h.Type == OCI},
		{"exec_cpu_affinity", h.ExecCPUAffinity != "", "oci", !h.IsVM()},
		{"create_timeout", h.CreateTimeout.Duration != 0, "oci", !h.IsVM()},
		{"systemd_cgroup", h.SystemdCgroup, "oci", !h.IsVM()},
		{"monitor_cgroup", h.MonitorCgroup != "", "oci", !h.IsVM()},
		{"monitor_env", h.MonitorEnv != nil, "oci", !h.IsVM()},
		{"config_path", h.ConfigPath != "", "vm", h.IsVM()},
		{"runtime_pull_image", h.PullImage, "vm", h.IsVM()},
		{"stream_websockets", h.StreamWebsockets, "pod", h.Type == Pod},
	} {
		if k.set && !k.right {
			keys = append(keys, struct{ key, of string }{k.key, k.of})
		}
	}
	return keys
}

// program checks a runtime's path. A name is left to the shim, whose PATH is
// containerd's.
func (h *Handler) program(path string) error {
	if !h.IsVM() && path != "" && !strings.Contains(path, "/") {
		return nil
	}
	return executable(path)
}

func executable(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q is not an absolute path", path)
	}
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case st.IsDir() || st.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not executable", path)
	}
	return nil
}

// PlatformPath is the runtime for images of a platform such as "linux/arm64"; ""
// and the machine's own are Path unless the configuration says otherwise. A
// platform that is neither is NotFound.
func (h *Handler) PlatformPath(platform string) (string, error) {
	if path := h.PlatformRuntimePaths[platform]; path != "" {
		return path, nil
	}
	if platform == "" || platform == runtime.GOOS+"/"+runtime.GOARCH {
		return h.Path, nil
	}
	return "", fmt.Errorf("runtime handler %q has no runtime for platform %q: %w", h.Name, platform, errdefs.ErrNotFound)
}

// Least memory limits, CRI-O's: below them the runtime itself is killed while it
// makes the container.
const (
	minMemory     = 12 << 20
	minMemoryCrun = 500 << 10
)

// MinMemoryBytes is the least memory limit for a container.
func (h *Handler) MinMemoryBytes() int64 {
	switch {
	case h.MinMemory > 0:
		return int64(h.MinMemory)
	case filepath.Base(h.Path) == "crun":
		return minMemoryCrun
	}
	return minMemory
}

// CheckMemory refuses a memory limit that is too small, in bytes, as
// InvalidArgument. 0 and less is no limit. The shim has the last word: it also
// knows the limits of containers that others make.
func (h *Handler) CheckMemory(limit int64) error {
	if least := h.MinMemoryBytes(); limit > 0 && limit < least {
		return fmt.Errorf("memory limit of %d bytes is below %d, the least with runtime handler %q: %w", limit, least, h.Name, errdefs.ErrInvalidArgument)
	}
	return nil
}
