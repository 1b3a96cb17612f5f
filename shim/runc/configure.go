// SPDX-License-Identifier: Apache-2.0

package runc

import "github.com/berthd/berth/shim/plan"

// Configure makes r call the runtime that p names, in p's bundle.
func (r *Runtime) Configure(p *plan.Plan, environ []string) {
	r.Path, r.Root, r.Bundle, r.Systemd, r.Debug = p.Runtime, p.Root, p.Bundle, p.Systemd, p.Debug
	r.Env = append(environ[:len(environ):len(environ)], p.MonitorEnv...)
}
