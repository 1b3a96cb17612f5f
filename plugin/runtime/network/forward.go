// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/plugins/pkg/ns"
)

// lingerTimeout is what one direction of a forwarded stream has left when the
// other has ended. It is containerd's and socat's.
const lingerTimeout = time.Second

// hostNetwork is how messages call the namespace without a path.
const hostNetwork = "of the host"

// PortForward connects stream to a TCP port of the loopback addresses in the
// network namespace at path, "" for the host's: that of IPv4 first, then that of
// IPv6. It returns when both directions have ended, one second after one of them
// has, or when ctx ends. A port where nobody listens is Unavailable, a namespace
// that is gone NotFound.
//
// The stream is closed in every case; its Close must end a Read that waits. If
// it has a CloseWrite, that is called when the port's side has ended.
func PortForward(ctx context.Context, path string, port uint16, stream io.ReadWriteCloser) error {
	conn, err := dial(ctx, path, port)
	if err != nil {
		_ = stream.Close() // the first error is the one to tell
		return err
	}
	if err := join(ctx, conn, stream); err != nil {
		return fmt.Errorf("forward port %d in network namespace %s: %w", port, name(path), err)
	}
	return nil
}

func name(path string) string {
	if path == "" {
		return hostNetwork
	}
	return path
}

// dial connects from within the namespace. A socket stays in the namespace that
// it was made in, so only that happens there.
func dial(ctx context.Context, path string, port uint16) (conn *net.TCPConn, err error) {
	if path == "" {
		return dialHere(ctx, path, port)
	}
	if err := isNamespace(path); err != nil {
		return nil, fmt.Errorf("forward port %d: %w", port, err)
	}
	n, err := ns.GetNS(path)
	if err != nil {
		return nil, fmt.Errorf("forward port %d: network namespace %s: %w", port, path, err)
	}
	defer n.Close()
	err = n.Do(func(ns.NetNS) (err error) {
		conn, err = dialHere(ctx, path, port)
		return err
	})
	return conn, err
}

// dialHere connects from the calling thread. The addresses are literal and tried
// one after the other: looking up a name, or trying both at once, is done by other
// threads, which are not in the namespace.
func dialHere(ctx context.Context, path string, port uint16) (*net.TCPConn, error) {
	var errs []error
	for _, ip := range []string{"127.0.0.1", "::1"} {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(ip, strconv.Itoa(int(port))))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("forward port %d: nobody listens in network namespace %s: %w: %w",
		port, name(path), errdefs.ErrUnavailable, errors.Join(errs...))
}

// join copies both ways and returns when that is over, with both closed and both
// goroutines gone.
func join(ctx context.Context, conn *net.TCPConn, stream io.ReadWriteCloser) error {
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(stream, conn)
		if s, ok := stream.(interface{ CloseWrite() error }); ok {
			err = errors.Join(err, s.CloseWrite())
		}
		ended <- err
	}()
	go func() {
		_, err := io.Copy(conn, stream)
		_ = conn.CloseWrite() // the port's side may have gone
		ended <- err
	}()
	var err error
	left := 2
	select {
	case err = <-ended:
		left--
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		linger := time.NewTimer(lingerTimeout)
		defer linger.Stop()
		select {
		case err = <-ended:
			left--
		case <-linger.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	_ = conn.Close()
	_ = stream.Close()
	for range left {
		<-ended
	}
	return err
}
