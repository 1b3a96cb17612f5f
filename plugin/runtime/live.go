// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/process"
)

// live are the process sides of the containers that operations of this process are
// about, so that those meet: the second stop of a container joins the first.
type live struct {
	mu   sync.Mutex // guards what follows
	used map[string]*liveContainer
}

type liveContainer struct {
	users  int
	loaded chan struct{} // closed when what follows is set
	c      *process.Container
	err    error
}

// hold returns the process side of a container, loaded by the first of its users,
// and what says that it is not needed any more.
func (l *live) hold(ctx context.Context, id string, load func() (*process.Container, error)) (*process.Container, func(), error) {
	l.mu.Lock()
	h := l.used[id]
	first := h == nil
	if first {
		h = &liveContainer{loaded: make(chan struct{})}
		if l.used == nil {
			l.used = make(map[string]*liveContainer)
		}
		l.used[id] = h
	}
	h.users++
	l.mu.Unlock()
	release := sync.OnceFunc(func() { l.release(id, h) })
	if first {
		h.c, h.err = load()
		close(h.loaded)
	}
	select {
	case <-h.loaded:
	case <-ctx.Done():
		release()
		return nil, nil, context.Cause(ctx)
	}
	err := h.err
	if err == nil && !first {
		err = h.c.Refresh(ctx) // its failure is this user's alone
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return h.c, release, nil
}

func (l *live) release(id string, h *liveContainer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.users--; h.users == 0 {
		delete(l.used, id)
	}
}

// member is a container of berth's that an operation is about. release it.
type member struct {
	*process.Container
	entry   labels.Entry
	record  containers.Container
	release func()
}

// operate finds a container that may be changed.
func (s *Service) operate(ctx context.Context, ref string) (*member, error) {
	v, e, err := s.findContainer(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := refuse("container", e, false); err != nil {
		return nil, err
	}
	return s.load(ctx, v.containers[e.ID], *e)
}

// load loads the process side of a container.
func (s *Service) load(ctx context.Context, record containers.Container, e labels.Entry) (*member, error) {
	if e.Err != nil {
		return nil, e.Err
	}
	c, release, err := s.live.hold(ctx, e.ID, func() (*process.Container, error) {
		return s.processes.Load(ctx, s.processConfig(&e, &record))
	})
	if errdefs.IsNotFound(err) && e.Metadata.Created {
		if _, gone := s.containers.Get(ctx, e.ID); gone == nil {
			err = fmt.Errorf("it is damaged: %s: %w", err, errdefs.ErrDataLoss) // that it is not there would be a success to some
		}
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", e.ID, err)
	}
	return &member{c, e, record, release}, nil
}

// processConfig is what the process side has to know. Without the record it does
// not know the specification, which listings do without.
func (s *Service) processConfig(e *labels.Entry, record *containers.Container) process.Config {
	c := process.Config{ID: e.ID, Metadata: e.Metadata, Dir: s.workDir(e.ID), ExitDir: s.exitDir()}
	if record != nil {
		c.ImageName = record.Image
		c.Spec, _ = specOf(record) // without it there are no execs, and the error says so
	}
	return c
}

func specOf(record *containers.Container) (*specs.Spec, error) {
	if record.Spec == nil {
		return nil, fmt.Errorf("container %s: no specification: %w", record.ID, errdefs.ErrDataLoss)
	}
	var spec specs.Spec
	if err := json.Unmarshal(record.Spec.GetValue(), &spec); err != nil {
		return nil, fmt.Errorf("specification of container %s: %w: %w", record.ID, errdefs.ErrDataLoss, err)
	}
	return &spec, nil
}

// stop stops a container.
func (s *Service) stop(ctx context.Context, m *member, grace time.Duration) error {
	defer s.letStop(ctx, m)
	return m.Stop(ctx, grace)
}

// letStop releases a container when nobody stops it any more: a stop goes on when
// its caller has gone, and others that want the same are to meet it.
func (s *Service) letStop(ctx context.Context, m *member) {
	if ctx.Err() == nil {
		m.release()
		return
	}
	s.background.Go(func() {
		defer m.release()
		_ = m.WaitOnStopTimeout(context.WithoutCancel(ctx), math.MaxInt64) // whoever waits for it hears of it
	})
}
