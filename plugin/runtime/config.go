// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/network"
)

// Defaults of Config.
const (
	DefaultRoot  = "/var/lib/berth"
	DefaultState = "/run/berth"
	// DefaultSnapshotter is containerd's.
	DefaultSnapshotter = "overlayfs"
)

// Config says with what a Service works. Client is mandatory.
type Config struct {
	// Client of containerd. The caller closes it, after the Service.
	Client *client.Client
	// Namespace is containerd's. Default: the client's.
	Namespace string
	// Root is the directory for what outlives a reboot; Default: DefaultRoot.
	Root string
	// State is the directory for what does not, on a tmpfs. Default: DefaultState.
	State string
	// Snapshotter makes the containers' file systems. Default: DefaultSnapshotter.
	Snapshotter string
	// Handlers are the runtime handlers. Default: those of handler.DefaultPath.
	Handlers *handler.Handlers
	// Network configures CNI. Its State and Namespace are set here.
	Network network.Config
	// CRIU is the program, for checkpoints. Default: "criu".
	CRIU string
	// CreateTimeout bounds the creation of a pod or container that has no shorter
	// deadline. Default: 4 minutes, as CRI-O's.
	CreateTimeout time.Duration
	// Prefixes lets a ref be the beginning of an ID. It is for people: programs
	// know the whole ID, and a prefix may come to mean another container.
	Prefixes bool
}

func (c *Config) complete() error {
	if c.Client == nil {
		return fmt.Errorf("runtime: no client: %w", errdefs.ErrInvalidArgument)
	}
	for _, d := range []struct {
		at        *string
		otherwise string
	}{
		{&c.Namespace, c.Client.DefaultNamespace()},
		{&c.Root, DefaultRoot},
		{&c.State, DefaultState},
		{&c.Snapshotter, DefaultSnapshotter},
	} {
		if *d.at == "" {
			*d.at = d.otherwise
		}
	}
	if c.CreateTimeout <= 0 {
		c.CreateTimeout = 4 * time.Minute
	}
	var faults []error
	if c.Handlers == nil {
		var err error
		c.Handlers, err = handler.Open("")
		faults = append(faults, err)
	}
	if err := identifiers.Validate(c.Namespace); err != nil {
		faults = append(faults, fmt.Errorf("namespace: %w", err))
	}
	for _, dir := range []string{c.Root, c.State} {
		if !filepath.IsAbs(dir) {
			faults = append(faults, fmt.Errorf("directory %q is not an absolute path: %w", dir, errdefs.ErrInvalidArgument))
		}
	}
	return errors.Join(faults...)
}
