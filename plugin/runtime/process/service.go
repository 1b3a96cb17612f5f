// SPDX-License-Identifier: Apache-2.0

// Package process is the process side of berth's containers: one [Container] each,
// from the task's creation to its deletion, with its state, its execs, and who is
// attached to it. It works through containerd's task service and, for what that
// lacks, the shim's own (package control).
//
// It owns the document state.json in the container's directory, the identity of
// processes that is in it, and the rules of stopping. It refuses to know records,
// images, root filesystems and pods: what it needs of them is in a [Config].
//
// # Who waits for whom
//
// Operations that change a container (create, start, pause, update, delete, status)
// happen one at a time. A stop is none of them while it waits: others, and State,
// go on meanwhile. StateNoLock never waits.
//
// Every context must carry containerd's namespace.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/labels"
)

// callTimeout bounds a request that containerd and a shim answer at once unless
// they hang.
const callTimeout = 10 * time.Second

// Service makes containers' process sides and owns what goes on in the background
// for them. Safe for concurrent use.
type Service struct {
	tasks tasks.TasksClient

	background sync.WaitGroup
	ctx        context.Context // ends at Close
	cancel     context.CancelFunc
}

// New returns a service that works through containerd's task service, which stays
// the caller's.
func New(t tasks.TasksClient) *Service {
	s := &Service{tasks: t}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends what goes on in the background, stops included, which leaves their
// containers as they are, and returns when it has. After it no method of the
// service or its containers may be called that talks to containerd.
func (s *Service) Close() {
	s.cancel()
	s.background.Wait()
}

// spawn runs f in the background, with ctx's values but beyond its end: until
// Close.
func (s *Service) spawn(ctx context.Context, f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(s.ctx, cancel)
	s.background.Go(func() {
		defer cancel()
		defer stop()
		f(ctx)
	})
}

// Config is what a container's process side has to know of the rest. The maps and
// lists stay the caller's and must not change.
type Config struct {
	ID       string
	Metadata labels.Metadata
	// Dir is the container's persistent directory; state.json is kept there.
	Dir string
	// ExitDir is where shims leave exit codes, by ID; empty: nowhere.
	ExitDir string
	// Spec is the specification that the container was made with; nil: not known,
	// then there are no execs.
	Spec *specs.Spec
	// ImageNames are some name of the image and some digest of it in a repository.
	// Either may be empty, and neither has to do with what the user typed.
	ImageName, RepoDigest string
	// Stdio are the addresses that the shim connects the process to.
	Stdio Stdio
}

// Stdio are addresses of streams in the shim's form: cri:///path?max-files=5, the
// path of a fifo, file:///path, pipe://, pty://, or empty for none. Whether there
// is a terminal is in the container's settings.
type Stdio struct{ Stdin, Stdout, Stderr string }

func (c *Config) validate() error {
	var errs []error
	if c.ID == "" {
		errs = append(errs, errors.New("no id"))
	}
	if !filepath.IsAbs(c.Dir) {
		errs = append(errs, fmt.Errorf("directory %q is not absolute", c.Dir))
	}
	if len(errs) > 0 {
		return fmt.Errorf("container %s: %w: %w", c.ID, errdefs.ErrInvalidArgument, errors.Join(errs...))
	}
	return nil
}

// Container returns the process side of a new container, which has no task yet.
func (s *Service) Container(cfg Config) (*Container, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c := &Container{s: s, Config: cfg, operation: make(chan struct{}, 1)}
	c.execs.pids = map[int]execPid{}
	c.state = State{
		State:   specs.State{Version: specs.Version, ID: cfg.ID, Status: Created},
		Created: cfg.Metadata.CreatedAt,
	}
	if c.Spoofed() {
		c.state.Started = c.state.Created
	}
	return c, nil
}

// Load returns the process side of a container that an earlier program has made,
// after asking for its status. What containerd says counts for a running
// container, and the document for one that has ended. A missing document is
// NotFound: the container is damaged, not stopped.
func (s *Service) Load(ctx context.Context, cfg Config) (*Container, error) {
	c, err := s.Container(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.FromDisk(); err != nil {
		if !c.Spoofed() || !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if err := c.Refresh(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// native gives a client's error its class back, and takes off what containerd and the
// shim say before the reason: which container it is, callers say themselves.
func native(err error) error {
	if err == nil {
		return nil
	}
	err = errgrpc.ToNative(err)
	text := err.Error()
	if at := preface.FindStringIndex(text); at != nil && at[1] < len(text) {
		return reason{err, text[at[1]:]}
	}
	return err
}

// preface is as "failed to create shim task: create container ID: ", or "start in
// container ID: exec ID: ".
var preface = regexp.MustCompile(`^(failed to [a-z]+ (shim )?task: )?([a-z]+ (in )?)?container [A-Za-z0-9._-]+: (exec [A-Za-z0-9._-]+: )?`)

// reason is an error by another text.
type reason struct {
	error
	text string
}

func (r reason) Error() string { return r.text }
func (r reason) Unwrap() error { return r.error }

// logger is the context's, for a container.
func (c *Container) logger(ctx context.Context) *log.Entry {
	return log.G(ctx).WithField("container", c.ID)
}
