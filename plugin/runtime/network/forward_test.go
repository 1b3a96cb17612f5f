// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// serve sends text to whoever connects, reads until the end, and hangs up.
func serve(t *testing.T, family, address, text string) error {
	l, err := net.Listen(family, address)
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.WriteString(c, text)
				_ = c.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}()
		}
	}()
	return nil
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// stream is a client's end and the end that is handed to PortForward.
func stream(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), s.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// (57)
func TestPortForward(t *testing.T) {
	w := newWorld(t)
	path := w.add(t, Request{PodID: "p"}).Path
	within(t, path, func() error {
		return errors.Join(serve(t, "tcp6", "[::1]:81", "six"), serve(t, "tcp4", "127.0.0.1:82", "four"), serve(t, "tcp", ":83", "both"))
	})
	if err := serve(t, "tcp4", "127.0.0.1:84", "host"); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		port uint16
		want string
	}{
		"v6 only": {path, 81, "six"}, "v4 only": {path, 82, "four"}, "both": {path, 83, "both"}, "host": {"", 84, "host"},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := stream(t)
			done := make(chan error, 1)
			go func() { done <- PortForward(context.Background(), c.path, c.port, server) }()
			if got := readAll(t, client); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			_ = client.CloseWrite()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPortForwardRefused(t *testing.T) {
	w := newWorld(t)
	path := w.add(t, Request{PodID: "p"}).Path
	for name, c := range map[string]struct {
		path  string
		class func(error) bool
	}{"closed port": {path, errdefs.IsUnavailable}, "no namespace": {w.dir + "/nowhere", errdefs.IsNotFound}, "no mount": {w.dir, errdefs.IsNotFound}} {
		t.Run(name, func(t *testing.T) {
			client, server := stream(t)
			err := PortForward(context.Background(), c.path, 4711, server)
			if !c.class(err) || !strings.Contains(err.Error(), "4711") || !strings.Contains(err.Error(), c.path) {
				t.Errorf("error %v", err)
			}
			if got := readAll(t, client); got != "" {
				t.Errorf("got %q", got)
			}
		})
	}
}

// A client that goes on sending does not keep the stream open for more than a
// second after the port's side has ended, and the other way round.
func TestPortForwardHalfClosed(t *testing.T) {
	w := newWorld(t)
	path := w.add(t, Request{PodID: "p"}).Path
	var l net.Listener
	within(t, path, func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:81")
		return err
	})
	defer l.Close()
	for _, name := range []string{"client ends", "port ends"} {
		t.Run(name, func(t *testing.T) {
			client, server := stream(t)
			done := make(chan error, 1)
			go func() { done <- PortForward(context.Background(), path, 81, server) }()
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ends, waits := client, conn.(*net.TCPConn)
			if name == "port ends" {
				ends, waits = waits, ends
			}
			started := time.Now()
			_ = ends.CloseWrite()
			if b := readAll(t, waits); b != "" { // the end arrives at once
				t.Errorf("got %q", b)
			}
			if took := time.Since(started); took > lingerTimeout/2 {
				t.Errorf("the end took %v", took)
			}
			if _, err := io.WriteString(waits, "late"); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if took := time.Since(started); took < lingerTimeout/2 || took > 3*lingerTimeout {
				t.Errorf("it ended after %v", took)
			}
			if got := readAll(t, ends); got != "late" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestPortForwardCancelled(t *testing.T) {
	w := newWorld(t)
	path := w.add(t, Request{PodID: "p"}).Path
	within(t, path, func() error {
		l, err := net.Listen("tcp4", "127.0.0.1:81")
		if err == nil {
			t.Cleanup(func() { _ = l.Close() })
		}
		return err
	})
	client, server := stream(t)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := PortForward(ctx, path, 81, server); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the stream is open: %v", err)
	}
}
