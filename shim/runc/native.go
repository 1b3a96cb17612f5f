// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"bytes"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// The state directory of a container tells which runtime wrote it, and so which
// shortcut is known to be right. Checked with runc 1.1 to 1.5 and crun 1.14 to
// 1.21.
const (
	execFifo  = "exec.fifo"
	runcState = "state.json"
	crunState = "status"
)

// ErrUnknownState is returned by a shortcut that does not know the container's
// state directory. Nothing was done: call the runtime.
var ErrUnknownState = fault.New(fault.FailedPrecondition, "state directory of an unknown runtime")

// errGone is returned by StartFifo when init ended while it was waited for.
var errGone = fault.New(fault.FailedPrecondition, "container process is already dead")

func (r *Runtime) stateDir(id string) string { return filepath.Join(r.Root, id) }

func exists(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil
}

// StartFifo does what the runtime's start does: it lets the init of a created
// container, process pid, go on. It returns ErrUnknownState when only the
// runtime knows how.
//
// Init of runc opens its fifo for writing, writes one byte and becomes the
// user's program; that of crun reads one byte. In both the fifo's absence marks
// the container as started.
func (r *Runtime) StartFifo(id string, pid int, timeout time.Duration) error {
	dir := r.stateDir(id)
	fifo := filepath.Join(dir, execFifo)
	switch {
	case !exists(fifo):
		return ErrUnknownState
	case exists(filepath.Join(dir, runcState)):
		return r.readFifo(fifo, pid, timeout)
	case exists(filepath.Join(dir, crunState)):
		return writeFifo(fifo)
	}
	return ErrUnknownState
}

// watchInterval is how often a waiting StartFifo looks whether init still lives:
// its death makes no event on the fifo. runc looks as often.
const watchInterval = 100 * time.Millisecond

func (r *Runtime) readFifo(fifo string, pid int, timeout time.Duration) error {
	fd, err := unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: fifo, Err: err}
	}
	defer unix.Close(fd)
	var b [8]byte
	for waited := time.Duration(0); ; waited += watchInterval {
		n, err := unix.Read(fd, b[:])
		if n > 0 {
			// Not being able to remove it only keeps the runtime from seeing the
			// container as running.
			_ = unix.Unlink(fifo)
			return nil
		}
		// End of file before init has opened its end is no end.
		if err != nil && err != unix.EAGAIN && err != unix.EINTR {
			return &os.PathError{Op: "read", Path: fifo, Err: err}
		}
		if unix.Kill(pid, 0) == unix.ESRCH {
			return errGone
		}
		if waited >= timeout {
			return fault.New(fault.DeadlineExceeded, "start timed out after "+timeout.String())
		}
		if err := r.Loop.Await(fd, unix.EPOLLIN, watchInterval); err != nil && fault.CodeOf(err) != fault.DeadlineExceeded {
			return err
		}
	}
}

func writeFifo(fifo string) error {
	fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.ENXIO { // nobody reads
		return errGone
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: fifo, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Unlink(fifo); err != nil {
		return &os.PathError{Op: "unlink", Path: fifo, Err: err}
	}
	if _, err := unix.Write(fd, []byte{0}); err != nil {
		return &os.PathError{Op: "write", Path: fifo, Err: err}
	}
	return nil
}

// stateFiles may be in a state directory that DeleteState removes. Any other
// entry is something the runtime's own delete should see.
var stateFiles = [...]string{runcState, crunState, execFifo, "config.json"}

// DeleteState removes the state directory of a container none of whose
// processes lives and whose cgroups are gone; it is all that is left of the
// runtime's delete then (but for poststop hooks and Intel RDT, which the caller
// knows of). It returns ErrUnknownState when only the runtime knows how. A
// directory that is gone already is success.
func (r *Runtime) DeleteState(id string) error {
	dir := r.stateDir(id)
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	known := false
	for _, e := range entries {
		name := e.Name()
		if !isStateFile(name) {
			return ErrUnknownState
		}
		known = known || name == runcState || name == crunState
	}
	if !known {
		return ErrUnknownState
	}
	for _, e := range entries {
		if err := unix.Unlink(filepath.Join(dir, e.Name())); err != nil && err != unix.ENOENT {
			return &os.PathError{Op: "unlink", Path: filepath.Join(dir, e.Name()), Err: err}
		}
	}
	if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

func isStateFile(name string) bool {
	for _, f := range stateFiles {
		if name == f {
			return true
		}
	}
	return false
}

// Exists tells whether the runtime has state of the container.
func (r *Runtime) Exists(id string) bool { return exists(r.stateDir(id)) }

// PinExec returns a process's JSON with an affinity to cpu for the time before
// its program runs, unless it has one (config.md, execCPUAffinity).
func PinExec(spec []byte, cpu string) []byte {
	const key = `"execCPUAffinity"`
	if i := bytes.IndexByte(spec, '{'); i >= 0 && !bytes.Contains(spec, []byte(key)) {
		out := append([]byte(nil), spec[:i+1]...)
		out = append(out, key+`:{"initial":"`+cpu+`"}`...)
		if rest := bytes.TrimSpace(spec[i+1:]); len(rest) > 0 && rest[0] != '}' {
			out = append(out, ',')
		}
		return append(out, spec[i+1:]...)
	}
	return spec
}
