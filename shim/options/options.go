// SPDX-License-Identifier: Apache-2.0

// Package options turns the runtime options of every caller into one checked
// struct: nothing, runc's Options, or TOML by path or text, each on top of the
// host's file. It runs in the transient half only; what the resident needs goes
// into its plan.
package options

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/plan"
)

// HostFile is the host's own settings, beneath those of any caller.
const HostFile = "/etc/berth/shim.toml"

// Options are all settings of a shim. The TOML keys may also be written in the
// way of containerd's runc options (SystemdCgroup for systemd_cgroup).
type Options struct {
	// Runtime is the OCI runtime: a path, or a name looked up in PATH.
	Runtime string `toml:"runtime"`
	// PlatformRuntimePaths replaces Runtime by platform ("linux/arm64").
	PlatformRuntimePaths map[string]string `toml:"platform_runtime_paths"`
	// Root is the runtime's state directory; the namespace is added to it.
	Root          string `toml:"root"`
	SystemdCgroup bool   `toml:"systemd_cgroup"`
	NoPivotRoot   bool   `toml:"no_pivot_root"`
	NoNewKeyring  bool   `toml:"no_new_keyring"`
	CriuImagePath string `toml:"criu_image_path"`
	CriuWorkPath  string `toml:"criu_work_path"`
	// CreateTimeout bounds the runtime's create. Less than 30 s is raised to it.
	CreateTimeout Duration `toml:"create_timeout"`
	// MinMemory is the least memory limit that a container may have. 0: 12 MiB,
	// 500 KiB with crun.
	MinMemory Size `toml:"min_memory"`
	// ExecCPUAffinity says where execs begin: "first" is the first CPU of the
	// container's cpuset, "" the runtime's choice.
	ExecCPUAffinity string `toml:"exec_cpu_affinity"`
	// Native allows doing without the runtime what needs no runtime.
	Native bool `toml:"native"`

	// UnprivilegedPorts and UnprivilegedICMP let the processes of a pod without a
	// pause container use ports below 1024 and ping without a capability, as
	// containerd's CRI does by default (enable_unprivileged_ports, _icmp there).
	UnprivilegedPorts bool `toml:"unprivileged_ports"`
	UnprivilegedICMP  bool `toml:"unprivileged_icmp"`

	// PodProcess gives pods without a pause container a process all the same, which
	// does nothing; their end is its end.
	PodProcess bool `toml:"pod_process"`

	// ShimCgroup is a cgroup for the shim process, which must exist.
	ShimCgroup string `toml:"shim_cgroup"`
	// MonitorCgroup is the same by CRI-O's name.
	MonitorCgroup string `toml:"monitor_cgroup"`
	// MonitorEnv is added to the environment of the runtime and its hooks: "KEY=VALUE". Of
	// containerd's they get a few variables only, see docs/shim.toml.
	MonitorEnv []string `toml:"monitor_env"`
	// HeapBound is the heap beyond which the shim starts itself afresh. 0: the
	// shim's own bound.
	HeapBound Size `toml:"heap_bound"`
	Debug     bool `toml:"debug"`

	// IoUID and IoGID own the container's standard IO pipes.
	IoUID uint32 `toml:"io_uid"`
	IoGID uint32 `toml:"io_gid"`
	// Output is "spool": what a reader cannot take while containerd is away is
	// kept in a file; or "direct": the container writes to containerd's fifo.
	Output string `toml:"output"`
	// SpoolMax bounds the spool. 0: the shim's own bound.
	SpoolMax Size `toml:"spool_max"`

	// LogDrivers are CRI-O's log drivers, for containers without a stdout URI.
	LogDrivers       []string `toml:"log_drivers"`
	LogSizeMax       Size     `toml:"log_size_max"`        // of one file; 0: no limit
	LogMaxFiles      int32    `toml:"log_max_files"`       // rotated files to keep; 0: truncate instead
	LogGlobalSizeMax Size     `toml:"log_global_size_max"` // of all output ever; 0: no limit
	LogLabels        []string `toml:"log_labels"`          // journald: "KEY=VALUE"
	LogTag           string   `toml:"log_tag"`             // journald
	LogAllowedDirs   []string `toml:"log_allowed_dirs"`    // where rotated logs may be; none: anywhere
	NoSyncLog        bool     `toml:"no_sync_log"`         // no fsync of logs at exit

	// ExitDir gets a file for each container that has ended, called as its ID, with
	// its exit code in decimal. Whoever names the directory clears it.
	ExitDir string `toml:"exit_dir"`
	// ExitCommand is executed, with its arguments, when a container has ended and
	// its output is safe, ExitDelay after that.
	ExitCommand []string `toml:"exit_command"`
	ExitDelay   Duration `toml:"exit_delay"`
}

const (
	defaultRuntime = "runc"
	// defaultRoot is the one of containerd's own shim, so that tools which look
	// into the runtime's state find it.
	defaultRoot = "/run/containerd/runc"
	// minCreateTimeout: a loaded node takes that long for a healthy container.
	minCreateTimeout = 30 * time.Second
)

// Default returns the settings of a host that says nothing.
func Default() *Options {
	return &Options{
		Runtime:       defaultRuntime,
		Root:          defaultRoot,
		CreateTimeout: Duration{plan.DefaultCreateTimeout},
		Native:        true,
		Output:        "spool",

		UnprivilegedPorts: true,
		UnprivilegedICMP:  true,
	}
}

// Validate returns all faults, each naming its key, as one InvalidArgument.
func (o *Options) Validate() error {
	var faults []error
	fail := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf(key+": "+format, args...))
	}
	if o.Runtime == "" {
		fail("runtime", "empty")
	}
	for key, path := range map[string]string{
		"root": o.Root, "exit_dir": o.ExitDir, "criu_image_path": o.CriuImagePath, "criu_work_path": o.CriuWorkPath,
	} {
		if path != "" && !filepath.IsAbs(path) {
			fail(key, "%q is not an absolute path", path)
		}
	}
	for _, platform := range slices.Sorted(maps.Keys(o.PlatformRuntimePaths)) {
		if !strings.Contains(platform, "/") {
			fail("platform_runtime_paths", "%q is not a platform such as linux/amd64", platform)
		}
		if path := o.PlatformRuntimePaths[platform]; !filepath.IsAbs(path) {
			fail("platform_runtime_paths", "%q is not an absolute path", path)
		}
	}
	if o.ExecCPUAffinity != "" && o.ExecCPUAffinity != "first" {
		fail("exec_cpu_affinity", "%q is neither empty nor \"first\"", o.ExecCPUAffinity)
	}
	if o.Output != "spool" && o.Output != "direct" {
		fail("output", "%q is neither \"spool\" nor \"direct\"", o.Output)
	}
	if o.CreateTimeout.Duration < 0 {
		fail("create_timeout", "%s is negative", o.CreateTimeout)
	}
	for key, size := range map[string]Size{
		"min_memory": o.MinMemory, "heap_bound": o.HeapBound, "spool_max": o.SpoolMax,
		"log_size_max": o.LogSizeMax, "log_global_size_max": o.LogGlobalSizeMax,
	} {
		if size < 0 {
			fail(key, "%d is negative", size)
		}
	}
	if o.LogDrivers != nil && len(o.LogDrivers) == 0 {
		fail("log_drivers", "no driver; leave the key out to use the caller's streams alone")
	}
	if o.LogMaxFiles < 0 {
		fail("log_max_files", "%d is negative", o.LogMaxFiles)
	}
	for key, list := range map[string][]string{"monitor_env": o.MonitorEnv, "log_labels": o.LogLabels} {
		for _, pair := range list {
			if i := strings.IndexByte(pair, '='); i <= 0 {
				fail(key, "%q is not KEY=VALUE", pair)
			}
		}
	}
	for _, dir := range o.LogAllowedDirs {
		if !filepath.IsAbs(dir) {
			fail("log_allowed_dirs", "%q is not an absolute path", dir)
		}
	}
	if len(o.ExitCommand) > 0 && !filepath.IsAbs(o.ExitCommand[0]) {
		fail("exit_command", "%q is not an absolute path", o.ExitCommand[0])
	}
	if o.ExitDelay.Duration < 0 {
		fail("exit_delay", "%s is negative", o.ExitDelay)
	}
	if len(faults) == 0 {
		return nil
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return fault.Wrap(fault.InvalidArgument, "runtime options", errors.Join(faults...))
}

// Program is the OCI runtime for this machine, a path or a name.
func (o *Options) Program() string {
	if path := o.PlatformRuntimePaths[runtime.GOOS+"/"+runtime.GOARCH]; path != "" {
		return path
	}
	return o.Runtime
}

// Least memory limits, CRI-O's: below them the runtime itself is killed while it
// makes the container.
const (
	minMemory     = 12 << 20
	minMemoryCrun = 500 << 10
)

// MinMemoryBytes is the least memory limit for a container.
func (o *Options) MinMemoryBytes() int64 {
	switch {
	case o.MinMemory > 0:
		return int64(o.MinMemory)
	case filepath.Base(o.Program()) == "crun":
		return minMemoryCrun
	}
	return minMemory
}

// Apply puts the settings into p, which names the container already. It leaves
// what also depends on the specification (Systemd, the shortcuts, ExecCPU) to
// the caller, and the runtime's path, which has to be looked up.
func (o *Options) Apply(p *plan.Plan) {
	p.Root = filepath.Join(o.Root, p.Namespace)
	p.NoPivot, p.NoNewKeyring = o.NoPivotRoot, o.NoNewKeyring
	p.CriuImagePath, p.CriuWorkPath = o.CriuImagePath, o.CriuWorkPath
	p.CreateTimeout = int64(max(o.CreateTimeout.Duration, minCreateTimeout))
	p.MonitorEnv = o.MonitorEnv
	p.NoUnprivilegedPorts, p.NoUnprivilegedICMP = !o.UnprivilegedPorts, !o.UnprivilegedICMP
	p.PodProcess = o.PodProcess
	p.ShimCgroup = o.ShimCgroup
	p.MonitorCgroup = o.MonitorCgroup
	p.HeapBoundBytes = int64(o.HeapBound)
	p.Debug = p.Debug || o.Debug
	p.IoUID, p.IoGID = o.IoUID, o.IoGID
	p.Direct = o.Output == "direct"
	p.SpoolMaxBytes = int64(o.SpoolMax)
	p.LogDrivers = o.LogDrivers
	p.LogSizeMaxBytes, p.LogMaxFiles, p.LogGlobalMaxBytes = int64(o.LogSizeMax), o.LogMaxFiles, int64(o.LogGlobalSizeMax)
	p.LogLabels, p.LogTag = o.LogLabels, o.LogTag
	p.LogAllowedDirs, p.LogNoSync = o.LogAllowedDirs, o.NoSyncLog
	p.ExitDir, p.ExitCommand, p.ExitDelay = o.ExitDir, o.ExitCommand, int64(o.ExitDelay.Duration)
}
