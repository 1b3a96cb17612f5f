// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/plugin/runtime/process/control"
	"github.com/berthd/berth/plugin/runtime/process/detach"
)

var (
	// ErrDetached is returned when the user has typed the keys to detach.
	ErrDetached = detach.Err
	// ErrTooSlow is returned to a client of Attach that was cut off since it did not
	// take output while the process went on.
	ErrTooSlow = errdefs.ErrResourceExhausted.WithMessage("cut off: output was not taken in time")
)

// DetachKeys is the default for ParseDetachKeys.
const DetachKeys = detach.Default

// ParseDetachKeys is detach.Parse, for those who attach.
func ParseDetachKeys(text string) ([]byte, error) { return detach.Parse(text) }

// AttachRequest says what a client takes part in: the streams that are not nil.
type AttachRequest struct {
	// Stdin is read until its end. That ends the process's input if the container
	// was made so (stdin once); else it ends this Attach, unless there is a
	// terminal. A read that is in progress at the end is the caller's to end.
	Stdin          io.Reader
	Stdout, Stderr io.Writer // with a terminal there is only Stdout
	Resize         <-chan Size
	DetachKeys     []byte // see package detach; nil: none
	// Started, if not nil, is closed once no output is missed any more.
	Started chan<- struct{}
}

// Attach follows the container's process, beside any number of others, from now on
// until it has ended and its output is written. A client that does not read is cut
// off (ErrTooSlow); the container never waits for one. When ctx ends, or the user
// detaches (ErrDetached), the container goes on.
func (c *Container) Attach(ctx context.Context, r AttachRequest) error {
	if c.Spoofed() {
		return nil
	}
	if err := c.Living(); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	settings := &c.Metadata.Settings
	conn, err := c.shim().Attach(ctx, "", control.Streams{
		Stdin: r.Stdin != nil, Stdout: r.Stdout != nil, Stderr: r.Stderr != nil, Once: settings.StdinOnce,
	})
	if err != nil {
		return err
	}
	if r.Started != nil {
		close(r.Started)
	}
	var resizer sync.WaitGroup
	defer resizer.Wait()
	client, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	// Closing is what ends a read of the connection.
	stop := context.AfterFunc(client, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	if r.Resize != nil {
		resizer.Go(func() { c.resize(client, "", r.Resize) })
	}
	if r.Stdin != nil {
		go func() { // see AttachRequest.Stdin
			_, err := io.Copy(conn, detach.Reader(r.Stdin, r.DetachKeys))
			switch {
			case errors.Is(err, ErrDetached):
				leave(ErrDetached)
			case err != nil || settings.StdinOnce || settings.Terminal:
				_ = conn.CloseWrite() // it may be over
			default:
				leave(errInputEnded)
			}
		}()
	}
	err = conn.Copy(r.Stdout, r.Stderr)
	switch cause := context.Cause(client); {
	case cause == errInputEnded:
		return nil
	case cause != nil:
		return fmt.Errorf("attach to container %s: %w", c.ID, cause)
	case err != nil:
		return fmt.Errorf("attach to container %s: %w", c.ID, err)
	case c.Living() == nil && c.goesOn(ctx):
		return fmt.Errorf("attach to container %s: %w", c.ID, ErrTooSlow)
	}
	return nil
}

var errInputEnded = errors.New("input ended")

// goesOn tells whether a process whose output has ended still lives. It may be
// about to end, or have closed its streams itself.
func (c *Container) goesOn(ctx context.Context) bool {
	p := c.StateNoLock().Init()
	h, err := p.Open()
	if err != nil {
		return false
	}
	defer h.Close()
	ctx, cancel := context.WithTimeout(ctx, streamPatience.Window)
	defer cancel()
	return h.Wait(ctx) != nil
}
