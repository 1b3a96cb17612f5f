// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/commit"
	"github.com/berthd/berth/images/manifest"
	"github.com/berthd/berth/images/store"
)

// Step is what a builder is about to do.
type Step struct {
	// Parent is the target of the image that the step starts from, empty for nothing.
	Parent digest.Digest
	// Config is the configuration with which the step's container would run, as
	// JSON; see commit.Request.
	Config []byte
}

// Cache finds steps that were made before: here, or for the images that are its
// sources. Safe for concurrent use.
type Cache struct {
	builder *Builder
	sources []source
}

// source is an image whose steps may be taken.
type source struct {
	document v1.Manifest
	config   v1.Image
}

// Cache returns a cache with sources, by name or ID. Those that are not here are
// ignored. Without any there are the steps of this machine's own builds alone.
func (b *Builder) Cache(ctx context.Context, sources []string) (*Cache, error) {
	ctx = b.Store.Context(ctx)
	c := &Cache{builder: b}
	for _, name := range sources {
		s, err := b.source(ctx, name)
		if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
			log.G(ctx).WithField("image", name).WithError(err).Warn("a source of the cache is not here")
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
		c.sources = append(c.sources, s)
	}
	return c, nil
}

func (b *Builder) source(ctx context.Context, name string) (source, error) {
	record, err := b.Store.Resolve(ctx, name)
	if err != nil {
		return source{}, err
	}
	return b.read(ctx, record.Target)
}

func (b *Builder) read(ctx context.Context, target v1.Descriptor) (s source, err error) {
	best, err := manifest.Best(ctx, b.Client.ContentStore(), target, b.Store.Platform())
	if err != nil {
		return s, err
	}
	if s.document, err = best.Manifest(ctx); err != nil {
		return s, err
	}
	s.config, err = best.Config(ctx)
	return s, err
}

// Find returns the target of the image that a step would make, empty if it was not
// made before. A step of a source becomes an image of its own here.
func (c *Cache) Find(ctx context.Context, step Step) (digest.Digest, error) {
	ctx = c.builder.Store.Context(ctx)
	wanted, err := essence(step.Config)
	if err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	found, err := c.builder.child(ctx, step.Parent, wanted)
	if err != nil || found != "" {
		return found, err
	}
	for _, s := range c.sources {
		found, err := c.builder.restore(ctx, s, step)
		if err != nil || found != "" {
			return found, err
		}
	}
	return "", nil
}

// child looks among the images that were made from the parent for the newest one whose
// container had that configuration.
func (b *Builder) child(ctx context.Context, parent digest.Digest, wanted map[string]any) (digest.Digest, error) {
	filter := fmt.Sprintf("labels.%q==true", commit.LabelScratch)
	if parent != "" {
		filter = fmt.Sprintf("labels.%q==%q", store.LabelParent, parent.String())
	}
	records, err := b.Store.Records(ctx, filter)
	if err != nil {
		return "", err
	}
	var newest digest.Digest
	var when time.Time
	for _, r := range records {
		if !b.ranWith(ctx, r, wanted) {
			continue
		}
		s, err := b.read(ctx, r.Target)
		if errdefs.IsNotFound(err) {
			continue // of another platform
		}
		if err != nil {
			return "", fmt.Errorf("image %s: %w", r.Name, err)
		}
		if created := s.config.Created; newest == "" || created != nil && created.After(when) {
			newest = r.Target.Digest
			if created != nil {
				when = *created
			}
		}
	}
	return newest, nil
}

// ranWith compares the configuration of the container that an image was made of.
func (b *Builder) ranWith(ctx context.Context, r images.Image, wanted map[string]any) bool {
	blob := digest.Digest(r.Labels[commit.LabelContainerConfig])
	if blob.Validate() != nil {
		return false
	}
	raw, err := content.ReadBlob(ctx, b.Client.ContentStore(), v1.Descriptor{Digest: blob})
	if err != nil {
		return false
	}
	had, err := essence(raw)
	return err == nil && reflect.DeepEqual(had, wanted)
}

// essence is a container's configuration without what differs between containers of
// the same step, and without what is not set.
func essence(raw []byte) (map[string]any, error) {
	var members map[string]any
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, fmt.Errorf("container's configuration: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	maps.DeleteFunc(members, func(name string, value any) bool {
		unset := value == nil || reflect.ValueOf(value).IsZero()
		if v := reflect.ValueOf(value); !unset && (v.Kind() == reflect.Map || v.Kind() == reflect.Slice) {
			unset = v.Len() == 0
		}
		return unset || slices.Contains([]string{"Hostname", "Domainname", "Image"}, name)
	})
	return members, nil
}

// restore makes an image of a source's next step after the parent, if it is that step.
func (b *Builder) restore(ctx context.Context, s source, step Step) (digest.Digest, error) {
	var parent source
	if step.Parent != "" {
		records, err := b.Store.ByTarget(ctx, step.Parent)
		if err != nil || len(records) == 0 {
			return "", err
		}
		if parent, err = b.read(ctx, records[0].Target); err != nil {
			return "", fmt.Errorf("image %s: %w", step.Parent, err)
		}
	}
	var ran v1.ImageConfig
	if err := json.Unmarshal(step.Config, &ran); err != nil {
		return "", fmt.Errorf("container's configuration: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	next := len(parent.config.History)
	if !s.begins(parent) || s.config.History[next].CreatedBy != strings.Join(ran.Cmd, " ") {
		return "", nil
	}
	return b.create(ctx, s.after(parent), step)
}

// begins tells whether a source has all that the parent has, and a step more.
func (s source) begins(parent source) bool {
	n, layers := len(parent.config.History), len(parent.config.RootFS.DiffIDs)
	if len(s.config.History) <= n || len(s.config.RootFS.DiffIDs) < layers || len(s.document.Layers) != len(s.config.RootFS.DiffIDs) {
		return false
	}
	for i := range n {
		a, b := s.config.History[i], parent.config.History[i]
		if a.CreatedBy != b.CreatedBy || a.EmptyLayer != b.EmptyLayer {
			return false
		}
	}
	if !s.config.History[n].EmptyLayer && len(s.config.RootFS.DiffIDs) == layers {
		return false
	}
	return slices.Equal(s.config.RootFS.DiffIDs[:layers], parent.config.RootFS.DiffIDs)
}

// after is what a source was after the next step from its parent.
func (s source) after(parent source) source {
	steps, layers := len(parent.config.History)+1, len(parent.config.RootFS.DiffIDs)
	if !s.config.History[steps-1].EmptyLayer {
		layers++
	}
	s.config.History = s.config.History[:steps:steps]
	s.config.RootFS.DiffIDs = s.config.RootFS.DiffIDs[:layers:layers]
	s.document.Layers = s.document.Layers[:layers:layers]
	s.config.Created = s.config.History[steps-1].Created
	s.config.Config = v1.ImageConfig{} // later steps had a part in it
	return s
}

// create records what a source was after a step.
func (b *Builder) create(ctx context.Context, s source, step Step) (digest.Digest, error) {
	if err := json.Unmarshal(step.Config, &s.config.Config); err != nil {
		return "", fmt.Errorf("container's configuration: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	raw, err := json.Marshal(struct {
		v1.Image
		ContainerConfig json.RawMessage `json:"container_config"`
	}{s.config, step.Config})
	if err != nil {
		return "", fmt.Errorf("configuration: %w", err)
	}
	r := commit.CreateRequest{Config: raw, Parent: step.Parent.String()}
	if last := s.config.History[len(s.config.History)-1]; !last.EmptyLayer {
		r.Layer = s.document.Layers[len(s.document.Layers)-1].Digest
	}
	made, err := b.Maker.Create(ctx, r)
	if err != nil {
		return "", err
	}
	return made.Record.Target.Digest, nil
}
