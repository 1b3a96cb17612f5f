// SPDX-License-Identifier: Apache-2.0

// Package doctor finds out what a machine lacks for which of berth's features. It
// looks at the kernel, the cgroups, containerd, CNI and the programs that are
// executed, and changes nothing. It prints nothing either: an examination is data.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/client"
)

// Status is how a check came out.
type Status string

const (
	// OK: it is there.
	OK Status = "ok"
	// Warn: some feature is not to be had, or works in a lesser way.
	Warn Status = "warn"
	// Missing: pods and containers cannot be run as they should.
	Missing Status = "missing"
)

// Check is one finding.
type Check struct {
	// Name is fixed and lower case, for programs.
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Found says what there is, on one line.
	Found string `json:"found"`
	// NeededFor says which features depend on it.
	NeededFor string `json:"neededFor"`
	// Remedy says what to do. Empty if the status is OK.
	Remedy string `json:"remedy,omitempty"`
}

// Doctor examines one machine. Its fields say where to look.
type Doctor struct {
	// Client of containerd, nil if there is none.
	Client *client.Client
	// ConfDir and BinDirs are CNI's. Default: as in package network.
	ConfDir string
	BinDirs []string
	// Handlers is the configuration of runtime handlers. Default:
	// handler.DefaultPath.
	Handlers string
	// Path is the search path for programs. Default: that of containerd, or this
	// process's own if it is not known.
	Path string
	// root is put before paths of /proc, /sys and /run, for tests.
	root string
}

// patience bounds a single question to containerd or a program.
const patience = 10 * time.Second

// Examine makes all checks, in the order in which they should be read. It runs
// for a second or so.
func (d *Doctor) Examine(ctx context.Context) []Check {
	var all []Check
	for _, part := range []func(context.Context) []Check{
		d.kernel, d.cgroups, d.security, d.containerd, d.cri, d.verifier, d.programs, d.cni, d.configuration,
	} {
		ctx, cancel := context.WithTimeout(ctx, patience)
		all = append(all, part(ctx)...)
		cancel()
	}
	return all
}

// Worst is the worst status of checks, OK for none.
func Worst(checks []Check) Status {
	rank := map[Status]int{OK: 0, Warn: 1, Missing: 2}
	worst := OK
	for _, c := range checks {
		if cmp.Compare(rank[c.Status], rank[worst]) > 0 {
			worst = c.Status
		}
	}
	return worst
}

// feature is what a check is about, before it is known how it comes out.
type feature struct {
	name, neededFor, remedy string
	without                 Status // the status if it is not there
}

// is makes a check of a feature that is there or not.
func (f feature) is(there bool, found string, args ...any) Check {
	if len(args) > 0 {
		found = fmt.Sprintf(found, args...)
	}
	c := Check{Name: f.name, Status: OK, Found: found, NeededFor: f.neededFor}
	if !there {
		c.Status, c.Remedy = f.without, f.remedy
	}
	return c
}

// by makes a check of something that was tried.
func (f feature) by(err error, found string) Check {
	if err != nil {
		return f.is(false, "%s", oneLine(err.Error()))
	}
	return f.is(true, "%s", found)
}
