// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"maps"
	"slices"
	"strings"
)

// directing are the beginnings of annotations that direct a runtime rather than
// tell something. Only they need to be allowed; a pod's others are its own.
var directing = []string{
	// CRI-O's, and those of its high-performance handlers.
	"io.kubernetes.cri-o.",
	"seccomp-profile.kubernetes.cri-o.io",
	"cpu-load-balancing.crio.io",
	"cpu-quota.crio.io",
	"cpu-c-states.crio.io",
	"cpu-freq-governor.crio.io",
	"cpu-shared.crio.io",
	"irq-load-balancing.crio.io",
	"io.containers.trace-syscall",
	// crun's and Kata's.
	"run.oci.",
	"module.wasm.image/",
	"io.katacontainers.",
}

// Directs tells whether an annotation is for the runtime, and has to be allowed. Those
// of a pod are for all of its containers.
func Directs(key string) bool {
	return slices.ContainsFunc(directing, func(beginning string) bool { return strings.HasPrefix(key, beginning) })
}

// Annotations returns what of a pod's or container's annotations is to be in
// force: what does not direct the runtime, what may, and the handler's defaults
// where nothing is set. The keys of the others are returned in order, for a log.
func (h *Handler) Annotations(given map[string]string) (allowed map[string]string, stripped []string) {
	allowed = maps.Clone(h.DefaultAnnotations)
	if allowed == nil {
		allowed = make(map[string]string, len(given))
	}
	for key, value := range given {
		if Directs(key) && !h.allows(key) {
			stripped = append(stripped, key)
			continue
		}
		allowed[key] = value
	}
	slices.Sort(stripped)
	return allowed, stripped
}

// allows tells whether an annotation is listed, as it is or for one container.
func (h *Handler) allows(key string) bool {
	return slices.ContainsFunc(h.AllowedAnnotations, func(entry string) bool {
		rest, ok := strings.CutPrefix(key, entry)
		if !ok || rest == "" {
			return ok
		}
		// Names of containers have neither dots nor slashes.
		return (rest[0] == '.' || rest[0] == '/') && len(rest) > 1 && !strings.ContainsAny(rest[1:], "./")
	})
}
