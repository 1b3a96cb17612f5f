// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// image is an image of containerd's store, as far as a container needs it.
type image struct {
	client.Image
	record string // the name of its record
	id     string // the digest of its configuration, in digits
	chain  string // the key of the snapshot that all containers are on
	config ocispec.Image
}

// resolve reads an image, by the name of its record.
func (s *Store) resolve(ctx context.Context, i Image) (*image, error) {
	r, err := s.client.ImageService().Get(ctx, i.Record)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", i.Record, err)
	}
	found, err := s.read(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", i.Record, err)
	}
	if want := strings.TrimPrefix(i.ID, "sha256:"); want != "" && want != found.id {
		return nil, fmt.Errorf("image %s is another one by now, %s: %w", want, found.id, errdefs.ErrNotFound)
	}
	return found, nil
}

// read reads what is in the content store.
func (s *Store) read(ctx context.Context, r images.Image) (*image, error) {
	i := &image{Image: client.NewImage(s.client, r), record: r.Name}
	desc, err := i.Config(ctx)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	b, err := content.ReadBlob(ctx, i.ContentStore(), desc)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := json.Unmarshal(b, &i.config); err != nil {
		return nil, fmt.Errorf("configuration %s: %w: %w", desc.Digest, err, errdefs.ErrDataLoss)
	}
	i.id = desc.Digest.Encoded()
	i.chain = identity.ChainID(i.config.RootFS.DiffIDs).String()
	return i, nil
}

// unpack makes the snapshots of an image, unless the snapshotter has them.
func (s *Store) unpack(ctx context.Context, i *image, snapshotter string) error {
	ok, err := i.IsUnpacked(ctx, snapshotter)
	if err != nil || ok {
		return err
	}
	// Afterwards the image itself keeps them.
	ctx, done, err := s.client.WithLease(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }() // it expires by itself
	return i.Unpack(ctx, snapshotter)
}

// pause finds the image of an infra container, or pulls it, and sees to it that the
// record of the container names what was found, whatever becomes of the tag.
func (s *Store) pause(ctx context.Context, p PauseImage) (*image, error) {
	name, err := reference.ParseDockerRef(p.Reference)
	if err != nil {
		return nil, fmt.Errorf("pause image %q: %w: %w", p.Reference, err, ErrInvalidImageName)
	}
	r, err := s.client.ImageService().Get(ctx, name.String())
	if errdefs.IsNotFound(err) {
		r, err = s.pull(ctx, name.String(), p.AuthFile)
	}
	if err != nil {
		return nil, fmt.Errorf("pause image %s: %w", name, err)
	}
	exact, err := reference.WithDigest(reference.TrimNamed(name), r.Target.Digest)
	if err != nil {
		return nil, fmt.Errorf("pause image %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	byDigest := images.Image{Name: exact.String(), Target: r.Target, Labels: r.Labels}
	if _, err := s.client.ImageService().Create(ctx, byDigest); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("pause image %s: %w", exact, err)
	}
	return s.resolve(ctx, Image{Record: exact.String()})
}

// pullTimeout bounds what no caller does. Pause images are small.
const pullTimeout = 10 * time.Minute

// pull goes on when the one who asked has gone: the next one will want it, too.
func (s *Store) pull(ctx context.Context, name, authFile string) (images.Image, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pullTimeout)
	defer cancel()
	resolver, err := s.resolver(ctx, name, authFile)
	if err != nil {
		return images.Image{}, err
	}
	i, err := s.client.Pull(ctx, name,
		client.WithResolver(resolver), client.WithPullUnpack, client.WithPullSnapshotter(s.o.Snapshotter))
	if err != nil {
		return images.Image{}, fmt.Errorf("pull: %w", err)
	}
	return i.Metadata(), nil
}

func (s *Store) resolver(ctx context.Context, name, authFile string) (remotes.Resolver, error) {
	o := config.HostOptions{HostDir: config.HostDirFromRoot(s.o.Hosts)}
	if authFile != "" {
		auths, err := readAuths(authFile)
		if err != nil {
			return nil, err
		}
		o.Credentials = func(host string) (user, secret string, err error) { return auths.of(host, name) }
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, o)}), nil
}

// auths are the credentials of an authentication file, by registry or by a part of
// it (containers-auth.json(5)).
type auths map[string]struct {
	Auth, Username, Password, IdentityToken string
}

func readAuths(path string) (auths, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("authentication file: %w", system(err))
	}
	var file struct{ Auths auths }
	if err := json.Unmarshal(b, &file); err != nil {
		// The error might show what is secret.
		return nil, fmt.Errorf("authentication file %s: not JSON: %w", path, errdefs.ErrInvalidArgument)
	}
	return file.Auths, nil
}

// of returns the credentials for an image on a host; empty ones mean none. The
// most specific entry counts.
func (a auths) of(host, name string) (user, secret string, err error) {
	registry, _, _ := strings.Cut(name, "/")
	if registry != host && !(registry == "docker.io" && host == "registry-1.docker.io") {
		return "", "", nil // of a mirror: the image's are not for it
	}
	best := -1
	for key, auth := range a {
		if at := scope(key); len(at) > best && (name+"/" == at || strings.HasPrefix(name, at)) {
			best = len(at)
			user, secret, err = auth.Username, auth.Password, nil
			if auth.Auth != "" {
				user, secret, err = decodeAuth(auth.Auth)
			}
			if auth.IdentityToken != "" {
				user, secret = "", auth.IdentityToken
			}
		}
	}
	return user, secret, err
}

// scope is the beginning of the names that a key is for. Docker's own registry is
// known by a URL.
func scope(key string) string {
	if u, err := url.Parse(key); err == nil && u.Scheme != "" && u.Host != "" {
		key = u.Host
	}
	if key == "index.docker.io" {
		key = "docker.io"
	}
	return strings.TrimSuffix(key, "/") + "/"
}

func decodeAuth(text string) (user, secret string, err error) {
	b, err := base64.StdEncoding.DecodeString(text)
	user, secret, ok := strings.Cut(string(b), ":")
	if err != nil || !ok {
		return "", "", fmt.Errorf("authentication file: malformed entry: %w", errdefs.ErrInvalidArgument)
	}
	return user, strings.TrimRight(secret, "\x00"), nil
}
