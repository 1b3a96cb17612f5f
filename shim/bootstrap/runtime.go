// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"

	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/runc"
)

// withRuntime calls f, in a job, with the runtime that p names: the resident's
// own code for calling it, on a loop that lives as long.
func withRuntime(p *plan.Plan, f func(r *runc.Runtime) error) error {
	l, err := loop.New()
	if err != nil {
		return err
	}
	r := &runc.Runtime{Loop: l, Children: process.New(l)}
	r.Configure(p, os.Environ())
	var ferr error
	l.Go(func() { ferr = f(r) }, l.Stop)
	if err := l.Run(); err != nil {
		return err
	}
	return ferr
}
