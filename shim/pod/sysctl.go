// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/berthd/berth/shim/fault"
)

// sysctl is one of a pod's, checked: the kernel keeps it in a namespace that the
// pod has for itself.
type sysctl struct {
	name  string // as it was asked for
	path  string // below /proc/sys
	value string
}

// ipcSysctls are those that each IPC namespace has, apart from fs.mqueue.*
// (ipc_namespaces(7)).
var ipcSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem",
	"kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
}

const (
	domainPath   = "kernel/domainname"
	hostnamePath = "kernel/hostname"
	portsPath    = "net/ipv4/ip_unprivileged_port_start"
	pingPath     = "net/ipv4/ping_group_range"
)

// checkSysctls refuses what would change the host, and returns the others in the
// order of their names.
func (p *planned) checkSysctls(asked map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		s := sysctl{name: name, value: asked[name]}
		path, ok := sysctlPath(name)
		if !ok {
			return invalid("sysctl " + strconv.Quote(name) + ": not a name of one")
		}
		s.path = path
		if strings.ContainsFunc(s.value, func(r rune) bool { return r < ' ' && r != '\t' }) {
			return invalid("sysctl " + name + ": control character in the value " + strconv.Quote(s.value))
		}
		if p.hasSysctl(path) {
			return invalid("sysctl " + name + ": named twice")
		}
		if err := p.ownsSysctl(&s); err != nil {
			return err
		}
		p.sysctls = append(p.sysctls, s)
	}
	return nil
}

// ownsSysctl tells whether a sysctl is of a namespace that the pod has for itself.
func (p *planned) ownsSysctl(s *sysctl) error {
	var owned bool
	var namespace string
	switch {
	case strings.HasPrefix(s.path, "net/"):
		owned, namespace = p.owns(network), "network"
	case slices.Contains(ipcSysctls, s.path), strings.HasPrefix(s.path, "fs/mqueue/"):
		owned, namespace = p.owns(ipc), "IPC"
	case s.path == domainPath, s.path == hostnamePath:
		owned, namespace = p.owns(uts), "UTS"
	default:
		return invalid("sysctl " + s.name + ": not namespaced, it would change the host")
	}
	if !owned {
		return invalid("sysctl " + s.name + ": the pod shares its " + namespace + " namespace with the host")
	}
	// One name for one thing: the pod's hostname has a field of its own.
	if s.path == hostnamePath && s.value != p.hostname {
		return invalid("sysctl " + s.name + ": " + strconv.Quote(s.value) + " is not the pod's hostname " + strconv.Quote(p.hostname))
	}
	return nil
}

// addDefaults adds what podsandbox sets in each network namespace of its own
// unless the pod says otherwise. The ping range names groups of the host, of which
// a user namespace has not all.
func (p *planned) addDefaults(m *Maker) {
	if !p.owns(network) {
		return
	}
	if m.Ports && !p.hasSysctl(portsPath) {
		p.sysctls = append(p.sysctls, sysctl{"net.ipv4.ip_unprivileged_port_start", portsPath, "0"})
	}
	if m.ICMP && !p.owns(user) && !p.hasSysctl(pingPath) {
		p.sysctls = append(p.sysctls, sysctl{"net.ipv4.ping_group_range", pingPath, "0 2147483647"})
	}
}

func (p *planned) hasSysctl(path string) bool {
	return slices.ContainsFunc(p.sysctls, func(s sysctl) bool { return s.path == path })
}

// sysctlPath turns a name into a path below /proc/sys, as sysctl.d(5) has it: the
// first separator decides what the other one is, a part of a name. So
// net.ipv4.conf.eth0/100.mtu and net/ipv4/conf/eth0.100/mtu are the same.
func sysctlPath(name string) (string, bool) {
	path := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		path = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsFunc(part, unusual) {
			return "", false
		}
	}
	return path, strings.Contains(path, "/")
}

// unusual tells whether r is in no name of a sysctl or network interface.
func unusual(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("-_.:@+", r)
}

func invalid(text string) error { return fault.New(fault.InvalidArgument, text) }
