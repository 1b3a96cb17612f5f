// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"fmt"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/moby/sys/signal"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/runtime/process"
)

// StartContainer starts what was created. One that runs already is
// FailedPrecondition, unless it was restored: that runs from the beginning.
func (s *Service) StartContainer(ctx context.Context, ref string) error {
	return s.do(ctx, ref, func(ctx context.Context, m *member) error {
		if st := m.StateNoLock(); m.Metadata.Settings.RestoredFrom != "" && st.Status == process.Running {
			return nil
		}
		return m.Start(ctx)
	})
}

// do is an operation on one container.
func (s *Service) do(ctx context.Context, ref string, f func(context.Context, *member) error) error {
	ctx = s.in(ctx)
	m, err := s.operate(ctx, ref)
	if err != nil {
		return err
	}
	defer m.release()
	return f(ctx, m)
}

// StopContainer asks the container to end, and kills it after timeout, or at once
// if that is zero. With several callers the earliest end counts; the stop goes on
// when ctx ends. One that is not there, or has ended, is a success.
func (s *Service) StopContainer(ctx context.Context, ref string, timeout time.Duration) error {
	ctx = s.in(ctx)
	m, err := s.operate(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.stop(ctx, m, timeout)
}

// Kill sends a signal, by name or number, to the first process or to all.
func (s *Service) Kill(ctx context.Context, ref, name string, all bool) error {
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return fmt.Errorf("kill container %s: signal %q: %w", ref, name, errdefs.ErrInvalidArgument)
	}
	return s.do(ctx, ref, func(ctx context.Context, m *member) error {
		if !all {
			return m.Signal(ctx, unix.Signal(sig))
		}
		if err := m.Living(); err != nil {
			return err
		}
		_, err := s.tasks.Kill(ctx, &tasks.KillRequest{ContainerID: m.ID, Signal: uint32(sig), All: true})
		if err = errgrpc.ToNative(err); err != nil {
			return fmt.Errorf("kill container %s: %w", m.ID, err)
		}
		return nil
	})
}

// Pause freezes a container.
func (s *Service) Pause(ctx context.Context, ref string) error {
	return s.do(ctx, ref, func(ctx context.Context, m *member) error { return m.Pause(ctx) })
}

// Unpause thaws it.
func (s *Service) Unpause(ctx context.Context, ref string) error {
	return s.do(ctx, ref, func(ctx context.Context, m *member) error { return m.Resume(ctx) })
}

// Wait blocks until the container has ended, and returns it as it is then, or was if it
// has been removed.
func (s *Service) Wait(ctx context.Context, ref string) (c Container, err error) {
	err = s.do(ctx, ref, func(ctx context.Context, m *member) error {
		before, err := s.Container(ctx, m.ID)
		if err != nil {
			return err
		}
		end, err := m.Wait(ctx)
		if err != nil {
			return err
		}
		if c, err = s.Container(ctx, m.ID); errdefs.IsNotFound(err) {
			c, err = before, nil
			c.Pid = 0
			c.took(end, nil)
		}
		return err
	})
	return c, err
}

// Exec runs a process and returns its exit code, when it has ended and its output
// was written. process.ErrDetached tells that the user has left it.
func (s *Service) Exec(ctx context.Context, ref string, r ExecRequest) (code int, err error) {
	err = s.do(ctx, ref, func(ctx context.Context, m *member) error {
		cmd, err := s.command(ctx, m, &r)
		if err != nil {
			return fmt.Errorf("exec in container %s: %w", m.ID, err)
		}
		c, err := m.Exec(ctx, process.ExecRequest{
			Command: cmd, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Resize: r.Resize, DetachKeys: r.DetachKeys, Detach: r.Detach,
		})
		code = int(c)
		return err
	})
	return code, err
}

// command looks up the user in the container's files.
func (s *Service) command(ctx context.Context, m *member, r *ExecRequest) (process.Command, error) {
	cmd := process.Command{Args: r.Command, Env: r.Env, Cwd: r.WorkDir, Terminal: r.TTY, Size: r.Size}
	if r.User == "" {
		return cmd, nil
	}
	spec, err := specOf(&m.record)
	if err != nil {
		return cmd, err
	}
	if err := oci.WithUser(r.User)(ctx, s.config.Client, &m.record, spec); err != nil {
		return cmd, fmt.Errorf("user %q: %w: %w", r.User, errdefs.ErrInvalidArgument, err)
	}
	if err := oci.WithAdditionalGIDs(r.User)(ctx, s.config.Client, &m.record, spec); err != nil {
		return cmd, fmt.Errorf("groups of user %q: %w: %w", r.User, errdefs.ErrInvalidArgument, err)
	}
	cmd.User = &spec.Process.User
	return cmd, nil
}

// ExecSync runs a command and returns its output, 16 MiB of it at most. After
// timeout, if that is not zero, it is killed: the result's code is -1 then, and the
// error is context.DeadlineExceeded.
func (s *Service) ExecSync(ctx context.Context, ref string, command []string, timeout time.Duration) (result ExecResult, err error) {
	err = s.do(ctx, ref, func(ctx context.Context, m *member) error {
		r, err := m.ExecSync(ctx, process.ExecSyncRequest{Command: process.Command{Args: command}, Timeout: timeout})
		if r != nil {
			result = ExecResult{r.Stdout, r.Stderr, r.ExitCode}
		}
		return err
	})
	return result, err
}

// Attach connects to the first process until it ends, or the client's input does if
// there is neither a terminal nor input for one client only. There is no output from
// before. A client that does not take output is cut off (process.ErrTooSlow).
func (s *Service) Attach(ctx context.Context, ref string, r AttachRequest) error {
	return s.do(ctx, ref, func(ctx context.Context, m *member) error {
		if err := s.onlyBerth(m, "attach to"); err != nil {
			return err
		}
		return m.Attach(ctx, process.AttachRequest{
			Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Resize: r.Resize, DetachKeys: r.DetachKeys, Started: r.Started,
		})
	})
}

// Resize changes the terminal of the first process.
func (s *Service) Resize(ctx context.Context, ref string, size Size) error {
	return s.do(ctx, ref, func(ctx context.Context, m *member) error {
		_, err := s.tasks.ResizePty(ctx, &tasks.ResizePtyRequest{ContainerID: m.ID, Width: uint32(size.Width), Height: uint32(size.Height)})
		if err = errgrpc.ToNative(err); err != nil {
			return fmt.Errorf("resize terminal of container %s: %w", m.ID, err)
		}
		return nil
	})
}

// ReopenLog makes the shim open the log anew: somebody has moved it.
func (s *Service) ReopenLog(ctx context.Context, ref string) error {
	return s.do(ctx, ref, func(ctx context.Context, m *member) error { return m.ReopenLog(ctx) })
}

// Update changes limits; what is zero stays. OOMScoreAdj is a process's, not a limit, and
// InvalidArgument.
func (s *Service) Update(ctx context.Context, ref string, r Resources) error {
	if r.OOMScoreAdj != nil {
		return fmt.Errorf("update container %s: OOM score of its first process: %w", ref, errdefs.ErrInvalidArgument)
	}
	return s.do(ctx, ref, func(ctx context.Context, m *member) error {
		limits := r.spec()
		if l := limits.Memory; l != nil && l.Limit != nil {
			h, err := s.config.Handlers.Choose(m.entry.Metadata.Settings.RuntimeHandler)
			if err == nil {
				err = h.CheckMemory(*l.Limit)
			}
			if err != nil {
				return fmt.Errorf("update container %s: %w", m.ID, err)
			}
		}
		return m.Update(ctx, limits)
	})
}

// spec are the limits in the words of the specification.
func (r *Resources) spec() *specs.LinuxResources {
	l := &specs.LinuxResources{Unified: r.Unified}
	if r.CPUPeriod != 0 || r.CPUQuota != 0 || r.CPUShares != 0 || r.CPUs != "" || r.Mems != "" {
		l.CPU = &specs.LinuxCPU{
			Period: unlessZero(r.CPUPeriod), Quota: unlessZero(r.CPUQuota), Shares: unlessZero(r.CPUShares), Cpus: r.CPUs, Mems: r.Mems,
		}
	}
	if r.Memory != 0 || r.Swap != 0 {
		l.Memory = &specs.LinuxMemory{Limit: unlessZero(r.Memory), Swap: unlessZero(r.Swap)}
	}
	if r.Pids != 0 {
		l.Pids = &specs.LinuxPids{Limit: &r.Pids}
	}
	for size, limit := range r.Hugepages {
		l.HugepageLimits = append(l.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
	}
	return l
}

func unlessZero[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
