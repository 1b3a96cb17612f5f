// SPDX-License-Identifier: Apache-2.0

// Package exit says how the command line ends: with which code, and with which one
// line on stderr. It prints nothing itself.
package exit

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/images/child"
	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/plugin/runtime/network"
)

// Codes that are berth's own. Any other is that of a process in a container.
const (
	Failed        = 125 // berth could not do it
	NotExecutable = 126 // the command in the container cannot be executed
	NoCommand     = 127 // the command is not in the container
	signalled     = 128 // and the number of the signal, as shells have it
)

// Code is the exit code of a process in a container, as an error. It is no fault,
// and there is nothing to say about it.
type Code int

func (c Code) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// Process returns the error for the exit code of a process, nil for 0.
func Process(code int) error {
	if code == 0 {
		return nil
	}
	return Code(code)
}

// Signal is the cause of a context that a signal has ended.
type Signal unix.Signal

func (s Signal) Error() string { return "interrupted by " + unix.SignalName(unix.Signal(s)) }

// coded is an error with a code of its own.
type coded struct {
	error
	code int
}

func (c coded) Unwrap() error { return c.error }

// Start is the error of starting a command in a container, with the code that
// docker has for it.
func Start(err error) error {
	// Only words tell: what runc and crun say arrives with the class Unknown.
	text := ""
	if err != nil {
		text = strings.ToLower(err.Error())
	}
	for _, c := range []struct {
		words string
		code  int
	}{
		{"executable file not found", NoCommand},
		{"executable file `", NoCommand}, // crun: executable file `x` not found in $PATH
		{"no such file or directory", NoCommand},
		{"permission denied", NotExecutable},
		{"is a directory", NotExecutable},
		{"exec format error", NotExecutable},
	} {
		if strings.Contains(text, c.words) && ofCommand.MatchString(text) {
			return coded{err, c.code}
		}
	}
	return err
}

// ofCommand is in what a runtime says of the command: anything else may lack a file too,
// as its own programs do when a container ends meanwhile.
var ofCommand = regexp.MustCompile(`exec: "|exec /|executable`)

// Of returns the code for the error with which a command has ended.
func Of(err error) int {
	var code Code
	var with coded
	var signal Signal
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &signal):
		return signalled + int(signal)
	case errors.As(err, &with):
		return with.code
	}
	return Failed
}

// Message is what is written about an error: one line, with what to do if that is
// known, or "" if there is nothing to say.
func Message(err error) string {
	var code Code
	if err == nil || errors.As(err, &code) {
		return ""
	}
	var lines []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	text := strings.Join(lines, "; ")
	if advice := advise(err); advice != "" {
		text += " (" + advice + ")"
	}
	return text
}

func advise(err error) string {
	switch {
	case os.Geteuid() != 0 && (errors.Is(err, os.ErrPermission) || errdefs.IsPermissionDenied(err)):
		return "berth needs root"
	case errors.Is(err, network.ErrNotConfigured):
		return "--cni-netconfpath and --cni-path say where the network's configuration and plugins are; --network host needs none"
	case errors.Is(err, policy.ErrInvalid):
		return "policy.json says which images are accepted, see docs/policy.md"
	case errors.Is(err, registry.ErrNoSearchRegistries):
		return "give the whole name, as docker.io/library/busybox; registries.conf says where short ones are looked for"
	case errors.Is(err, registry.ErrUnavailable), errors.Is(err, policy.ErrUnavailable), errors.Is(err, child.ErrSystemd):
		return ""
	case errdefs.IsUnavailable(err):
		return "is containerd running? --address or CONTAINERD_ADDRESS says where"
	}
	return ""
}
