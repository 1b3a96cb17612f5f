// SPDX-License-Identifier: Apache-2.0

// Package registry owns how registries are reached: which registries a name may
// stand for, where and with what credentials each is found, which of them may be
// insecure, and what their errors mean. It reads the files that a node has for
// this, containerd's hosts.toml, registries.conf and the files of credentials, and
// turns them into a resolver of containerd's. It refuses to know what is done
// with content, and has no protocol client of its own.
package registry

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"

	"github.com/berthd/berth/images/reference"
)

// Defaults of Config.
const (
	DefaultHostsDir = "/etc/containerd/certs.d"
	DefaultCertsDir = "/etc/containers/certs.d"

	dockerCertsDir = "/etc/docker/certs.d"
)

// Config says where the node's configuration is. The zero value is the system's:
// each empty path stands for its default, files and directories that do not exist
// are empty, and what a file of the system says that no field replaces is
// effective, too.
type Config struct {
	// HostsDir has a directory with a hosts.toml for each registry, as containerd
	// knows it. Default: DefaultHostsDir.
	HostsDir string
	// CertsDir has a directory with certificates (*.crt, *.cert, *.key) for each
	// registry of which HostsDir knows nothing. Default: DefaultCertsDir, and then
	// that of docker.
	CertsDir string
	// RegistriesConf is a registries.conf that replaces the system's files, and
	// RegistriesConfDir a directory of drop-ins that replaces the system's. With
	// the first alone the drop-ins are beside it, in a directory named like it
	// with ".d".
	RegistriesConf, RegistriesConfDir string
	// Aliases is the file to which Pulled writes. Default: that of the user.
	Aliases string
	// Insecure lists registries that may have a certificate nobody knows, or
	// speak plain HTTP: each is a "host", "host:port", or a range of addresses in
	// CIDR notation. Registries at 127.0.0.0/8 always may.
	Insecure []string
	// AuthFile is a file of credentials in the format of containers-auth.json(5),
	// DockerConfigDir a directory with such a config.json as docker writes it.
	// AuthFile is asked first. With either, no other file is read.
	AuthFile, DockerConfigDir string
	// Choose selects one of several registries for a short name, where
	// registries.conf wants somebody to be asked. Nil: there is nobody to ask.
	Choose func(name string, candidates []reference.Reference) (reference.Reference, error)
	// Timeout is how long a registry may take until it begins an answer.
	// Default: 30 seconds.
	Timeout time.Duration
}

// Registry reaches registries. It holds no connections and nothing to close.
// Safe for concurrent use.
type Registry struct {
	config   Config
	insecure map[string]bool // by host
	networks []netip.Prefix  // insecure ones, too
}

// New checks the configuration and returns what works by it. Registries.conf is
// read now and kept; other files are read when they are needed. A file that is
// wrong is ErrInvalidArgument.
func New(c Config) (*Registry, error) {
	if c.HostsDir == "" {
		c.HostsDir = DefaultHostsDir
	}
	if c.RegistriesConf != "" && c.RegistriesConfDir == "" {
		c.RegistriesConfDir = c.RegistriesConf + ".d"
	}
	r := &Registry{config: c, insecure: map[string]bool{}, networks: []netip.Prefix{loopback}}
	for _, entry := range c.Insecure {
		if network, err := netip.ParsePrefix(entry); err == nil {
			r.networks = append(r.networks, network.Masked())
			continue
		}
		if entry == "" || strings.ContainsAny(entry, "/ ") {
			return nil, fmt.Errorf("insecure registry %q: neither host[:port] nor CIDR: %w", entry, errdefs.ErrInvalidArgument)
		}
		r.insecure[strings.ToLower(entry)] = true
	}
	if _, err := sysregistriesv2.TryUpdatingCache(r.System(Access{})); err != nil {
		return nil, fmt.Errorf("registries.conf: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// System returns the configuration and access as the libraries of
// go.podman.io/image take them. Whether a registry is insecure depends on the
// registry: see SystemFor.
func (r *Registry) System(a Access) *types.SystemContext {
	s := &types.SystemContext{
		SystemRegistriesConfPath:    r.config.RegistriesConf,
		SystemRegistriesConfDirPath: r.config.RegistriesConfDir,
		UserShortNameAliasConfPath:  r.config.Aliases,
		DockerPerHostCertDirPath:    r.config.CertsDir,
		AuthFilePath:                r.config.AuthFile,
	}
	if a.AuthFile != "" {
		s.AuthFilePath = a.AuthFile
	}
	if s.AuthFilePath == "" && r.config.DockerConfigDir != "" {
		s.DockerCompatAuthFilePath = filepath.Join(r.config.DockerConfigDir, "config.json")
	}
	if a.Credentials != nil {
		s.DockerAuthConfig, s.DockerBearerRegistryToken = a.Credentials.auth()
	}
	if a.PlainHTTP || a.SkipVerify {
		s.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return s
}
