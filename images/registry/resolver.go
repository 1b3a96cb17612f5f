// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/berthd/berth/images/reference"
)

// Resolver returns a resolver for the repository of ref, and for others of the
// same registry. It asks the mirrors of registries.conf before the registry, and
// at each of them the hosts of hosts.toml. Pushing goes to the registry alone.
// Busy and broken registries are given a few more chances, see Config. Errors of
// the resolver and its fetchers are Classify's and name what was asked for;
// those of writing to a pusher's content are not.
//
// Nothing is asked for over a network yet. A registry that is blocked is
// ErrBlocked; a file of credentials given with the call must exist.
func (r *Registry) Resolver(ctx context.Context, ref reference.Reference, a Access) (remotes.Resolver, error) {
	if a.AuthFile != "" {
		if _, err := os.Stat(a.AuthFile); err != nil {
			return nil, fmt.Errorf("%s: file of credentials: %w: %w", ref, err, errdefs.ErrInvalidArgument)
		}
	}
	if _, err := r.sources(ref); err != nil {
		return nil, err
	}
	return &resolver{registry: r, access: a, made: map[source]remotes.Resolver{}, tracker: docker.NewInMemoryTracker()}, nil
}

// resolver tries one resolver of containerd's for each source.
type resolver struct {
	registry *Registry
	access   Access
	tracker  docker.StatusTracker

	mu      sync.Mutex                  // guards what follows
	made    map[source]remotes.Resolver // by source, without tag and digest
	options []transfer.ImageResolverOption
}

var _ remotes.ResolverWithOptions = (*resolver)(nil)

// SetOptions is for resolvers made from now on.
func (s *resolver) SetOptions(options ...transfer.ImageResolverOption) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.options = append(s.options, options...)
}

// at returns the resolver for a source. There is one for all references to a
// repository, so that they share connections and tokens.
func (s *resolver) at(ctx context.Context, place source) (remotes.Resolver, error) {
	repository, err := place.ref.WithTag("latest")
	if err != nil {
		return nil, err
	}
	key := place
	key.ref = repository
	s.mu.Lock()
	defer s.mu.Unlock()
	if made, ok := s.made[key]; ok {
		return made, nil
	}
	hosts, err := s.registry.hosts(ctx, place, s.access)
	if err != nil {
		return nil, err
	}
	made := docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return slices.Clone(hosts), nil },
		Tracker: s.tracker,
	})
	if configurable, ok := made.(remotes.ResolverWithOptions); ok {
		configurable.SetOptions(s.options...)
	}
	s.made[key] = made
	return made, nil
}

func (s *resolver) Resolve(ctx context.Context, name string) (string, v1.Descriptor, error) {
	ctx = quiet(ctx)
	ref, err := reference.Parse(name)
	if err != nil {
		return "", v1.Descriptor{}, err
	}
	sources, err := s.registry.sources(ref)
	if err != nil {
		return "", v1.Descriptor{}, err
	}
	var failed error
	for _, place := range sources {
		desc, err := s.resolveAt(ctx, place)
		if err == nil {
			return name, desc, nil
		}
		failed = after(failed, explain(ctx, place.ref, place.ref.Text(), err))
		if ctx.Err() != nil {
			break
		}
	}
	return "", v1.Descriptor{}, failed
}

func (s *resolver) resolveAt(ctx context.Context, place source) (v1.Descriptor, error) {
	at, err := s.at(ctx, place)
	if err != nil {
		return v1.Descriptor{}, err
	}
	_, desc, err := at.Resolve(ctx, place.ref.Text())
	return desc, err
}

// after returns the last error, which alone says its class, and in its text what
// went wrong earlier.
func after(earlier, last error) error {
	if earlier == nil {
		return last
	}
	return fmt.Errorf("%w (before that: %v)", last, earlier)
}

func (s *resolver) Fetcher(ctx context.Context, name string) (remotes.Fetcher, error) {
	ctx = quiet(ctx)
	ref, err := reference.Parse(name)
	if err != nil {
		return nil, err
	}
	sources, err := s.registry.sources(ref)
	if err != nil {
		return nil, err
	}
	var all fetcher
	for _, place := range sources {
		at, err := s.at(ctx, place)
		if err != nil {
			return nil, explain(ctx, place.ref, place.ref.Text(), err)
		}
		one, err := at.Fetcher(ctx, place.ref.Text())
		if err != nil {
			return nil, explain(ctx, place.ref, place.ref.Text(), err)
		}
		all = append(all, origin{place.ref, one})
	}
	return all, nil
}

func (s *resolver) Pusher(ctx context.Context, name string) (remotes.Pusher, error) {
	ctx = quiet(ctx)
	ref, err := reference.Parse(name)
	if err != nil {
		return nil, err
	}
	home, err := s.registry.home(ref)
	if err != nil {
		return nil, err
	}
	at, err := s.at(ctx, home)
	if err != nil {
		return nil, explain(ctx, ref, name, err)
	}
	// By the name as it is: a tag says what to write besides a digest.
	pusher, err := at.Pusher(ctx, name)
	if err != nil {
		return nil, explain(ctx, ref, name, err)
	}
	return pusher, nil
}

// quiet returns a context with which containerd does not log what went wrong at a
// host: it is in the error if it matters, and there it is worded without URLs. Who
// wants to debug gets it nonetheless.
func quiet(ctx context.Context) context.Context {
	entry := log.G(ctx)
	if entry.Logger.GetLevel() != logrus.InfoLevel {
		return ctx
	}
	warnings := &logrus.Logger{
		Out: entry.Logger.Out, Hooks: entry.Logger.Hooks, Formatter: entry.Logger.Formatter,
		ExitFunc: entry.Logger.ExitFunc, Level: logrus.WarnLevel,
	}
	return log.WithLogger(ctx, warnings.WithFields(entry.Data))
}

// origin is where content is fetched from.
type origin struct {
	ref reference.Reference
	remotes.Fetcher
}

type fetcher []origin

// Fetch returns a reader that can seek. Nothing is asked for before the first
// Read. When an origin fails the next one is asked for the rest.
func (f fetcher) Fetch(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	return &blob{ctx: quiet(ctx), desc: desc, left: f}, nil
}

// blob is content that is being read. Its context is that of the Fetch, as a
// reader has no other.
type blob struct {
	ctx    context.Context
	desc   v1.Descriptor
	left   []origin // the one that is read and those to ask after it; at least one
	open   io.ReadCloser
	ended  bool // open has no more
	offset int64
	failed error // of earlier origins
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		n, err := b.readHere(p)
		b.offset += int64(n)
		if err == nil || n > 0 {
			return n, nil // an error comes again
		}
		if err == io.EOF && (b.desc.Size <= 0 || b.offset >= b.desc.Size) {
			return 0, io.EOF
		}
		if err == io.EOF {
			err = &failure{ErrUnavailable, io.ErrUnexpectedEOF, fmt.Sprintf("ended after %d of %d bytes", b.offset, b.desc.Size)}
		}
		b.failed = after(b.failed, explain(b.ctx, b.left[0].ref, b.name(), err))
		if len(b.left) == 1 || b.ctx.Err() != nil {
			return 0, b.failed
		}
		_ = b.Close() // it has failed already
		b.left = b.left[1:]
	}
}

// name is of the content and where it should come from, for errors.
func (b *blob) name() string { return fmt.Sprintf("%s of %s", b.desc.Digest, b.left[0].ref) }

func (b *blob) readHere(p []byte) (int, error) {
	if b.ended { // containerd's reader would ask again
		return 0, io.EOF
	}
	if b.open == nil {
		opened, err := b.left[0].Fetch(b.ctx, b.desc)
		if err != nil {
			return 0, err
		}
		b.open = opened
		if seeker, ok := opened.(io.Seeker); ok {
			if _, err := seeker.Seek(b.offset, io.SeekStart); err != nil {
				return 0, err
			}
		}
	}
	n, err := b.open.Read(p)
	b.ended = err == io.EOF
	return n, err
}

// Seek sets from where the next Read is.
func (b *blob) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.offset
	case io.SeekEnd:
		offset += b.desc.Size
	}
	if offset < 0 {
		return 0, fmt.Errorf("%s: seek before the beginning: %w", b.name(), errdefs.ErrInvalidArgument)
	}
	if offset != b.offset {
		_ = b.Close() // reading goes on elsewhere
		b.offset = offset
	}
	return offset, nil
}

func (b *blob) Close() error {
	b.ended = false
	if b.open == nil {
		return nil
	}
	open := b.open
	b.open = nil
	return open.Close()
}
