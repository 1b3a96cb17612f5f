// SPDX-License-Identifier: Apache-2.0

// Package images is the image service: CRI-O's ImageServer and moby's ImageService
// over containerd's stores. Service joins what the packages below it own; the
// logic is theirs. Each method's comment names the methods it stands for.
package images

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

	"github.com/berthd/berth/images/listing"
	"github.com/berthd/berth/images/pin"
	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/images/push"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/removal"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/transfer"
	"github.com/berthd/berth/images/unpack"
)

// Config says what a Service works on. Client and Namespace are required; the zero
// value of everything else is what its comment says.
type Config struct {
	// Client is the connection to containerd; it stays the caller's.
	Client *client.Client
	// Namespace is containerd's: "k8s.io" is the kubelet's.
	Namespace string
	// Snapshotter unpacks images; empty is containerd's default.
	Snapshotter string
	// Platform tells which variant of an image is the one of this host; nil is
	// what containerd takes for the host's.
	Platform platforms.MatchComparer
	// Pins are patterns of names that garbage collection must spare; see
	// pin.Patterns.
	Pins []string
	// PauseImage is pinned besides; it may be empty.
	PauseImage string
	// Registry reaches registries; nil is one with the system's configuration,
	// which New reads then.
	Registry *registry.Registry
	// Policy says where the signature policies are; they are read for each
	// verification.
	Policy policy.Config
	// DecryptionKeys is a directory of private keys, each of whose files is tried
	// on encrypted layers; empty, or missing, means no keys.
	DecryptionKeys string
	// MaxDownloads and MaxUploads are how many blobs are transferred at a time,
	// by all pulls and by all pushes; 0 is DefaultMaxDownloads and
	// DefaultMaxUploads. UpdateConfig changes them.
	MaxDownloads, MaxUploads int
	// MaxUnpacked is what the layers of an image may unpack to together, in bytes; 0
	// is unpack.DefaultMax. Whoever unpacks is bound by it: see unpack.Config.
	MaxUnpacked int64
	// PullCommand is a program with its arguments that makes the same service and
	// calls its ServePull: for pulls in a cgroup of their own. Without it there are
	// none.
	PullCommand []string
	// Mounts is the directory below which images and containers are mounted;
	// empty is /run/berth/images.
	Mounts string
	// Events is called for each event. It must not block; it may be nil.
	Events func(Event)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Event says what happened to an image.
type Event = store.Event

// How many blobs are transferred at a time unless the configuration says: what
// moby has. More of them do not fill a line better, and registries answer many at
// once with 429.
const (
	DefaultMaxDownloads = 3
	DefaultMaxUploads   = 5
)

// defaultMounts is on a file system that a reboot empties, as it does mounts.
const defaultMounts = "/run/berth/images"

func (c Config) validate() error {
	var errs []error
	if c.Client == nil {
		errs = append(errs, errors.New("no client"))
	}
	if c.Namespace == "" {
		errs = append(errs, errors.New("no namespace"))
	}
	if c.MaxDownloads < 0 || c.MaxUploads < 0 {
		errs = append(errs, errors.New("a negative number of transfers"))
	}
	if c.MaxUnpacked < 0 {
		errs = append(errs, errors.New("a negative size for images"))
	}
	if len(errs) > 0 {
		return fmt.Errorf("image service: %w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Snapshotter == "" {
		c.Snapshotter = defaults.DefaultSnapshotter
	}
	if c.Platform == nil {
		c.Platform = platforms.Default()
	}
	if c.MaxDownloads == 0 {
		c.MaxDownloads = DefaultMaxDownloads
	}
	if c.MaxUploads == 0 {
		c.MaxUploads = DefaultMaxUploads
	}
	if c.Mounts == "" {
		c.Mounts = defaultMounts
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Service manages the images of one namespace. It holds nothing that must be
// closed. Safe for concurrent use.
type Service struct {
	config   Config // as given, with the defaults filled in
	client   *client.Client
	store    *store.Store
	registry *registry.Registry
	pins     atomic.Pointer[pin.Patterns]
	remover  *removal.Remover
	lister   *listing.Lister
	unpacker *unpack.Unpacker
	pulling  marks // names that a pull is at work on

	downloads, uploads *transfer.Limiter
	puller             *pull.Puller
	pusher             *push.Pusher
}

// New returns a service. It makes no request, so containerd need not be up.
// Its class is ErrInvalidArgument if something required is missing. It is CRI-O's
// GetImageService and moby's NewService.
func New(c Config) (*Service, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	if c.Registry == nil {
		var err error
		if c.Registry, err = registry.New(registry.Config{}); err != nil {
			return nil, fmt.Errorf("image service: %w", err)
		}
	}
	s := &Service{config: c, client: c.Client, registry: c.Registry}
	s.setPins(c.Pins)
	s.unpacker = unpack.New(unpack.Config{
		Client: c.Client, Snapshotter: c.Snapshotter, Max: c.MaxUnpacked, Keys: c.DecryptionKeys,
	})
	s.store = store.New(c.Client, store.Options{
		Namespace: c.Namespace,
		Platform:  c.Platform,
		Pinned:    s.pinned,
		Events:    c.Events,
		Now:       c.Now,
	})
	s.lister = listing.New(listing.Config{
		Store: s.store, Client: c.Client, Snapshotter: c.Snapshotter, Pulling: s.pulling.has, Now: c.Now,
	})
	s.remover = removal.New(s.store, c.Client, c.Snapshotter, c.Now)
	s.transfers()
	return s, nil
}

// Store returns the records of the service's namespace, for what joins the service
// with other parts. It is GetStore of the ImageServer.
func (s *Service) Store() *store.Store { return s.store }

// StorageDriver returns the name of the snapshotter that unpacks images. It is
// StorageDriver of the ImageService.
func (s *Service) StorageDriver() string { return s.config.Snapshotter }
