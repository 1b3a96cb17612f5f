// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/imageverifier"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/plugin/image"
	"github.com/berthd/berth/plugin/pinner"
	"github.com/berthd/berth/plugin/settings"
)

func init() {
	registry.Register(&plugin.Registration{
		Type:   plugins.ImageVerifierPlugin,
		ID:     "berth",
		Config: &VerifierConfig{ConfigPath: settings.DefaultPath},
		InitFn: initVerifier,
	})
	registry.Register(&plugin.Registration{
		Type: plugins.InternalPlugin,
		ID:   "berth-pins",
		// What a client in the same process needs.
		Requires: []plugin.Type{
			plugins.EventPlugin, plugins.LeasePlugin, plugins.SandboxStorePlugin,
			plugins.TransferPlugin, plugins.MountManagerPlugin, plugins.ServicePlugin,
		},
		Config: &PinsConfig{ConfigPath: settings.DefaultPath},
		InitFn: initPins,
	})
}

// VerifierConfig is the section of the image verifier.
type VerifierConfig struct {
	// Enabled has each pull by the transfer service, and so the kubelet's, held
	// against the signature policy. Default: false, for a host without a policy
	// would pull nothing.
	Enabled bool `toml:"enabled"`
	// ConfigPath is berth's configuration, whose [images] says where the policy is.
	// Default: /etc/berth/berth.toml.
	ConfigPath string `toml:"config_path"`
}

func initVerifier(ic *plugin.InitContext) (any, error) {
	config, ok := ic.Config.(*VerifierConfig)
	if !ok {
		return nil, fmt.Errorf("configuration of the image verifier is a %T", ic.Config)
	}
	if !config.Enabled {
		return nil, fmt.Errorf("images are not verified: enabled is false: %w", plugin.ErrSkipPlugin)
	}
	if err := absolute(config.ConfigPath); err != nil {
		return nil, err
	}
	// A fault in the configuration is told now, not by the first pull.
	if _, err := image.Load(config.ConfigPath); err != nil {
		return nil, err
	}
	return verifier{path: config.ConfigPath}, nil
}

// verifier is the code of `berth image pull` and of berth-verify, asked by
// containerd's transfer service. Safe for concurrent use.
type verifier struct{ path string }

var _ imageverifier.ImageVerifier = verifier{}

// VerifyImage says whether an image may be pulled, by the policy for containerd's
// namespace. The configuration is read for each image, as policies are.
func (v verifier) VerifyImage(ctx context.Context, name string, desc ocispec.Descriptor) (*imageverifier.Judgement, error) {
	config, err := image.Load(v.path)
	if err != nil {
		return nil, err
	}
	ref, err := reference.Parse(name)
	if err != nil {
		return nil, err
	}
	namespace, _ := namespaces.Namespace(ctx)
	if err := config.Verify(ctx, namespace, ref, desc.Digest); err != nil {
		return &imageverifier.Judgement{Reason: err.Error()}, nil
	}
	return &imageverifier.Judgement{OK: true, Reason: "signature policy allows " + name}, nil
}

// PinsConfig is the section of the policy of pinned images.
type PinsConfig struct {
	// ConfigPath is berth's configuration, whose [images] has the patterns. A change
	// is seen at once. Default: /etc/berth/berth.toml.
	ConfigPath string `toml:"config_path"`
}

func initPins(ic *plugin.InitContext) (any, error) {
	config, ok := ic.Config.(*PinsConfig)
	if !ok {
		return nil, fmt.Errorf("configuration of the image policy is a %T", ic.Config)
	}
	if err := absolute(config.ConfigPath); err != nil {
		return nil, err
	}
	c, err := client.New("", client.WithInMemoryServices(ic), client.WithDefaultNamespace(namespaces.Default))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(log.WithLogger(context.Background(), log.G(ic.Context)))
	p := &pins{client: c, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		pinner.Run(ctx, c, config.ConfigPath)
	}()
	return p, nil
}

// pins is the running policy of pinned images.
type pins struct {
	client *client.Client
	cancel context.CancelFunc
	ended  chan struct{}
}

// Close ends it and waits; it may be called twice.
func (p *pins) Close() error {
	p.cancel()
	<-p.ended
	return p.client.Close()
}

func absolute(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("config_path %q is not an absolute path", path)
	}
	return nil
}
