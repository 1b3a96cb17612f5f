// SPDX-License-Identifier: Apache-2.0

package listing

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/store"
)

// details keeps what lists read of images: manifests cannot change. Safe for
// concurrent use.
type details struct {
	mu    sync.Mutex // guards known
	known map[digest.Digest]store.Details
}

// reader is store.Store's Details.
type reader func(ctx context.Context, targets []v1.Descriptor) map[digest.Digest]store.Details

// fill completes a list. If the list is of all images what it has read replaces what
// was known, so that images which are gone are forgotten; a single image is not
// remembered.
func (d *details) fill(ctx context.Context, read reader, list []Image, all bool) {
	d.mu.Lock()
	known := d.known
	d.mu.Unlock()
	var unread []v1.Descriptor
	for _, img := range list {
		if _, ok := known[img.Digest]; !ok && img.Digest != "" {
			unread = append(unread, img.Target)
		}
	}
	found := read(ctx, unread)
	fresh := make(map[digest.Digest]store.Details, len(list))
	for i := range list {
		img := &list[i]
		one, ok := known[img.Digest]
		if !ok {
			one, ok = found[img.Target.Digest]
		}
		if !ok {
			continue
		}
		fresh[img.Digest] = one
		img.OCIConfig, img.Annotations = &one.Config, one.Annotations
		img.User, img.Labels = one.Config.Config.User, one.Config.Config.Labels
	}
	if all {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.known = fresh
	}
}
