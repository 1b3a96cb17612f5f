// SPDX-License-Identifier: Apache-2.0

// Package bootstrap is the transient half of the shim's program: the commands
// that containerd executes (start, delete, -info, -v) and those with which the
// resident half has work done that needs a parser (update, options, make-pod).
//
// It decides what the resident is told (shim/plan) and how it comes to life. It
// serves nothing. As one program holds both halves, its package variables are
// the resident's too: none that costs memory.
package bootstrap

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/options"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/runc"
	"github.com/berthd/berth/shim/sandbox"
)

// Name is the runtime that the shim implements, as containerd names it.
const Name = "io.containerd.berth.v1"

// apiVersion is the Task API that the shim tells containerd. With 2 containerd
// starts a shim for every container, in pods too; with 3 it would send all
// containers of a pod to the sandbox's. No other code may assume either.
const apiVersion = 2

// Invocation is a parsed command line of the shim, which containerd defines.
type Invocation struct {
	Namespace     string
	ID            string
	Address       string // of containerd's gRPC socket
	PublishBinary string // containerd's program
	Bundle        string // "" : the working directory
	Debug         bool
	Version       bool
	Info          bool
	Verb          string   // "": serve
	Args          []string // behind the verb
}

// Parse reads args, which do not include the program's name. Flags come first
// and have one dash or two; package flag is left out for what its
// initialisation costs the resident.
func Parse(args []string) (*Invocation, error) {
	inv := &Invocation{}
	texts := map[string]*string{
		"namespace": &inv.Namespace, "id": &inv.ID, "address": &inv.Address, "publish-binary": &inv.PublishBinary,
		"bundle": &inv.Bundle,
		// What older containerds pass and nobody uses.
		"socket": new(string), "debug-socket": new(string),
	}
	switches := map[string]*bool{
		"debug": &inv.Debug, "v": &inv.Version, "version": &inv.Version, "info": &inv.Info,
	}
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		name := strings.TrimPrefix(strings.TrimPrefix(args[0], "-"), "-")
		args = args[1:]
		name, value, inline := strings.Cut(name, "=")
		switch {
		case switches[name] != nil && !inline:
			*switches[name] = true
		case texts[name] == nil:
			return nil, fault.New(fault.InvalidArgument, "unknown flag -"+name)
		case inline:
			*texts[name] = value
		case len(args) == 0:
			return nil, fault.New(fault.InvalidArgument, "flag -"+name+" needs a value")
		default:
			*texts[name], args = args[0], args[1:]
		}
	}
	if len(args) > 0 {
		inv.Verb, inv.Args = args[0], args[1:]
	}
	return inv, nil
}

// Serves tells whether the invocation is for the resident half.
func (inv *Invocation) Serves() bool { return inv.Verb == "" && !inv.Info && !inv.Version }

// Host is the world around an invocation, which tests replace.
type Host struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer // warnings of delete only: with start, containerd takes stderr for the answer
	// Version is the program's.
	Version string
	// Settings is the path of the host's TOML file.
	Settings string
	// SocketDir is where sockets go when containerd does not say.
	SocketDir string
	// Binary is the path of this program.
	Binary string
	// PodState is the directory below which pods have theirs.
	PodState string
}

// defaultSocketDir is the one of containerd's own shim.
const defaultSocketDir = "/run/containerd/s"

// System returns the real world.
func System(version string) (*Host, error) {
	binary, err := os.Executable()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "own path", err)
	}
	return &Host{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Version: version, Settings: options.HostFile, SocketDir: defaultSocketDir, Binary: binary, PodState: sandbox.State,
	}, nil
}

// Run does what the invocation says and writes the answer to h.Stdout, whole or
// not at all.
func (h *Host) Run(inv *Invocation) error {
	switch {
	case inv.Version:
		return h.version()
	case inv.Info:
		return h.info()
	}
	if err := h.complete(inv); err != nil {
		return err
	}
	switch inv.Verb {
	case "start":
		return h.start(inv)
	case "delete":
		return h.delete(inv)
	case runc.VerbUpdate:
		return h.update(inv)
	case runc.VerbOptions:
		return h.options(inv)
	case plan.VerbExit:
		return exitCommand(inv)
	case sandbox.VerbMake:
		return h.makePod(inv)
	}
	return fault.New(fault.InvalidArgument, fmt.Sprintf("unknown command %q", inv.Verb))
}

// complete fills in the bundle and checks what goes into paths. A missing
// working directory is for delete to put up with.
func (h *Host) complete(inv *Invocation) error {
	if inv.Bundle == "" {
		dir, err := os.Getwd()
		if err != nil && inv.Verb != "delete" {
			return fault.Wrap(fault.FailedPrecondition, "bundle", err)
		}
		inv.Bundle = dir
	}
	if err := identifier("namespace", inv.Namespace); err != nil {
		return err
	}
	return identifier("id", inv.ID)
}

// maxIdentifierBytes is containerd's limit for names and namespaces.
const maxIdentifierBytes = 76

// identifier checks what becomes part of paths, by containerd's rule: letters
// and digits, with single separators between them.
func identifier(what, s string) error {
	if s == "" {
		return fault.New(fault.InvalidArgument, what+" is empty")
	}
	if len(s) > maxIdentifierBytes {
		return fault.New(fault.InvalidArgument, fmt.Sprintf("%s %q is longer than %d bytes", what, s, maxIdentifierBytes))
	}
	separated := true // whether a separator would be out of place
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			separated = false
		case (c == '-' || c == '_' || c == '.') && !separated && i < len(s)-1:
			separated = true
		default:
			return fault.New(fault.InvalidArgument, fmt.Sprintf("%s %q: letters and digits with single - _ . between them are allowed", what, s))
		}
	}
	return nil
}

// maxInputBytes bounds what is read from stdin, far above any options.
const maxInputBytes = 10 << 20

func (h *Host) input() ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(h.Stdin, maxInputBytes+1))
	if err != nil {
		return nil, fault.Wrap(fault.Unknown, "standard input", err)
	}
	if len(b) > maxInputBytes {
		return nil, fault.New(fault.ResourceExhausted, fmt.Sprintf("standard input is longer than %d bytes", maxInputBytes))
	}
	return b, nil
}

func (h *Host) answer(b []byte) error {
	if _, err := h.Stdout.Write(b); err != nil {
		return fault.Wrap(fault.Unknown, "answer", err)
	}
	return nil
}

func (h *Host) version() error {
	return h.answer(fmt.Appendf(nil, "%s:\n  Version:  %s\n", Name, h.Version))
}
