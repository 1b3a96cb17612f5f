// SPDX-License-Identifier: Apache-2.0

// Package runtime is berth's service of pods and containers over containerd: what
// the command line and other programs use. It joins the packages below it, each of
// which owns one side of a container: its records (record, labels), its
// specification (oci), its process (process), its network (network), its
// checkpoints (checkpoint), and what it runs with (handler).
//
// It keeps nothing in memory that containerd and the directories do not hold: any
// number of processes may have a [Service] for the same namespace, be killed at any
// step, and be started again.
//
// # Pods
//
// A pod is a containerd sandbox without a pause container, and a container record
// of the same ID that has no process, for the names and settings. Its members are
// containers whose SandboxID it is. If the sandbox's record is lost, the pod is
// rebuilt from the labels of the rest.
//
// Pods and containers of others (the kubelet's, ctr's, nerdctl's) are listed and
// can be looked at. What would change one is refused with [ErrForeign], unless
// Force says that it is meant.
//
// # References
//
// A parameter called ref names a pod or container: by its ID, by its unique name,
// by its name where no other has it, or, if [Config.Prefixes] is set, by the
// beginning of its ID. No match is NotFound, several are FailedPrecondition.
//
// # When a process dies
//
// Below the state directory a creation has a claim, a locked file, until all is made.
// If its process dies, the lock is gone and the file is not: whoever opens a Service
// next, or creates or removes something, ends what there is and removes its records,
// three seconds later, when containerd has given up what it was asked. Names are
// held by records, and by the claims of package record before there are any. A
// removal that was cut short is done again from the start.
//
// # Errors
//
// Errors have classes of containerd/errdefs and say which container and which step.
// Stopping and removing what is not there is success.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/flight"
	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/network"
	"github.com/berthd/berth/plugin/runtime/process"
	"github.com/berthd/berth/plugin/runtime/record"
	"github.com/berthd/berth/plugin/runtime/record/claim"
)

// Defaults of Config.
const (
	DefaultRoot  = "/var/lib/berth"
	DefaultState = "/run/berth"
	// DefaultSnapshotter is containerd's.
	DefaultSnapshotter = "overlayfs"
)

// Config says with what a Service works. Client is mandatory.
type Config struct {
	// Client of containerd. The caller closes it, after the Service.
	Client *client.Client
	// Namespace is containerd's. Default: the client's.
	Namespace string
	// Root is the directory for what outlives a reboot; Default: DefaultRoot.
	Root string
	// State is the directory for what does not, on a tmpfs. Default: DefaultState.
	State string
	// Snapshotter makes the containers' file systems. Default: DefaultSnapshotter.
	Snapshotter string
	// Handlers are the runtime handlers. Default: those of handler.DefaultPath.
	Handlers *handler.Handlers
	// Network configures CNI. Its State and Namespace are set here.
	Network network.Config
	// LogDriver is berth's command line, an absolute path, which writes the logs of
	// containers whose runtime is another shim than berth's. Empty: they have none.
	LogDriver string
	// CRIU is the program, for checkpoints. Default: "criu".
	CRIU string
	// CreateTimeout bounds the creation of a pod or container that has no shorter
	// deadline. Default: 4 minutes, as CRI-O's.
	CreateTimeout time.Duration
	// Prefixes lets a ref be the beginning of an ID. It is for people: programs
	// know the whole ID, and a prefix may come to mean another container.
	Prefixes bool
}

func (c *Config) complete() error {
	if c.Client == nil {
		return fmt.Errorf("runtime: no client: %w", errdefs.ErrInvalidArgument)
	}
	for _, d := range []struct {
		at        *string
		otherwise string
	}{
		{&c.Namespace, c.Client.DefaultNamespace()},
		{&c.Root, DefaultRoot},
		{&c.State, DefaultState},
		{&c.Snapshotter, DefaultSnapshotter},
	} {
		if *d.at == "" {
			*d.at = d.otherwise
		}
	}
	if c.CreateTimeout <= 0 {
		c.CreateTimeout = 4 * time.Minute
	}
	var faults []error
	if c.Handlers == nil {
		var err error
		c.Handlers, err = handler.Open("")
		faults = append(faults, err)
	}
	if err := identifiers.Validate(c.Namespace); err != nil {
		faults = append(faults, fmt.Errorf("namespace: %w", err))
	}
	for _, dir := range []string{c.Root, c.State} {
		if !filepath.IsAbs(dir) {
			faults = append(faults, fmt.Errorf("directory %q is not an absolute path: %w", dir, errdefs.ErrInvalidArgument))
		}
	}
	return errors.Join(faults...)
}

// Service is the pods and containers of a containerd namespace. Safe for concurrent
// use; other processes may have a Service of the same namespace.
type Service struct {
	config     Config
	containers containers.Store
	tasks      tasks.TasksClient
	sandboxes  sandboxes
	records    *record.Store
	network    *network.Pods
	processes  *process.Service
	claims     claim.Dir // of creations; record has its own
	flights    flight.Group
	live       live

	background sync.WaitGroup // stops whose callers have gone
}

// ErrForeign (FailedPrecondition) is returned for changing what berth did not make.
var ErrForeign = labels.ErrForeign

// Open returns a service, after removing what a process that ended halfway left. It
// is cheap enough for one call of the command line.
func Open(ctx context.Context, c Config) (*Service, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	state := filepath.Join(c.State, c.Namespace)
	s := &Service{
		config: c, containers: c.Client.ContainerService(), tasks: c.Client.TaskService(),
		sandboxes: newSandboxes(c.Client, c.Namespace), claims: claim.Dir(filepath.Join(state, "creations")),
	}
	var err error
	s.records, err = record.New(c.Client, record.Options{
		Namespace: c.Namespace, Root: c.Root, State: c.State, Snapshotter: c.Snapshotter,
	})
	if err != nil {
		return nil, err
	}
	c.Network.State, c.Network.Namespace = filepath.Join(c.Root, c.Namespace, "networks"), c.Namespace
	if s.network, err = network.Open(c.Network); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.exitDir(), 0o700); err != nil {
		return nil, fmt.Errorf("runtime: directory of exit codes: %w: %w", errdefs.ErrFailedPrecondition, err)
	}
	if err := s.recoverOnce(s.in(ctx)); err != nil {
		return nil, err
	}
	s.processes = process.New(s.tasks)
	return s, nil
}

// Close ends what goes on in the background, stops included, and returns when it
// has. Containers and the client are left alone.
func (s *Service) Close() error {
	s.processes.Close()
	s.background.Wait()
	return nil
}

// in is ctx in the service's namespace.
func (s *Service) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, s.config.Namespace)
}

// workDir is where a container has what outlives a reboot; runDir what does not.
func (s *Service) workDir(id string) string {
	return filepath.Join(s.config.Root, s.config.Namespace, "containers", id)
}

func (s *Service) runDir(id string) string {
	return filepath.Join(s.config.State, s.config.Namespace, "containers", id)
}

// exitDir has a file for each member that has ended: its exit code. It outlives the
// shim, the task and a reboot.
func (s *Service) exitDir() string {
	return filepath.Join(s.config.Root, s.config.Namespace, "exits")
}

// forgetExit removes what exitDir has of a container.
func (s *Service) forgetExit(id string) error {
	err := os.Remove(filepath.Join(s.exitDir(), id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Handlers are the runtime handlers. They are safe for concurrent use.
func (s *Service) Handlers() *handler.Handlers { return s.config.Handlers }

// Features are what the runtime of a handler can do, "" for the default one's. A
// runtime that does not tell has none, and the error says why.
func (s *Service) Features(ctx context.Context, name string) (handler.Features, error) {
	h, err := s.config.Handlers.Choose(name)
	if err != nil {
		return handler.Features{}, err
	}
	return h.Features(s.in(ctx), s.config.Client)
}
