// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/integration/host"
)

// shim is one shim process, started as containerd starts it but spoken to
// directly: for everything that containerd's client hides. containerd only gets
// its events.
type shim struct {
	taskapi.TTRPCTaskService
	e       *env
	id      string
	bundle  string
	address string // unix:// and the socket's path
	pid     int
	root    []*types.Mount
	conn    *ttrpc.Client
}

// stdio is what Create and Exec take.
type stdio struct {
	In, Out, Err string
	Terminal     bool
}

// bundle makes a bundle folder with a config.json for busybox, and returns its
// path. Containers are named by the test; several in one test add a suffix.
func (e *env) bundle(t *testing.T, id string, opts ...oci.SpecOpts) string {
	t.Helper()
	dir := filepath.Join(e.State(), "raw", id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e.writeSpec(t, dir, id, opts...)
	return dir
}

func (e *env) writeSpec(t *testing.T, dir, id string, opts ...oci.SpecOpts) {
	t.Helper()
	all := append([]oci.SpecOpts{oci.WithDefaultPathEnv, oci.WithRootFSPath("rootfs"), oci.WithProcessArgs("sleep", "1000")}, opts...)
	spec, err := oci.GenerateSpec(e.ctx(t), nil, &containers.Container{ID: id}, all...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// rootfs prepares a writable snapshot of an image and returns its mounts.
func (e *env) rootfs(t *testing.T, id string) []*types.Mount {
	t.Helper()
	ctx := e.ctx(t)
	image, err := e.Client().GetImage(ctx, host.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	diffs, err := image.RootFS(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// The label keeps containerd's collector away: no container refers to it.
	s := e.Client().SnapshotService("overlayfs")
	mounts, err := s.Prepare(ctx, id, identity.ChainID(diffs).String(),
		snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Remove(e.Context(context.Background()), id); err != nil {
			t.Errorf("remove snapshot: %v", err)
		}
	})
	var list []*types.Mount
	for _, m := range mounts {
		list = append(list, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return list
}

// params are the BootstrapParams that containerd would send.
func (e *env) params(id string) *bootapi.BootstrapParams {
	dir := e.Dir + "/s"
	return &bootapi.BootstrapParams{
		InstanceID: id, Namespace: e.Namespace, ContainerdVersion: "2.4.2",
		ContainerdGrpcAddress: e.Socket, ContainerdTtrpcAddress: e.Socket + ".ttrpc",
		ContainerdBinary: host.Containerd(), SocketDir: &dir,
	}
}

// command is the shim's binary with the flags and environment of containerd.
func (e *env) command(id, bundle string, args ...string) *exec.Cmd {
	all := append([]string{"-namespace", e.Namespace, "-address", e.Socket, "-publish-binary", host.Containerd(), "-id", id}, args...)
	cmd := exec.Command(e.rt.Binary(), all...)
	cmd.Dir = bundle
	cmd.Env = append(e.Environ(), "GOMAXPROCS=2", "MAX_SHIM_VERSION=2", "TTRPC_ADDRESS="+e.Socket+".ttrpc",
		"GRPC_ADDRESS="+e.Socket, "NAMESPACE="+e.Namespace)
	return cmd
}

// start executes `start` with BootstrapParams and decodes the answer.
func (e *env) start(t *testing.T, id, bundle string, options proto.Message) (*bootapi.BootstrapResult, error) {
	t.Helper()
	p := e.params(id)
	if options != nil {
		a, err := typeurl.MarshalAnyToProto(options)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.AddExtension(a); err != nil {
			t.Fatal(err)
		}
	}
	return e.startWith(t, p, bundle)
}

func (e *env) startWith(t *testing.T, p *bootapi.BootstrapParams, bundle string) (*bootapi.BootstrapResult, error) {
	t.Helper()
	in, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	// As containerd: the log fifo is open for reading beforehand.
	drain(t, filepath.Join(bundle, "log"))
	cmd := e.command(p.InstanceID, bundle, "start")
	cmd.Stdin = bytes.NewReader(in)
	// Together, as containerd reads them: a byte on stderr spoils the answer.
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("start: %w: %s", err, out)
	}
	var result bootapi.BootstrapResult
	if err := proto.Unmarshal(out, &result); err != nil {
		return nil, fmt.Errorf("start answered %q: %w", out, err)
	}
	return &result, nil
}

// drain makes a fifo and reads it to the end of the test.
func drain(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mkfifo(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, f)
	}()
	t.Cleanup(func() {
		_ = f.Close()
		<-done
	})
}

// shim starts a shim with a fresh bundle and root file system. At the end of
// the test the container is killed and deleted and the shim shut down.
func (e *env) shim(t *testing.T, opts ...oci.SpecOpts) *shim {
	t.Helper()
	return e.shimNamed(t, id(t), nil, opts...)
}

func (e *env) shimNamed(t *testing.T, id string, options proto.Message, opts ...oci.SpecOpts) *shim {
	t.Helper()
	bundle := e.bundle(t, id, opts...)
	root := e.rootfs(t, id)
	result, err := e.start(t, id, bundle, options)
	if err != nil {
		t.Fatal(err)
	}
	s := &shim{e: e, id: id, bundle: bundle, address: result.Address, root: root}
	s.dial(t)
	t.Cleanup(func() { s.end(t) })
	return s
}

func (s *shim) socket() string { return strings.TrimPrefix(s.address, "unix://") }

func (s *shim) dial(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("unix", s.socket())
	if err != nil {
		t.Fatal(err)
	}
	var options []ttrpc.ClientOpts
	if !s.e.rt.Berth {
		options = append(options, ttrpc.WithUnaryClientInterceptor(asVersion3))
	}
	s.conn = ttrpc.NewClient(conn, options...)
	s.TTRPCTaskService = taskapi.NewTTRPCTaskClient(s.conn)
	r, err := s.Connect(s.e.ctx(t), &taskapi.ConnectRequest{ID: s.id})
	switch {
	case err == nil:
		s.pid = int(r.ShimPid)
	case s.e.rt.Berth:
		t.Fatalf("connect: %v", err)
	default: // stock's wants a task first; no matter
	}
}

// asVersion3 sends version 2's messages to version 3's service: stock has only
// that one, and the messages are the same on the wire.
func asVersion3(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, next ttrpc.Invoker) error {
	req.Service = strings.Replace(req.Service, ".v2.", ".v3.", 1)
	return next(ctx, req, resp)
}

// end kills and deletes what there is, shuts the shim down and waits for its
// connection to close. It is for a shim that may already be gone.
func (s *shim) end(t *testing.T) {
	ctx, cancel := context.WithTimeout(s.e.Context(context.Background()), patience)
	defer cancel()
	defer s.conn.Close()
	_, _ = s.Kill(ctx, &taskapi.KillRequest{ID: s.id, Signal: uint32(unix.SIGKILL), All: true})
	_, _ = s.Resume(ctx, &taskapi.ResumeRequest{ID: s.id})
	if r, err := s.State(ctx, &taskapi.StateRequest{ID: s.id}); err == nil {
		if r.Status != tasktypes.Status_CREATED {
			_, _ = s.Wait(ctx, &taskapi.WaitRequest{ID: s.id})
		}
		eventually(t, 20*time.Second, func() string {
			if _, err := s.Delete(ctx, &taskapi.DeleteRequest{ID: s.id}); err != nil && !errdefs.IsNotFound(class(err)) && !errors.Is(err, ttrpc.ErrClosed) {
				return "delete: " + err.Error()
			}
			return ""
		})
	}
	_, _ = s.Shutdown(ctx, &taskapi.ShutdownRequest{ID: s.id})
	eventually(t, 20*time.Second, func() string {
		c, err := net.Dial("unix", s.socket())
		if err != nil {
			return ""
		}
		_ = c.Close()
		return "the shim listens after Shutdown"
	})
}

// create is Create with the shim's root file system.
func (s *shim) create(ctx context.Context, io stdio) (*taskapi.CreateTaskResponse, error) {
	return s.createWith(ctx, io, nil)
}

func (s *shim) createWith(ctx context.Context, io stdio, options *anypb.Any) (*taskapi.CreateTaskResponse, error) {
	return s.Create(ctx, &taskapi.CreateTaskRequest{
		ID: s.id, Bundle: s.bundle, Rootfs: s.root, Options: options,
		Stdin: io.In, Stdout: io.Out, Stderr: io.Err, Terminal: io.Terminal,
	})
}

// run creates and starts the container.
func (s *shim) run(t *testing.T, io stdio) int {
	t.Helper()
	ctx := s.e.ctx(t)
	r, err := s.create(ctx, io)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	if _, err := s.Start(ctx, &taskapi.StartRequest{ID: s.id}); err != nil {
		t.Fatalf("start: %v", err)
	}
	return int(r.Pid)
}

// exec registers a process; args run with the container's own settings.
func (s *shim) exec(t *testing.T, exec string, io stdio, change func(*specs.Process), args ...string) error {
	t.Helper()
	b, err := os.ReadFile(s.bundle + "/config.json")
	if err != nil {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		t.Fatal(err)
	}
	spec.Process.Args, spec.Process.Terminal = args, io.Terminal
	if change != nil {
		change(spec.Process)
	}
	a, err := typeurl.MarshalAnyToProto(spec.Process)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Exec(s.e.ctx(t), &taskapi.ExecProcessRequest{
		ID: s.id, ExecID: exec, Spec: a, Stdin: io.In, Stdout: io.Out, Stderr: io.Err, Terminal: io.Terminal,
	})
	return err
}

// runExec registers a process and starts it.
func (s *shim) runExec(t *testing.T, exec string, io stdio, args ...string) {
	t.Helper()
	if err := s.exec(t, exec, io, nil, args...); err != nil {
		t.Fatalf("exec %s: %v", exec, err)
	}
	if _, err := s.Start(s.e.ctx(t), &taskapi.StartRequest{ID: s.id, ExecID: exec}); err != nil {
		t.Fatalf("start exec %s: %v", exec, err)
	}
}

// wait returns the exit status of init or of an exec.
func (s *shim) wait(t *testing.T, exec string) int {
	t.Helper()
	r, err := s.Wait(s.e.ctx(t), &taskapi.WaitRequest{ID: s.id, ExecID: exec})
	if err != nil {
		t.Fatalf("wait %s: %v", exec, err)
	}
	return int(r.ExitStatus)
}

func (s *shim) kill(t *testing.T, sig unix.Signal) {
	t.Helper()
	if _, err := s.Kill(s.e.ctx(t), &taskapi.KillRequest{ID: s.id, Signal: uint32(sig)}); err != nil {
		t.Fatalf("kill: %v", err)
	}
}

func (s *shim) delete(t *testing.T, exec string) *taskapi.DeleteResponse {
	t.Helper()
	r, err := s.Delete(s.e.ctx(t), &taskapi.DeleteRequest{ID: s.id, ExecID: exec})
	if err != nil {
		t.Fatalf("delete %s: %v", exec, err)
	}
	return r
}

func (s *shim) status(t *testing.T) tasktypes.Status {
	t.Helper()
	r, err := s.State(s.e.ctx(t), &taskapi.StateRequest{ID: s.id})
	if err != nil {
		t.Fatalf("state: %v", err)
	}
	return r.Status
}

// class translates an error from the wire into errdefs' classes.
func class(err error) error {
	if err == nil {
		return nil
	}
	return errgrpc.ToNative(err)
}

// sh is a container whose process is a shell script.
func sh(script string) oci.SpecOpts { return oci.WithProcessArgs("sh", "-c", script) }

// file names a file to write to, for a stdio, and a function that reads it.
func file(t testing.TB) (uri string, read func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out")
	return "file://" + path, func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
}

// fifo makes a named pipe.
func fifo(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
