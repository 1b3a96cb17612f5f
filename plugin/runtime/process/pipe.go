// SPDX-License-Identifier: Apache-2.0

package process

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

// pipe is a pipe of this process that a shim opens by its name in /proc: nothing
// in the file system has to be cleaned up, and SELinux does not take its file for
// one of a directory. The name is as good as this process lives.
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

// name is the path under which f can be opened again, in the host's PID namespace.
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

// streams are the pipes of an exec: nil where there is no stream.
type streams struct {
	in       *pipe
	out      [2]*pipe // stdout, stderr
	terminal bool
	direct   bool // the process writes into the pipes itself
	patience patience
	copies   sync.WaitGroup
}

// patience is how long output is waited for when the process has ended and others
// keep its streams open: limit in all, window without a byte.
type patience struct{ window, limit time.Duration }

// openStreams makes the pipes for what is wanted; the caller closes them.
func openStreams(s *streams, in, out, err bool) (e error) {
	defer func() {
		if e != nil {
			s.close()
		}
	}()
	if in {
		if s.in, e = newPipe(); e != nil {
			return e
		}
	}
	for i, wanted := range [2]bool{out, err && !s.terminal} {
		if !wanted {
			continue
		}
		if s.out[i], e = newPipe(); e != nil {
			return e
		}
		// Less is as good, only slower.
		_, _ = unix.FcntlInt(uintptr(descriptor(s.out[i].r)), unix.F_SETPIPE_SZ, pipeBytes)
	}
	return nil
}

// stdio are the addresses of the pipes.
func (s *streams) stdio() (io Stdio) {
	scheme := ""
	if s.direct {
		scheme = "file://" // which the shim hands on, without a copy
	}
	if s.in != nil {
		io.Stdin = name(s.in.w)
	}
	if s.out[0] != nil {
		io.Stdout = scheme + name(s.out[0].r)
	}
	if s.out[1] != nil {
		io.Stderr = scheme + name(s.out[1].r)
	}
	return io
}

// started is called when the shim has opened the pipes: from now on their ends
// are the process's.
func (s *streams) started() {
	if s.in != nil {
		_ = s.in.r.Close()
	}
	for _, p := range s.out {
		if p != nil {
			_ = p.w.Close()
		}
	}
}

// copyTo begins to write output to the writers, nil for none, until its end. An
// error of one ends only that one's; what comes is thrown away then.
func (s *streams) copyTo(stdout, stderr io.Writer) {
	for i, w := range [2]io.Writer{stdout, stderr} {
		if p := s.out[i]; p != nil {
			s.copies.Go(func() { s.copy(p.r, w) })
		}
	}
}

func (s *streams) copy(r *os.File, w io.Writer) {
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
			giveUp = time.Now().Add(s.patience.limit - s.patience.window)
		}
		if read && time.Now().Before(giveUp) {
			read = false
			_ = r.SetReadDeadline(time.Now().Add(s.patience.window)) // fails only when closed
			continue
		}
		s.sweep(r, w, buffer)
		return
	}
}

// sweep takes what is in the pipe now: everything of a process that has ended,
// even if this one had no time to read it.
func (s *streams) sweep(r *os.File, w io.Writer, buffer []byte) {
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

// drain waits for the rest of the output of a process that has ended.
func (s *streams) drain() {
	for _, p := range s.out {
		if p != nil {
			_ = p.r.SetReadDeadline(time.Now().Add(s.patience.window)) // fails only when closed
		}
	}
	s.copies.Wait()
}

// close closes everything. Copies end.
func (s *streams) close() {
	s.in.close()
	for _, p := range s.out {
		p.close()
	}
	s.copies.Wait()
}

// feed copies input until its end, or that of ctx, or of the process.
func (s *streams) feed(ctx context.Context, from io.Reader) error {
	stop := context.AfterFunc(ctx, func() { _ = s.in.w.Close() })
	defer stop()
	_, err := io.Copy(s.in.w, from)
	return errors.Join(err, s.in.w.Close())
}
