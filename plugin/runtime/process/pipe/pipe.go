// SPDX-License-Identifier: Apache-2.0

// Package pipe connects a process that a shim starts with this program, by pipes
// that the shim opens by their names in /proc: nothing in the file system has to be
// cleaned up, and SELinux does not take a pipe's file for one of a directory. It
// owns their ends here and the copies to readers and from writers; who is at the
// other end it does not know. It needs the host's PID namespace.
package pipe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// pipeMode lets a process that is not root open its /dev/stdout again.
	pipeMode = 0o666
	// pipeBytes is the size of an output's pipe, if the host grants it.
	pipeBytes = 256 << 10
	// copyBytes is what is read at once.
	copyBytes = 64 << 10
)

// pipe is one stream's. Its name is as good as this process lives.
type pipe struct {
	r, w *os.File
}

func newPipe() (*pipe, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w: %w", errdefs.ErrResourceExhausted, err)
	}
	if err := r.Chmod(pipeMode); err != nil {
		return nil, fmt.Errorf("pipe: %w: %w", errdefs.ErrUnknown, errors.Join(err, r.Close(), w.Close()))
	}
	return &pipe{r, w}, nil
}

func (p *pipe) close() {
	if p != nil {
		_, _ = p.r.Close(), p.w.Close() // one of them may be closed already
	}
}

// name is the path under which f can be opened again.
func name(f *os.File) string {
	return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(descriptor(f))
}

// descriptor is f's number. (File.Fd would make f block.)
func descriptor(f *os.File) (fd int) {
	conn, err := f.SyscallConn()
	if err == nil {
		err = conn.Control(func(n uintptr) { fd = int(n) })
	}
	if err != nil {
		return -1
	}
	return fd
}

// Patience is how long output is waited for when the process has ended and others
// keep its streams open: Limit in all, Window without a byte.
type Patience struct{ Window, Limit time.Duration }

// Options say which pipes there are.
type Options struct {
	Stdin, Stdout, Stderr bool
	Terminal              bool // there is no Stderr then
	// Direct: the process writes into the pipes itself, so that all its output is
	// here when it has ended, and a pipe is closed to it when the Set is. Otherwise
	// the shim copies, and keeps the process running without a reader.
	Direct   bool
	Patience Patience
}

// Streams are the pipes of a process.
type Streams struct {
	Options
	in     *pipe
	out    [2]*pipe // stdout, stderr
	copies sync.WaitGroup
}

// Addresses are the names of pipes in the shim's form, empty where there is none.
type Addresses struct{ Stdin, Stdout, Stderr string }

// Open makes the pipes; the caller closes them.
func Open(o Options) (_ *Streams, err error) {
	s := &Streams{Options: o}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if o.Stdin {
		if s.in, err = newPipe(); err != nil {
			return nil, err
		}
	}
	for i, wanted := range [2]bool{o.Stdout, o.Stderr && !o.Terminal} {
		if !wanted {
			continue
		}
		if s.out[i], err = newPipe(); err != nil {
			return nil, err
		}
		// Less is as good, only slower.
		_, _ = unix.FcntlInt(uintptr(descriptor(s.out[i].r)), unix.F_SETPIPE_SZ, pipeBytes)
	}
	return s, nil
}

// Addresses returns where the shim finds the pipes.
func (s *Streams) Addresses() (a Addresses) {
	scheme := ""
	if s.Direct {
		scheme = "file://" // which the shim hands on, without a copy
	}
	if s.in != nil {
		a.Stdin = name(s.in.w)
	}
	if s.out[0] != nil {
		a.Stdout = scheme + name(s.out[0].r)
	}
	if s.out[1] != nil {
		a.Stderr = scheme + name(s.out[1].r)
	}
	return a
}

// Started is called when the shim has opened the pipes: from now on their ends
// are the process's.
func (s *Streams) Started() {
	if s.in != nil {
		_ = s.in.r.Close()
	}
	for _, p := range s.out {
		if p != nil {
			_ = p.w.Close()
		}
	}
}

// CopyTo begins to write output to the writers, nil for none, until its end. An
// error of one ends only that one's; what comes is thrown away then.
func (s *Streams) CopyTo(stdout, stderr io.Writer) {
	for i, w := range [2]io.Writer{stdout, stderr} {
		if p := s.out[i]; p != nil {
			s.copies.Go(func() { s.copy(p.r, w) })
		}
	}
}

func (s *Streams) copy(r *os.File, w io.Writer) {
	buffer := make([]byte, copyBytes)
	var giveUp time.Time
	for read := true; ; {
		n, err := r.Read(buffer)
		if n > 0 {
			read = true
			w = write(w, buffer[:n])
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		// The process has ended, and others have its streams.
		if giveUp.IsZero() {
			giveUp = time.Now().Add(s.Patience.Limit - s.Patience.Window)
		}
		if read && time.Now().Before(giveUp) {
			read = false
			_ = r.SetReadDeadline(time.Now().Add(s.Patience.Window)) // fails only when closed
			continue
		}
		s.sweep(r, w, buffer)
		return
	}
}

// sweep takes what is in the pipe now: everything of a process that has ended,
// even if this one had no time to read it.
func (s *Streams) sweep(r *os.File, w io.Writer, buffer []byte) {
	left, err := unix.IoctlGetInt(descriptor(r), unix.TIOCINQ) // FIONREAD
	if err != nil || r.SetReadDeadline(time.Time{}) != nil {
		return
	}
	for left > 0 {
		n, err := r.Read(buffer[:min(len(buffer), left)])
		w = write(w, buffer[:n])
		left -= n
		if err != nil {
			return
		}
	}
}

// write returns w, or nil once it has failed.
func write(w io.Writer, p []byte) io.Writer {
	if w == nil {
		return nil
	}
	if _, err := w.Write(p); err != nil {
		return nil
	}
	return w
}

// Drain waits for the rest of the output of a process that has ended.
func (s *Streams) Drain() {
	for _, p := range s.out {
		if p != nil {
			_ = p.r.SetReadDeadline(time.Now().Add(s.Patience.Window)) // fails only when closed
		}
	}
	s.copies.Wait()
}

// Close closes everything. Copies end.
func (s *Streams) Close() {
	s.in.close()
	for _, p := range s.out {
		p.close()
	}
	s.copies.Wait()
}

// Feed copies input until its end, or that of ctx, or of the process.
func (s *Streams) Feed(ctx context.Context, from io.Reader) error {
	stop := context.AfterFunc(ctx, func() { _ = s.in.w.Close() })
	defer stop()
	_, err := io.Copy(s.in.w, from)
	return errors.Join(err, s.in.w.Close())
}
