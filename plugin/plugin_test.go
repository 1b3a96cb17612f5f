// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"errors"
	"slices"
	"testing"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// Registrations fit beside containerd's own: a type and ID that somebody has already
// would end the program before this.
func TestRegistrations(t *testing.T) {
	all := registry.Graph(func(*plugin.Registration) bool { return false })
	for uri, requires := range map[string][]plugin.Type{
		"io.containerd.snapshotter.v1.berth":    nil,
		"io.containerd.image-verifier.v1.berth": nil,
		"io.containerd.internal.v1.berth-pins":  {plugins.ServicePlugin, plugins.EventPlugin},
	} {
		i := slices.IndexFunc(all, func(r plugin.Registration) bool { return r.URI() == uri })
		if i < 0 {
			t.Errorf("%s is not registered", uri)
			continue
		}
		if all[i].Config == nil {
			t.Errorf("%s has no configuration", uri)
		}
		for _, want := range requires {
			if !slices.Contains(all[i].Requires, want) {
				t.Errorf("%s does not require %s", uri, want)
			}
		}
	}
}

// A mistake in the configuration is told when containerd starts, and what is not
// enabled is passed over.
func TestVerifierConfig(t *testing.T) {
	for _, c := range []struct {
		name   string
		config any
		skip   bool
	}{
		{"another's", &PinsConfig{}, false},
		{"not enabled", &VerifierConfig{ConfigPath: "/x"}, true},
		{"relative", &VerifierConfig{Enabled: true, ConfigPath: "x"}, false},
		{"a directory", &VerifierConfig{Enabled: true, ConfigPath: t.TempDir()}, false},
	} {
		ic := plugin.NewContext(context.Background(), plugin.NewPluginSet(), nil)
		ic.Config = c.config
		if _, err := initVerifier(ic); err == nil || errors.Is(err, plugin.ErrSkipPlugin) != c.skip {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
