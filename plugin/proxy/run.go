// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/berthd/berth/plugin/layers"
	"github.com/berthd/berth/plugin/pinner"
)

// Run serves until SIGTERM, SIGINT or the end of ctx, and finishes the calls that
// run then. On SIGHUP it finishes them too, and starts the program on the disk in
// its place, with the same process number and the same listening socket: callers
// that come meanwhile wait for it. systemd is told when it is ready.
func Run(ctx context.Context, c *Config) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()

	// Of the socket until its mode is set, and of the roots of containers, whatever the
	// caller's was.
	unix.Umask(0o022)
	// Now: a program that was replaced on the disk has no name any more.
	program, err := os.Executable()
	if err != nil {
		return err
	}
	l, err := listen(c.Proxy.Address)
	if err != nil {
		return err
	}
	again, err := c.serve(ctx, l, hangup)
	if err != nil || !again {
		return errors.Join(err, l.Close())
	}
	return replace(program, l)
}

// serve serves until ctx ends, or the program is to be started again.
func (c *Config) serve(ctx context.Context, l *net.UnixListener, hangup <-chan os.Signal) (again bool, err error) {
	if err := layers.Supported(c.Layers.RootPath); err != nil {
		return false, err
	}
	s, err := c.Layers.Open(ctx, c.Layers.RootPath)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()

	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	ended := make(chan error, 1)
	// A duplicate: the server closes what it serves, and the socket is to live on.
	copied, err := duplicate(l)
	if err != nil {
		return false, err
	}
	served := &arrivals{Listener: copied}
	go func() { ended <- server.Serve(served) }()
	ready(ctx)
	log.G(ctx).WithField("address", c.Proxy.Address).Info("serving the snapshotter")

	stop, err := c.pin(ctx)
	if err != nil {
		server.Stop()
		return false, errors.Join(err, <-ended)
	}
	defer func() { err = errors.Join(err, stop()) }()

	select {
	case err := <-ended:
		return false, err
	case <-ctx.Done():
	case <-hangup:
		again = true
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading) // as ready: systemd may not be there
	}
	// Nobody is accepted any more, and whoever was gets an answer.
	err = served.Close()
	<-ended
	served.pending.Wait()
	server.GracefulStop()
	return again, err
}

// pin starts the policy of pinned images; stop ends it and waits.
func (c *Config) pin(ctx context.Context) (stop func() error, err error) {
	containerd, err := client.New(c.Proxy.Containerd, client.WithDefaultNamespace(namespaces.Default))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pinner.Run(ctx, containerd, c.path)
	}()
	return func() error {
		cancel()
		<-ended
		return containerd.Close()
	}, nil
}

func ready(ctx context.Context) {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.G(ctx).WithError(err).Warn("systemd was not told")
	}
}

// listen returns the socket that systemd or the program before has handed over, else
// a new one. A socket that nobody listens to is replaced.
func listen(address string) (*net.UnixListener, error) {
	given, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("socket that was handed over: %w", err)
	}
	if len(given) > 0 {
		l, ok := given[0].(*net.UnixListener) // nil if it is no socket
		if !ok || len(given) > 1 {
			return nil, fmt.Errorf("%d sockets were handed over: want one unix socket that listens", len(given))
		}
		l.SetUnlinkOnClose(false)
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(address), 0o711); err != nil {
		return nil, err
	}
	if conn, err := net.Dial("unix", address); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s: somebody serves there already", address)
	}
	if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// Nobody else could write to it before either: see Run.
	if err := os.Chmod(address, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// duplicate returns a second listener on the socket, that does not remove it.
func duplicate(l *net.UnixListener) (net.Listener, error) {
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileListener(f)
}

// firstHanded is where systemd's protocol, sd_listen_fds(3), has the first socket.
const firstHanded = 3

// replace starts the program on the disk in this process, and hands it the socket by
// systemd's protocol.
func replace(program string, l *net.UnixListener) error {
	f, err := l.File()
	if err != nil {
		return err
	}
	if fd := int(f.Fd()); fd != firstHanded {
		err = unix.Dup3(fd, firstHanded, 0)
	} else {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0) // a copy would have come without FD_CLOEXEC
	}
	if err != nil {
		return fmt.Errorf("hand the socket over: %w", err)
	}
	os.Setenv("LISTEN_FDS", "1")
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	return fmt.Errorf("start %s again: %w", program, syscall.Exec(program, os.Args, os.Environ()))
}
