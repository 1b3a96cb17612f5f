// SPDX-License-Identifier: Apache-2.0

package images

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
)

// ErrNoSuchImage is what errors.Is finds in the error for an image that is not here:
// ErrNoSuchImage and ErrImageUnknown of the ImageServer, image-does-not-exist of the
// ImageService.
var ErrNoSuchImage = store.ErrImageDoesNotExist

// Image is an image as CRI sees it: all records whose configuration is the same. It
// is ImageResult of the ImageServer.
type Image struct {
	// ID is the digest of the configuration, and of the target as long as that
	// cannot be read.
	ID reference.ID
	// Name is one of the image's names, the first tag if it has any; nil if it has
	// none. It need not be the one that was asked for.
	Name *reference.Reference
	// RepoTags are its tags, sorted.
	RepoTags []string
	// RepoDigests are "repository@digest" for each repository and each digest that
	// its names have, sorted: it need not be in that repository.
	RepoDigests []string
	// Size is that of the manifest, the configuration and the layers as blobs, in
	// bytes, which is what containerd's CRI plugin reports; nil if not known.
	Size *int64
	// Target is what its records point to: an index, or the manifest.
	Target v1.Descriptor
	// Digest is that of the manifest, ConfigDigest that of the configuration; empty
	// as long as they cannot be read.
	Digest, ConfigDigest digest.Digest
	// Platform is the one it is for, zero if not known.
	Platform v1.Platform
	// Created is when it was made, by its own account; zero if it does not say.
	Created time.Time
	// PreviousName is the repository of the last name of an image that has none.
	PreviousName string
	// Pinned says that one of its names is pinned.
	Pinned bool
	// Records are the names of its records in containerd's image store, sorted.
	Records []string

	// What follows is left out of a Brief list.

	// User, Labels and OCIConfig are of the configuration; OCIConfig is nil if it
	// cannot be read.
	User      string
	Labels    map[string]string
	OCIConfig *v1.Image
	// Annotations are those of an OCI manifest, nil for one of Docker's.
	Annotations map[string]string
}

// ListOptions say what List is to return.
type ListOptions struct {
	// Filter, if not empty, is a name or an ID: the list then has that image, or is
	// empty if there is none.
	Filter string
	// Brief leaves out what needs the configuration to be read.
	Brief bool
}

// List returns one Image for each configuration, in the order of their first names.
//
// An image that cannot be read, because content is missing or is for no platform at
// all, is listed with what is known, and logged; unless it is being pulled, then it
// is passed over. Records whose names are not those of images in a registry have no
// part in RepoTags; they are logged. It is ListImages of the ImageServer.
func (s *Service) List(ctx context.Context, o ListOptions) ([]Image, error) {
	if o.Filter != "" {
		one, err := s.status(ctx, o.Filter)
		if errors.Is(err, ErrNoSuchImage) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []Image{*one}, nil
	}
	records, err := s.store.Records(ctx)
	if err != nil {
		return nil, err
	}
	list := s.group(ctx, records)
	if !o.Brief {
		s.details.fill(ctx, s.store, list, true)
	}
	return list, nil
}

// StatusByID returns the image with an ID. The error is ErrNoSuchImage if there is
// none. It is ImageStatusByID of the ImageServer.
func (s *Service) StatusByID(ctx context.Context, id reference.ID) (*Image, error) {
	return s.status(ctx, id.Hex())
}

// StatusByName returns the image of a name. The error is ErrNoSuchImage if there is
// none. It is ImageStatusByName of the ImageServer.
func (s *Service) StatusByName(ctx context.Context, ref reference.Reference) (*Image, error) {
	return s.status(ctx, ref.Text())
}

// status looks the input up once and goes by the image's target from then on: a name
// that moves meanwhile does not mix two images.
func (s *Service) status(ctx context.Context, input string) (*Image, error) {
	found, err := s.store.Resolve(ctx, input)
	if err != nil {
		if errdefs.IsInvalidArgument(err) && !strings.Contains(input, "/") && reference.IsHex(strings.ToLower(input)) {
			return nil, &store.DoesNotExistError{Reference: input} // what looks like an ID is one
		}
		return nil, err
	}
	records, err := s.kin(ctx, found)
	if err != nil {
		return nil, err
	}
	list := s.group(ctx, records)
	s.details.fill(ctx, s.store, list, false)
	for i := range list {
		if slices.Contains(list[i].Records, found.Name) {
			return &list[i], nil
		}
	}
	return nil, &store.DoesNotExistError{Reference: input} // it has gone meanwhile
}

// kin returns the records of an image: those with the same target, and those with
// the same configuration behind another one.
func (s *Service) kin(ctx context.Context, img images.Image) ([]images.Image, error) {
	all, err := s.store.Records(ctx)
	if err != nil {
		return nil, err
	}
	facts := s.store.Facts(ctx, all)
	config := facts[img.Target.Digest].Config
	return slices.DeleteFunc(all, func(other images.Image) bool {
		return other.Target.Digest != img.Target.Digest && (config == "" || facts[other.Target.Digest].Config != config)
	}), nil
}

// TryIDPrefix returns the ID that a string is or begins, nil if it may mean something
// else: 64 digits are an ID whether such an image is here or not; fewer, 3 at least,
// are one if exactly one image here has an ID that begins so. Nobody who knows what
// they hold should call it. It is HeuristicallyTryResolvingStringAsIDPrefix of the
// ImageServer.
func (s *Service) TryIDPrefix(ctx context.Context, input string) *reference.ID {
	if id, err := reference.ParseID(input); err == nil {
		return &id
	}
	if len(input) < minIDPrefix || !reference.IsHex(input) {
		return nil
	}
	list, err := s.List(ctx, ListOptions{Brief: true})
	if err != nil {
		return nil
	}
	var found *reference.ID
	for i := range list {
		if !strings.HasPrefix(list[i].ID.Hex(), input) {
			continue
		}
		if found != nil {
			return nil
		}
		found = &list[i].ID
	}
	return found
}

// minIDPrefix is the least that CRI-O takes for the beginning of an ID.
const minIDPrefix = 3

// group makes images of records.
func (s *Service) group(ctx context.Context, records []images.Image) []Image {
	facts := s.store.Facts(ctx, records)
	byID := map[digest.Digest][]images.Image{}
	for _, r := range records {
		f := facts[r.Target.Digest]
		if f.Err != nil && s.pulling.has(r.Name) {
			continue
		}
		id := cmp.Or(f.Config, r.Target.Digest)
		byID[id] = append(byID[id], r)
	}
	list := make([]Image, 0, len(byID))
	for id, of := range byID {
		key, err := reference.IDFromDigest(id)
		if err != nil {
			log.G(ctx).WithError(err).WithField("image", of[0].Name).Warn("image has no ID")
			continue
		}
		list = append(list, s.image(ctx, key, of, facts))
	}
	slices.SortFunc(list, func(a, b Image) int { return cmp.Compare(a.Records[0], b.Records[0]) })
	return list
}

// image makes one of the records that share an ID, which are sorted.
func (s *Service) image(ctx context.Context, id reference.ID, records []images.Image, facts map[digest.Digest]store.Facts) Image {
	f := facts[records[0].Target.Digest]
	img := Image{
		ID: id, Target: records[0].Target, Digest: f.Manifest, ConfigDigest: f.Config,
		Platform: f.Platform, Created: f.Created,
	}
	if f.Err == nil {
		img.Size = &f.Size
	} else {
		log.G(ctx).WithError(f.Err).WithField("image", records[0].Name).Warn("image cannot be read")
	}
	n := namesOf(ctx, records)
	img.RepoTags, img.RepoDigests = n.tags, n.digests()
	if name, err := reference.Parse(n.first()); err == nil {
		img.Name = &name
	}
	for _, r := range records {
		img.Records = append(img.Records, r.Name)
		img.Pinned = img.Pinned || s.store.IsPinned(r)
		img.PreviousName = cmp.Or(img.PreviousName, previousRepository(r))
	}
	if len(n.tags)+len(n.digested) > 0 {
		img.PreviousName = ""
	}
	return img
}

// previousRepository is CRI-O's PreviousName without its tag. (CRI-O cuts at the
// first colon, and so a registry's port.)
func previousRepository(r images.Image) string {
	ref, err := reference.Parse(store.PreviousName(r))
	if err != nil {
		return ""
	}
	return ref.Repository()
}

// names are those of an image.
type names struct {
	tags     []string // sorted, as records are
	digested []reference.Reference
	repos    map[string]bool
	targets  map[digest.Digest]bool
}

func namesOf(ctx context.Context, records []images.Image) names {
	n := names{repos: map[string]bool{}, targets: map[digest.Digest]bool{}}
	for _, r := range records {
		kind, ref := store.ParseName(r.Name)
		switch kind {
		case store.KindTag:
			n.tags = append(n.tags, r.Name)
		case store.KindDigest:
			n.digested = append(n.digested, ref)
			n.targets[ref.Digest()] = true
		case store.KindForeign:
			log.G(ctx).WithField("image", r.Name).Warn("the name of an image record is not one of a registry's")
			continue
		default:
			continue
		}
		n.repos[ref.Repository()] = true
		n.targets[r.Target.Digest] = true
	}
	return n
}

// digests are each repository with each digest.
func (n names) digests() []string {
	var all []string
	for repo := range n.repos {
		for d := range n.targets {
			all = append(all, repo+"@"+d.String())
		}
	}
	slices.Sort(all)
	return all
}

func (n names) first() string {
	if len(n.tags) > 0 {
		return n.tags[0]
	}
	if len(n.digested) > 0 {
		return n.digested[0].Text()
	}
	return ""
}

// details keeps what lists read of images: manifests cannot change. Safe for
// concurrent use.
type details struct {
	mu    sync.Mutex // guards known
	known map[digest.Digest]store.Details
}

// fill completes a list. If the list is of all images what it has read replaces what
// was known, so that images which are gone are forgotten; a single image is not
// remembered.
func (d *details) fill(ctx context.Context, from *store.Store, list []Image, all bool) {
	d.mu.Lock()
	known := d.known
	d.mu.Unlock()
	var unread []v1.Descriptor
	for _, img := range list {
		if _, ok := known[img.Digest]; !ok && img.Digest != "" {
			unread = append(unread, img.Target)
		}
	}
	read := from.Details(ctx, unread)
	fresh := make(map[digest.Digest]store.Details, len(list))
	for i := range list {
		img := &list[i]
		found, ok := known[img.Digest]
		if !ok {
			found, ok = read[img.Target.Digest]
		}
		if !ok {
			continue
		}
		fresh[img.Digest] = found
		img.OCIConfig, img.Annotations = &found.Config, found.Annotations
		img.User, img.Labels = found.Config.Config.User, found.Config.Config.Labels
	}
	if all {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.known = fresh
	}
}

// marks are names with a count: what is being pulled. It is ImageBeingPulled of the
// ImageServer, of this service only.
type marks struct {
	mu    sync.Mutex // guards names
	names map[string]int
}

// add marks a name until the function that it returns is called, which must happen
// however the pull ends.
func (m *marks) add(name string) (remove func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names == nil {
		m.names = map[string]int{}
	}
	m.names[name]++
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.names[name]--; m.names[name] == 0 {
			delete(m.names, name)
		}
	})
}

func (m *marks) has(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.names[name] > 0
}
