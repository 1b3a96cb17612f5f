// SPDX-License-Identifier: Apache-2.0

// Package identity names processes for good. A number alone may be somebody
// else's later: with the time at which the process began and the boot in which it
// did, it cannot be mistaken. It owns the checks and the signals that rely on
// that; whose process it is it does not know.
package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var (
	// ErrNotInitialized is returned for a process that has no number yet.
	ErrNotInitialized = errdefs.ErrFailedPrecondition.WithMessage("process not initialized")
	// ErrNotFound is returned for a process that has ended.
	ErrNotFound = errdefs.ErrNotFound.WithMessage("process not found")
	// ErrReused is returned for a number that another process has by now.
	ErrReused = errdefs.ErrNotFound.WithMessage("process number was reused by another process")
	// ErrMalformed is returned for what is not a stat file of proc(5).
	ErrMalformed = errdefs.ErrDataLoss.WithMessage("malformed process status")
)

// Process identifies a process of this host. The zero value is none.
type Process struct {
	Pid int
	// Start is field 22 of /proc/PID/stat: clock ticks since boot. Empty, from
	// records that lack it: taken on trust.
	Start string
	// Boot identifies the run of the kernel that Start is from; empty: any.
	Boot string
}

// Status is what Stat knows of a process.
type Status struct {
	State  string // one letter: R, S, D, Z, T, ... of proc(5)
	Parent int
	Group  int // of processes
	Start  string
}

// Of returns the identity of the process that has the number pid now.
func Of(pid int) (Process, error) {
	s, err := Stat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{Pid: pid, Start: s.Start, Boot: boot()}, nil
}

// Stat reads /proc/PID/stat. It returns ErrNotFound if there is no such process.
func Stat(pid int) (Status, error) {
	if pid <= 0 {
		return Status{}, ErrNotInitialized
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Status{}, fmt.Errorf("process %d: %w", pid, ErrNotFound)
	}
	if err != nil {
		return Status{}, fmt.Errorf("process %d: %w: %w", pid, errdefs.ErrUnknown, err)
	}
	s, err := Parse(b)
	if err != nil {
		return s, fmt.Errorf("process %d: %w", pid, err)
	}
	return s, nil
}

// Parse reads a line of the form of /proc/PID/stat. A command's name, the second
// field, is in parentheses and may hold any byte, spaces and parentheses too.
func Parse(line []byte) (Status, error) {
	// Places behind the name: those of proc(5), which counts from 1, less 3.
	const state, parent, group, start = 0, 1, 2, 19
	end := bytes.LastIndexByte(line, ')')
	if end < 0 {
		return Status{}, fmt.Errorf("no command: %w", ErrMalformed)
	}
	fields := strings.Fields(string(line[end+1:]))
	if len(fields) <= start {
		return Status{}, fmt.Errorf("%d fields behind the command: %w", len(fields), ErrMalformed)
	}
	s := Status{State: fields[state], Start: fields[start]}
	var errs [2]error
	s.Parent, errs[0] = strconv.Atoi(fields[parent])
	s.Group, errs[1] = strconv.Atoi(fields[group])
	if err := errors.Join(errs[:]...); err != nil {
		return Status{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return s, nil
}

// boot is the kernel's name for its run, empty if it does not tell.
func boot() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// Living returns nil while the process exists. A zombie does not.
func (p Process) Living() error {
	_, err := p.State()
	return err
}

// State returns the letter of the process's state, or ErrNotInitialized,
// ErrNotFound or ErrReused.
func (p Process) State() (string, error) {
	s, err := Stat(p.Pid)
	switch {
	case err != nil:
		return "", err
	case p.Start != "" && p.Start != s.Start, p.Boot != "" && p.Boot != boot():
		return "", fmt.Errorf("process %d: %w", p.Pid, ErrReused)
	case s.State == "Z" || s.State == "X" || s.State == "x":
		return "", fmt.Errorf("process %d has ended: %w", p.Pid, ErrNotFound)
	}
	return s.State, nil
}

// Handle is a process that can be signalled and waited for without a chance of
// meeting another. Safe for concurrent use until Close.
type Handle struct {
	Process
	fd int // of pidfd_open(2)
}

// Open returns a handle of a living process, to be closed by the caller. It needs
// Linux 5.3.
func (p Process) Open() (*Handle, error) {
	if p.Pid <= 0 {
		return nil, ErrNotInitialized
	}
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if err == unix.ESRCH {
		return nil, fmt.Errorf("process %d: %w", p.Pid, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w: %w", p.Pid, errdefs.ErrUnknown, os.NewSyscallError("pidfd_open", err))
	}
	// Now the descriptor cannot change its process: who is it?
	if err := p.Living(); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &Handle{p, fd}, nil
}

// Close releases the handle, not the process.
func (h *Handle) Close() error { return unix.Close(h.fd) }

// Signal sends sig. It returns ErrNotFound if the process has ended and been
// waited for.
func (h *Handle) Signal(sig unix.Signal) error {
	err := unix.PidfdSendSignal(h.fd, sig, nil, 0)
	if err == unix.ESRCH {
		return fmt.Errorf("process %d: %w", h.Pid, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("signal %d to process %d: %w: %w", sig, h.Pid, errdefs.ErrUnknown, err)
	}
	return nil
}

// pollSlice is how soon Wait notices the end of its context.
const pollSlice = 100 * time.Millisecond

// Wait blocks until the process has ended, and returns nil, or until ctx has.
func (h *Handle) Wait(ctx context.Context) error {
	for {
		fds := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(pollSlice.Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && err != unix.EINTR:
			return os.NewSyscallError("poll", err)
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// Kill sends SIGKILL to the process, if it still is the one.
func (p Process) Kill() error { return p.Signal(unix.SIGKILL) }

// Signal sends sig to the process, if it still is the one.
func (p Process) Signal(sig unix.Signal) error {
	h, err := p.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Signal(sig)
}

// Kill sends SIGKILL to whoever has the number pid now; that nobody has is no
// error. It is for a number that its caller knows to be current, such as that of
// a child not waited for.
func Kill(pid int) error {
	if pid <= 0 { // would be a process group
		return ErrNotInitialized
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill process %d: %w: %w", pid, errdefs.ErrUnknown, err)
	}
	return nil
}
