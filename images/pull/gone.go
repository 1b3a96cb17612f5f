// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
)

// errGone says that containerd has ended during a pull. Its class is ErrUnavailable.
var errGone = errdefs.ErrUnavailable.WithMessage("containerd does not answer any more")

// answerTime is what a containerd that is there has for an answer.
const answerTime = 5 * time.Second

// gone tells whether containerd is what was unavailable, and not a registry, or a blob
// that somebody else writes.
func gone(ctx context.Context, c *client.Client, err error) bool {
	if !errdefs.IsUnavailable(err) {
		return false
	}
	ask, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	_, err = c.IsServing(ask)
	return err != nil && ctx.Err() == nil
}

// attended is a content store that ends a pull when containerd is gone:
// content.OpenWriter would ask it for ever.
type attended struct {
	content.Store
	client *client.Client
	end    context.CancelCauseFunc
}

// Writer implements content.Ingester.
func (a attended) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := a.Store.Writer(ctx, opts...)
	if gone(ctx, a.client, err) {
		a.end(errGone)
	}
	return w, err
}
