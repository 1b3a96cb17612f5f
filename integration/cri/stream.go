// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Protocol versions of the streaming server: with exit codes as a status on the
// error stream, and for port forwarding the only one there is.
const (
	protocolCommand = "v4.channel.k8s.io"
	protocolForward = "portforward.k8s.io"
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
	return stream(ctx, answer.GetUrl(), s)
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
	return stream(ctx, answer.GetUrl(), s)
}

// dial upgrades a request for url to a connection of streams.
func dial(ctx context.Context, url, protocol string) (httpstream.Connection, error) {
	tripper, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	response, err := tripper.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	return tripper.NewConnection(response)
}

func open(conn httpstream.Connection, kind string, headers ...string) (httpstream.Stream, error) {
	h := http.Header{"Streamtype": {kind}}
	for i := 0; i < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	s, err := conn.CreateStream(h)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", kind, err)
	}
	return s, nil
}

// stream connects s to a session of the streaming server.
func stream(ctx context.Context, url string, s Streams) error {
	conn, err := dial(ctx, url, protocolCommand)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	ends, err := open(conn, "error")
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

func (s *Streams) sendInput(conn httpstream.Connection) error {
	if s.Stdin == nil {
		return nil
	}
	in, err := open(conn, "stdin")
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
func (s *Streams) receiveOutput(conn httpstream.Connection) (func(), error) {
	var copies sync.WaitGroup
	for _, out := range []struct {
		kind string
		to   io.Writer
	}{{"stdout", s.Stdout}, {"stderr", s.Stderr}} {
		if out.to == nil {
			continue
		}
		from, err := open(conn, out.kind)
		if err != nil {
			return nil, err
		}
		copies.Go(func() { _, _ = io.Copy(out.to, from) })
	}
	return copies.Wait, nil
}

func (s *Streams) sendSizes(conn httpstream.Connection) error {
	if s.Sizes == nil {
		return nil
	}
	to, err := open(conn, "resize")
	if err != nil {
		return err
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
func (p *Pod) Forward(ctx context.Context, port int, request []byte) ([]byte, error) {
	answer, err := p.client.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{int32(port)}})
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, answer.GetUrl(), protocolForward)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	id := []string{"port", strconv.Itoa(port), "requestID", "0"}
	failures, err := open(conn, "error", id...)
	if err != nil {
		return nil, err
	}
	_ = failures.Close() // nothing is sent on it
	data, err := open(conn, "data", id...)
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
