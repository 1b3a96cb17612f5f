// SPDX-License-Identifier: Apache-2.0

// Package host is what integration tests and measurements stand on: surroundings
// that nobody else touches (Enter), a containerd of their own in them (Daemon),
// and a count of everything a container can leave behind (Census).
//
// It builds nothing. External programs come from `make deps`, berth's own from
// `make build`; see Deps and Build.
package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Deps returns the path of an external program or file below .deps, for example
// "bin/runc" or "images/busybox.tar". BERTH_DEPS overrides the folder.
func Deps(name string) string { return filepath.Join(folder("BERTH_DEPS", ".deps"), name) }

// Build returns the path of a file below .build, for example
// "bin/containerd-shim-berth-v1". BERTH_BUILD overrides the folder.
func Build(name string) string { return filepath.Join(folder("BERTH_BUILD", ".build"), name) }

// Containerd is the daemon to test with: BERTH_TEST_CONTAINERD, or that of .deps.
func Containerd() string {
	if program := os.Getenv("BERTH_TEST_CONTAINERD"); program != "" {
		return program
	}
	return Deps("bin/containerd")
}

// Ctr is the ctr beside Containerd.
func Ctr() string { return filepath.Join(filepath.Dir(Containerd()), "ctr") }

func folder(env, name string) string {
	if dir := os.Getenv(env); dir != "" {
		return dir
	}
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, name)
		}
		dir = filepath.Dir(dir)
	}
	return name
}

// Images that `make deps` leaves in .deps/images.
const (
	Busybox = "berth.test/busybox:1"
	Pause   = "berth.test/pause:1"
	Web     = "berth.test/web:1"
)

// Runtime is a way to run a container's shim.
type Runtime struct {
	Label string // for the names of tests
	Name  string // the runtime's name in containerd's records
	Path  string // the shim's program, where it is not found by name
	Berth bool   // the shim is berth's
}

// Binary is the shim's program.
func (r Runtime) Binary() string {
	switch {
	case r.Path != "":
		return r.Path
	case r.Berth:
		return Build("bin/containerd-shim-berth-v1")
	}
	return Deps("bin/containerd-shim-runc-v2")
}

// Berth's two forms, and containerd's own shim.
var (
	Native = Runtime{Label: "berth", Name: "io.containerd.berth.v1", Berth: true}
	DropIn = Runtime{Label: "dropin", Name: "io.containerd.runc.v2", Path: Build("bin/containerd-shim-berth-v1"), Berth: true}
	Stock  = Runtime{Label: "stock", Name: "io.containerd.runc.v2"}
)

// Runtimes returns the runtimes to test: both forms of berth's, or what
// BERTH_TEST_RUNTIME names. "stock" is for testing the tests.
func Runtimes() []Runtime {
	want := os.Getenv("BERTH_TEST_RUNTIME")
	if want == "" {
		return []Runtime{Native, DropIn}
	}
	for _, r := range []Runtime{Native, DropIn, Stock} {
		if r.Label == want {
			return []Runtime{r}
		}
	}
	panic("BERTH_TEST_RUNTIME: unknown runtime " + want)
}

// Unified tells whether the machine's only cgroup hierarchy is version 2.
func Unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// Systemd tells whether systemd is the machine's init.
func Systemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// check returns an error that names all missing files.
func check(paths ...string) error {
	var errs []error
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("missing (run `make deps build`): %w", errors.Join(errs...))
	}
	return nil
}
