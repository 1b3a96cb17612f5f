// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"time"
)

// Creation says how a container is created.
type Creation struct {
	ID            string
	PidFile       string // relative to the bundle, or absolute
	ConsoleSocket string // "" without a terminal
	NoPivot       bool
	NoNewKeyring  bool
	Files         [3]int // the container's 0, 1, 2; -1: /dev/null
	Timeout       time.Duration
}

func (c *Creation) args(bundle string) []string {
	args := []string{"create", "--bundle", bundle, "--pid-file", c.PidFile}
	args = appendFlag(args, "--console-socket", c.ConsoleSocket)
	args = appendBool(args, "--no-pivot", c.NoPivot)
	args = appendBool(args, "--no-new-keyring", c.NoNewKeyring)
	return append(args, c.ID)
}

// Create makes the container of the bundle; its init waits for Start. After
// DeadlineExceeded, or any other error, half of a container may exist: Delete it.
func (r *Runtime) Create(c *Creation) error {
	return r.run(&call{
		verb: "create", args: c.args(r.Bundle),
		files: ofProcess(c.Files, c.ConsoleSocket != ""), limit: c.Timeout,
	})
}

// Start runs the init of a created container.
func (r *Runtime) Start(id string) error {
	return r.run(&call{verb: "start", args: []string{"start", id}, files: noFiles, limit: callTimeout})
}

// Execution says how another process is started in a container.
type Execution struct {
	ID            string
	ProcessFile   string // the process's JSON
	PidFile       string
	ConsoleSocket string // "" without a terminal
	Files         [3]int
	Timeout       time.Duration
}

func (e *Execution) args() []string {
	args := []string{"exec", "--detach", "--process", e.ProcessFile, "--pid-file", e.PidFile}
	args = appendFlag(args, "--console-socket", e.ConsoleSocket)
	return append(args, e.ID)
}

// Exec starts a process in a running container.
func (r *Runtime) Exec(e *Execution) error {
	return r.run(&call{
		verb: "exec", args: e.args(),
		files: ofProcess(e.Files, e.ConsoleSocket != ""), limit: e.Timeout,
	})
}

// Kill sends signal to the container's init, with all to each of its processes.
func (r *Runtime) Kill(id, signal string, all bool) error {
	args := appendBool([]string{"kill"}, "--all", all)
	return r.run(&call{verb: "kill", args: append(args, id, signal), files: noFiles, limit: callTimeout})
}

// Delete removes a stopped container. With force it is killed first, for which
// runc takes 100 ms at least. One that does not exist is NotFound.
func (r *Runtime) Delete(id string, force bool) error {
	args := appendBool([]string{"delete"}, "--force", force)
	return r.run(&call{verb: "delete", args: append(args, id), files: noFiles, limit: callTimeout})
}

// Pause freezes the container.
func (r *Runtime) Pause(id string) error {
	return r.run(&call{verb: "pause", args: []string{"pause", id}, files: noFiles, limit: callTimeout})
}

// Resume thaws the container.
func (r *Runtime) Resume(id string) error {
	return r.run(&call{verb: "resume", args: []string{"resume", id}, files: noFiles, limit: callTimeout})
}

// Update applies resources, the JSON of LinuxResources in the regular file fd,
// read from its offset on.
func (r *Runtime) Update(id string, fd int) error {
	return r.run(&call{
		verb: "update", args: []string{"update", "--resources", "-", id},
		files: [3]int{fd, -1, words}, limit: callTimeout,
	})
}

// Features returns the runtime's features as JSON (features.md of the OCI
// runtime specification).
func (r *Runtime) Features() ([]byte, error) {
	return r.output("features", []string{"features"})
}

func appendFlag(args []string, flag, value string) []string {
	if value == "" {
		return args
	}
	return append(args, flag, value)
}

func appendBool(args []string, flag string, set bool) []string {
	if !set {
		return args
	}
	return append(args, flag)
}
