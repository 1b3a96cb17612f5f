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
