// SPDX-License-Identifier: Apache-2.0

// Package control is the client of the service that a berth shim has beside
// containerd's: berth.shim.v1.Control, described in shim/control.go. It owns how
// a container's shim is found and how its few messages look.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/plugin/runtime/process/identity"
)

const service = "berth.shim.v1.Control"

// Shim is where a container's shim is reached. Each call has a connection of its
// own: a shim takes one that is open for a sign that containerd is there, and
// does not keep output for it meanwhile.
type Shim struct {
	Bundle string // containerd's directory of the task
	ID     string // the container's
}

// Bundle returns the bundle of the container whose first process is pid: it is
// the working directory of the process's parent, the shim. So neither
// containerd's configuration nor an answer of containerd is needed. It returns
// NotFound for a process that has no such parent.
func Bundle(pid int, id string) (string, error) {
	s, err := identity.Stat(pid)
	if err != nil {
		return "", fmt.Errorf("bundle of container %s: %w", id, err)
	}
	dir, err := os.Readlink("/proc/" + strconv.Itoa(s.Parent) + "/cwd")
	if err != nil {
		return "", fmt.Errorf("bundle of container %s: %w: %w", id, errdefs.ErrNotFound, err)
	}
	if filepath.Base(dir) != id {
		return "", fmt.Errorf("bundle of container %s: the parent of process %d is in %s: %w", id, pid, dir, errdefs.ErrNotFound)
	}
	return dir, nil
}

// address reads what containerd has noted when it started the shim: since 2.0
// as bootstrap.json, before as plain text.
func (s Shim) address() (string, error) {
	if s.Bundle == "" {
		return "", fmt.Errorf("shim of container %s: no bundle is known: %w", s.ID, errdefs.ErrNotFound)
	}
	var boot struct {
		Address  string `json:"address"`
		Protocol string `json:"protocol"`
	}
	b, err := os.ReadFile(filepath.Join(s.Bundle, "bootstrap.json"))
	if err == nil {
		err = json.Unmarshal(b, &boot)
	} else if errors.Is(err, os.ErrNotExist) {
		b, err = os.ReadFile(filepath.Join(s.Bundle, "address"))
		boot.Address = strings.TrimSpace(string(b))
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("shim of container %s: %w: %w", s.ID, errdefs.ErrNotFound, err)
	case err != nil:
		return "", fmt.Errorf("shim of container %s: %w: %w", s.ID, errdefs.ErrDataLoss, err)
	case boot.Protocol != "" && boot.Protocol != "ttrpc":
		return "", fmt.Errorf("shim of container %s speaks %s: %w", s.ID, boot.Protocol, errdefs.ErrNotImplemented)
	}
	path, ok := strings.CutPrefix(boot.Address, "unix://")
	if !ok {
		return "", fmt.Errorf("shim of container %s: address %q is no unix socket: %w", s.ID, boot.Address, errdefs.ErrNotImplemented)
	}
	return path, nil
}

// call makes one request. Errors have the class that the shim gave them, and
// NotImplemented if the shim is not berth's.
func (s Shim) call(ctx context.Context, method string, request []byte) ([]byte, error) {
	path, err := s.address()
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("shim of container %s: %w: %w", s.ID, errdefs.ErrUnavailable, err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	// Fields that a message does not know survive in it, so that an empty one
	// carries any.
	var in, out emptypb.Empty
	in.ProtoReflect().SetUnknown(request)
	if err := client.Call(ctx, service, method, &in, &out); err != nil {
		return nil, fmt.Errorf("%s of container %s: %w", method, s.ID, errgrpc.ToNative(err))
	}
	return out.ProtoReflect().GetUnknown(), nil
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendBool(b []byte, field protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), 1)
}

// ReopenLog makes the shim open the container's log files anew, between two lines.
// It returns when it has.
func (s Shim) ReopenLog(ctx context.Context) error {
	_, err := s.call(ctx, "ReopenLog", appendString(nil, 1, s.ID))
	return err
}

// StopExecs kills the container's execs; from then on the shim refuses new ones,
// whoever asks.
func (s Shim) StopExecs(ctx context.Context) error {
	_, err := s.call(ctx, "StopExecs", appendString(nil, 1, s.ID))
	return err
}

// Abandon has the shim forget an exec that runs when it has ended.
func (s Shim) Abandon(ctx context.Context, exec string) error {
	_, err := s.call(ctx, "Abandon", appendString(appendString(nil, 1, s.ID), 2, exec))
	return err
}

// Streams says what a client of Attach takes part in.
type Streams struct {
	Stdin, Stdout, Stderr bool
	Once                  bool // the process's input ends with this client's
}

// Attach connects to a process, the first one for an empty exec. The caller
// closes the connection.
func (s Shim) Attach(ctx context.Context, exec string, want Streams) (*Connection, error) {
	b := appendString(nil, 1, s.ID)
	b = appendString(b, 2, exec)
	for i, v := range []bool{want.Stdin, want.Stdout, want.Stderr, want.Once} {
		b = appendBool(b, protowire.Number(3+i), v)
	}
	answer, err := s.call(ctx, "Attach", b)
	if err != nil {
		return nil, err
	}
	path, err := pathOf(answer)
	if err != nil {
		return nil, fmt.Errorf("attach to container %s: %w", s.ID, err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("attach to container %s: %w: %w", s.ID, errdefs.ErrUnavailable, err)
	}
	return &Connection{conn: conn.(*net.UnixConn)}, nil
}

// pathOf decodes the answer of Attach: its first field is a path.
func pathOf(b []byte) (string, error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return "", fmt.Errorf("answer of the shim: %w", errdefs.ErrDataLoss)
		}
		b = b[n:]
		if num == 1 && typ == protowire.BytesType {
			if path, n := protowire.ConsumeString(b); n > 0 && path != "" {
				return path, nil
			}
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			break
		}
		b = b[n:]
	}
	return "", fmt.Errorf("the shim's answer has no path: %w", errdefs.ErrDataLoss)
}
