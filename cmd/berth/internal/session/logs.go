// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"

	"github.com/berthd/berth/cmd/berth/internal/argument"
	"github.com/berthd/berth/cmd/berth/internal/kubelog"
	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/shim/crilog"
)

// Logs are the flags of commands that show logs.
type Logs struct {
	Follow, Timestamps, Previous bool

	tail, since string
}

// Bind declares the flags.
func (l *Logs) Bind(flags *pflag.FlagSet) {
	flags.BoolVarP(&l.Follow, "follow", "f", false, "wait for more until the container ends")
	flags.BoolVarP(&l.Timestamps, "timestamps", "t", false, "show when each line was written")
	flags.BoolVarP(&l.Previous, "previous", "p", false, "the container before this one, which had a lower attempt")
	flags.StringVar(&l.tail, "tail", "all", "`NUMBER` of lines from the end")
	flags.StringVar(&l.since, "since", "", "only what is newer than a `TIME`: 10m, or 2026-01-31T12:00:00Z")
}

// Read calls emit for what the flags ask for of a container's log. To be interrupted
// is no error.
func (l *Logs) Read(ctx context.Context, service *runtime.Service, c *runtime.Container, emit func(crilog.Entry) error) error {
	path, err := l.path(c)
	if err != nil {
		return err
	}
	o := kubelog.Options{Tail: -1}
	if l.tail != "all" {
		n, err := strconv.ParseUint(l.tail, 10, 31)
		if err != nil {
			return Usage("--tail %q, want a number or all", l.tail)
		}
		o.Tail = int(n)
	}
	if o.Since, err = argument.Since(l.since, time.Now()); err != nil {
		return err
	}
	if l.Follow && !l.Previous {
		o.Ended = Ended(ctx, service, c)
	}
	err = kubelog.Read(ctx, path, o, emit)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // following has no other end
	}
	return err
}

// path is the file that the flags ask for.
func (l *Logs) path(c *runtime.Container) (string, error) {
	if c.LogPath == "" {
		return "", fmt.Errorf("container %s has no log that berth knows of (owner %s): %w", c.Name, c.Owner, errdefs.ErrNotFound)
	}
	if !l.Previous {
		return c.LogPath, nil
	}
	none := fmt.Errorf("container %s: no log of a previous attempt: %w", c.Name, errdefs.ErrNotFound)
	name, number := filepath.Dir(c.LogPath), c.Attempt
	if number == 0 || number == labels.UnknownAttempt || filepath.Base(c.LogPath) != number.String()+".log" {
		return "", none
	}
	path := filepath.Join(name, (number-1).String()+".log")
	if _, err := os.Stat(path); err != nil {
		return "", none
	}
	return path, nil
}

// Ended returns a channel that is closed when a container has ended, or ctx.
func Ended(ctx context.Context, service *runtime.Service, c *runtime.Container) <-chan struct{} {
	ended := make(chan struct{})
	if c.State == runtime.ContainerExited {
		close(ended)
		return ended
	}
	if c.Owner != labels.OwnerBerth.String() {
		go look(ctx, ended, service, c)
		return ended
	}
	go func() {
		defer close(ended)
		// It may be removed meanwhile, which is an end too.
		if _, err := service.Wait(ctx, string(c.ID)); err != nil && ctx.Err() == nil && !errdefs.IsNotFound(err) {
			look(ctx, nil, service, c)
		}
	}()
	return ended
}

// again is how often containers are looked at that cannot be waited for.
const again = time.Second

// look closes ended, if not nil, when the container has ended, or ctx.
func look(ctx context.Context, ended chan<- struct{}, service *runtime.Service, c *runtime.Container) {
	if ended != nil {
		defer close(ended)
	}
	tick := time.NewTicker(again)
	defer tick.Stop()
	for {
		now, err := service.Container(ctx, string(c.ID))
		if ctx.Err() != nil || errdefs.IsNotFound(err) || err == nil && now.State == runtime.ContainerExited {
			return
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
