// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
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

// unpack fetches the image and unpacks it meanwhile: layers side by side, if the
// snapshotter can put them on top of each other afterwards, and if they allow it.
func (j *job) unpack(ctx context.Context) error {
	kind, err := j.snapshotter(ctx)
	if err != nil {
		return err
	}
	guard := newGuard(j.config.Client.SnapshotService(j.config.Snapshotter), j.config.MaxUnpacked)
	err = j.attempt(ctx, kind, &applier{job: j, guard: guard, Applier: j.config.Client.DiffService(), apart: true})
	if errors.Is(err, errLeans) {
		// One by one. What is in the stores already is not brought again.
		err = j.attempt(ctx, kind, &applier{job: j, guard: guard, Applier: j.config.Client.DiffService()})
	}
	if err != nil {
		return err
	}
	j.finish()
	return nil
}

func (j *job) attempt(ctx context.Context, kind snapshotter, a *applier) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	options := []unpack.UnpackerOpt{unpack.WithUnpackPlatform(unpack.Platform{
		Platform:                platforms.All, // one was chosen
		SnapshotterKey:          j.config.Snapshotter,
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
	unpacker, err := unpack.NewUnpacker(ctx, j.content, options...)
	if err != nil {
		return err
	}
	handler := j.handler()
	if kind.annotate {
		handler = snapshotters.AppendInfoHandlerWrapper(j.request.Reference.Text())(handler)
	}
	err = images.Dispatch(ctx, unpacker.Unpack(handler), nil, j.result.Target)
	if err != nil {
		cancel()
	}
	if _, failed := unpacker.Wait(); err == nil {
		err = failed
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case a.leans.Load() && j.first == nil:
		return errLeans
	case j.first != nil:
		return j.first
	}
	return err
}

// finish says of the layers that needed no unpacking that they are complete.
func (j *job) finish() {
	for _, part := range j.table.Parts() {
		if part.Status == transfer.Downloaded || part.Status == transfer.Extracting {
			part.Status = transfer.Complete
			j.table.Put(part)
		}
	}
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

func (j *job) snapshotter(ctx context.Context) (snapshotter, error) {
	name := j.config.Snapshotter
	filter := fmt.Sprintf("type==io.containerd.snapshotter.v1,id==%q", name)
	answer, err := j.config.Client.IntrospectionService().Plugins(ctx, filter)
	if err != nil {
		return snapshotter{}, fmt.Errorf("snapshotter %s: %w", name, err)
	}
	i := len(answer.Plugins) - 1
	if i < 0 || answer.Plugins[i].InitErr != nil {
		return snapshotter{}, fmt.Errorf("snapshotter %s: containerd has none that works: %w", name, errdefs.ErrNotFound)
	}
	return kindOf(answer.Plugins[i]), nil
}

func kindOf(plugin *introspection.Plugin) snapshotter {
	s := snapshotter{exports: plugin.Exports, capabilities: plugin.Capabilities}
	s.remote = plugin.Exports[exportRemote] == "true"
	s.annotate = s.remote || plugin.Exports[exportAddress] != ""
	return s
}

// applier has layers unpacked by containerd, and looks at what comes of it.
type applier struct {
	diff.Applier

	job   *job
	guard *guard
	apart bool        // layers are unpacked apart from those below them
	leans atomic.Bool // one of them cannot be
}

// Apply implements diff.Applier.
func (a *applier) Apply(ctx context.Context, desc v1.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (v1.Descriptor, error) {
	if a.leans.Load() {
		return v1.Descriptor{}, errLeans
	}
	a.job.table.Set(desc, transfer.Extracting)
	start := time.Now()
	applied, err := a.guarded(ctx, desc, mounts, append(opts, a.job.keys.ApplyOpts(desc)...))
	if err != nil {
		return v1.Descriptor{}, a.job.failed(fmt.Errorf("unpack layer %s: %w", desc.Digest, err))
	}
	if a.apart && !a.job.isBottom(desc.Digest) && leans(mounts, start) {
		a.leans.Store(true)
		return v1.Descriptor{}, errLeans
	}
	a.job.table.Set(desc, transfer.Complete)
	return applied, nil
}

func (a *applier) guarded(ctx context.Context, desc v1.Descriptor, mounts []mount.Mount, opts []diff.ApplyOpt) (v1.Descriptor, error) {
	ctx, done := a.guard.watch(ctx, mounts)
	applied, err := a.Applier.Apply(ctx, desc, mounts, opts...)
	if over := done(); over != nil {
		return v1.Descriptor{}, over
	}
	return applied, err
}
