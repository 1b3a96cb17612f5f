// SPDX-License-Identifier: Apache-2.0

// Package record keeps pods and containers as containerd's records, snapshots and
// leases, and as directories: what is there of them while no process runs. It makes
// them, finds them, mounts their root filesystems and removes them, whole or not at
// all, though it may be killed at any step and others work beside it.
//
// It starts no process and knows no network. What the records say is package
// labels' affair.
//
// # What there is of a pod
//
// A record in containerd's sandbox store and an infra container, both with the
// pod's ID, and a lease of that ID. A container is a record whose SandboxID is the
// pod's, and a snapshot with the container's ID. Both have two directories:
//
//	<root>/<namespace>/containers/<id>/    outlives a reboot
//	<state>/<namespace>/containers/<id>/   does not: it is on a tmpfs
//
// # How creations are kept whole
//
// A creation claims its ID and its names (package claim) until it is committed;
// before that, it undoes itself. If its process dies, the claims are found by
// whoever wants one of them, or calls Recover, and what the process had made is
// removed. After a reboot, which takes the claims away, RecoverAll finds the
// rest by records that are not marked as created. Names need no memory: the records
// have them.
//
// Members are made under a shared lock of the pod's run directory; changes and
// mounts of a container, and the removal of a pod, lock theirs exclusively.
//
// # Errors
//
// All have classes of errdefs. The sentinels of this package go through errors.Is;
// what containerd answers keeps its class.
package record

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/record/claim"
	"github.com/berthd/berth/plugin/runtime/record/idmap"
)

// Errors that callers tell apart. Those of IDs come with the class InvalidArgument
// if the ID is empty, NotFound if nothing has it.
var (
	// ErrInvalidPodName (InvalidArgument): no name of the pod, no ID of the pod, or
	// not that pod's name.
	ErrInvalidPodName = errdefs.ErrInvalidArgument.WithMessage("invalid pod name")
	// ErrInvalidImageName (InvalidArgument): no image.
	ErrInvalidImageName = errdefs.ErrInvalidArgument.WithMessage("invalid image name")
	// ErrInvalidContainerName (InvalidArgument): no name of the container.
	ErrInvalidContainerName = errdefs.ErrInvalidArgument.WithMessage("invalid container name")
	ErrInvalidSandboxID     = errors.New("invalid sandbox ID")
	ErrInvalidContainerID   = errors.New("invalid container ID")
)

// Options of a Store. Namespace is mandatory.
type Options struct {
	// Namespace is containerd's.
	Namespace string
	// Root and State hold the directories; default: /var/lib/berth, /run/berth.
	Root, State string
	// Snapshotter of new containers; default: overlayfs.
	Snapshotter string
	// Runtime of new pods and containers that ask for none; default:
	// io.containerd.berth.v1.
	Runtime string
	// Sandboxer is the controller of new pods; default: shim.
	Sandboxer string
	// Tasks is where containerd has the bundles of the tasks, by namespace and ID;
	// default: /run/containerd/io.containerd.runtime.v2.task.
	Tasks string
	// Hosts is the folder with the configuration of registries, for pause images;
	// default: /etc/containerd/certs.d.
	Hosts string
	// IDs is what automatic user namespaces are taken from; default: the range of
	// the user "containers" in /etc/subuid, else idmap.Default.
	IDs idmap.Range
	// SELinux computes labels; default: the machine's policy.
	SELinux Labeler
}

// Labeler gives containers their SELinux labels. Both are empty where SELinux is
// off.
type Labeler interface {
	// Label returns the labels of the process and of its files, for options of the
	// form "level:s0:c1,c2", "type:x", "disable".
	Label(options []string) (process, mount string, err error)
	// Release gives back the categories that were drawn for a process label.
	Release(process string)
}

// machine is the Labeler that asks the machine's policy.
type machine struct{}

func (machine) Label(options []string) (process, mountLabel string, err error) {
	process, mountLabel, err = label.InitLabels(options)
	if err != nil {
		return "", "", fmt.Errorf("SELinux labels %v: %w: %w", options, err, errdefs.ErrInvalidArgument)
	}
	return process, mountLabel, nil
}

func (machine) Release(process string) { selinux.ReleaseLabel(process) }

// Store is the records of a containerd namespace. Safe for concurrent use, also by
// several processes as long as they use the same directories.
type Store struct {
	client *client.Client
	o      Options
	claims claim.Dir
}

// New returns a Store on a client, which the caller closes after it. It makes and
// removes nothing.
func New(c *client.Client, o Options) (*Store, error) {
	for _, d := range []struct {
		at    *string
		value string
	}{
		{&o.Root, "/var/lib/berth"},
		{&o.State, "/run/berth"},
		{&o.Snapshotter, "overlayfs"},
		{&o.Runtime, "io.containerd.berth.v1"},
		{&o.Sandboxer, "shim"},
		{&o.Tasks, "/run/containerd/io.containerd.runtime.v2.task"},
		{&o.Hosts, "/etc/containerd/certs.d"},
	} {
		if *d.at == "" {
			*d.at = d.value
		}
	}
	if err := identifiers.Validate(o.Namespace); err != nil {
		return nil, fmt.Errorf("namespace: %w", err)
	}
	if o.Namespace == "sandboxes" {
		return nil, fmt.Errorf("namespace %s: its state would be among that of the shims' pods: %w", o.Namespace, errdefs.ErrInvalidArgument)
	}
	if o.IDs.Count == 0 {
		var err error
		switch o.IDs, err = idmap.Of("containers", "/etc/subuid"); {
		case errdefs.IsNotFound(err):
			o.IDs = idmap.Default
		case err != nil:
			return nil, err
		}
	}
	if o.SELinux == nil {
		o.SELinux = machine{}
	}
	return &Store{client: c, o: o, claims: claim.Dir(filepath.Join(o.State, o.Namespace, "claims"))}, nil
}

func (s *Store) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, s.o.Namespace)
}

// Container is a container of berth's, of any kind, as its record was when it was
// read.
type Container struct {
	ID       string
	Metadata labels.Metadata
	// WorkDir outlives a reboot, RunDir does not. They may be missing.
	WorkDir, RunDir string
	// Record is containerd's.
	Record containers.Container
}

func (s *Store) view(c containers.Container) (Container, error) {
	m, err := labels.Decode(c)
	return Container{c.ID, m, s.workDir(c.ID), s.runDir(c.ID), c}, err
}

// Container returns the container with an ID or any of its names: the infra
// container has the pod's too. It returns NotFound, or what labels.Decode says of
// the record.
func (s *Store) Container(ctx context.Context, ref string) (Container, error) {
	c, err := s.find(s.in(ctx), ref)
	if err != nil {
		return Container{}, err
	}
	return s.view(c)
}

// find returns the record of a container by ID or name.
func (s *Store) find(ctx context.Context, ref string) (containers.Container, error) {
	c, err := s.client.ContainerService().Get(ctx, ref)
	if err == nil || !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
		return c, err
	}
	found, err := s.client.ContainerService().List(ctx, labels.Named(ref), labels.PodNamed(ref))
	if err != nil {
		return containers.Container{}, err
	}
	for _, c := range found {
		if _, err := labels.Decode(c); !errors.Is(err, labels.ErrForeign) {
			return c, nil
		}
	}
	return containers.Container{}, fmt.Errorf("container %q: %w", ref, errdefs.ErrNotFound)
}

// known is find for the methods that tell an ID that is not one by
// ErrInvalidContainerID.
func (s *Store) known(ctx context.Context, ref string) (containers.Container, error) {
	if ref == "" {
		return containers.Container{}, fmt.Errorf("%w: %w", ErrInvalidContainerID, errdefs.ErrInvalidArgument)
	}
	c, err := s.find(ctx, ref)
	if errdefs.IsNotFound(err) {
		return c, fmt.Errorf("%q: %w: %w", ref, ErrInvalidContainerID, errdefs.ErrNotFound)
	}
	return c, err
}

// Complete returns the ID of the container or pod of berth's that begins with a
// prefix. Several are FailedPrecondition, none is NotFound. It is for people:
// programs know the whole ID.
func (s *Store) Complete(ctx context.Context, prefix string) (string, error) {
	if prefix == "" {
		return "", fmt.Errorf("beginning of an ID: %w", errdefs.ErrInvalidArgument)
	}
	all, err := s.client.ContainerService().List(s.in(ctx), labels.Managed())
	if err != nil {
		return "", err
	}
	var match []string
	for _, c := range all {
		if strings.HasPrefix(c.ID, prefix) {
			match = append(match, c.ID)
		}
	}
	switch len(match) {
	case 0:
		return "", fmt.Errorf("ID %s...: %w", prefix, errdefs.ErrNotFound)
	case 1:
		return match[0], nil
	}
	return "", fmt.Errorf("ID %s... is that of %s: %w", prefix, strings.Join(match, ", "), errdefs.ErrFailedPrecondition)
}

// Pod returns a pod of berth's by ID, or by its unique name, with its members. An
// unknown one is ErrInvalidSandboxID. It costs three calls by ID, however many
// containers there are in the namespace, and up to two more by name.
func (s *Store) Pod(ctx context.Context, ref string) (labels.PodEntry, error) {
	ctx = s.in(ctx)
	id, err := s.podID(ctx, ref)
	if err != nil {
		return labels.PodEntry{}, err
	}
	return s.pod(ctx, id)
}

func (s *Store) podID(ctx context.Context, ref string) (string, error) {
	if identifiers.Validate(ref) == nil {
		_, err := s.client.SandboxStore().Get(ctx, ref)
		if !errdefs.IsNotFound(err) {
			return ref, err
		}
	}
	sandboxes, err := s.client.SandboxStore().List(ctx, labels.PodNamed(ref))
	if err != nil {
		return "", err
	}
	for _, b := range sandboxes {
		if _, err := labels.DecodeSandbox(b); !errors.Is(err, labels.ErrForeign) {
			return b.ID, nil
		}
	}
	// The sandbox record is lost, or ref is an ID of which the members tell.
	infra, err := s.client.ContainerService().List(ctx, labels.PodNamed(ref))
	if err != nil {
		return "", err
	}
	for _, c := range infra {
		if _, err := labels.Decode(c); !errors.Is(err, labels.ErrForeign) {
			return c.ID, nil
		}
	}
	return ref, nil
}

func (s *Store) pod(ctx context.Context, id string) (labels.PodEntry, error) {
	var sandboxes []sandbox.Sandbox
	b, err := s.client.SandboxStore().Get(ctx, id)
	switch {
	case err == nil:
		sandboxes = append(sandboxes, b)
	case !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err):
		return labels.PodEntry{}, fmt.Errorf("pod %s: %w", id, err)
	}
	members, err := s.client.ContainerService().List(ctx, labels.PodMembers(id))
	if err != nil {
		return labels.PodEntry{}, fmt.Errorf("containers of pod %s: %w", id, err)
	}
	pods, _ := labels.Group(members, sandboxes)
	for _, p := range pods {
		if p.ID == id {
			return p, nil
		}
	}
	return labels.PodEntry{}, fmt.Errorf("%q: %w: %w", id, ErrInvalidSandboxID, errdefs.ErrNotFound)
}

// List returns all pods of the namespace, whoever made them, and the containers that
// are in none, both newest first. It costs two calls.
func (s *Store) List(ctx context.Context) (pods []labels.PodEntry, rest []labels.Entry, err error) {
	ctx = s.in(ctx)
	cs, err := s.client.ContainerService().List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list containers: %w", err)
	}
	ss, err := s.client.SandboxStore().List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list sandboxes: %w", err)
	}
	pods, rest = labels.Group(cs, ss)
	return pods, rest, nil
}

// Metadata returns what is stored of a container.
func (s *Store) Metadata(ctx context.Context, ref string) (labels.Metadata, error) {
	c, err := s.Container(ctx, ref)
	return c.Metadata, err
}

// SetMetadata replaces what is stored of a container, and with an infra container
// of its pod. The last writer wins. Labels of others stay.
func (s *Store) SetMetadata(ctx context.Context, ref string, m labels.Metadata) error {
	return s.change(ctx, ref, func(changed labels.Metadata, _ error) (labels.Metadata, extent, error) {
		return m, replaced, nil
	})
}

// UpdateMetadata changes some of what is stored of a container: what the function
// leaves as it is may be changed by others meanwhile.
func (s *Store) UpdateMetadata(ctx context.Context, ref string, change func(*labels.Metadata)) error {
	return s.change(ctx, ref, func(m labels.Metadata, err error) (labels.Metadata, extent, error) {
		if err == nil {
			change(&m)
		}
		return m, updated, err
	})
}

// extent is how much of a record a change covers.
type extent uint8

const (
	updated extent = iota
	replaced
)

func (s *Store) change(ctx context.Context, ref string, next func(labels.Metadata, error) (labels.Metadata, extent, error)) error {
	ctx = s.in(ctx)
	c, err := s.find(ctx, ref)
	if err != nil {
		return err
	}
	unlock, err := s.lock(ctx, c.ID, claim.Exclusive)
	if err != nil {
		return err
	}
	defer unlock()
	// As it is under the lock.
	if c, err = s.client.ContainerService().Get(ctx, c.ID); err != nil {
		return err
	}
	m, what, err := next(labels.Decode(c))
	if err != nil {
		return err
	}
	if err := s.write(ctx, c, m, what); err != nil || m.Kind != labels.KindInfra {
		return err
	}
	return s.writeSandbox(ctx, c.ID, m, what)
}

func (s *Store) write(ctx context.Context, c containers.Container, m labels.Metadata, what extent) error {
	make := m.Update
	if what == replaced {
		make = m.Replace
	}
	ch, err := make(c)
	if err != nil {
		return err
	}
	_, err = ch.Container(ctx, s.client.ContainerService())
	return err
}

// writeSandbox leaves out a record that is lost.
func (s *Store) writeSandbox(ctx context.Context, id string, m labels.Metadata, what extent) error {
	b, err := s.client.SandboxStore().Get(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	make := m.UpdateSandbox
	if what == replaced {
		make = m.ReplaceSandbox
	}
	ch, err := make(b)
	if err != nil {
		return err
	}
	_, err = ch.Sandbox(ctx, s.client.SandboxStore())
	return err
}

// hasTask tells whether containerd has a task of a container, in any state.
func (s *Store) hasTask(ctx context.Context, id string) (bool, error) {
	_, err := s.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	err = errgrpc.ToNative(err)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("task of container %s: %w", id, err)
	}
	return true, nil
}
