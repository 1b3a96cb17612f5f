// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/berthd/berth/images/decryption"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/transfer"
	"github.com/berthd/berth/images/unpack"
)

// job is one pull: what a registry has said, and how far it is.
type job struct {
	*Puller

	request  Request
	table    *transfer.Table
	watch    *watch
	content  content.Store
	fetcher  remotes.Fetcher
	keys     decryption.Keys
	platform platforms.MatchComparer
	turns    *semaphore.Weighted
	result   Result

	delegated atomic.Pointer[delegate] // nil while nothing was left to containerd

	legacy  atomic.Bool // a configuration has the media type of an old Docker's
	skipped atomic.Int64
}

// prepare does what comes before anything is stored: it holds the image against
// the policy.
func (p *Puller) prepare(ctx context.Context, r Request, table *transfer.Table) (*job, error) {
	rules, err := policy.Load(p.policy(r), r.PolicyNamespace)
	if err != nil {
		return nil, err
	}
	j := &job{
		Puller: p, request: r, table: table,
		content: p.config.Client.ContentStore(), platform: p.config.Platform,
		turns: p.config.Downloads.Share(),
	}
	dir := p.config.Keys
	if r.Keys != "" {
		dir = r.Keys
	}
	if j.keys, err = decryption.Load(dir); err != nil {
		return nil, err
	}
	if r.Platform != "" {
		wanted, err := platforms.Parse(r.Platform)
		if err != nil {
			return nil, fmt.Errorf("platform %q: %w: %w", r.Platform, err, errdefs.ErrInvalidArgument)
		}
		j.platform = platforms.Only(wanted)
	}
	if err := j.resolve(ctx); err != nil {
		return nil, err
	}
	return j, rules.Verify(ctx, policy.Subject{
		Reference: r.Reference,
		Digest:    j.result.Target.Digest,
		System:    p.config.Registry.SystemFor(ctx, r.Reference, r.Access),
	})
}

func (p *Puller) policy(r Request) policy.Config {
	c := p.config.Policy
	if r.Policy != "" {
		c.Path, c.Dir = r.Policy, ""
	}
	return c
}

// resolve asks the registry what the name stands for.
func (j *job) resolve(ctx context.Context) error {
	ref := j.request.Reference
	resolver, err := j.config.Registry.Resolver(ctx, ref, j.request.Access)
	if err != nil {
		return err
	}
	_, j.result.Target, err = resolver.Resolve(ctx, ref.Text())
	switch {
	case j.result.Target.MediaType == images.MediaTypeDockerSchema1Manifest,
		errdefs.IsNotImplemented(err) && strings.Contains(err.Error(), images.MediaTypeDockerSchema1Manifest):
		return fmt.Errorf("the image has a manifest of Docker's schema 1, which no containerd takes any more; it must be pushed again by a newer tool: %w", errdefs.ErrNotImplemented)
	case err != nil:
		return registry.Classify(err)
	}
	if j.result.Reference, err = ref.WithDigest(j.result.Target.Digest); err != nil {
		return err
	}
	j.fetcher, err = resolver.Fetcher(ctx, ref.Text())
	return registry.Classify(err)
}

// pull fetches, unpacks and records, under a lease.
func (j *job) pull(ctx context.Context) (err error) {
	name := j.request.Reference.Text()
	lease, err := j.lease(ctx, name)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	j.content = attended{j.content, j.config.Client, end}
	defer func() {
		switch cause := context.Cause(ctx); {
		case err == nil:
			j.release(ctx, name, lease)
		case cause == errGone: // here and below, the next pull finds the lease, and its owner gone
			err = fmt.Errorf("%w: %w", errGone, err)
		case cause != nil:
			j.keep(ctx, name, lease)
		case gone(ctx, j.config.Client, err):
		default:
			if left := j.drop(ctx, lease); left != nil {
				err = fmt.Errorf("%w; %w", err, left)
			}
		}
	}()
	ctx = leases.WithLease(ctx, lease.ID)
	defer j.endDelegate()
	if err := j.unpack(ctx); err != nil {
		return err
	}
	if j.legacy.Load() {
		if j.result.Target, err = docker.ConvertManifest(ctx, j.content, j.result.Target); err != nil {
			return fmt.Errorf("manifest of an old Docker: %w", err)
		}
	}
	return j.record(ctx)
}

// unpack fetches the image and has it unpacked meanwhile.
func (j *job) unpack(ctx context.Context) error {
	err := j.config.Unpacker.Run(ctx, unpack.Job{
		Target: j.result.Target, Content: j.content, Handler: j.handler(),
		Name: j.request.Reference.Text(), Options: j.keys.ApplyOpts, Tell: j.table.Set,
	})
	if err != nil {
		return err
	}
	// What needed no unpacking is complete.
	for _, part := range j.table.Parts() {
		if part.Status == transfer.Downloaded || part.Status == transfer.Extracting {
			part.Status = transfer.Complete
			j.table.Put(part)
		}
	}
	return nil
}

// record makes the name stand for the image.
func (j *job) record(ctx context.Context) error {
	best, err := manifest.Best(ctx, j.content, j.result.Target, j.platform)
	if err != nil {
		return err
	}
	if j.result.Config, err = best.ConfigDigest(ctx); err != nil {
		return err
	}
	before, err := j.config.Records.Named(ctx, j.request.Reference)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	j.result.Updated = err != nil || before.Target.Digest != j.result.Target.Digest
	j.result.Skipped = int(j.skipped.Load())
	return j.config.Records.Replace(ctx, images.Image{Name: j.request.Reference.Text(), Target: j.result.Target})
}

// handler fetches a blob and returns what it refers to, as far as it is wanted.
func (j *job) handler() images.Handler {
	children := images.ChildrenHandler(j.content)
	children = images.SetChildrenLabels(j.content, children)
	children = j.choose(children)
	return images.Handlers(images.HandlerFunc(j.fetch), images.HandlerFunc(j.inspect), children, images.HandlerFunc(j.source))
}

// choose leaves of an index the one manifest that suits the platform best.
func (j *job) choose(children images.HandlerFunc) images.HandlerFunc {
	matching := images.LimitManifests(images.FilterPlatforms(children, j.platform), j.platform, 1)
	return func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		chosen, err := matching(ctx, desc)
		if images.IsIndexType(desc.MediaType) && (errdefs.IsNotFound(err) || err == nil && len(chosen) == 0) {
			return nil, j.missing()
		}
		if err == nil && images.IsManifestType(desc.MediaType) {
			j.delegate(ctx, desc, chosen)
		}
		return chosen, err
	}
}

// missing is the error of an image that has nothing for the platform.
func (j *job) missing() error {
	platform := j.request.Platform
	if platform == "" {
		platform = platforms.FormatAll(platforms.DefaultSpec())
	}
	return fmt.Errorf("no matching manifest for platform %s: %w", platform, errdefs.ErrNotFound)
}

// inspect looks at a configuration that has come.
func (j *job) inspect(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
	if desc.MediaType == docker.LegacyConfigMediaType {
		j.legacy.Store(true)
	}
	if j.request.Platform == "" || !images.IsConfigType(desc.MediaType) {
		return nil, nil
	}
	// An index has been chosen from; a manifest alone says here what it is for.
	platform, err := images.ConfigPlatform(ctx, j.content, desc)
	if err != nil {
		return nil, err
	}
	if !j.platform.Match(platform) {
		return nil, j.missing()
	}
	return nil, nil
}

func (j *job) source(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
	return nil, transfer.AddSource(ctx, j.content, desc.Digest, j.request.Reference)
}
