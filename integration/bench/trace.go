// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/integration/host"
)

// traceAll times the shim without containerd, request by request, and the OCI
// runtime without a shim: what the figures of the part latency are made of.
func (b *bench) traceAll(ctx context.Context) error {
	ctx = b.daemon.Context(ctx)
	progress("trace: %d rounds", b.settings.rounds)
	err := b.turns(b.settings.rounds, func(r host.Runtime) error { return b.traceShim(ctx, r) })
	if err != nil {
		return err
	}
	for range b.settings.rounds {
		if err := b.traceRunc(ctx); err != nil {
			return fmt.Errorf("runc: %w", err)
		}
	}
	return nil
}

func (b *bench) traceShim(ctx context.Context, r host.Runtime) (err error) {
	u, err := b.bundle(ctx, r, forever)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.remove(ctx)) }()
	mounts, err := b.mounts(ctx, u)
	if err != nil {
		return err
	}
	request := &task.CreateTaskRequest{ID: u.id, Bundle: u.dir}
	for _, m := range mounts {
		request.Rootfs = append(request.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	lap := func(clock *watch, name string) { b.report.add(r, "trace, the shim alone", name, clock.lap()) }

	clock := newWatch()
	started, err := b.startShim(u)
	if err != nil {
		return err
	}
	lap(clock, "command start")
	conn, err := net.Dial("unix", strings.TrimPrefix(started.GetAddress(), "unix://"))
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	// Versions 2 and 3 of the service differ in nothing that is used here.
	service := fmt.Sprintf("containerd.task.v%d.Task", started.GetVersion())
	call := func(method string, request, response proto.Message) error {
		clock := newWatch()
		if err := client.Call(ctx, service, method, request, response); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		lap(clock, method)
		return nil
	}
	err = errors.Join(
		call("Create", request, &task.CreateTaskResponse{}),
		call("Start", &task.StartRequest{ID: u.id}, &task.StartResponse{}),
		call("Stats", &task.StatsRequest{ID: u.id}, &task.StatsResponse{}),
		call("Kill", &task.KillRequest{ID: u.id, Signal: uint32(unix.SIGKILL)}, &emptypb.Empty{}),
		call("Wait", &task.WaitRequest{ID: u.id}, &task.WaitResponse{}),
		call("Delete", &task.DeleteRequest{ID: u.id}, &task.DeleteResponse{}),
	)
	if err != nil {
		return err
	}
	// The answer to Shutdown may be lost: the shim is gone.
	_ = client.Call(ctx, service, "Shutdown", &task.ShutdownRequest{ID: u.id, Now: true}, &emptypb.Empty{})
	clock = newWatch()
	if err := b.shimCommand(u, "delete"); err != nil {
		return err
	}
	lap(clock, "command delete")
	return nil
}

// startShim runs the shim's start command as containerd does.
func (b *bench) startShim(u *bundle) (*bootstrap.BootstrapResult, error) {
	dir := b.daemon.Dir + "/s"
	in, err := proto.Marshal(&bootstrap.BootstrapParams{
		InstanceID: u.id, Namespace: b.daemon.Namespace, SocketDir: &dir,
		ContainerdGrpcAddress:  b.daemon.Socket,
		ContainerdTtrpcAddress: b.daemon.Socket + ".ttrpc",
		ContainerdBinary:       host.Deps("bin/containerd"),
	})
	if err != nil {
		return nil, err
	}
	if err := unix.Mkfifo(u.dir+"/log", 0o600); err != nil {
		return nil, err
	}
	// The shim's log has a reader, as in containerd.
	log, err := os.OpenFile(u.dir+"/log", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	time.AfterFunc(time.Second, func() { _ = log.Close() })
	cmd := b.shim(u, "start")
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("start: %w: %s", err, out)
	}
	result := &bootstrap.BootstrapResult{}
	return result, proto.Unmarshal(out, result)
}

func (b *bench) shimCommand(u *bundle, verb string) error {
	out, err := b.shim(u, verb).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", verb, err, out)
	}
	return nil
}

func (b *bench) shim(u *bundle, verb string) *exec.Cmd {
	cmd := exec.Command(u.runtime.Binary(),
		"-namespace", b.daemon.Namespace, "-id", u.id, "-address", b.daemon.Socket,
		"-publish-binary", host.Deps("bin/containerd"), "-bundle", u.dir, verb)
	cmd.Dir = u.dir
	cmd.Env = append(b.daemon.Environ(), "GOMAXPROCS=2",
		"TTRPC_ADDRESS="+b.daemon.Socket+".ttrpc", "GRPC_ADDRESS="+b.daemon.Socket, "NAMESPACE="+b.daemon.Namespace)
	return cmd
}

// traceRunc times the runtime's own commands, the floor of every shim that
// executes them.
func (b *bench) traceRunc(ctx context.Context) (err error) {
	u, err := b.bundle(ctx, host.Stock, forever)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.remove(ctx)) }()
	if err := b.mountRoot(ctx, u); err != nil {
		return err
	}
	runc := func(command string, args ...string) error {
		args = append([]string{"--root", u.dir + "/runc", command}, args...)
		clock := newWatch()
		cmd := exec.Command(host.Deps("bin/runc"), args...)
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", args, err)
		}
		ms := clock.lap()
		b.report.add(b.settings.a, "trace, the runtime alone", "runc "+command, ms)
		return nil
	}
	pidFile := u.dir + "/pid"
	if err := runc("create", "--bundle", u.dir, "--pid-file", pidFile, u.id); err != nil {
		return err
	}
	pid, err := awaitPid(ctx, pidFile)
	if err != nil {
		return err
	}
	if err := errors.Join(runc("start", u.id), unix.Kill(pid, unix.SIGKILL)); err != nil {
		return err
	}
	// An orphan, reaped elsewhere.
	for unix.Kill(pid, 0) == nil {
		time.Sleep(time.Millisecond)
	}
	return runc("delete", u.id)
}
