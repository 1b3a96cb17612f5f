// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/sandbox"
	"github.com/berthd/berth/shim/wire"
)

// Types of namespaces, as OCI names them.
const (
	network = "network"
	ipc     = "ipc"
	uts     = "uts"
	pid     = "pid"
	user    = "user"
)

// Whose a namespace of a pod's container is.
const (
	Own  = "pod"       // the pod's: at the path
	Node = "node"      // the host's
	Each = "container" // each container has its own
)

// recordVersion is that of Record.
const recordVersion = 1

// Record is what a pod is made of, for its members.
type Record struct {
	Version   int
	ID        string
	Namespace string
	Bundle    string
	// Owner is the process that the pod was made for, the sandbox's shim. It stays
	// the same through an upgrade.
	Owner Process
	// Namespaces is by type, with all of network, ipc, uts, pid and user.
	Namespaces map[string]Namespace
	// Hostname is what the pod's hostname file says.
	Hostname     string
	CgroupParent string `json:",omitempty"`
	MadeCgroup   bool   `json:",omitempty"`
	// Shm tells that the pod has a /dev/shm of its own, in its directory.
	Shm bool
	// Init is the first process of a shared process namespace.
	Init *Process  `json:",omitempty"`
	UIDs []Mapping `json:",omitempty"`
	GIDs []Mapping `json:",omitempty"`
	// MountLabel is the SELinux context of the pod's files, if it has one.
	MountLabel string `json:",omitempty"`
}

// Namespace tells whose a namespace is, and where if it is the pod's.
type Namespace struct {
	Mode string
	Path string `json:",omitempty"`
}

// Process names a process for good.
type Process struct {
	Pid       int
	StartTime uint64 // in clock ticks since boot
}

// Alive tells whether the process runs, or waits to be reaped.
func (p Process) Alive() bool {
	return p.Pid > 0 && p.StartTime != 0 && process.StartTime(p.Pid) == p.StartTime
}

// Read returns the record of the pod in the directory dir. NotFound: there is no
// pod. FailedPrecondition: what is there cannot be understood.
func Read(dir string) (*Record, error) {
	b, err := os.ReadFile(filepath.Join(dir, sandbox.RecordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.NotFound, "record of the pod", err)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "record of the pod", err)
	}
	r := &Record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fault.Wrap(fault.FailedPrecondition, "record of the pod in "+dir, err)
	}
	if r.Version != recordVersion {
		return nil, fault.New(fault.FailedPrecondition, "record of the pod in "+dir+": version "+strconv.Itoa(r.Version)+" is of another berth")
	}
	for _, typ := range [...]string{network, ipc, uts, pid, user} {
		ns := r.Namespaces[typ]
		known := ns.Mode == Node || ns.Mode == Each || ns.Mode == Own && ns.Path != ""
		if !known { // never to be read as the host's
			return nil, fault.New(fault.FailedPrecondition, "record of the pod in "+dir+": says nothing of the "+typ+" namespace")
		}
	}
	return r, nil
}

// spec is the part of an OCI specification that a sandbox without a process has.
type spec struct {
	Version     string            `json:"ociVersion"`
	Hostname    string            `json:"hostname,omitempty"`
	Annotations map[string]string `json:"annotations"`
	Linux       specLinux         `json:"linux"`
}

type specLinux struct {
	UIDs        []specMapping     `json:"uidMappings,omitempty"`
	GIDs        []specMapping     `json:"gidMappings,omitempty"`
	Sysctl      map[string]string `json:"sysctl,omitempty"`
	CgroupsPath string            `json:"cgroupsPath,omitempty"`
	Namespaces  []specNamespace   `json:"namespaces"`
	MountLabel  string            `json:"mountLabel,omitempty"`
}

type specMapping struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
	Size        uint32 `json:"size"`
}

type specNamespace struct {
	Type string `json:"type"`
	Path string `json:"path,omitempty"`
}

// ociVersion is the version of the specification whose fields are used.
const ociVersion = "1.2.0"

// spec describes the pod to containerd and its NRI plugins. The pod's cgroup has
// no limits from here: those are the kubelet's, which puts containers and overhead
// together. podsandbox limits only pause itself.
func (p *planned) spec() *spec {
	s := &spec{Version: ociVersion, Annotations: p.annotations()}
	s.Linux.CgroupsPath, s.Linux.MountLabel = p.cgroupParent, p.mountLabel
	if p.owns(uts) {
		s.Hostname = p.hostname
	}
	for _, typ := range [...]string{ipc, uts, network, user} {
		if p.owns(typ) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specNamespace{typ, p.namespaces[typ].Path})
		}
	}
	switch ns := p.namespaces[pid]; ns.Mode {
	case Own, Each: // each its own: no path
		s.Linux.Namespaces = append(s.Linux.Namespaces, specNamespace{pid, ns.Path})
	}
	for _, m := range p.uids {
		s.Linux.UIDs = append(s.Linux.UIDs, specMapping{m.ContainerID, m.HostID, m.Length})
	}
	for _, m := range p.gids {
		s.Linux.GIDs = append(s.Linux.GIDs, specMapping{m.ContainerID, m.HostID, m.Length})
	}
	if len(p.sysctls) > 0 {
		s.Linux.Sysctl = make(map[string]string, len(p.sysctls))
	}
	for _, c := range p.sysctls {
		s.Linux.Sysctl[c.name] = c.value
	}
	return s
}

// annotations are those that containerd's CRI gives the specification of a
// sandbox.
func (p *planned) annotations() map[string]string {
	const prefix = "io.kubernetes.cri."
	c := p.config
	all := map[string]string{
		prefix + "container-type":        "sandbox",
		prefix + "sandbox-id":            p.id,
		prefix + "sandbox-name":          c.Metadata.Name,
		prefix + "sandbox-namespace":     c.Metadata.Namespace,
		prefix + "sandbox-uid":           c.Metadata.UID,
		prefix + "sandbox-log-directory": c.LogDir,
	}
	if r := c.Linux.Resources; r != nil {
		all[prefix+"sandbox-cpu-period"] = strconv.FormatInt(r.CPUPeriod, 10)
		all[prefix+"sandbox-cpu-quota"] = strconv.FormatInt(r.CPUQuota, 10)
		all[prefix+"sandbox-cpu-shares"] = strconv.FormatInt(r.CPUShares, 10)
		all[prefix+"sandbox-memory"] = strconv.FormatInt(r.Memory, 10)
	}
	for i := range p.request.Annotations {
		all[p.request.Annotations[i].Key] = p.request.Annotations[i].Value
	}
	return all
}

// info is the part of CRI's SandboxInfo that a shim knows, but for the processStatus,
// which changes.
type info struct {
	Pid         uint32          `json:"pid"`
	NetNSClosed bool            `json:"netNamespaceClosed"`
	RuntimeType string          `json:"runtimeType"`
	Config      *config         `json:"config"`
	RuntimeSpec json.RawMessage `json:"runtimeSpec"`
}

// runtimeType is the name of this runtime in containerd's configuration.
const runtimeType = "io.containerd.berth.v1"

// write stores what others read about the pod; the record comes last, since with
// it the pod exists.
func (p *planned) write(r *Record) error {
	text, err := p.store(sandbox.SpecFile, p.spec())
	if err != nil {
		return err
	}
	if _, err := p.store(sandbox.InfoFile, &info{RuntimeType: runtimeType, Config: p.config, RuntimeSpec: text}); err != nil {
		return err
	}
	_, err = p.store(sandbox.RecordFile, r)
	return err
}

func (p *planned) store(name string, value any) ([]byte, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, name, err)
	}
	return text, kernel("write", os.WriteFile(filepath.Join(p.dir, name), text, 0o600))
}

// answer is what the resident shim learns of its pod.
func (r *Record) answer() []byte {
	var b []byte
	if r.Init != nil {
		b = wire.AppendVarint(b, 1, uint64(r.Init.Pid))
		b = wire.AppendVarint(b, 2, r.Init.StartTime)
	}
	b = wire.AppendString(b, 3, r.CgroupParent)
	return wire.AppendBool(b, 4, r.MadeCgroup)
}
