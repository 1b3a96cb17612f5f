// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/transfer"
)

// ErrCorrupt says that a registry has sent something else than what was announced.
// Its class is ErrDataLoss.
var ErrCorrupt = errdefs.ErrDataLoss.WithMessage("registry sent something else")

// fetch is the handler that brings a blob into the content store.
func (j *job) fetch(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
	layer := images.IsLayerType(desc.MediaType)
	if layer {
		if err := j.keys.Check(desc); err != nil {
			return nil, err
		}
		j.table.Set(desc, transfer.Waiting)
		if d := j.delegated.Load(); d != nil {
			d.await(ctx, desc)
		}
		release, err := transfer.Acquire(ctx, j.turns)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	exists, err := j.download(ctx, desc)
	if d := j.delegated.Load(); d != nil && d.has(desc.Digest) {
		exists = false
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s %s: %w", desc.MediaType, desc.Digest, err)
	case exists:
		j.table.Set(desc, transfer.Exists)
		if layer {
			j.skipped.Add(1)
		}
	case layer:
		j.table.Set(desc, transfer.Downloaded) // unpacking follows
	default:
		j.table.Set(desc, transfer.Complete)
	}
	return nil, nil
}

// download brings a blob into the content store, unless it is there. What has
// arrived of it before, in this pull or another, is not fetched again.
func (j *job) download(ctx context.Context, desc v1.Descriptor) (exists bool, err error) {
	source := &source{job: j, fetcher: j.fetcher}
	err = retry(ctx, func() error {
		err := registry.Classify(remotes.Fetch(ctx, j.content, source, desc))
		if source.corrupt(err) {
			err = j.discard(ctx, desc, err)
			if source.resumed {
				// What was there from before may be to blame: once more, from the start.
				source.resumed = false
				err = registry.Classify(remotes.Fetch(ctx, j.content, source, desc))
				if source.corrupt(err) {
					err = j.discard(ctx, desc, err)
				}
			}
		}
		return err
	})
	if errdefs.IsAlreadyExists(err) {
		return true, nil
	}
	return err == nil && !source.used, err
}

// untrusted tells whether a registry, or where it sends its clients, has a
// certificate that is not accepted.
func untrusted(err error) bool {
	var (
		verify  *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		record  tls.RecordHeaderError
	)
	return errors.As(err, &verify) || errors.As(err, &unknown) || errors.As(err, &record)
}

// discard removes what has arrived, for it would be taken for a good beginning.
func (j *job) discard(ctx context.Context, desc v1.Descriptor, cause error) error {
	err := fmt.Errorf("%w: %w", ErrCorrupt, cause)
	if left := j.content.Abort(ctx, remotes.MakeRefKey(ctx, desc)); left != nil && !errdefs.IsNotFound(left) {
		err = errors.Join(err, left)
	}
	return err
}

// How often a transfer that breaks off is taken up again, and how long the first
// pause is; each is twice as long as the one before. Requests that are answered
// with an error have been repeated by the resolver as far as that makes sense.
const (
	tries      = 4
	firstPause = 200 * time.Millisecond
)

// retry calls f until it ends otherwise than by a transfer that has broken off.
func retry(ctx context.Context, f func() error) error {
	for n := 0; ; n++ {
		err := f()
		if err == nil || n == tries-1 || !brokenOff(err) {
			return err
		}
		pause := time.NewTimer(firstPause << n)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err
		}
	}
}

// brokenOff tells whether a transfer has ended in the middle.
func brokenOff(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// source is a fetcher whose bodies are counted.
type source struct {
	job     *job
	fetcher remotes.Fetcher
	used    bool // something was asked of the registry
	resumed bool // there was a beginning
	failed  bool // the registry has not sent all
}

// corrupt tells whether the content store has refused what has arrived: it has
// another size or another digest.
func (s *source) corrupt(err error) bool {
	return err != nil && !s.failed && errdefs.IsFailedPrecondition(err)
}

// Fetch implements remotes.Fetcher.
func (s *source) Fetch(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	s.used, s.failed = true, false
	rc, err := s.fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	seeker, ok := rc.(io.ReadSeekCloser)
	if !ok {
		_ = rc.Close()
		return nil, fmt.Errorf("the registry's client cannot go on in the middle of a blob: %w", errdefs.ErrInternal)
	}
	b := &body{ReadSeekCloser: seeker, job: s.job, source: s, desc: desc, layer: images.IsLayerType(desc.MediaType)}
	s.job.table.Set(desc, transfer.Downloading)
	s.job.table.Seek(desc, 0)
	return b, nil
}

// body is a blob that arrives.
type body struct {
	io.ReadSeekCloser

	job    *job
	source *source
	desc   v1.Descriptor
	layer  bool
	read   int64
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.layer {
		b.job.watch.reading()
	}
	n, err := b.ReadSeekCloser.Read(p)
	if b.layer {
		b.job.watch.read(n)
	}
	b.read += int64(n)
	b.source.failed = b.source.failed || err != nil && err != io.EOF && (!errdefs.IsFailedPrecondition(err) || untrusted(err))
	b.job.table.Add(b.desc, n)
	return n, err
}

// Seek implements io.Seeker: the beginning has come before.
func (b *body) Seek(offset int64, whence int) (int64, error) {
	at, err := b.ReadSeekCloser.Seek(offset, whence)
	if err == nil && at != b.read {
		b.source.resumed = at > 0
		b.read = at
		b.job.table.Seek(b.desc, at)
	}
	return at, err
}
