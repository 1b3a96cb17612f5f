// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"strings"

	"github.com/berthd/berth/shim/plan"
)

// Configure makes r call the runtime that p names, in p's bundle, with the
// environment environ.
func (r *Runtime) Configure(p *plan.Plan, environ []string) {
	r.Path, r.Root, r.Bundle, r.Systemd, r.Debug = p.Runtime, p.Root, p.Bundle, p.Systemd, p.Debug
	r.Env = make([]string, 0, len(environ)+len(p.MonitorEnv))
	for _, kv := range environ {
		if !tunesGo(kv) {
			r.Env = append(r.Env, kv)
		}
	}
	r.Env = append(r.Env, p.MonitorEnv...)
}

// tunesGo tells whether kv sets up Go's runtime. What suits the shim would go
// through the OCI runtime to its hooks, where it may hurt. (It makes no
// difference to runc's own speed.)
func tunesGo(kv string) bool {
	for _, name := range [...]string{"GOGC=", "GOMAXPROCS=", "GOMEMLIMIT="} {
		if strings.HasPrefix(kv, name) {
			return true
		}
	}
	return false
}
