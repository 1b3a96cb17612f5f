// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/join"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/seccomp"
)

// notifierAnnotations ask for a report of the system calls that a container's seccomp
// profile forbids: CRI-O's, older and newer. With the value "stop" the container is
// stopped for them, with others it is not.
var notifierAnnotations = [...]string{"io.kubernetes.cri-o.seccompNotifierAction", "seccomp-notifier-action.crio.io"}

const (
	notifierStop = "stop"
	actionErrno  = "SCMP_ACT_ERRNO"
	actionNotify = "SCMP_ACT_NOTIFY"
)

// profile is what of linux.seccomp is looked at.
type profile struct {
	DefaultAction   string  `json:"defaultAction"`
	DefaultErrnoRet int32   `json:"defaultErrnoRet"`
	ListenerPath    string  `json:"listenerPath"`
	Syscalls        []rules `json:"syscalls"`
}

type rules struct {
	Names  []string `json:"names"`
	Action string   `json:"action"`
}

// notify has the shim asked about what the container's profile forbids, if an
// annotation says so. A container without a profile, or with another listener, stays
// as it is.
func (inv *Invocation) notify(s *spec, p *plan.Plan) error {
	action, asked := "", false
	for _, key := range notifierAnnotations {
		if value, found := s.Annotations[key]; found {
			action, asked = value, true
		}
	}
	if !asked {
		return nil
	}
	path := filepath.Join(inv.Bundle, "config.json")
	text, err := os.ReadFile(path)
	if err != nil {
		return fault.Wrap(fault.FailedPrecondition, "bundle", err)
	}
	socket := seccomp.Socket(p.Socket)
	text, errno, err := withListener(text, socket)
	if err != nil {
		return fault.Wrap(fault.InvalidArgument, path, err)
	}
	if text == nil {
		inv.note("warning", "no notice of forbidden system calls: the container has no seccomp profile that refuses what it does not list")
		return nil
	}
	p.SeccompSocket, p.SeccompErrno, p.SeccompStop = socket, errno, action == notifierStop
	return join.Replace(path, text)
}

// withListener changes a config.json so that the calls which its profile does not
// mention are asked about at socket. It returns nil if that makes no sense, and the
// error number that they had. The kernel decides as before about calls that are refused
// for their arguments, which would be one rule too many for libseccomp; and about
// write, with which the runtime sends the filter.
func withListener(text []byte, socket string) ([]byte, int32, error) {
	var config, linux, raw map[string]json.RawMessage
	var p profile
	err := json.Unmarshal(text, &config)
	if err == nil && config["linux"] != nil {
		err = json.Unmarshal(config["linux"], &linux)
	}
	if err != nil || linux["seccomp"] == nil {
		return nil, 0, err
	}
	if err := json.Unmarshal(linux["seccomp"], &p); err != nil {
		return nil, 0, err
	}
	if p.DefaultAction != actionErrno || p.ListenerPath != "" {
		return nil, 0, nil
	}
	known := map[string]bool{"write": true}
	for _, r := range p.Syscalls {
		for _, name := range r.Names {
			known[name] = true
		}
	}
	rest := rules{Action: actionNotify, Names: slices.DeleteFunc(seccomp.Names(), func(name string) bool { return known[name] })}
	var all []json.RawMessage
	if err := json.Unmarshal(linux["seccomp"], &raw); err != nil {
		return nil, 0, err
	}
	if raw["syscalls"] != nil {
		if err := json.Unmarshal(raw["syscalls"], &all); err != nil {
			return nil, 0, err
		}
	}
	one, _ := json.Marshal(rest) // what was just read, and strings, do not fail
	raw["syscalls"], _ = json.Marshal(append(all, one))
	raw["listenerPath"], _ = json.Marshal(socket)
	linux["seccomp"], _ = json.Marshal(raw)
	config["linux"], _ = json.Marshal(linux)
	text, err = json.Marshal(config)
	return text, p.DefaultErrnoRet, err
}
