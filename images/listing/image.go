// SPDX-License-Identifier: Apache-2.0

// Package listing owns how images are shown: as CRI sees them, one for each
// configuration, and as moby does, one for each target; and what they take on disk. It
// refuses to change anything.
package listing

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
)

// Config says what a Lister works on. Everything is required.
type Config struct {
	Store       *store.Store
	Client      *client.Client
	Snapshotter string
	// Pulling tells whether a name is being pulled by this process.
	Pulling func(name string) bool
	Now     func() time.Time
}

// Lister lists the images of one namespace. Safe for concurrent use.
type Lister struct {
	store   *store.Store
	config  Config
	details details
}

// New returns a Lister. It makes no request.
func New(c Config) *Lister { return &Lister{store: c.Store, config: c} }

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
	// Size is that of the index, the manifest, the configuration and the layers as
	// blobs, in bytes, which is what containerd's CRI plugin reports; nil if not
	// known.
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
	// MountPoint is where the image is mounted on the host, empty if it is not.
	MountPoint string
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
// part in RepoTags; they are logged.
func (l *Lister) List(ctx context.Context, o ListOptions) ([]Image, error) {
	if o.Filter != "" {
		one, err := l.Status(ctx, o.Filter)
		if store.IsNotExist(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []Image{*one}, nil
	}
	records, err := l.store.Records(ctx)
	if err != nil {
		return nil, err
	}
	list, err := l.group(ctx, records)
	if err != nil {
		return nil, err
	}
	if !o.Brief {
		l.details.fill(ctx, l.store.Details, list, true)
	}
	return list, nil
}

// Status returns the image that a name or an ID means. The input is looked up once and
// the image's target counts from then on: a name that moves meanwhile does not mix two
// images. The error is store.ErrImageDoesNotExist if there is none.
func (l *Lister) Status(ctx context.Context, input string) (*Image, error) {
	found, err := l.store.Resolve(ctx, input)
	if err != nil {
		if errdefs.IsInvalidArgument(err) && !strings.Contains(input, "/") && reference.IsHex(strings.ToLower(input)) {
			return nil, &store.DoesNotExistError{Reference: input} // what looks like an ID is one
		}
		return nil, err
	}
	records, err := l.Kin(ctx, found)
	if err != nil {
		return nil, err
	}
	list, err := l.group(ctx, records)
	if err != nil {
		return nil, err
	}
	l.details.fill(ctx, l.store.Details, list, false)
	for i := range list {
		if slices.Contains(list[i].Records, found.Name) {
			return &list[i], nil
		}
	}
	return nil, &store.DoesNotExistError{Reference: input} // it has gone meanwhile
}

// Kin returns the records of an image: those with the same target, and those with
// the same configuration behind another one.
func (l *Lister) Kin(ctx context.Context, img images.Image) ([]images.Image, error) {
	all, err := l.store.Records(ctx)
	if err != nil {
		return nil, err
	}
	facts, err := l.facts(ctx, all)
	if err != nil {
		return nil, err
	}
	config := facts[img.Target.Digest].Config
	return slices.DeleteFunc(all, func(other images.Image) bool {
		return other.Target.Digest != img.Target.Digest && (config == "" || facts[other.Target.Digest].Config != config)
	}), nil
}

// facts are those of records.
func (l *Lister) facts(ctx context.Context, records []images.Image) (map[digest.Digest]store.Facts, error) {
	facts, err := l.store.Facts(ctx, records)
	if err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	return facts, nil
}

// group makes images of records.
func (l *Lister) group(ctx context.Context, records []images.Image) ([]Image, error) {
	facts, err := l.facts(ctx, records)
	if err != nil {
		return nil, err
	}
	byID := map[digest.Digest][]images.Image{}
	for _, r := range records {
		f := facts[r.Target.Digest]
		if f.Err != nil && l.config.Pulling(r.Name) {
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
		list = append(list, l.image(ctx, key, of, facts))
	}
	slices.SortFunc(list, func(a, b Image) int { return cmp.Compare(a.Records[0], b.Records[0]) })
	return list, nil
}

// image makes one of the records that share an ID, which are sorted.
func (l *Lister) image(ctx context.Context, id reference.ID, records []images.Image, facts map[digest.Digest]store.Facts) Image {
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
	n := store.NamesOf(ctx, records)
	img.RepoTags, img.RepoDigests, img.Name = n.Tags, n.Digests(), n.First()
	for _, r := range records {
		img.Records = append(img.Records, r.Name)
		img.Pinned = img.Pinned || l.store.IsPinned(r)
		img.PreviousName = cmp.Or(img.PreviousName, previousRepository(r))
	}
	if len(n.Tags)+len(n.Digested) > 0 {
		img.PreviousName = ""
	}
	return img
}

// previousRepository is CRI-O's PreviousName without its tag. (CRI-O cuts at the
// first colon, and so a registry's port.)
func previousRepository(r images.Image) string {
	name := store.PreviousName(r)
	if name == "" {
		return ""
	}
	ref, err := reference.Parse(name)
	if err != nil {
		return ""
	}
	return ref.Repository()
}
