// SPDX-License-Identifier: Apache-2.0

// Package image joins the image service with the table [images] of berth's
// configuration, /etc/berth/berth.toml, for all programs that work with images:
// the same names, registries, policies and pins for each of them.
package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/plugin/settings"
	"github.com/berthd/berth/shim/options"
)

// DefaultPath is berth's configuration.
const DefaultPath = settings.DefaultPath

// Config is the table [images]. The zero value is that of a host that says nothing:
// files of the containers tools and of containerd are where those look for them.
// Keys that CRI-O has too have its names.
type Config struct {
	// HostsDir has a directory with a hosts.toml for each registry, as containerd
	// and nerdctl have them. Default: /etc/containerd/certs.d.
	HostsDir string `toml:"hosts_dir"`
	// RegistriesConf says which registries are mirrored, insecure or blocked, and
	// what short names mean: containers-registries.conf(5). Default:
	// /etc/containers/registries.conf.
	RegistriesConf string `toml:"registries_conf"`
	// RegistriesConfDir has files that add to it. Default:
	// /etc/containers/registries.conf.d.
	RegistriesConfDir string `toml:"registries_conf_dir"`
	// InsecureRegistries are spoken to without checks of certificates, and in plain
	// HTTP if they do not speak TLS: host, host:port, or a network such as
	// 10.0.0.0/8. Those of loopback always are.
	InsecureRegistries []string `toml:"insecure_registries"`
	// GlobalAuthFile has credentials: containers-auth.json(5). Default: that of
	// podman login, and docker's.
	GlobalAuthFile string `toml:"global_auth_file"`
	// DockerConfigDir has docker's config.json. Default: ~/.docker.
	DockerConfigDir string `toml:"docker_config_dir"`
	// CertsDir has a directory of certificates for each registry:
	// containers-certs.d(5). Default: /etc/containers/certs.d.
	CertsDir string `toml:"certs_dir"`

	// SignaturePolicy says which images are accepted: containers-policy.json(5).
	// Default: /etc/containers/policy.json. One that is not there accepts nothing.
	SignaturePolicy string `toml:"signature_policy"`
	// SignaturePolicyDir may have a NAMESPACE.json for each namespace that is to
	// have another one. Default: none.
	SignaturePolicyDir string `toml:"signature_policy_dir"`
	// SignatureRegistriesDir says where signatures are: containers-registries.d(5).
	// Default: /etc/containers/registries.d.
	SignatureRegistriesDir string `toml:"signature_registries_dir"`

	// PinnedImages are names, or patterns with * at the end or at both ends, of
	// images that garbage collection spares, the kubelet's too.
	PinnedImages []string `toml:"pinned_images"`
	// PauseImage is pinned too. Default: none.
	PauseImage string `toml:"pause_image"`

	// DecryptionKeysPath is a directory of private keys for encrypted images.
	// Default: none.
	DecryptionKeysPath string `toml:"decryption_keys_path"`
	// MaxConcurrentDownloads and MaxConcurrentUploads bound the layers that move at
	// the same time. 0: the service's default.
	MaxConcurrentDownloads int `toml:"max_concurrent_downloads"`
	MaxConcurrentUploads   int `toml:"max_concurrent_uploads"`
	// MaxUnpackedSize is what the layers of an image may unpack to together: bytes, or
	// a text such as "64GiB". 0: the service's default.
	MaxUnpackedSize options.Size `toml:"max_unpacked_size"`
	// PullProgressTimeout ends a pull of which nothing has arrived for so long, once
	// it has begun to arrive: seconds or a text such as "1m". 0: never.
	PullProgressTimeout options.Duration `toml:"pull_progress_timeout"`
	// SeparatePullCgroup is a slice of systemd in which pulls run, each in a scope of
	// its own. Default: pulls run where their callers do.
	SeparatePullCgroup string `toml:"separate_pull_cgroup"`
}

// Load reads the table from the file at path, DefaultPath if empty. A file that
// does not exist says nothing; one that is wrong is InvalidArgument, with all its
// faults and their keys.
func Load(path string) (*Config, error) {
	if path == "" {
		path = DefaultPath
	}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("images: %w: %w", errdefs.ErrFailedPrecondition, err)
	}
	c, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("images: %s: %w", path, err)
	}
	return c, nil
}

// Parse reads the table [images] of a configuration. Other tables are others'.
func Parse(text []byte) (*Config, error) {
	var document struct {
		Images Config `toml:"images"`
	}
	if err := settings.Decode(text, &document, "images"); err != nil {
		return nil, err
	}
	if err := document.Images.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return &document.Images, nil
}

// Validate returns all faults, each with its key.
func (c *Config) Validate() error {
	var faults []error
	fail := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf("images."+key+": "+format, args...))
	}
	for _, p := range []struct{ key, path string }{
		{"hosts_dir", c.HostsDir},
		{"registries_conf", c.RegistriesConf},
		{"registries_conf_dir", c.RegistriesConfDir},
		{"global_auth_file", c.GlobalAuthFile},
		{"docker_config_dir", c.DockerConfigDir},
		{"certs_dir", c.CertsDir},
		{"signature_policy", c.SignaturePolicy},
		{"signature_policy_dir", c.SignaturePolicyDir},
		{"signature_registries_dir", c.SignatureRegistriesDir},
		{"decryption_keys_path", c.DecryptionKeysPath},
	} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			fail(p.key, "%q is not an absolute path", p.path)
		}
	}
	if c.MaxConcurrentDownloads < 0 {
		fail("max_concurrent_downloads", "%d is negative", c.MaxConcurrentDownloads)
	}
	if c.MaxConcurrentUploads < 0 {
		fail("max_concurrent_uploads", "%d is negative", c.MaxConcurrentUploads)
	}
	if c.PullProgressTimeout.Duration < 0 {
		fail("pull_progress_timeout", "%s is negative", c.PullProgressTimeout)
	}
	return errors.Join(faults...)
}
