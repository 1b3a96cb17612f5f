// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cmd/berth/internal/exit"
	"github.com/berthd/berth/cmd/berth/internal/kubelog"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/cmd/berth/internal/terminal"
	"github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/process"
)

// foreground is a container whose input and output the user is.
type foreground struct {
	s       *session.Session
	service *runtime.Service
	c       *runtime.Container
	in      bool // the user's input is the container's
	keys    []byte
	remove  bool // when it has ended
	keep    bool // although it could not be started
	live    bool // it runs already, and what it has written is not shown
}

// run starts the container and returns when it has ended, with its exit code as an
// error, or when the user has left it.
func (f *foreground) run(ctx context.Context) error {
	err := f.follow(ctx, func(ctx context.Context) error {
		if f.live {
			return nil
		}
		err := f.service.StartContainer(ctx, string(f.c.ID))
		if err != nil && !f.keep {
			err = errors.Join(err, discard(ctx, f.service, f.c.ID))
		}
		return exit.Start(err)
	})
	var code exit.Code
	if f.remove && (err == nil || errors.As(err, &code)) {
		if err := discard(ctx, f.service, f.c.ID); err != nil {
			return err
		}
	}
	if errors.Is(err, process.ErrDetached) {
		_, _ = fmt.Fprintf(f.s.Err, "\nleft %s, which goes on\n", f.c.Name) // the user is gone
		return nil
	}
	return err
}

// follow connects the user, starts the container, and waits for it.
func (f *foreground) follow(ctx context.Context, start func(context.Context) error) error {
	// From here signals are the container's; what they did to ctx does not count.
	ctx, leave := context.WithCancelCause(context.WithoutCancel(ctx))
	defer leave(nil)
	stop := terminal.Forward(
		func(sig unix.Signal) { _ = f.service.Kill(ctx, string(f.c.ID), strconv.Itoa(int(sig)), false) }, // it may have ended
		func() { leave(exit.Signal(unix.SIGINT)) },
	)
	defer stop()

	connected, err := f.connect(ctx)
	if err != nil {
		if !f.keep {
			err = errors.Join(err, discard(ctx, f.service, f.c.ID))
		}
		return err
	}
	defer connected.restore()
	if err := start(ctx); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		code, err := f.wait(ctx)
		if err == nil {
			err = exit.Process(code)
		}
		done <- err
	}()
	select {
	case err := <-connected.done: // the output has ended, or the user has left
		if err != nil {
			return err
		}
		return <-done
	case err := <-done:
		connected.ended()
		return errors.Join(<-connected.done, err)
	}
}

// wait returns the container's exit code. Containerd may be away for a while.
func (f *foreground) wait(ctx context.Context) (int, error) {
	for {
		c, err := f.service.Wait(ctx, string(f.c.ID))
		switch {
		case err == nil && c.ExitCode == nil:
			return 0, fmt.Errorf("container %s has ended, and nobody knows its exit code: %w", f.c.Name, errdefs.ErrUnknown)
		case err == nil:
			return int(*c.ExitCode), nil
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case !errdefs.IsUnavailable(err):
			return 0, err
		}
		const pause = time.Second
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// connection is what the user sees and types.
type connection struct {
	done    chan error // when all output was shown, or the user has left
	ended   func()     // tells that no more output comes
	restore func()     // the terminal
}

// connect makes the connection. With a log it is the log that is shown: nothing of it
// is lost however slowly the user reads, while attached clients are cut off.
func (f *foreground) connect(ctx context.Context) (*connection, error) {
	if f.c.TTY || f.live || f.c.LogPath == "" {
		return f.attach(ctx)
	}
	ended := make(chan struct{})
	con := &connection{done: make(chan error, 2), ended: func() { close(ended) }, restore: func() {}} // of the log, and the input
	printer := kubelog.Printer{Out: f.s.Out, Err: f.s.Err}
	print := printer.Log("")
	go func() {
		con.done <- kubelog.Read(ctx, f.c.LogPath, kubelog.Options{Tail: -1, Ended: ended}, print)
	}()
	if f.in {
		go f.feed(ctx, con)
	}
	return con, nil
}

// feed is the container's input, whose end is not that of its output.
func (f *foreground) feed(ctx context.Context, con *connection) {
	err := f.service.Attach(ctx, string(f.c.ID), runtime.AttachRequest{Stdin: f.s.In, DetachKeys: f.detachKeys()})
	// It may have ended before it was reached, which its output tells better.
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		con.done <- err
	}
}

// detachKeys are none where what comes is no user's typing.
func (f *foreground) detachKeys() []byte {
	if !terminal.Is(f.s.In) {
		return nil
	}
	return f.keys
}

// attach makes a connection through the shim.
func (f *foreground) attach(ctx context.Context) (*connection, error) {
	con := &connection{done: make(chan error, 2), ended: func() {}, restore: func() {}} // of the output, and the input
	r := runtime.AttachRequest{Stdout: f.s.Out, Stderr: f.s.Err, DetachKeys: f.detachKeys()}
	if f.c.TTY {
		r.Stderr = nil
		r.Resize = terminal.Sizes(ctx, f.s.Out)
	}
	if f.c.TTY && f.in {
		r.Stdin = f.s.In
		restore, err := terminal.Raw(f.s.In)
		if err != nil {
			return nil, err
		}
		con.restore = restore
	}
	started := make(chan struct{})
	r.Started = started
	go func() { con.done <- f.attachAgain(ctx, r) }()
	select {
	case <-started:
		if f.in && !f.c.TTY {
			go f.feed(ctx, con)
		}
		return con, nil
	case err := <-con.done:
		con.restore()
		if err == nil {
			err = fmt.Errorf("attach to container %s: it has ended: %w", f.c.Name, errdefs.ErrFailedPrecondition)
		}
		return nil, err
	}
}

// attachAgain goes on after the user was cut off: a slow terminal is no reason to
// lose a session.
func (f *foreground) attachAgain(ctx context.Context, r runtime.AttachRequest) error {
	for {
		err := f.service.Attach(ctx, string(f.c.ID), r)
		if !errors.Is(err, process.ErrTooSlow) || !f.c.TTY {
			return err
		}
		_, _ = os.Stderr.WriteString("\r\n[berth: output is missing here; the log has it]\r\n")
		r.Started = nil
	}
}
