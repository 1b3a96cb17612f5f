// SPDX-License-Identifier: Apache-2.0

package host

import (
	"path/filepath"
	"slices"
	"strings"
)

// Monitor is a process that a pod has beside its containers' own.
type Monitor struct {
	Pid  int
	Name string // of its program
	Of   string // id of the pod or container whose shim it is; empty for a shim's child
}

// Monitors finds them for a pod and its containers, given their ids and the
// containers' first processes: shims name an id in their arguments, and a shim's
// child that is no container's is stock's pause or the init of a shared process
// namespace.
func Monitors(ids []string, inits []int) []Monitor {
	all := processes()
	var found []Monitor
	for _, p := range all {
		name, of := p.shimOf(ids)
		if of == "" {
			continue
		}
		found = append(found, Monitor{Pid: p.pid, Name: name, Of: of})
		for _, child := range all {
			if child.ppid == p.pid && !slices.Contains(inits, child.pid) {
				found = append(found, Monitor{Pid: child.pid, Name: child.comm})
			}
		}
	}
	slices.SortFunc(found, func(a, b Monitor) int { return a.Pid - b.Pid })
	return found
}

// shimOf returns the shim's program and the id that it serves, if the process is
// a shim of one of ids. The kernel's name of a process says neither.
func (p process) shimOf(ids []string) (name, id string) {
	words := strings.Fields(p.args)
	if len(words) == 0 || !strings.HasPrefix(filepath.Base(words[0]), "containerd-shim") {
		return "", ""
	}
	for _, id := range ids {
		if slices.Contains(words, id) {
			return filepath.Base(words[0]), id
		}
	}
	return "", ""
}
