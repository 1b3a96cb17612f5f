// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	berth "github.com/berthd/berth/plugin/runtime"
)

// watched opens another service, as another program does, whose calls of containerd are
// told before they are made, and fail with what is answered.
func (r *rig) watched(t *testing.T, told func(method string) error) *berth.Service {
	t.Helper()
	c, err := client.New(r.Socket, client.WithExtraDialOpts([]grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, q, a any, c *grpc.ClientConn, next grpc.UnaryInvoker, o ...grpc.CallOption) error {
			if err := told(method); err != nil {
				return err
			}
			return next(ctx, method, q, a, c, o...)
		}),
	}))
	if err != nil {
		t.Fatal(err)
	}
	config := r.config
	config.Client = c
	s, err := berth.Open(ctx(t), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.Close(), c.Close() })
	return s
}

// Of several who are about a container, what fails for one does not for the others. (Who
// waits is about it all the time.)
func TestRuntimeFailureIsOnes(t *testing.T) {
	r := withService(t)
	c := r.start(t, shell(r.pod(t, hostPod(t)), "main", idle))
	var fails atomic.Int32 // which look at the task is the one that fails, counted down
	begun := make(chan struct{})
	begin := sync.OnceFunc(func() { close(begun) })
	s := r.watched(t, func(method string) error {
		switch {
		case strings.HasSuffix(method, "Tasks/Wait"):
			begin()
		case strings.HasSuffix(method, "Tasks/Get") && fails.Add(-1) == 0:
			return errgrpc.ToGRPC(errdefs.ErrUnavailable)
		}
		return nil
	})
	ended := waitFor(t, s, c)
	<-begun
	const second = 2 // with the first one the container is found
	fails.Store(second)
	if err := s.Pause(ctx(t), string(c.ID)); !errdefs.IsUnavailable(err) {
		t.Errorf("a call that fails: %v", err)
	}
	if err := s.StopContainer(ctx(t), string(c.ID), 10*time.Second); err != nil {
		t.Errorf("the next one: %v", err)
	}
	if got := <-ended; got.ExitCode == nil || *got.ExitCode != 7 {
		t.Errorf("told to the one who waits: %+v", got)
	}
}

// Who waits for a container that another program removes, before there was time to look
// at it again, is told how it ended.
func TestRuntimeWaitRemoved(t *testing.T) {
	r := withService(t)
	c := r.start(t, shell(r.pod(t, hostPod(t)), "main", stubborn))
	begun, removed := make(chan struct{}), make(chan struct{})
	begin := sync.OnceFunc(func() { close(begun) })
	s := r.watched(t, func(method string) error {
		select {
		case <-begun:
			<-removed
		default:
			if strings.HasSuffix(method, "Tasks/Wait") {
				begin()
			}
		}
		return nil
	})
	ended := waitFor(t, s, c)
	<-begun
	err := r.RemoveContainer(ctx(t), string(c.ID), berth.RemoveOptions{Timeout: time.Second})
	close(removed)
	if err != nil {
		t.Fatal(err)
	}
	if got := <-ended; got.State != berth.ContainerExited || got.ExitCode == nil || *got.ExitCode != 137 || got.Pid != 0 {
		t.Errorf("%+v", got)
	}
}

// waitFor waits for a container's end in the background.
func waitFor(t *testing.T, s *berth.Service, c berth.Container) <-chan berth.Container {
	ended := make(chan berth.Container, 1)
	go func() {
		got, err := s.Wait(ctx(t), string(c.ID))
		if err != nil {
			t.Errorf("wait: %v", err)
		}
		ended <- got
	}()
	return ended
}

// A member that is made while its pod is being removed goes with it, and with the pod's
// cgroup.
func TestRuntimeRemovePodMeanwhile(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	r.start(t, shell(p, "main", idle))
	late := sync.OnceFunc(func() {
		c, err := r.CreateContainer(ctx(t), shell(p, "late", stubborn))
		if err == nil {
			err = r.StartContainer(ctx(t), string(c.ID))
		}
		if err != nil {
			t.Errorf("a member: %v", err)
		}
	})
	s := r.watched(t, func(method string) error {
		if strings.HasSuffix(method, "Tasks/Kill") {
			late()
		}
		return nil
	})
	if err := s.RemovePod(ctx(t), string(p.ID), berth.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if left := r.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A container whose state is lost is not taken for one that is not there, or that does
// not run.
func TestRuntimeDamaged(t *testing.T) {
	r := withService(t)
	c := r.start(t, shell(r.pod(t, hostPod(t)), "main", idle))
	if err := os.Remove(filepath.Join(c.WorkDirectory, "state.json")); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Container(ctx(t), string(c.ID)); err != nil || got.State != berth.ContainerRunning || len(got.Warnings) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := r.StopContainer(ctx(t), string(c.ID), 0); !errdefs.IsDataLoss(err) || errdefs.IsNotFound(err) {
		t.Errorf("stop: %v", err)
	}
	if err := r.RemoveContainer(ctx(t), string(c.ID), berth.RemoveOptions{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove while it runs: %v", err)
	}
	if err := r.RemoveContainer(ctx(t), string(c.ID), berth.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(c.Pid, 0); err != unix.ESRCH {
		t.Errorf("removed, and its process: %v", err)
	}
}
