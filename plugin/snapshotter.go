// SPDX-License-Identifier: Apache-2.0

// Package plugin registers berth's parts with containerd. A containerd that is built
// with it has them; see cmd/berthd. What a part does is elsewhere.
package plugin

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/berthd/berth/plugin/layers"
)

func init() {
	registry.Register(&plugin.Registration{
		Type:   plugins.SnapshotPlugin,
		ID:     layers.Name,
		Config: &layers.Config{},
		InitFn: initSnapshotter,
	})
}

func initSnapshotter(ic *plugin.InitContext) (any, error) {
	config, ok := ic.Config.(*layers.Config)
	if !ok {
		return nil, fmt.Errorf("configuration of the snapshotter is a %T", ic.Config)
	}
	if err := config.Validate(); err != nil {
		return nil, err
	}
	root := filepath.Clean(config.Root(ic.Properties[plugins.PropertyRootDir]))
	if err := layers.Supported(root); errdefs.IsNotImplemented(err) {
		return nil, errors.Join(err, plugin.ErrSkipPlugin)
	} else if err != nil {
		return nil, err
	}
	s, err := config.Open(ic.Context, root)
	if err != nil {
		return nil, err
	}
	ic.Meta.Platforms = append(ic.Meta.Platforms, platforms.DefaultSpec())
	ic.Meta.Capabilities = config.Capabilities()
	ic.Meta.Exports[plugins.SnapshotterRootDir] = root // CRI asks the file system there
	return s, nil
}
