// SPDX-License-Identifier: Apache-2.0

// Package plan is what the transient `start` tells the resident shim about
// its container: everything that would need JSON, TOML or a search of PATH to
// find out, found out once.
//
// A Plan goes to the resident through a memfd and stays in the bundle as a
// file, where `delete` and a program that replaces the resident read it. The
// encoding is protobuf's: a reader skips what it does not know and leaves zero
// what an older writer did not say, so every field's zero value must be the
// safe choice. Field numbers are never reused.
//
// The package owns the data and its encoding, not how it is found
// (shim/bootstrap, shim/options) nor what is done with it.
package plan

import "golang.org/x/sys/unix"

// Names of the files in a bundle that berth's parts agree on.
const (
	// File holds the encoded Plan.
	File = "berth.plan"
	// ServerFile holds the resident's "<pid> <start time>", see Identity.
	ServerFile = "shim.pid"
	// InitPidFile is written by the OCI runtime.
	InitPidFile = "init.pid"
	// ExitFile holds init's exit code in decimal once its output is complete too.
	ExitFile = "exit"
	// EndFile holds "<code> <unix nanoseconds> <pid>" as soon as init has ended,
	// for `delete` after the shim's death.
	EndFile = "berth.end"
	// VerbExit is the command of the shim's own program that waits, and becomes the
	// exit command.
	VerbExit = "exit-command"
	// OOMFile marks a container that the kernel killed for its memory.
	OOMFile = "oom"
	// SeccompFile marks a container that was ended for system calls that it may not
	// make, and lists them.
	SeccompFile = "seccomp"
)

// ServerFD and PlanFD are the descriptors a fresh resident inherits.
const (
	ServerFD = 3
	PlanFD   = 4
)

// Plan describes one container and the settings that apply to it.
type Plan struct {
	// Who and where.
	Namespace string
	ID        string
	Bundle    string // absolute
	Work      string // absolute; persistent, "" when the bundle has no `work` link
	Socket    string // path of the shim's own socket
	Binary    string // the shim's program, for handover and for transient helpers

	// containerd, as it introduced itself. Addresses are paths, without scheme.
	Address          string
	TTRPCAddress     string
	ContainerdBinary string
	LogLevel         int32 // containerd's scale: 0 info, negative more verbose
	Debug            bool

	// Options as `start` received them, to recognise them in Create: the type
	// ("" when there were none) and the FNV-1a sum of the value.
	OptionsType string
	OptionsSum  uint64

	// The OCI runtime.
	Runtime       string // absolute path
	Root          string // its state root, namespace included
	Systemd       bool
	NoPivot       bool
	NoNewKeyring  bool
	CriuImagePath string
	CriuWorkPath  string
	CreateTimeout int64    // nanoseconds; 0: DefaultCreateTimeout
	ExecCPU       string   // the CPU on which execs begin; "": the runtime's choice
	MonitorEnv    []string // KEY=VALUE for the runtime's processes

	// Shortcuts around the runtime that settings and spec allow.
	Native       bool // kill, pause, resume, pids by cgroup
	NativeStart  bool
	NativeDelete bool

	// What the spec says.
	SharedPidNS bool // processes may outlive init: they are killed at its end
	Terminal    bool
	SandboxID   string
	UsernsPath  string // the pod's user namespace, when it has its own

	// The shim of a pod without a pause container serves the Sandbox API. It has no
	// container: what is above about one is not used.
	Sandboxer           bool
	NoUnprivilegedPorts bool // the pod's processes need a capability for ports below 1024
	NoUnprivilegedICMP  bool // and for ping
	PodProcess          bool // the pod has a process of its own

	// The resident itself.
	ShimCgroup     string
	MonitorCgroup  string
	HeapBoundBytes int64 // exec in place past it; 0: the resident's default

	// Standard IO.
	IoUID         uint32
	IoGID         uint32
	Direct        bool
	SpoolMaxBytes int64 // 0: the spool's default; negative: no spool

	// Logs written by berth itself.
	LogDrivers        []string
	LogSizeMaxBytes   int64
	LogMaxFiles       int32
	LogGlobalMaxBytes int64
	LogLabels         []string
	LogTag            string
	LogAllowedDirs    []string
	LogNoSync         bool

	// SeccompSocket is where the runtime sends filters whose calls the shim answers, ""
	// for none: with SeccompErrno, 0 for EPERM. With SeccompStop they end the container.
	SeccompSocket string
	SeccompErrno  int32
	SeccompStop   bool

	// What is left of a container that has ended.
	ExitDir     string   // the exit file goes there too, under the container's ID
	ExitCommand []string // with arguments; executed when everything else is done
	ExitDelay   int64    // nanoseconds, before the command
	OOMScore    int32    // that of the shim's starter, which the command gets
}

// In tells whether path is the bundle, which its user may see behind a symbolic link:
// the shim knows it as its working directory, without any.
func (p *Plan) In(path string) bool {
	var own, other unix.Stat_t
	return path == p.Bundle || unix.Stat(p.Bundle, &own) == nil && unix.Stat(path, &other) == nil &&
		own.Dev == other.Dev && own.Ino == other.Ino
}
