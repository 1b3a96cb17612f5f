// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"path/filepath"
	"sync"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/network"
	"github.com/berthd/berth/plugin/runtime/process"
	"github.com/berthd/berth/plugin/runtime/record"
	"github.com/berthd/berth/plugin/runtime/record/claim"
)

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
	flights    flights
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
	c.Network.State, c.Network.Namespace = filepath.Join(state, "networks"), c.Namespace
	if s.network, err = network.Open(c.Network); err != nil {
		return nil, err
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
