// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/runtime/process/identity"
	"github.com/berthd/berth/plugin/runtime/process/pipe"
)

// MaxSyncOutput is how much ExecSync returns of stdout and stderr together, in
// bytes; the rest is thrown away. What CRI can carry is less still.
const MaxSyncOutput = 16 << 20

const (
	// TimedOut is what ExecSync answers as stderr of a command that took too long,
	// and timedOutCode as its exit code.
	TimedOut     = "command timed out"
	timedOutCode = -1
)

// syncPatience is for output that the process writes into our pipes itself: when
// it has ended, all of it is there.
var syncPatience = pipe.Patience{Window: 50 * time.Millisecond, Limit: time.Second}

// ErrTimedOut is the cause of an ExecSyncError when the command took too long.
var ErrTimedOut = fmt.Errorf("%s: %w", TimedOut, context.DeadlineExceeded)

// ExecSyncError is a command that could not be executed, or not to its end, with
// what it had printed before.
type ExecSyncError struct {
	Stdout, Stderr bytes.Buffer
	ExitCode       int32
	Err            error
}

// Error returns the cause and the command's streams.
func (e *ExecSyncError) Error() string {
	var text strings.Builder
	fmt.Fprintf(&text, "command error: %v, exit code: %d", e.Err, e.ExitCode)
	for _, s := range []struct {
		name string
		data []byte
	}{{"stdout", e.Stdout.Bytes()}, {"stderr", e.Stderr.Bytes()}} {
		const most = 1 << 10 // an error is to be read
		if n := len(s.data); n > 0 {
			fmt.Fprintf(&text, ", %s: %s", s.name, s.data[:min(n, most)])
		}
	}
	return text.String()
}

// Unwrap returns the cause.
func (e *ExecSyncError) Unwrap() error { return e.Err }

// ExecSyncRequest is a command whose output is wanted. It has a terminal if the
// container has one, and then all output is on stdout.
type ExecSyncRequest struct {
	Command
	Timeout time.Duration // 0: none
}

// ExecSyncResult is how a command ended.
type ExecSyncResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
	Truncated      bool // there was more than MaxSyncOutput
}

// ExecSync executes a command and returns its output and exit code. It does not
// wait for children that the command leaves behind. Errors are of *ExecSyncError
// but for a container that does not run. For a command that takes longer than the
// timeout it returns both: a result with exit code -1 and TimedOut as stderr, and
// an error that is ErrTimedOut. Then, and when ctx ends, the command and its process
// group are killed.
func (c *Container) ExecSync(ctx context.Context, r ExecSyncRequest) (*ExecSyncResult, error) {
	if c.Spoofed() {
		return &ExecSyncResult{}, nil
	}
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	r.Terminal = c.Metadata.Settings.Terminal
	o := pipe.Options{Stdout: true, Stderr: true, Terminal: r.Terminal, Direct: !r.Terminal, Patience: syncPatience}
	if r.Terminal {
		o.Patience = streamPatience
	}
	s, err := pipe.Open(o)
	if err != nil {
		return nil, &ExecSyncError{ExitCode: timedOutCode, Err: err}
	}
	limited, cancel := ctx, context.CancelFunc(func() {})
	if r.Timeout > 0 {
		limited, cancel = context.WithTimeoutCause(ctx, r.Timeout, ErrTimedOut)
	}
	defer cancel()
	var out collector
	code, err := c.collect(limited, &r.Command, s, &out)
	result := &ExecSyncResult{Stdout: out.of[0].Bytes(), Stderr: out.of[1].Bytes(), ExitCode: code, Truncated: out.truncated}
	if err == nil {
		return result, nil
	}
	failure := &ExecSyncError{Stdout: out.of[0], Stderr: out.of[1], ExitCode: timedOutCode, Err: err}
	if ctx.Err() == nil && limited.Err() != nil {
		failure.Err = fmt.Errorf("container %s: after %v: %w", c.ID, r.Timeout, ErrTimedOut)
		return &ExecSyncResult{Stdout: result.Stdout, Stderr: []byte(TimedOut), ExitCode: timedOutCode, Truncated: out.truncated}, failure
	}
	return nil, failure
}

// collect executes cmd. When it returns, the command has ended or was killed, and
// nothing of it is left here.
func (c *Container) collect(ctx context.Context, cmd *Command, s *pipe.Streams, out *collector) (int32, error) {
	x, err := c.execute(ctx, cmd, s)
	if err != nil {
		return timedOutCode, err
	}
	s.CopyTo(stream{out, 0}, stream{out, 1})
	code, err := x.wait(ctx)
	if err != nil {
		killing, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		x.kill(killing)
		if _, late := x.wait(killing); late != nil && !errdefs.IsNotFound(late) {
			err = errors.Join(err, late)
		}
	}
	s.Drain()
	x.forget(ctx)
	return code, err
}

// collector keeps output up to MaxSyncOutput.
type collector struct {
	mu        sync.Mutex // guards the rest
	of        [2]bytes.Buffer
	truncated bool
}

// stream is one of a collector's.
type stream struct {
	c  *collector
	at int
}

func (s stream) Write(p []byte) (int, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	room := MaxSyncOutput - s.c.of[0].Len() - s.c.of[1].Len()
	if len(p) > room {
		s.c.truncated = true
	}
	s.c.of[s.at].Write(p[:min(len(p), room)])
	return len(p), nil
}

// killGroup kills the processes of the group that leader leads; runtimes make one
// for each exec. Each is signalled as itself: a group cannot be without a risk that
// its number is another's by now.
func killGroup(leader int) {
	if s, err := identity.Stat(leader); leader <= 0 || err == nil && s.Group != leader {
		return
	}
	list, err := os.ReadDir("/proc")
	if err != nil {
		return // the leader's own kill does not depend on it
	}
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == leader {
			continue
		}
		if s, err := identity.Stat(pid); err != nil || s.Group != leader {
			continue
		}
		h, err := identity.Process{Pid: pid}.Open()
		if err != nil {
			continue
		}
		if s, err := identity.Stat(pid); err == nil && s.Group == leader {
			_ = h.Signal(unix.SIGKILL) // it may have ended
		}
		_ = h.Close()
	}
}
