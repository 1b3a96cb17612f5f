// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Size is a terminal's.
type Size struct {
	Width, Height uint16
}

// Streams are a caller's ends. A nil stream is not asked for.
type Streams struct {
	Stdin          io.Reader // its end is handed on
	Stdout, Stderr io.Writer
	Terminal       bool // stdout and stderr are one
	Sizes          <-chan Size
	Over           Transport
}

// ExitError is the end of a command that did not exit with 0.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return "exits with " + strconv.Itoa(e.Code) }

// Exec runs a command in a container, connected to s, and returns when it has
// ended and its output arrived: nil, *ExitError, or what went wrong.
func (c *Client) Exec(ctx context.Context, id string, s Streams, command ...string) error {
	answer, err := c.RuntimeServiceClient.Exec(ctx, &runtime.ExecRequest{
		ContainerId: id, Cmd: command, Tty: s.Terminal,
		Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil,
	})
	if err != nil {
		return err
	}
	return Server{URL: answer.GetUrl()}.Stream(ctx, s)
}

// Attach connects s to a container's main process and returns when that has
// ended, or, with stdin that the container keeps open, when the caller's stdin
// has.
func (c *Client) Attach(ctx context.Context, id string, s Streams) error {
	answer, err := c.RuntimeServiceClient.Attach(ctx, &runtime.AttachRequest{
		ContainerId: id, Tty: s.Terminal,
		Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil,
	})
	if err != nil {
		return err
	}
	return Server{URL: answer.GetUrl()}.Stream(ctx, s)
}

// Server is where one exec, attach or port forwarding is served: by the runtime,
// or by a kubelet that hands on to it.
type Server struct {
	URL string
	TLS *tls.Config // for https
}

// Stream connects s to a session of exec or attach and returns as Client.Exec and
// Client.Attach do.
func (at Server) Stream(ctx context.Context, s Streams) error {
	conn, err := s.Over.command(ctx, at)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	ends, err := conn.open("error")
	if err != nil {
		return err
	}
	if err := s.sendInput(conn); err != nil {
		return err
	}
	wait, err := s.receiveOutput(conn)
	if err != nil {
		return err
	}
	if err := s.sendSizes(conn); err != nil {
		return err
	}
	text, err := io.ReadAll(ends)
	if err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return outcome(text)
}

func (s *Streams) sendInput(conn session) error {
	if s.Stdin == nil {
		return nil
	}
	in, err := conn.open("stdin")
	if err != nil {
		return err
	}
	go func() {
		// A command that ends first closes the stream under the copy.
		_, _ = io.Copy(in, s.Stdin)
		_ = in.Close()
	}()
	return nil
}

// receiveOutput returns a function that waits for the end of the output.
func (s *Streams) receiveOutput(conn session) (func(), error) {
	var copies sync.WaitGroup
	for _, out := range []struct {
		kind string
		to   io.Writer
	}{{"stdout", s.Stdout}, {"stderr", s.Stderr}} {
		if out.to == nil {
			continue
		}
		from, err := conn.open(out.kind)
		if err != nil {
			return nil, err
		}
		copies.Go(func() { _, _ = io.Copy(out.to, from) })
	}
	return copies.Wait, nil
}

func (s *Streams) sendSizes(conn session) error {
	if !s.Terminal {
		return nil
	}
	// The server waits for the stream even if nothing is sent on it.
	to, err := conn.open("resize")
	if err != nil {
		return err
	}
	if s.Sizes == nil {
		return nil
	}
	go func() {
		encode := json.NewEncoder(to)
		for size := range s.Sizes {
			if encode.Encode(size) != nil {
				return
			}
		}
	}()
	return nil
}

// outcome reads the status that the server sends on the error stream.
func outcome(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	var status struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(text, &status); err != nil {
		return fmt.Errorf("status %q: %w", text, err)
	}
	if status.Status == "Success" {
		return nil
	}
	for _, cause := range status.Details.Causes {
		if code, err := strconv.Atoi(cause.Message); err == nil && cause.Reason == "ExitCode" {
			return &ExitError{Code: code}
		}
	}
	return errors.New(status.Message)
}

// Forward sends request to a TCP port of the pod and returns what comes back
// until the connection ends.
func (p *Pod) Forward(ctx context.Context, over Transport, port int, request []byte) ([]byte, error) {
	answer, err := p.client.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{int32(port)}})
	if err != nil {
		return nil, err
	}
	return Server{URL: answer.GetUrl()}.Forward(ctx, over, port, request)
}

// Forward sends request to a TCP port and returns what comes back until the
// connection ends.
func (at Server) Forward(ctx context.Context, over Transport, port int, request []byte) ([]byte, error) {
	conn, err := over.forward(ctx, at, port)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	failures, err := conn.open("error")
	if err != nil {
		return nil, err
	}
	_ = failures.Close() // nothing is sent on it
	data, err := conn.open("data")
	if err != nil {
		return nil, err
	}
	// The failure, if any, is told before the data stream ends.
	failed := make(chan error, 1)
	go func() {
		text, err := io.ReadAll(failures)
		if len(text) > 0 {
			err = errors.New(string(text))
		}
		failed <- err
	}()
	if _, err := data.Write(request); err != nil {
		return nil, errors.Join(err, <-failed)
	}
	back, err := io.ReadAll(data)
	if err != nil {
		return back, errors.Join(err, <-failed)
	}
	_ = data.Close()
	return back, <-failed
}
