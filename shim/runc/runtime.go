// SPDX-License-Identifier: Apache-2.0

// Package runc is the only caller of the OCI runtime's binary, runc's or one
// with its command line (crun). It knows the command lines, the words of their
// errors, and what may be done without executing the binary at all.
//
// It keeps no state of containers and decides nothing: which call is allowed
// when is shim/container's business. Calls block and are made from jobs.
package runc

import (
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/process"
)

// callTimeout bounds the calls that only touch what exists already. The
// slowest, delete --force, gives a process 10 s to die.
const callTimeout = 60 * time.Second

// Runtime calls one OCI runtime for the containers of one bundle. The fields
// are set once; methods are safe for concurrent use.
type Runtime struct {
	Loop     *loop.Loop
	Children *process.Table

	Path    string // absolute
	Root    string // the runtime's state directory, namespace included
	Bundle  string // absolute; the working directory of every call
	Systemd bool   // let systemd manage cgroups
	Debug   bool
	Env     []string
}

// call is one execution of the runtime.
type call struct {
	verb  string   // for messages
	args  []string // from the sub-command on
	files [3]int   // 0, 1, 2; -1: /dev/null; stderr may be words
	limit time.Duration
}

// words, as stderr, is kept for the error message. It is not for a call whose process
// would get it: that could fill this process's memory as long as it lives.
const words = -2

// noFiles are the descriptors of a call that has no container's streams.
var noFiles = [3]int{-1, -1, words}

// ofProcess returns the descriptors of a call that starts a process with files. On a
// terminal, which the runtime makes, the process gets none of them.
func ofProcess(files [3]int, terminal bool) [3]int {
	if terminal {
		return noFiles
	}
	return files
}

// argv builds the whole command line. The runtime's log is log.
func (r *Runtime) argv(log string, args []string) []string {
	argv := make([]string, 0, 9+len(args))
	argv = append(argv, r.Path, "--root", r.Root, "--log", log, "--log-format", "json")
	if r.Debug {
		argv = append(argv, "--debug")
	}
	if r.Systemd {
		argv = append(argv, "--systemd-cgroup")
	}
	return append(argv, args...)
}

// run executes c. An exit other than 0 is an error with the runtime's own words.
//
// The runtime logs into a memfd of this process, which it opens through /proc:
// concurrent calls cannot mix their lines, nothing is left in the bundle, and
// the container inherits nothing.
func (r *Runtime) run(c *call) error {
	log, err := memfd("runtime-log")
	if err != nil {
		return err
	}
	defer unix.Close(log)
	// The log, opened by name, and stderr have an offset each: without this they
	// would write over each other.
	if _, err := unix.FcntlInt(uintptr(log), unix.F_SETFL, unix.O_APPEND); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	stderr := c.files[2]
	if stderr == words {
		stderr = log
	}
	exit, err := r.Children.Run(&process.Command{
		Path:      r.Path,
		Args:      r.argv("/proc/"+strconv.Itoa(os.Getpid())+"/fd/"+strconv.Itoa(log), c.args),
		Env:       r.Env,
		Dir:       r.Bundle,
		Files:     []int{c.files[0], c.files[1], stderr},
		Pdeathsig: syscall.SIGKILL, // no half-created container outlives its shim
		Group:     true,
	}, c.limit)
	if fault.CodeOf(err) == fault.DeadlineExceeded {
		return fault.New(fault.DeadlineExceeded, "OCI runtime "+c.verb+" timed out after "+c.limit.String())
	}
	if err != nil {
		return fault.Wrap(fault.FailedPrecondition, "OCI runtime", err)
	}
	if exit.Code != 0 {
		return failure(c.verb, exit.Code, tail(log))
	}
	return nil
}

// output executes the runtime with args and returns what it printed.
func (r *Runtime) output(verb string, args []string) ([]byte, error) {
	out, err := memfd("runtime-out")
	if err != nil {
		return nil, err
	}
	defer unix.Close(out)
	if err := r.run(&call{verb: verb, args: args, files: [3]int{-1, out, words}, limit: callTimeout}); err != nil {
		return nil, err
	}
	return tail(out), nil
}

func memfd(name string) (int, error) {
	fd, err := unix.MemfdCreate("berth-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	return fd, nil
}

// maxOutputBytes is how much of a runtime's output is looked at. Features are
// about 12 KiB; of a log only the last lines matter.
const maxOutputBytes = 64 << 10

// tail returns the last maxOutputBytes written to fd, a regular file.
func tail(fd int) []byte {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Size == 0 {
		return nil
	}
	b := make([]byte, min(st.Size, maxOutputBytes))
	n, err := unix.Pread(fd, b, st.Size-int64(len(b)))
	if err != nil {
		return nil
	}
	return b[:n]
}
