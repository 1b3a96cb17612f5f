// SPDX-License-Identifier: Apache-2.0

// Package child has a pull done by a process of its own, in a systemd scope, so that
// what it takes is counted where the caller wants: fetching, checking and looking
// into layers. containerd unpacks layers itself, in its own cgroup.
//
// Run is the parent's side and Serve the child's. The request goes to the child's
// standard input, as one JSON object; when the input ends the child gives up. The
// child writes an object a line to its standard output: progress, and at last a
// result or the kind of an error, whose text is on standard error.
package child

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/transfer"
)

// request is what the child is told.
type request struct {
	Reference                     string
	Access                        registry.Access
	Platform                      string
	PolicyNamespace, Policy, Keys string
	Timeout                       time.Duration
}

// line is what the child tells.
type line struct {
	Progress *transfer.Progress `json:",omitempty"`
	Result   *result            `json:",omitempty"`
	Fault    string             `json:",omitempty"` // one of faults
}

type result struct {
	Reference string
	Target    v1.Descriptor
	Config    digest.Digest
	Updated   bool
	Skipped   int
	Bytes     map[string]int64
}

// Scopes puts processes into scopes.
type Scopes interface {
	// Start makes a scope in a slice and moves the process into it. The scope goes
	// when the process does.
	Start(ctx context.Context, scope, slice string, pid int) error
}

// Parent runs pulls in children.
type Parent struct {
	// Command is the program, with its arguments, that calls Serve with its standard
	// input, output and error.
	Command []string
	Scopes  Scopes
}

// stopTime is how long a child may take to end when it is no longer wanted.
const stopTime = 10 * time.Second

// maxText bounds what is kept of what a child says about its failure, in bytes.
const maxText = 8 << 10

// Run has a child pull what the request says, in its slice, and tells its progress.
// It returns when the child has ended. The error is of the child's kind; a child
// that ends without a word is ErrInternal.
func (p Parent) Run(ctx context.Context, r pull.Request, tell func(transfer.Progress)) (_ pull.Result, err error) {
	cmd := exec.CommandContext(ctx, p.Command[0], p.Command[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = stopTime
	text := &tail{}
	cmd.Stderr = text
	in, err := cmd.StdinPipe()
	if err != nil {
		return pull.Result{}, fmt.Errorf("pull process: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return pull.Result{}, fmt.Errorf("pull process: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return pull.Result{}, fmt.Errorf("pull process %s: %w", p.Command[0], err)
	}
	scope := fmt.Sprintf("berth-pull-%d.scope", cmd.Process.Pid)
	// It waits for its request, so that nothing is done outside of the scope.
	if err := p.Scopes.Start(ctx, scope, r.Slice, cmd.Process.Pid); err != nil {
		_ = in.Close() // which ends the child
		return pull.Result{}, errors.Join(fmt.Errorf("scope %s in %s: %w", scope, r.Slice, err), ended(cmd))
	}
	if err := json.NewEncoder(in).Encode(toWire(r)); err != nil {
		_ = in.Close()
		return pull.Result{}, errors.Join(fmt.Errorf("pull process: %w", err), ended(cmd))
	}
	last, err := listen(out, tell)
	_ = in.Close() // it has said all
	failed := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return pull.Result{}, context.Cause(ctx)
	case last.Result != nil:
		return fromWire(*last.Result)
	case last.Fault != "":
		return pull.Result{}, fault(last.Fault, text.String())
	}
	return pull.Result{}, fmt.Errorf("pull process ended without a result: %w: %s: %w", errors.Join(err, failed), text, errdefs.ErrInternal)
}

// ended waits for a child that is not wanted.
func ended(cmd *exec.Cmd) error {
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

// listen tells what a child says until it says the last.
func listen(out io.Reader, tell func(transfer.Progress)) (line, error) {
	decoder := json.NewDecoder(out)
	for {
		var l line
		if err := decoder.Decode(&l); err != nil {
			return line{}, err
		}
		if l.Progress == nil {
			return l, nil
		}
		if tell != nil {
			tell(*l.Progress)
		}
	}
}

// Serve is the child: it reads a request, has it pulled, and says what comes of it.
// An end of the input is the parent's, and cancels the pull. Its error is one of
// reading or writing; that of the pull has been told.
func Serve(ctx context.Context, in io.Reader, out, text io.Writer, pull func(context.Context, pull.Request, func(transfer.Progress)) (pull.Result, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	var wire request
	if err := decoder.Decode(&wire); err != nil {
		return fmt.Errorf("request of a pull: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	r, err := wire.request()
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, in) // whatever ends it, the parent has gone
		cancel()
	}()
	var broken error
	result, err := pull(ctx, r, func(p transfer.Progress) {
		if broken = encoder.Encode(line{Progress: &p}); broken != nil {
			cancel()
		}
	})
	switch {
	case broken != nil:
		return broken
	case err != nil:
		if _, err := fmt.Fprintln(text, err); err != nil {
			return err
		}
		return encoder.Encode(line{Fault: faultOf(err)})
	}
	return encoder.Encode(line{Result: toResult(result)})
}

func toWire(r pull.Request) request {
	return request{
		Reference: r.Reference.Text(), Access: r.Access, Platform: r.Platform,
		PolicyNamespace: r.PolicyNamespace, Policy: r.Policy, Keys: r.Keys, Timeout: r.Timeout,
	}
}

func (w request) request() (pull.Request, error) {
	ref, err := reference.Parse(w.Reference)
	return pull.Request{
		Reference: ref, Access: w.Access, Platform: w.Platform,
		PolicyNamespace: w.PolicyNamespace, Policy: w.Policy, Keys: w.Keys, Timeout: w.Timeout,
	}, err
}

func toResult(r pull.Result) *result {
	return &result{
		Reference: r.Reference.Text(), Target: r.Target, Config: r.Config,
		Updated: r.Updated, Skipped: r.Skipped, Bytes: r.Bytes,
	}
}

func fromWire(w result) (pull.Result, error) {
	ref, err := reference.Parse(w.Reference)
	return pull.Result{
		Reference: ref, Target: w.Target, Config: w.Config,
		Updated: w.Updated, Skipped: w.Skipped, Bytes: w.Bytes,
	}, err
}

// tail is the end of what was written.
type tail struct{ b []byte }

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-maxText):]
	return len(p), nil
}

// String is what was written, without the space around it.
func (t *tail) String() string { return strings.TrimSpace(string(bytes.ToValidUTF8(t.b, nil))) }
