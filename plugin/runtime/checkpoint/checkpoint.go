// SPDX-License-Identifier: Apache-2.0

// Package checkpoint writes containers down while they run, and has them go on
// from there: in place, in another pod, on another machine.
//
// A checkpoint is a directory of parts, whose names and formats are those that
// CRI-O, Podman, containerd's CRI plugin and checkpointctl use. It travels as an
// archive or as an image in containerd's store. The processes are dumped and
// restored by CRIU, through berth's shim and the OCI runtime; the file system's
// changes through containerd's differ.
//
// It makes no records of containers and no pods: whoever restores makes those
// first, with Checkpoint.SpecFor.
package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Engine makes checkpoints and restores them. Safe for concurrent use, for
// different containers.
type Engine struct {
	// Client of containerd. Its namespace, or the context's, is the containers'.
	Client *client.Client
	// CRIU is its program, a path or a name. Default: "criu". It is executed for
	// its version only; the runtime looks for its own in containerd's PATH.
	CRIU string
	// Version is berth's, for images. Default: none.
	Version string
}

// Request asks for a checkpoint.
type Request struct {
	// ID of the container, whose task is running or paused.
	ID string
	// Dir is where the parts go: an absolute path, whose parent exists. What is in
	// it is replaced. It holds all of the container's memory: nobody but root gets
	// into it.
	Dir string
	// LeaveRunning lets the container go on. Otherwise its task has ended when
	// Checkpoint returns, and only has to be deleted.
	LeaveRunning bool
	// TCPEstablished also writes down open connections, which only come back on a
	// machine that has the same addresses.
	TCPEstablished bool
	// ExternalUnixSockets allows sockets whose other ends are outside.
	ExternalUnixSockets bool
	// LogPath is the container's log, "" for none.
	LogPath string
	// Config is what is known of the container; ID, OCIRuntime and the times are
	// filled in.
	Config Config
}

func (r *Request) validate() error {
	if r.ID == "" {
		return fmt.Errorf("checkpoint: no container: %w", errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(r.Dir) {
		return fmt.Errorf("checkpoint %s: directory %q is not an absolute path: %w", r.ID, r.Dir, errdefs.ErrInvalidArgument)
	}
	return nil
}

// resumeTimeout bounds what lets a container go on after a failure.
const resumeTimeout = 30 * time.Second

// Checkpoint writes a container down. A machine or runtime that cannot is
// NotImplemented, with the reason, a container that is neither running nor paused
// FailedPrecondition. It blocks until all is on disk; the container stands still
// meanwhile. After an error the container goes on; CRIU's log is in the directory.
func (e *Engine) Checkpoint(ctx context.Context, r Request) (_ *Checkpoint, err error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	container, err := e.Client.LoadContainer(ctx, r.ID)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", r.ID, err)
	}
	info, err := container.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", r.ID, err)
	}
	if err := errors.Join(e.Supported(ctx), e.runtimeSupports(ctx, &info)); err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", r.ID, err)
	}
	spec, err := container.Spec(ctx)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: specification: %w", r.ID, err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", r.ID, notRunning(err))
	}
	if err := clear(r.Dir); err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", r.ID, err)
	}
	resume, err := hold(ctx, task)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", r.ID, err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeTimeout)
		defer cancel()
		rerr := resume(ctx)
		if err == nil && !r.LeaveRunning {
			return // it has ended; there is nothing to resume
		}
		if rerr != nil {
			err = errors.Join(err, fmt.Errorf("checkpoint %s: resume: %w", r.ID, rerr))
		}
	}()
	c, err := e.write(ctx, &r, &info, spec)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", r.ID, err)
	}
	return c, nil
}

// clear makes dir an empty directory.
func clear(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o700)
}

// notRunning tells a container without a task from a failure.
func notRunning(err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("not running: %w", errdefs.ErrFailedPrecondition)
	}
	return err
}

// hold pauses a task, so that what is written of its file system is of the moment
// of which its memory is. The result resumes it, unless it was paused before.
func hold(ctx context.Context, task client.Task) (resume func(context.Context) error, err error) {
	status, err := task.Status(ctx)
	if err != nil {
		return nil, err
	}
	switch status.Status {
	case client.Paused:
		return func(context.Context) error { return nil }, nil
	case client.Running:
		return task.Resume, task.Pause(ctx)
	}
	return nil, fmt.Errorf("it is %s: %w", status.Status, errdefs.ErrFailedPrecondition)
}

// write does all that can fail while the container is merely paused before CRIU,
// which ends it if it is to.
func (e *Engine) write(ctx context.Context, r *Request, info *containers.Container, spec *specs.Spec) (*Checkpoint, error) {
	c := &Checkpoint{Dir: r.Dir, Config: r.Config, Spec: spec, BindMounts: bindMounts(spec)}
	c.Config.ID, c.Config.OCIRuntime = r.ID, info.Runtime.Name
	c.Config.CreatedTime, c.Config.CheckpointedAt = info.CreatedAt, time.Now()
	if err := e.writeDiff(ctx, info, r.Dir); err != nil {
		return nil, fmt.Errorf("changes of the file system: %w", err)
	}
	if err := c.save(); err != nil {
		return nil, err
	}
	if err := e.dump(ctx, r, spec); err != nil {
		return nil, err
	}
	if err := copyLog(r.LogPath, filepath.Join(r.Dir, logFile)); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return c, nil
}

func (e *Engine) dump(ctx context.Context, r *Request, spec *specs.Spec) error {
	o, err := typeurl.MarshalAnyToProto(&options.CheckpointOptions{
		Exit: !r.LeaveRunning,
		// Locks survive; without this the dump fails if there is one.
		FileLocks:           true,
		OpenTcp:             r.TCPEstablished,
		ExternalUnixSockets: r.ExternalUnixSockets,
		Terminal:            spec.Process != nil && spec.Process.Terminal,
		// With a path containerd leaves the images where they are.
		ImagePath: filepath.Join(r.Dir, imagesDir),
		WorkPath:  r.Dir,
	})
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(r.Dir, imagesDir), 0o700); err != nil {
		return err
	}
	_, err = e.Client.TaskService().Checkpoint(ctx, &tasks.CheckpointTaskRequest{ContainerID: r.ID, Options: o})
	if err != nil {
		return withReasons(errgrpc.ToNative(err), filepath.Join(r.Dir, dumpLogFile))
	}
	return inventory(r.Dir)
}

// bindMounts returns what has to be there for the mounts of a specification.
func bindMounts(spec *specs.Spec) []BindMount {
	binds := []BindMount{}
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if !isBind(m) {
			continue
		}
		b := BindMount{Source: m.Source, Destination: m.Destination, FileType: typeFile}
		if st, err := os.Stat(m.Source); err == nil {
			b.Permissions = uint32(st.Mode().Perm())
			if st.IsDir() {
				b.FileType = typeDirectory
			}
		}
		binds = append(binds, b)
	}
	return binds
}

// annotations describe a checkpoint for people and tools.
func (e *Engine) annotations(c *Checkpoint) map[string]string {
	labels := c.Config.annotations()
	labels[annotationEngine] = engineName
	if e.Version != "" {
		labels[annotationEngineVersion] = e.Version
	}
	labels[annotationArch] = runtime.GOARCH
	return labels
}
