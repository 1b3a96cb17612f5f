// SPDX-License-Identifier: Apache-2.0

// Package handover replaces the running program of the shim by another one, or
// by itself afresh, without its container or containerd noticing: exec(2) keeps
// the pid, the children and the descriptors; what the program knew goes along in
// a memfd. It owns how a state travels and how its parts are kept apart, not what
// is in it.
package handover

import (
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/wire"
)

// Version of the state. A program reads the states of its own version and of
// older ones; it is raised when an older program could not do right by skipping
// what it does not know.
const Version = 1

// environment names the descriptor of the state to the next program.
const environment = "BERTH_STATE_FD"

// VerbCheck is the argument with which the next program is tried: it reads the
// state on its stdin and ends with 0 if it could take over.
const VerbCheck = "check-state"

// checkLimit bounds that trial. It takes 3 ms.
const checkLimit = 10 * time.Second

// State is what one program leaves to the next, each part in its owner's own
// encoding.
type State struct {
	Plan      []byte
	Server    []byte
	Events    []byte
	Container []byte // nil: there is none
	Sandbox   []byte // nil: there is none
}

// Append appends the encoded state to b.
func (s *State) Append(b []byte) []byte {
	b = wire.AppendVarint(b, 1, Version)
	for i, part := range s.parts() {
		if *part != nil {
			b = wire.AppendBytes(b, 2+i, *part)
		}
	}
	return b
}

// parts lists the parts in the order of their numbers.
func (s *State) parts() [5]*[]byte {
	return [...]*[]byte{&s.Plan, &s.Server, &s.Events, &s.Container, &s.Sandbox}
}

// Decode replaces s by the state in b, which it aliases. A version that this
// program does not know is FailedPrecondition.
func (s *State) Decode(b []byte) error {
	*s = State{}
	version := uint64(0)
	sc := wire.Scan(b)
	for f := (wire.Field{}); sc.Next(&f); {
		if f.Num == 1 {
			version = f.Value
			continue
		}
		if parts := s.parts(); f.Num-2 < len(parts) {
			*parts[f.Num-2] = f.Bytes
		}
	}
	if err := sc.Err(); err != nil {
		return fault.In("state of the shim", err)
	}
	if version < 1 || version > Version {
		return fault.New(fault.FailedPrecondition, "state of the shim: version "+strconv.FormatUint(version, 10)+", this program knows 1 to "+strconv.Itoa(Version))
	}
	if s.Plan == nil {
		return fault.New(fault.InvalidArgument, "state of the shim: no plan")
	}
	return nil
}

// Inherited returns the state that a previous program left to this one, nil if
// there is none, and takes its traces out of the environment.
func Inherited() (*State, error) {
	v := os.Getenv(environment)
	if v == "" {
		return nil, nil
	}
	os.Unsetenv(environment)
	fd, err := strconv.Atoi(v)
	if err != nil {
		return nil, fault.Wrap(fault.InvalidArgument, environment, err)
	}
	b, err := read(fd)
	if err != nil {
		return nil, err
	}
	s := &State{}
	return s, s.Decode(b)
}

func read(fd int) ([]byte, error) {
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	b := make([]byte, st.Size)
	for off := 0; off < len(b); {
		n, err := unix.Pread(fd, b[off:], int64(off))
		if err != nil || n == 0 {
			return nil, fault.New(fault.Internal, "state of the shim: short read")
		}
		off += n
	}
	return b, nil
}

// Memfd returns a file in memory that holds b, for the caller to close.
func Memfd(b []byte) (int, error) {
	fd, err := unix.MemfdCreate("berth-state", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	for off := 0; off < len(b); {
		n, err := unix.Pwrite(fd, b[off:], int64(off)) // the reader begins at 0
		if err != nil {
			unix.Close(fd)
			return -1, os.NewSyscallError("pwrite", err)
		}
		off += n
	}
	return fd, nil
}

// Check tries whether binary could take over the encoded state, by executing it.
// It blocks: call it from a job.
func Check(t *process.Table, binary string, state []byte) error {
	fd, err := Memfd(state)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	exit, err := t.Run(&process.Command{
		Path: binary, Args: []string{binary, VerbCheck}, Env: os.Environ(), Dir: "/",
		Files: []int{fd, -1, -1}, Pdeathsig: unix.SIGKILL, Group: true,
	}, checkLimit)
	if err != nil {
		return fault.Wrap(fault.FailedPrecondition, "the new program", err)
	}
	if exit.Code != 0 {
		return fault.New(fault.FailedPrecondition, binary+" cannot take over: it ended with "+strconv.Itoa(exit.Code)+" when tried")
	}
	return nil
}

// handled are the signals that would end a program that has not set up its
// handlers yet.
var handled = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE}

// Exec replaces this program by binary, with state and the descriptors in keep.
// It returns only if that failed; then everything is as before, but for the
// dispositions of the signals in handled, which the caller sets again.
func Exec(binary string, state []byte, keep []int) error {
	fd, err := Memfd(state)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	keep = append(keep, fd)
	defer setCloexec(keep, unix.FD_CLOEXEC)
	if err := setCloexec(keep, 0); err != nil {
		return err
	}
	signal.Ignore(handled...)
	env := append(os.Environ(), environment+"="+strconv.Itoa(fd))
	return &os.PathError{Op: "exec", Path: binary, Err: syscall.Exec(binary, os.Args, env)}
}

func setCloexec(fds []int, flag int) error {
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
	}
	return nil
}

// Self returns the path of the program that runs, to start it afresh: the very
// file, even when another one has taken its name.
func Self() string { return "/proc/self/exe" }
