// SPDX-License-Identifier: Apache-2.0

// Package pinner keeps the records of images pinned by the configured patterns,
// whoever makes them: containerd's CRI plugin, ctr and nerdctl know no patterns. It
// watches containerd's events and berth's configuration. What a pin is belongs to
// the image service.
package pinner

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/log"
	"github.com/fsnotify/fsnotify"

	"github.com/berthd/berth/plugin/image"
)

// topics are the events after which a record may lack its label.
const topics = `topic~="^/images/(create|update)$"`

// retryAfter is between a connection that broke and the next attempt.
const retryAfter = time.Second

// Run pins until ctx ends. Path is berth's configuration; when it changes, or is
// wrong, the last good one stays until a better is there. Faults are logged: the
// policy of pins is no reason for anything else to fail. The client stays the
// caller's.
func Run(ctx context.Context, c *client.Client, path string) {
	for ctx.Err() == nil {
		err := watch(ctx, c, path)
		if ctx.Err() != nil {
			return
		}
		log.G(ctx).WithError(err).Warn("images are not pinned until containerd answers")
		timer := time.NewTimer(retryAfter)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}

// watch returns when the events end.
func watch(ctx context.Context, c *client.Client, path string) error {
	files, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer files.Close()
	// The folder: editors put a new file in the place of the old one.
	if err := files.Add(filepath.Dir(path)); err != nil {
		log.G(ctx).WithError(err).Debug("changes of berth's configuration are not seen")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed, failed := c.Subscribe(ctx, topics)

	p := &pinner{client: c, path: path}
	if err := p.reload(ctx); err != nil {
		return err
	}
	for {
		select {
		case e := <-changed:
			p.settle(ctx, e, changed)
		case err := <-failed:
			return err
		case e := <-files.Events:
			if filepath.Clean(e.Name) == filepath.Clean(path) {
				if err := p.reload(ctx); err != nil {
					return err
				}
			}
		case err := <-files.Errors:
			log.G(ctx).WithError(err).Warn("watching berth's configuration")
		}
	}
}

type pinner struct {
	client *client.Client
	path   string
	config *image.Config
}

// reload reads the configuration and goes over all namespaces.
func (p *pinner) reload(ctx context.Context) error {
	config, err := image.Load(p.path)
	switch {
	case err == nil:
		p.config = config
	case p.config == nil:
		return err
	default:
		log.G(ctx).WithError(err).Error("berth's configuration is wrong; pins stay as they were")
	}
	namespaces, err := p.client.NamespaceService().List(ctx)
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, namespace := range namespaces {
		p.sync(ctx, namespace)
	}
	return nil
}

// settle goes over the namespaces of an event and of those that have come with it:
// a pull makes several.
func (p *pinner) settle(ctx context.Context, e *events.Envelope, more <-chan *events.Envelope) {
	touched := map[string]bool{e.Namespace: true}
	for {
		select {
		case e := <-more:
			touched[e.Namespace] = true
			continue
		default:
		}
		break
	}
	for namespace := range touched {
		p.sync(ctx, namespace)
	}
}

func (p *pinner) sync(ctx context.Context, namespace string) {
	s, err := p.config.Service(image.Host{Client: p.client, Namespace: namespace})
	if err == nil {
		err = s.SyncPins(ctx)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		log.G(ctx).WithError(err).WithField("namespace", namespace).Error("images are not pinned")
	}
}
