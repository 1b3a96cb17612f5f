// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"io"
	"time"

	"github.com/containerd/errdefs"
)

// Service is the pods and containers of a containerd namespace. Safe for concurrent
// use; other processes may have a Service of the same namespace.
type Service struct {
	config Config
}

// ErrForeign (FailedPrecondition) is returned for changing what berth did not make.
var ErrForeign = errdefs.ErrFailedPrecondition.WithMessage("not made by berth")

// Open returns a service, after removing what a process that ended halfway left. It
// is cheap enough for one call of the command line.
func Open(ctx context.Context, c Config) (*Service, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	return &Service{config: c}, nil
}

// Close ends what goes on in the background and returns when it has. Containers and
// the client are left alone.
func (s *Service) Close() error { return nil }

// What follows is to come as the packages below land.

var errSoon = errdefs.ErrNotImplemented

// CreatePod makes and starts a pod: records, network, sandbox. After an error
// nothing is left. A name in use is AlreadyExists, naming the owner; a request equal
// to one that still runs in this process joins it.
func (s *Service) CreatePod(ctx context.Context, r PodRequest) (Pod, error) { return Pod{}, errSoon }

// Pods lists pods, newest first, those of others too.
func (s *Service) Pods(ctx context.Context, f PodFilter) ([]Pod, error) { return nil, errSoon }

// Pod returns one.
func (s *Service) Pod(ctx context.Context, ref string) (Pod, error) { return Pod{}, errSoon }

// StopPod ends the members, all at once, each with up to timeout to do so by itself,
// then the pod and its network. A second of a longer timeout is kept for the latter.
func (s *Service) StopPod(ctx context.Context, ref string, timeout time.Duration) error {
	return errSoon
}

// RemovePod stops the pod, and removes it with all members.
func (s *Service) RemovePod(ctx context.Context, ref string, o RemoveOptions) error { return errSoon }

// PodStats returns what pods use; all that run if there is no ref. What is gone is
// left out.
func (s *Service) PodStats(ctx context.Context, refs ...string) ([]PodStats, error) {
	return nil, errSoon
}

// PortForward connects stream to a TCP port in the pod, and closes it in the end.
func (s *Service) PortForward(ctx context.Context, ref string, port uint16, stream io.ReadWriteCloser) error {
	return errSoon
}

// CreateContainer makes a container, which waits to be started. See CreatePod.
func (s *Service) CreateContainer(ctx context.Context, r ContainerRequest) (Container, error) {
	return Container{}, errSoon
}

// StartContainer starts what was created.
func (s *Service) StartContainer(ctx context.Context, ref string) error { return errSoon }

// StopContainer asks the container to end, and kills it after timeout, or at once
// if that is zero. With several callers the earliest end counts.
func (s *Service) StopContainer(ctx context.Context, ref string, timeout time.Duration) error {
	return errSoon
}

// Kill sends a signal, by name or number, to the first process or to all.
func (s *Service) Kill(ctx context.Context, ref, signal string, all bool) error { return errSoon }

// Pause freezes a container.
func (s *Service) Pause(ctx context.Context, ref string) error { return errSoon }

// Unpause thaws it.
func (s *Service) Unpause(ctx context.Context, ref string) error { return errSoon }

// RemoveContainer removes a container, and its pod if that was made for it.
func (s *Service) RemoveContainer(ctx context.Context, ref string, o RemoveOptions) error {
	return errSoon
}

// Wait blocks until the container has ended, and returns it as it is then.
func (s *Service) Wait(ctx context.Context, ref string) (Container, error) {
	return Container{}, errSoon
}

// Exec runs a process and returns its exit code, when it has ended and its output
// was written.
func (s *Service) Exec(ctx context.Context, ref string, r ExecRequest) (code int, err error) {
	return 0, errSoon
}

// ExecSync runs a command and returns its output, 16 MiB of it at most. After timeout, if
// that is not zero, it is killed: the result is then -1, and the error of class
// DeadlineExceeded.
func (s *Service) ExecSync(ctx context.Context, ref string, command []string, timeout time.Duration) (ExecResult, error) {
	return ExecResult{}, errSoon
}

// Attach connects to the first process until it ends, or the client's input does
// with no output connected. There is no output from before.
func (s *Service) Attach(ctx context.Context, ref string, r AttachRequest) error { return errSoon }

// Resize changes the terminal of the first process.
func (s *Service) Resize(ctx context.Context, ref string, size Size) error { return errSoon }

// ReopenLog makes the shim open the log anew: somebody has moved it.
func (s *Service) ReopenLog(ctx context.Context, ref string) error { return errSoon }

// Update changes limits; what is zero stays.
func (s *Service) Update(ctx context.Context, ref string, r Resources) error { return errSoon }

// Stats returns what containers use; all that run if there is no ref. What is gone
// is left out.
func (s *Service) Stats(ctx context.Context, refs ...string) ([]ContainerStats, error) {
	return nil, errSoon
}

// Top lists the container's processes.
func (s *Service) Top(ctx context.Context, ref string) ([]Process, error) { return nil, errSoon }

// Containers lists containers, newest first.
func (s *Service) Containers(ctx context.Context, f ContainerFilter) ([]Container, error) {
	return nil, errSoon
}

// Container returns one, with all that is known of it.
func (s *Service) Container(ctx context.Context, ref string) (Container, error) {
	return Container{}, errSoon
}

// Mount mounts the root filesystem, or counts one more user of it, and returns where.
func (s *Service) Mount(ctx context.Context, ref string) (string, error) { return "", errSoon }

// Unmount takes it off, whoever else uses it.
func (s *Service) Unmount(ctx context.Context, ref string) error { return errSoon }

// Checkpoint keeps the state of a running container.
func (s *Service) Checkpoint(ctx context.Context, ref string, r CheckpointRequest) error {
	return errSoon
}

// Restore makes a container of a checkpoint.
func (s *Service) Restore(ctx context.Context, r RestoreRequest) (Container, error) {
	return Container{}, errSoon
}
