// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/runtime/checkpoint"
	"github.com/berthd/berth/plugin/runtime/flight"
	"github.com/berthd/berth/plugin/runtime/process"
	"github.com/berthd/berth/plugin/runtime/record"
)

// Checkpoint keeps the state of a running container. It stands still meanwhile, and
// has exited after it unless it is to go on. A machine or runtime that cannot is
// NotImplemented, with the reason.
func (s *Service) Checkpoint(ctx context.Context, ref string, r CheckpointRequest) error {
	if r.Archive != "" && r.Image != "" {
		return fmt.Errorf("checkpoint container %s: both to an archive and to an image: %w", ref, errdefs.ErrInvalidArgument)
	}
	return s.do(ctx, ref, func(ctx context.Context, m *member) error {
		if err := s.onlyBerth(m, "checkpoint"); err != nil {
			return err
		}
		engine := s.engine()
		md := &m.Metadata
		c, err := engine.Checkpoint(ctx, checkpoint.Request{
			ID: m.ID, Dir: m.CheckpointPath(), LeaveRunning: r.LeaveRunning, TCPEstablished: r.TCP, LogPath: md.Settings.LogPath,
			Config: checkpoint.Config{
				Name: md.MetadataName, RootfsImage: md.ImageName, RootfsImageRef: md.ImageID, RootfsImageName: m.record.Image,
				PodID: md.Pod.ID, PodName: md.Pod.Name, PodNamespace: md.Pod.Namespace, PodUID: md.Pod.UID,
			},
		})
		if err != nil {
			return err
		}
		switch {
		case r.Archive != "":
			err = errors.Join(c.Export(ctx, r.Archive), os.RemoveAll(c.Dir))
		case r.Image != "":
			if _, err = engine.Publish(ctx, c, r.Image); err == nil {
				err = os.RemoveAll(c.Dir)
			}
		}
		if err := m.SetCheckpointedAt(ctx, time.Now()); err != nil {
			return err
		}
		return errors.Join(err, m.Refresh(ctx))
	})
}

func (s *Service) engine() *checkpoint.Engine {
	return &checkpoint.Engine{Client: s.config.Client, CRIU: s.config.CRIU}
}

// Restore makes a container of a checkpoint, in the pod of the request or one made
// for it; it runs when Restore returns. Of the request only names, pod, image,
// labels and log count; what is empty is as the checkpoint has it.
func (s *Service) Restore(ctx context.Context, r RestoreRequest) (Container, error) {
	if (r.Archive == "") == (r.Image == "") {
		return Container{}, fmt.Errorf("restore: neither an archive nor an image, or both: %w", errdefs.ErrInvalidArgument)
	}
	ctx = s.in(ctx)
	return flight.Join(ctx, &s.flights, r, func(ctx context.Context) (Container, error) {
		if err := s.restore(ctx, &r); err != nil {
			return Container{}, err
		}
		return s.Container(ctx, string(r.ID))
	})
}

func (s *Service) restore(ctx context.Context, r *RestoreRequest) (err error) {
	if r.ID == "" {
		r.ID = ContainerID(newID())
	}
	if err := identifiers.Validate(string(r.ID)); err != nil { // before it is a path
		return fmt.Errorf("restore: ID: %w", err)
	}
	dir := s.restoreDir(string(r.ID))
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var c *checkpoint.Checkpoint
	if r.Archive != "" {
		c, err = checkpoint.Import(ctx, r.Archive, dir)
		r.restoredFrom = r.Archive
	} else {
		c, err = s.engine().Fetch(ctx, r.Image, dir)
		r.restoredFrom = r.Image
	}
	if err != nil {
		return err
	}
	r.fill(c)
	if err := r.ContainerRequest.validate(); err != nil {
		return err
	}
	return s.createMember(ctx, &r.ContainerRequest, &dumped{s, c})
}

// restoreDir is where a checkpoint is unpacked to. It is not on a tmpfs: it has all
// of a container's memory.
func (s *Service) restoreDir(id string) string {
	return filepath.Join(s.config.Root, s.config.Namespace, "restores", id)
}

// fill completes the request from the checkpoint.
func (r *RestoreRequest) fill(c *checkpoint.Checkpoint) {
	r.Name = first(r.Name, c.Config.Name)
	if of := &r.ContainerRequest; of.Image == "" {
		of.Image = first(c.Config.RootfsImage, c.Config.RootfsImageName)
		of.ImageRecord = first(of.ImageRecord, c.Config.RootfsImageName)
	}
	r.TTY = c.Spec.Process != nil && c.Spec.Process.Terminal
}

// dumped is the origin of containers that go on.
type dumped struct {
	s *Service
	c *checkpoint.Checkpoint
}

func (d *dumped) spec(_ context.Context, m *newMember, c *record.Creation) (*specs.Spec, error) {
	target := checkpoint.Target{
		PodID: m.pod.ID, CgroupPath: m.cgroup(), Annotations: c.Container.Metadata.SpecAnnotations(),
		Namespaces: make(map[specs.LinuxNamespaceType]string),
	}
	for _, ns := range m.podSpec.Linux.Namespaces {
		target.Namespaces[ns.Type] = ns.Path
	}
	return d.c.SpecFor(target)
}

func (d *dumped) create(ctx context.Context, m *newMember, c *process.Container) error {
	// It runs when there is a task, and could end at once: first there must be
	// something to tell about it.
	if err := c.ToDisk(ctx); err != nil {
		return err
	}
	io := m.stdio(m.logPath)
	_, err := d.s.engine().Restore(ctx, d.c, checkpoint.RestoreRequest{
		ID: string(m.ID), LogPath: m.logPath,
		IO: func(string) (cio.IO, error) {
			return addresses{cio.Config{Stdin: io.Stdin, Stdout: io.Stdout, Stderr: io.Stderr, Terminal: m.TTY}}, nil
		},
	})
	if err != nil {
		return err
	}
	return c.Refresh(ctx)
}

// addresses are streams that the shim connects itself.
type addresses struct{ config cio.Config }

func (a addresses) Config() cio.Config { return a.config }
func (addresses) Cancel()              {}
func (addresses) Wait()                {}
func (addresses) Close() error         { return nil }
