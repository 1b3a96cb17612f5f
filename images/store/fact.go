// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/manifest"
)

// Labels that berth gives image records, so that a listing need not read two blobs
// for each image. Others may move a record without touching its labels: they hold
// only for the target that labelTarget names.
const (
	labelTarget   = "io.berth.image.target"
	labelManifest = "io.berth.image.manifest"
	labelConfig   = "io.berth.image.config"
	labelPlatform = "io.berth.image.platform"
	labelCreated  = "io.berth.image.created"
	labelSize     = "io.berth.image.size"
)

// labelPrevious is on records of images without a name and says what it was.
const labelPrevious = "io.berth.image.previous-name"

// Facts are what a listing shows of an image: of the variant for this host, or if
// there is none of the first that is here. What is not known is zero.
type Facts struct {
	Manifest digest.Digest // the variant's manifest
	Config   digest.Digest // its configuration: the image's ID to CRI
	Platform v1.Platform
	Created  time.Time // as the image says
	// Size is that of the index, the manifest, the configuration and the layers as
	// blobs, in bytes: what containerd's CRI plugin reports.
	Size int64
	// Foreign says that the variant is not for this host.
	Foreign bool
	// Err is why nothing is known; nil otherwise.
	Err error
}

// readers is how many images are read at a time: each takes turns with containerd,
// so that a few keep both sides busy.
const readers = 8

// Facts returns what is known of the targets of records. It reads what records do
// not tell by themselves. That an image cannot be read is not an error of the call,
// see Facts.Err; that ctx has ended or containerd has gone is.
func (s *Store) Facts(ctx context.Context, records []images.Image) (map[digest.Digest]Facts, error) {
	ctx = s.Context(ctx)
	facts := map[digest.Digest]Facts{}
	unknown := map[digest.Digest]images.Image{}
	for _, img := range records {
		if f, ok := s.recorded(img); ok {
			facts[img.Target.Digest] = f
			delete(unknown, img.Target.Digest)
		} else if _, known := facts[img.Target.Digest]; !known {
			unknown[img.Target.Digest] = img
		}
	}
	targets := make([]v1.Descriptor, 0, len(unknown))
	for _, img := range unknown {
		targets = append(targets, img.Target)
	}
	var mu sync.Mutex // guards facts from here on
	s.each(ctx, targets, func(blobs content.Provider, target v1.Descriptor) {
		f := s.read(ctx, blobs, target)
		mu.Lock()
		defer mu.Unlock()
		facts[target.Digest] = f
	})
	for _, f := range facts {
		if errdefs.IsUnavailable(f.Err) {
			return nil, f.Err
		}
	}
	return facts, ctx.Err()
}

// each calls fn for targets, some at a time.
func (s *Store) each(ctx context.Context, targets []v1.Descriptor, fn func(blobs content.Provider, target v1.Descriptor)) {
	if len(targets) == 0 {
		return
	}
	blobs := s.smallBlobs(ctx)
	turns := make(chan struct{}, readers)
	var wait sync.WaitGroup
	for _, target := range targets {
		turns <- struct{}{}
		wait.Go(func() {
			defer func() { <-turns }()
			fn(blobs, target)
		})
	}
	wait.Wait()
}

// Details are what there is to know of an image besides its Facts.
type Details struct {
	Config v1.Image
	// Annotations are those of the manifest, nil for a manifest of Docker's.
	Annotations map[string]string
}

// Details reads the variants of targets that Best finds. Those that cannot be read
// are left out: Facts says why.
func (s *Store) Details(ctx context.Context, targets []v1.Descriptor) map[digest.Digest]Details {
	ctx = s.Context(ctx)
	all := map[digest.Digest]Details{}
	var mu sync.Mutex // guards all
	s.each(ctx, targets, func(blobs content.Provider, target v1.Descriptor) {
		d, err := s.details(ctx, blobs, target)
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		all[target.Digest] = d
	})
	return all
}

func (s *Store) details(ctx context.Context, blobs content.Provider, target v1.Descriptor) (Details, error) {
	best, err := manifest.Best(ctx, blobs, target, manifest.Prefer(s.options.Platform))
	if err != nil {
		return Details{}, err
	}
	config, err := best.Config(ctx)
	if err != nil {
		return Details{}, err
	}
	d := Details{Config: config}
	if best.Descriptor().MediaType == v1.MediaTypeImageManifest {
		doc, err := best.Manifest(ctx)
		if err != nil {
			return Details{}, err
		}
		d.Annotations = doc.Annotations
	}
	return d, nil
}

// Best returns the image's manifest for this host, else the first that is here. Its
// class is ErrNotFound if nothing is.
func (s *Store) Best(ctx context.Context, target v1.Descriptor) (*manifest.Manifest, error) {
	return manifest.Best(s.Context(ctx), s.content, target, manifest.Prefer(s.options.Platform))
}

func (s *Store) read(ctx context.Context, blobs content.Provider, target v1.Descriptor) Facts {
	best, err := manifest.Best(ctx, blobs, target, manifest.Prefer(s.options.Platform))
	if err != nil {
		return Facts{Err: err}
	}
	config, err := best.Config(ctx)
	if err != nil {
		return Facts{Err: err}
	}
	id, errID := best.ConfigDigest(ctx)
	size, errSize := best.Size(ctx)
	platform, errPlatform := best.Platform(ctx)
	if err := errors.Join(errID, errSize, errPlatform); err != nil {
		return Facts{Err: err}
	}
	if target.Digest != best.Descriptor().Digest {
		size += target.Size
	}
	f := Facts{
		Manifest: best.Descriptor().Digest, Config: id, Size: size,
		Platform: platform, Foreign: !s.options.Platform.Match(platform),
	}
	if config.Created != nil {
		f.Created = *config.Created
	}
	return f
}

// labels are the facts as a record of the target has them.
func (f Facts) labels(target digest.Digest) map[string]string {
	if f.Err != nil {
		return nil
	}
	l := map[string]string{
		labelTarget:   target.String(),
		labelManifest: f.Manifest.String(),
		labelConfig:   f.Config.String(),
		labelPlatform: platforms.Format(f.Platform),
		labelSize:     strconv.FormatInt(f.Size, 10),
		labelCreated:  "",
	}
	if !f.Created.IsZero() {
		l[labelCreated] = f.Created.UTC().Format(time.RFC3339Nano)
	}
	return l
}

// recorded returns the facts that a record tells. A record tells none if its labels
// make no sense, or if what they are about is not for this host: another variant may
// be here by now, or the store be for another platform than the one that wrote them.
func (s *Store) recorded(img images.Image) (Facts, bool) {
	l := img.Labels
	if l[labelTarget] == "" || l[labelTarget] != img.Target.Digest.String() {
		return Facts{}, false
	}
	var errs [5]error
	f := Facts{}
	f.Manifest, errs[0] = digest.Parse(l[labelManifest])
	f.Config, errs[1] = digest.Parse(l[labelConfig])
	f.Platform, errs[2] = platforms.Parse(l[labelPlatform])
	f.Size, errs[3] = strconv.ParseInt(l[labelSize], 10, 64)
	if text := l[labelCreated]; text != "" {
		f.Created, errs[4] = time.Parse(time.RFC3339Nano, text)
	}
	return f, errors.Join(errs[:]...) == nil && s.options.Platform.Match(f.Platform)
}
