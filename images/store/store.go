// SPDX-License-Identifier: Apache-2.0

// Package store owns the records of containerd's image store in one namespace:
// how a name or an ID finds them, what becomes of the image that a name stood
// for when the name moves, which records Kubernetes' side of containerd expects
// beside a name, and the events about all that. It refuses to know registries,
// archives and layers; content it reads only to learn the facts of an image.
package store

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
)

// KubernetesNamespace is the namespace that containerd's CRI plugin works in.
// There an image has more records than its names: see RecordsFor.
const KubernetesNamespace = "k8s.io"

// Options say what a Store works on. Only Namespace is required.
type Options struct {
	// Namespace is containerd's.
	Namespace string
	// Platform says which of an image's variants is the one of this host; nil is
	// what containerd takes for the host's.
	Platform platforms.MatchComparer
	// Pinned tells whether a name is pinned: its record gets the label by which
	// containerd's CRI plugin, and so the kubelet, spares it. It may be nil.
	Pinned func(name string) bool
	// Events is called for each Event, one at a time or not, and must not block.
	// It may be nil.
	Events func(Event)
	// Now is the time of events; nil is time.Now.
	Now func() time.Time
}

// Store gives access to the records of one namespace. Each method puts the
// namespace into its context by itself. It holds no connection of its own and
// need not be closed. Safe for concurrent use.
type Store struct {
	client  *client.Client
	records images.Store
	content content.Store
	options Options
	locks   locks

	mu    sync.Mutex // guards blobs
	blobs local      // its root is empty until somebody has asked for it
}

// New returns a Store over a client, which stays the caller's. It makes no
// request.
func New(c *client.Client, o Options) *Store {
	if o.Platform == nil {
		o.Platform = platforms.Default()
	}
	if o.Pinned == nil {
		o.Pinned = func(string) bool { return false }
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Store{
		client:  c,
		records: c.ImageService(),
		content: c.ContentStore(),
		options: o,
		locks:   locks{held: map[string]*lock{}},
	}
}

// Context returns ctx with the store's namespace in it.
func (s *Store) Context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, s.options.Namespace)
}

// Namespace returns containerd's namespace that the store works in.
func (s *Store) Namespace() string { return s.options.Namespace }

// Platform returns the matcher that tells this host's variant of an image.
func (s *Store) Platform() platforms.MatchComparer { return s.options.Platform }

// kubernetes tells whether CRI's records are to be kept.
func (s *Store) kubernetes() bool { return s.options.Namespace == KubernetesNamespace }
