// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"cmp"
	"context"
	"io"
	"sync"

	"github.com/containerd/containerd/api/events"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/images"
	coretransfer "github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/berthd/berth/images/transfer"
)

// DefaultDelegateBytes is from which size on the layers of an image are left to
// containerd: what goes through this process costs twice the processor's time, but
// for little the second connection to the registry costs more.
const DefaultDelegateBytes = 8 << 20

// delegate is containerd fetching an image's layers by itself, with its transfer
// service, into the lease of the pull. Whatever it does not bring, for whatever
// reason, is fetched by this process, from where it has come to: its faults are
// never the pull's.
type delegate struct {
	stop  context.CancelFunc
	ended chan struct{}

	mu      sync.Mutex                      // guards what is below
	waiting map[digest.Digest]chan struct{} // closed when the blob is there
	brought map[digest.Digest]bool
}

// delegate has containerd fetch the layers of a manifest, if there is much of them
// and it can, until endDelegate is called.
func (j *job) delegate(ctx context.Context, manifest v1.Descriptor, children []v1.Descriptor) {
	var bytes int64
	for _, c := range children {
		if images.IsLayerType(c.MediaType) {
			bytes += c.Size
		}
	}
	// With a timeout this process sees to it that something arrives: containerd tells
	// only of each megabyte.
	if bytes < cmp.Or(j.config.DelegateBytes, DefaultDelegateBytes) || j.request.Direct || j.request.Timeout > 0 {
		return
	}
	// What a remote snapshotter has need not be fetched at all.
	if remote, err := j.config.Unpacker.Remote(ctx); err != nil || remote {
		return
	}
	ref, err := j.request.Reference.WithDigest(manifest.Digest)
	if err != nil {
		return
	}
	// The fetching of layers outlives the handlers of manifests.
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	registry, err := j.config.Registry.Delegate(ctx, ref, j.request.Access)
	d := &delegate{
		stop: stop, ended: make(chan struct{}), waiting: map[digest.Digest]chan struct{}{},
		brought: map[digest.Digest]bool{},
	}
	if err != nil || registry == nil || !j.delegated.CompareAndSwap(nil, d) {
		stop() // what is wrong with the configuration, the resolver has said
		return
	}
	created, _ := j.config.Client.Subscribe(ctx, `topic=="/content/create"`)
	go d.listen(ctx, created)
	go func() {
		defer close(d.ended)
		defer stop()
		// Without a name no record is made, which is this process's to do: the service
		// says ErrNotFound after it has fetched everything.
		err := j.config.Client.Transfer(unheard(ctx), registry, image.NewStore(""),
			coretransfer.WithProgress(func(p coretransfer.Progress) { d.progress(j.table, p) }))
		if err != nil && !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).Debug("containerd does not fetch the layers by itself")
		}
	}()
}

// unheard keeps containerd's client from logging the end of a call, which is no error
// here.
func unheard(ctx context.Context) context.Context {
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(silent))
}

// endDelegate ends it, if there is one, and waits.
func (j *job) endDelegate() {
	if d := j.delegated.Load(); d != nil {
		d.stop()
		<-d.ended
	}
}

// await waits until containerd has brought a blob, or has ended.
func (d *delegate) await(ctx context.Context, desc v1.Descriptor) {
	d.mu.Lock()
	there := d.channel(desc.Digest)
	d.mu.Unlock()
	select {
	case <-there:
	case <-d.ended:
	case <-ctx.Done():
	}
}

// has tells whether a blob was brought, as opposed to being there before.
func (d *delegate) has(blob digest.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.brought[blob]
}

// channel is called with mu held.
func (d *delegate) channel(blob digest.Digest) chan struct{} {
	c := d.waiting[blob]
	if c == nil {
		c = make(chan struct{})
		d.waiting[blob] = c
	}
	return c
}

func (d *delegate) arrived(blob digest.Digest, brought bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.channel(blob)
	select {
	case <-c:
	default:
		d.brought[blob] = brought
		close(c)
	}
}

// listen hears of blobs at the moment they are whole; the progress tells it later.
func (d *delegate) listen(ctx context.Context, created <-chan *coreevents.Envelope) {
	for {
		select {
		case e := <-created:
			if v, err := typeurl.UnmarshalAny(e.Event); err == nil {
				if c, ok := v.(*events.ContentCreate); ok {
					d.arrived(digest.Digest(c.Digest), true)
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// progress takes over what containerd tells.
func (d *delegate) progress(table *transfer.Table, p coretransfer.Progress) {
	if p.Desc == nil || !images.IsLayerType(p.Desc.MediaType) {
		return
	}
	switch p.Event {
	case "already exists":
		d.arrived(p.Desc.Digest, false)
	case "complete":
		d.arrived(p.Desc.Digest, true)
	case "downloading":
		table.Set(*p.Desc, transfer.Downloading)
		table.Seek(*p.Desc, p.Progress)
	}
}
