// SPDX-License-Identifier: Apache-2.0

// Package proxy serves berth's parts to a containerd that was built without them:
// the snapshotter on a unix socket, as containerd's proxy plugins are, and the image
// policy as a client of containerd. It is `berthd proxy`.
package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/berthd/berth/plugin/image"
	"github.com/berthd/berth/plugin/layers"
	"github.com/berthd/berth/plugin/settings"
)

// DefaultPath is berth's configuration.
const DefaultPath = settings.DefaultPath

// Config is what berthd proxy reads of berth's configuration: [proxy],
// [snapshotter] and [images].
type Config struct {
	Proxy  Table         `toml:"proxy"`
	Layers layers.Config `toml:"snapshotter"`
	Images image.Config  `toml:"images"`

	path string
}

// Table is [proxy].
type Table struct {
	// Address is the socket that containerd connects to. Default:
	// /run/berth/berthd.sock. It is root's alone.
	Address string `toml:"address"`
	// Containerd is the socket of the containerd whose images the policy is for.
	// Default: containerd's own.
	Containerd string `toml:"containerd_address"`
}

// Load reads the file at path. A file that does not exist is all defaults. Faults are
// InvalidArgument, with their keys.
func Load(path string) (*Config, error) {
	c := &Config{
		Proxy: Table{Address: "/run/berth/berthd.sock", Containerd: defaults.DefaultAddress},
		path:  path,
	}
	if err := settings.Read(path, c, "proxy", "snapshotter", "images"); err != nil {
		return nil, err
	}
	c.Layers.RootPath = c.Layers.Root("/var/lib/berth/snapshotter")
	var faults []error
	for key, address := range map[string]string{"address": c.Proxy.Address, "containerd_address": c.Proxy.Containerd} {
		if !filepath.IsAbs(address) {
			faults = append(faults, fmt.Errorf("proxy.%s: %q is not an absolute path", key, address))
		}
	}
	faults = append(faults, c.Layers.Validate(), c.Images.Validate())
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, errdefs.ErrInvalidArgument, err)
	}
	return c, nil
}

// Section is what containerd's configuration needs, for it cannot ask the proxy.
func (c *Config) Section() (string, error) {
	type plugin struct {
		Type         string            `toml:"type"`
		Address      string            `toml:"address"`
		Platform     string            `toml:"platform"`
		Capabilities []string          `toml:"capabilities"`
		Exports      map[string]string `toml:"exports"`
	}
	type unpack struct {
		Platform    string `toml:"platform"`
		Snapshotter string `toml:"snapshotter"`
	}
	document := struct {
		Version int               `toml:"version"`
		Proxies map[string]plugin `toml:"proxy_plugins"`
		Plugins map[string]any    `toml:"plugins"`
	}{
		Version: 3, // containerd 2.0 and later read it
		Proxies: map[string]plugin{layers.Name: {
			Type: "snapshot", Address: c.Proxy.Address, Platform: layers.Platform(),
			Capabilities: c.Layers.Capabilities(), Exports: map[string]string{"root": c.Layers.RootPath},
		}},
		// Pulls of the transfer service, the kubelet's too, unpack to what is listed; a
		// list replaces containerd's own.
		Plugins: map[string]any{"io.containerd.transfer.v1.local": map[string]any{"unpack_config": []unpack{
			{layers.Platform(), defaults.DefaultSnapshotter}, {layers.Platform(), layers.Name},
		}}},
	}
	var b bytes.Buffer
	err := toml.NewEncoder(&b).SetIndentTables(true).Encode(document)
	return b.String(), err
}
