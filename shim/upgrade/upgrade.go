// SPDX-License-Identifier: Apache-2.0

// Package upgrade asks running shims to replace their program by the one that
// asks: the `upgrade` command. It is transient; the shims' side is
// shim/handover and shim.
package upgrade

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/ttrpc"
	"github.com/berthd/berth/shim/wire"
)

// DefaultState is containerd's state directory when its configuration names none.
const DefaultState = "/run/containerd"

// bundles are where containerd keeps the bundles of tasks and of sandboxes below
// its state directory.
var bundles = []string{"io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"}

// answerLimit bounds how long a shim may take. It waits for jobs in flight, the
// longest of which is the runtime's create.
const answerLimit = time.Minute

// The service and method that are called, see package shim.
const (
	service = "berth.shim.v1.Control"
	method  = "Upgrade"
)

// Request says which shims to upgrade.
type Request struct {
	State     string // containerd's state directory
	Namespace string // empty: all
	ID        string // empty: all
	Binary    string // absolute path of the program to run
}

// Run asks every shim that r names, one after the other, and writes a line for
// each to out. It goes on after a failure; the errors come back joined. No shim
// at all is NotFound.
func Run(r Request, out io.Writer) error {
	plans, err := find(r)
	if err != nil {
		return err
	}
	if len(plans) == 0 {
		return fault.New(fault.NotFound, "no shim of berth below "+r.State+" that fits")
	}
	var failed []error
	for _, p := range plans {
		name := p.Namespace + "/" + p.ID
		if err := ask(p.Socket, r.Binary); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", name, err))
			continue
		}
		if _, err := fmt.Fprintf(out, "%s: runs %s\n", name, r.Binary); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// find reads the plans of the bundles that r names.
func find(r Request) ([]*plan.Plan, error) {
	star := func(s string) string {
		if s == "" {
			return "*"
		}
		return s
	}
	for _, name := range []string{r.Namespace, r.ID} {
		if name != "" && (name != filepath.Base(name) || name == ".." || name == ".") {
			return nil, fault.New(fault.InvalidArgument, "not a namespace or container id: "+name)
		}
	}
	var plans []*plan.Plan
	for _, dir := range bundles {
		files, err := filepath.Glob(filepath.Join(r.State, dir, star(r.Namespace), star(r.ID), plan.File))
		if err != nil {
			return nil, fault.Wrap(fault.InvalidArgument, "namespace or id", err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if errors.Is(err, os.ErrNotExist) {
				continue // deleted meanwhile
			}
			if err != nil {
				return nil, err
			}
			p := &plan.Plan{}
			if err := p.Decode(b); err != nil {
				return nil, fault.In(file, err)
			}
			plans = append(plans, p)
		}
	}
	return plans, nil
}

// ask makes one call on a connection of its own and waits for the answer, which
// the new program gives.
func ask(socket, binary string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	conn := os.NewFile(uintptr(fd), socket) // blocking: limits are the socket's
	defer conn.Close()
	limit := unix.NsecToTimeval(answerLimit.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return fault.Wrap(fault.Unavailable, "connect to "+socket, err)
	}
	request := wire.Request{
		Service: []byte(service), Method: []byte(method),
		Payload: wire.AppendString(nil, 1, binary), TimeoutNano: answerLimit.Nanoseconds(),
	}
	body := request.Append(nil)
	frame := make([]byte, ttrpc.HeaderBytes, ttrpc.HeaderBytes+len(body))
	ttrpc.Header{Length: uint32(len(body)), Stream: 1, Type: ttrpc.TypeRequest}.Put(frame)
	if _, err := conn.Write(append(frame, body...)); err != nil {
		return err
	}
	return answer(conn)
}

func answer(conn io.Reader) error {
	var head [ttrpc.HeaderBytes]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return fault.Wrap(fault.Unavailable, "answer", err)
	}
	h := ttrpc.ParseHeader(head[:])
	if h.Length > ttrpc.MaxMessageBytes {
		return fault.New(fault.Internal, "answer: too long")
	}
	body := make([]byte, h.Length)
	if _, err := io.ReadFull(conn, body); err != nil {
		return fault.Wrap(fault.Unavailable, "answer", err)
	}
	var r wire.Response
	if err := r.Decode(body); err != nil {
		return err
	}
	if r.Code != fault.OK {
		return fault.New(r.Code, r.Message)
	}
	return nil
}
