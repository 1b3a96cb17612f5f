// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/images/transfer"
)

// PullRequest says what to pull.
type PullRequest struct {
	// Name is what the user has typed. A short name is tried as each of the
	// registry.Candidates, in their order. "docker://" in front is ignored.
	Name string
	// Platforms selects the variant of a multi-platform image, as in "linux/arm64";
	// none is the host's, and more than one is an error.
	Platforms []string
	Access    registry.Access
	// PolicyNamespace is whose signature policy decides: that of the pod. Empty is
	// the policy of all.
	PolicyNamespace string
	// Policy replaces the configured file of the policy.
	Policy string
	// DecryptionKeys replaces the configured directory of keys.
	DecryptionKeys string
	// ProgressTimeout is how long a registry may send nothing once the first byte of
	// a layer has come; 0 waits forever.
	ProgressTimeout time.Duration
	// Cgroup has the pull done by another process in a systemd scope of its own: in
	// the slice of that name, or with "pod" in SandboxCgroup. containerd unpacks
	// layers itself, which stays in its own cgroup. See Config.PullCommand.
	Cgroup string
	// SandboxCgroup is the cgroup parent of the pod's configuration, a slice.
	SandboxCgroup string
	// Progress is told what has changed, every transfer.Interval, by the goroutine
	// that pulls. It may be nil.
	Progress func(transfer.Progress)
}

// PullResult is what a pull has brought.
type PullResult = pull.Result

// Pull pulls an image, unpacks it and records its name. Equal pulls that meet are
// made once. Of several candidates the first that can be pulled is; otherwise the
// error is that of the last. See pull.Puller for what a failure leaves. It is
// PullImage of both the ImageServer and the ImageService.
func (s *Service) Pull(ctx context.Context, r PullRequest) (PullResult, error) {
	request, err := r.request()
	if err != nil {
		return PullResult{}, err
	}
	candidates, err := s.Candidates(r.Name)
	if err != nil {
		return PullResult{}, err
	}
	var result PullResult
	for _, ref := range candidates {
		request.Reference = ref
		if result, err = s.pull(ctx, request, r.Progress); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err == nil {
		s.remember(ctx, r.Name, result.Reference)
	}
	return result, err
}

// PullAll pulls all tags of a repository, and ends with the first that fails.
// Tags that cannot be names are passed over. The name must have neither tag nor
// digest. It is PullImage of the ImageService with such a name.
func (s *Service) PullAll(ctx context.Context, r PullRequest) ([]PullResult, error) {
	if name, found := named(r.Name); found {
		return nil, fmt.Errorf("pull all tags of %q: it says which: %w", name, errdefs.ErrInvalidArgument)
	}
	request, err := r.request()
	if err != nil {
		return nil, err
	}
	candidates, err := s.Candidates(r.Name)
	if err != nil {
		return nil, err
	}
	var tags []string
	var ref reference.Reference
	for _, ref = range candidates {
		if tags, err = s.registry.Tags(ctx, ref, r.Access); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	var all []PullResult
	for _, tag := range tags {
		if request.Reference, err = ref.WithTag(tag); err != nil {
			continue
		}
		result, err := s.pull(ctx, request, r.Progress)
		if err != nil {
			return all, err
		}
		all = append(all, result)
	}
	s.remember(ctx, r.Name, ref)
	return all, nil
}

func (s *Service) pull(ctx context.Context, r pull.Request, tell func(transfer.Progress)) (PullResult, error) {
	defer s.pulling.add(r.Reference.Text())()
	result, err := s.puller.Pull(ctx, r, tell)
	if err != nil {
		return PullResult{}, err
	}
	name := r.Reference.Text()
	s.store.Emit(store.ActionPull, result.Target.Digest, name, s.store.Labels(ctx, images.Image{Name: name, Target: result.Target}))
	return result, nil
}

// request is what does not depend on the name.
func (r PullRequest) request() (pull.Request, error) {
	request := pull.Request{
		Access: r.Access, PolicyNamespace: r.PolicyNamespace, Policy: r.Policy,
		Keys: r.DecryptionKeys, Timeout: r.ProgressTimeout,
	}
	switch len(r.Platforms) {
	case 0:
	case 1:
		request.Platform = r.Platforms[0]
	default:
		return pull.Request{}, fmt.Errorf("pull %s: one platform at a time, not %s: %w", r.Name, strings.Join(r.Platforms, " and "), errdefs.ErrInvalidArgument)
	}
	var err error
	request.Slice, err = slice(r.Cgroup, r.SandboxCgroup)
	if err != nil {
		return pull.Request{}, fmt.Errorf("pull %s: %w", r.Name, err)
	}
	return request, nil
}

// ErrPullCgroup says that a pull was to run in something that is no slice. Its class
// is ErrInvalidArgument.
var ErrPullCgroup = errdefs.ErrInvalidArgument.WithMessage("pull cgroup invalid")

// slice is the systemd slice in which to pull, if any.
func slice(cgroup, sandbox string) (string, error) {
	name := cgroup
	if cgroup == "pod" {
		if sandbox == "" {
			return "", fmt.Errorf("%w: the pod has no cgroup", ErrPullCgroup)
		}
		// A path of slices in each other, or the last one alone.
		name = sandbox[strings.LastIndexByte(sandbox, '/')+1:]
	}
	if name != "" && (!strings.HasSuffix(name, ".slice") || strings.ContainsAny(name, "/ ")) {
		return "", fmt.Errorf("%w: %q is neither a slice nor \"pod\"", ErrPullCgroup, name)
	}
	return name, nil
}

// transports that a name may begin with. There is one: images come from registries.
const defaultTransport = "docker://"

// plainName is a name without the transport.
func plainName(name string) (string, error) {
	plain := strings.TrimPrefix(name, defaultTransport)
	if plain == name && strings.Contains(name, "://") {
		return "", fmt.Errorf("image name %q: images come from registries (%s) only: %w", name, defaultTransport, errdefs.ErrInvalidArgument)
	}
	return plain, nil
}

// remember has a name mean what was pulled by it, if somebody has chosen that.
func (s *Service) remember(ctx context.Context, name string, ref reference.Reference) {
	plain, err := plainName(name)
	if err == nil {
		err = s.registry.Pulled(plain, ref)
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("image", name).Warn("somebody will be asked again which registry is meant")
	}
}

// named tells whether a name has a tag or a digest.
func named(name string) (string, bool) {
	plain := strings.TrimPrefix(name, defaultTransport)
	last := plain[strings.LastIndexByte(plain, '/')+1:]
	return plain, strings.ContainsAny(last, ":@")
}

// UpdateConfig changes how many blobs are transferred at a time; 0 leaves the
// number as it is. Transfers that run keep the old. It is UpdateConfig of the
// ImageService.
func (s *Service) UpdateConfig(maxDownloads, maxUploads int) error {
	if maxDownloads < 0 || maxUploads < 0 {
		return fmt.Errorf("%w: %w", errors.New("a negative number of transfers"), errdefs.ErrInvalidArgument)
	}
	if maxDownloads > 0 {
		s.downloads.Set(maxDownloads)
	}
	if maxUploads > 0 {
		s.uploads.Set(maxUploads)
	}
	return nil
}

// PullMetrics returns sums over the pulls of this service.
func (s *Service) PullMetrics() pull.Metrics { return s.puller.Metrics() }

// transfers joins what moves images with the rest.
func (s *Service) transfers() {
	s.downloads, s.uploads = transfer.NewLimiter(s.config.MaxDownloads), transfer.NewLimiter(s.config.MaxUploads)
	s.puller = pull.New(pull.Config{
		Client: s.client, Namespace: s.config.Namespace, Unpacker: s.unpacker,
		Records: s.store, Registry: s.registry, Policy: s.config.Policy, Platform: s.config.Platform,
		Keys: s.config.DecryptionKeys, Downloads: s.downloads,
		Isolate: s.isolate(), Now: s.config.Now,
	})
	s.pusher = s.newPusher()
}
