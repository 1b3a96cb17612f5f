// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/options"
	"github.com/berthd/berth/shim/plan"
)

// spec is what the shim needs to know of a container's config.json. The rest is
// the runtime's.
type spec struct {
	Process struct {
		Terminal    bool   `json:"terminal"`
		OOMScoreAdj *int32 `json:"oomScoreAdj"`
	} `json:"process"`
	Hooks struct {
		Poststart []struct{} `json:"poststart"`
		Poststop  []struct{} `json:"poststop"`
	} `json:"hooks"`
	Annotations map[string]string `json:"annotations"`
	Linux       struct {
		CgroupsPath string `json:"cgroupsPath"`
		Namespaces  []struct {
			Type string `json:"type"`
			Path string `json:"path"`
		} `json:"namespaces"`
		Resources struct {
			Memory struct {
				Limit int64 `json:"limit"`
			} `json:"memory"`
			CPU struct {
				Cpus string `json:"cpus"`
			} `json:"cpu"`
		} `json:"resources"`
		IntelRdt *struct{} `json:"intelRdt"`
	} `json:"linux"`
}

// sandboxIDAnnotation is containerd's CRI plugin's.
const sandboxIDAnnotation = "io.kubernetes.cri.sandbox-id"

func readSpec(bundle string) (*spec, error) {
	path := filepath.Join(bundle, "config.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.FailedPrecondition, "bundle", err)
	}
	s := &spec{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fault.Wrap(fault.InvalidArgument, path, err)
	}
	return s, nil
}

// privatePID tells whether the container has a PID namespace of its own, whose
// end is that of all its processes.
func (s *spec) privatePID() bool {
	for _, ns := range s.Linux.Namespaces {
		if ns.Type == "pid" {
			return ns.Path == ""
		}
	}
	return false
}

// systemdPath tells whether the cgroups path has the form that only systemd's
// driver takes, slice:prefix:name. Few callers can ask for the driver in words.
func (s *spec) systemdPath() bool {
	parts := strings.Split(s.Linux.CgroupsPath, ":")
	return len(parts) == 3 && (parts[0] == "" || strings.HasSuffix(parts[0], ".slice")) && !strings.Contains(s.Linux.CgroupsPath, "/")
}

// firstCPU is the first of a cpuset such as "2-5,9"; "" for none.
func (s *spec) firstCPU() string {
	cpus := strings.FieldsFunc(s.Linux.Resources.CPU.Cpus, func(r rune) bool { return r < '0' || r > '9' })
	if len(cpus) == 0 {
		return ""
	}
	return cpus[0]
}

// apply puts into p what the specification says, beside options that are in it.
func (s *spec) apply(o *options.Options, p *plan.Plan) error {
	if limit, least := s.Linux.Resources.Memory.Limit, o.MinMemoryBytes(); limit > 0 && limit < least {
		return fault.New(fault.InvalidArgument, fmt.Sprintf("memory limit of %d bytes is below the minimum of %d bytes", limit, least))
	}
	p.Systemd = o.SystemdCgroup || s.systemdPath()
	p.SharedPidNS = !s.privatePID()
	p.Terminal = s.Process.Terminal
	p.SandboxID = s.Annotations[sandboxIDAnnotation]
	if o.ExecCPUAffinity == "first" {
		p.ExecCPU = s.firstCPU()
	}
	p.Native = o.Native
	// runc runs poststart hooks in create, crun in start.
	p.NativeStart = o.Native && len(s.Hooks.Poststart) == 0
	// What delete does beyond cgroups and state needs the runtime.
	p.NativeDelete = o.Native && len(s.Hooks.Poststop) == 0 && s.Linux.IntelRdt == nil && !p.Systemd
	return nil
}
