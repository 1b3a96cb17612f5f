// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/berthd/berth/images/transfer"
)

// maxUnpacks is how many layers of an image are unpacked at a time, where the
// snapshotter can: on a machine with two processors three take 3.0 s for what two
// take 3.2 s for, four 3.5 s, and one 5.2 s.
const maxUnpacks = 3

// errLeans says that a layer cannot be unpacked apart from those below it.
var errLeans = errors.New("layer leans on those below")

// Job is an image that is unpacked while it arrives.
type Job struct {
	// Target is where it begins.
	Target v1.Descriptor
	// Content is where its blobs arrive.
	Content content.Store
	// Handler has a blob arrive, and returns what it refers to, of which one manifest
	// is to be unpacked. For layers that a snapshotter has already it is not called if
	// this can do without their blobs.
	Handler images.Handler
	// Name is the image's, for snapshotters that bring layers themselves; empty: they
	// must not.
	Name string
	// Options are those of a layer; nil: there are none.
	Options func(v1.Descriptor) []diff.ApplyOpt
	// Tell is told of layers that are being extracted, and that are complete; nil:
	// nobody is.
	Tell func(v1.Descriptor, transfer.Status)
}

// Run fetches an image and unpacks it meanwhile: layers side by side, if the
// snapshotter can put them on top of each other afterwards, and if they allow it. An
// image that takes too much is ErrTooLarge; the error is what went wrong first.
func (u *Unpacker) Run(ctx context.Context, job Job) error {
	_, err := u.run(ctx, job)
	return err
}

// run is Run, and tells whether there was an image.
func (u *Unpacker) run(ctx context.Context, job Job) (found bool, err error) {
	if job.Options == nil {
		job.Options = func(v1.Descriptor) []diff.ApplyOpt { return nil }
	}
	if job.Tell == nil {
		job.Tell = func(v1.Descriptor, transfer.Status) {}
	}
	kind, err := u.kind(ctx)
	if err != nil {
		return false, err
	}
	a := &attempt{job: job, guard: u.guard(), apart: true}
	found, err = u.attempt(ctx, kind, a)
	if errors.Is(err, errLeans) {
		// One by one. What is in the stores already is not brought again.
		a = &attempt{job: job, guard: a.guard}
		found, err = u.attempt(ctx, kind, a)
	}
	return found, err
}

func (u *Unpacker) attempt(ctx context.Context, kind snapshotter, a *attempt) (found bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	options := []unpack.UnpackerOpt{unpack.WithUnpackPlatform(unpack.Platform{
		Platform:                platforms.All, // one was chosen
		SnapshotterKey:          u.Snapshotter,
		Snapshotter:             a.guard,
		SnapshotterExports:      kind.exports,
		SnapshotterCapabilities: kind.capabilities,
		Applier:                 a,
	})}
	if a.apart {
		options = append(options, unpack.WithUnpackLimiter(semaphore.NewWeighted(maxUnpacks)))
	}
	if !kind.remote {
		// A snapshot may have outlived the blob it was made of.
		options = append(options, unpack.WithFetchAllContent())
	}
	unpacker, err := unpack.NewUnpacker(ctx, a.job.Content, options...)
	if err != nil {
		return false, err
	}
	var handler images.Handler = images.HandlerFunc(a.handle)
	if kind.annotate && a.job.Name != "" {
		handler = snapshotters.AppendInfoHandlerWrapper(a.job.Name)(handler)
	}
	err = images.Dispatch(ctx, unpacker.Unpack(handler), nil, a.job.Target)
	if err != nil {
		cancel()
	}
	result, failed := unpacker.Wait()
	if err == nil || failed != nil && errors.Is(err, context.Canceled) { // which comes of the other
		err = failed
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil && a.first != nil {
		err = a.first
	}
	return result.Unpacks > 0, err
}

// snapshotter is what containerd says of a snapshotter.
type snapshotter struct {
	exports      map[string]string
	capabilities []string
	annotate     bool // it may have a use for what layers belong to
	remote       bool // it may have layers without their blobs
}

// Exports of snapshotters. The first has every plugin that is a process of its own;
// the second is what containerd's transfer service goes by.
const (
	exportAddress = "address"
	exportRemote  = "enable_remote_snapshot_annotations"
)

// Remote tells whether the snapshotter may have layers without their blobs, which then
// need not be fetched.
func (u *Unpacker) Remote(ctx context.Context) (bool, error) {
	kind, err := u.kind(ctx)
	return kind.remote, err
}

func (u *Unpacker) kind(ctx context.Context) (snapshotter, error) {
	name := u.Snapshotter
	filter := fmt.Sprintf("type==io.containerd.snapshotter.v1,id==%q", name)
	answer, err := u.Client.IntrospectionService().Plugins(ctx, filter)
	if err != nil {
		return snapshotter{}, fmt.Errorf("snapshotter %s: %w", name, err)
	}
	i := len(answer.Plugins) - 1
	if i < 0 || answer.Plugins[i].InitErr != nil {
		return snapshotter{}, fmt.Errorf("snapshotter %s: containerd has none that works: %w", name, errdefs.ErrNotFound)
	}
	exports := answer.Plugins[i].Exports
	remote := exports[exportRemote] == "true"
	return snapshotter{exports, answer.Plugins[i].Capabilities, remote || exports[exportAddress] != "", remote}, nil
}

// attempt is one way through a job: it looks at what comes of each step.
type attempt struct {
	job   Job
	guard *guard
	apart bool // layers are unpacked apart from those below them

	mu     sync.Mutex      // guards what is below
	first  error           // what went wrong first: the rest comes of it
	layers []digest.Digest // of the image, the lowest first
}

// failed notes an error if it is the first, and returns it. That a call was cancelled
// comes of another's.
func (a *attempt) failed(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.first == nil && !errors.Is(err, context.Canceled) {
		a.first = err
	}
	return err
}

func (a *attempt) handle(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
	children, err := a.job.Handler.Handle(ctx, desc)
	if err != nil {
		return nil, a.failed(err)
	}
	if images.IsManifestType(desc.MediaType) {
		a.note(children)
	}
	return children, nil
}

// Apply implements diff.Applier.
func (a *attempt) Apply(ctx context.Context, desc v1.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (v1.Descriptor, error) {
	if a.leant() {
		return v1.Descriptor{}, errLeans
	}
	a.job.Tell(desc, transfer.Extracting)
	start := time.Now()
	applied, err := a.guard.Apply(ctx, desc, mounts, append(opts, a.job.Options(desc)...)...)
	if err != nil {
		return v1.Descriptor{}, a.failed(fmt.Errorf("unpack layer %s: %w", desc.Digest, err))
	}
	if a.apart && !a.isBottom(desc.Digest) && leans(mounts, start) {
		return v1.Descriptor{}, a.failed(errLeans)
	}
	a.job.Tell(desc, transfer.Complete)
	return applied, nil
}

func (a *attempt) leant() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Is(a.first, errLeans)
}

// note notes the layers of an image.
func (a *attempt) note(children []v1.Descriptor) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range children {
		if images.IsLayerType(c.MediaType) {
			a.layers = append(a.layers, c.Digest)
		}
	}
}

// isBottom tells whether a layer is the lowest, and nowhere else in the image: below
// it there is nothing to lean on.
func (a *attempt) isBottom(layer digest.Digest) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.layers) > 0 && a.layers[0] == layer && !slices.Contains(a.layers[1:], layer)
}
