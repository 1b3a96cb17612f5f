// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"

	"github.com/berthd/berth/images/reference"
)

// ErrBlocked says that registries.conf blocks a registry. Its class is
// ErrPermissionDenied.
var ErrBlocked = errdefs.ErrPermissionDenied.WithMessage("registry is blocked by registries.conf")

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// source is a place that has a reference's repository, by registries.conf.
type source struct {
	// ref is what the reference is called there.
	ref reference.Reference
	// own says that it is at the registry that the reference names, so that what a
	// call says about the registry holds.
	own bool
	// insecure is what registries.conf says.
	insecure bool
	// namespace, unless empty, tells a proxy for several registries which one is
	// meant.
	namespace string
	// more says that there is another source to ask when this one fails.
	more bool
}

// sources returns where a reference can be had: mirrors first, its registry last.
func (r *Registry) sources(ref reference.Reference) ([]source, error) {
	found, err := sysregistriesv2.FindRegistry(r.System(Access{}), ref.Text())
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", ref, err, errdefs.ErrFailedPrecondition)
	}
	if found == nil {
		return []source{{ref: ref, own: true}}, nil
	}
	if found.Blocked {
		return nil, fmt.Errorf("%s: %s: %w", ref, found.Prefix, ErrBlocked)
	}
	places, err := found.PullSourcesFromReference(ref.Named())
	if err != nil {
		return nil, fmt.Errorf("%s: registries.conf: %w: %w", ref, err, errdefs.ErrFailedPrecondition)
	}
	all := make([]source, 0, len(places))
	for i, place := range places {
		rewritten, err := reference.Parse(place.Reference.String())
		if err != nil {
			return nil, fmt.Errorf("%s: registries.conf: %w", ref, err)
		}
		all = append(all, source{
			ref: rewritten, own: rewritten.Host() == ref.Host(),
			insecure: place.Endpoint.Insecure, namespace: place.Endpoint.NamespaceProxy,
			more: i < len(places)-1,
		})
	}
	return all, nil
}

// home is the source to push to: what the reference says, whatever mirrors there
// are and wherever pulls go instead.
func (r *Registry) home(ref reference.Reference) (source, error) {
	all, err := r.sources(ref)
	if err != nil {
		return source{}, err
	}
	for _, s := range all {
		if s.ref == ref {
			return s, nil
		}
	}
	return source{ref: ref, own: true}, nil
}

// at tells whether a host is the source's registry, and not one that hosts.toml
// puts in front of it.
func (s source) at(host string) bool {
	if host == "registry-1.docker.io" {
		host = "docker.io"
	}
	return host == s.ref.Host()
}

// lenience is what a host may be forgiven.
type lenience struct{ plain, unverified bool }

func (r *Registry) lenience(ctx context.Context, s source, a Access, host string) lenience {
	var l lenience
	if s.at(host) {
		if s.insecure {
			return lenience{true, true}
		}
		if s.own {
			l = lenience{a.PlainHTTP, a.SkipVerify}
		}
	}
	if r.Insecure(ctx, host) {
		return lenience{true, true}
	}
	return l
}

// hosts returns the hosts to ask for a source, by hosts.toml.
func (r *Registry) hosts(ctx context.Context, s source, a Access) ([]docker.RegistryHost, error) {
	strict, err := r.configure(ctx, s, a, lenience{})
	if err != nil {
		return nil, err
	}
	for i, host := range strict {
		if l := r.lenience(ctx, s, a, host.Host); l != (lenience{}) {
			// The options are for all hosts of a file; what this host may be
			// forgiven is none of the others'.
			forgiving, err := r.configure(ctx, s, a, l)
			if err != nil {
				return nil, err
			}
			strict[i] = forgiving[i]
		}
		if token := a.token(); token != "" && s.own && s.at(host.Host) {
			strict[i].Header = strict[i].Header.Clone()
			if strict[i].Header == nil {
				strict[i].Header = http.Header{}
			}
			strict[i].Header.Set("Authorization", "Bearer "+token)
			strict[i].Authorizer = nil
			continue
		}
		strict[i].Authorizer = &single{strict[i].Authorizer, make(chan struct{}, 1)}
	}
	return strict, nil
}

// configure has containerd read hosts.toml, for hosts of one lenience.
func (r *Registry) configure(ctx context.Context, s source, a Access, l lenience) ([]docker.RegistryHost, error) {
	options := config.HostOptions{
		HostDir:       r.hostDir,
		Credentials:   r.credentials(s, a),
		DefaultScheme: "https",
		UpdateClient:  r.updateClient(s),
	}
	if l.plain {
		options.DefaultScheme = "http"
	}
	if l.unverified {
		options.DefaultTLS = &tls.Config{InsecureSkipVerify: true}
	}
	hosts, err := config.ConfigureHosts(ctx, options)(s.ref.Host())
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", s.ref.Host(), err)
	}
	return hosts, nil
}

// hostDir returns the directory with what is known about a registry, or
// ErrNotFound. It looks at hosts.toml first: containerd passes over one that it
// cannot read, and would silently ask the wrong hosts.
func (r *Registry) hostDir(host string) (string, error) {
	for _, root := range append([]string{r.config.HostsDir}, r.certsDirs()...) {
		dir, err := config.HostDirFromRoot(root)(host)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		file := filepath.Join(dir, "hosts.toml")
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err := toml.Unmarshal(text, &map[string]any{}); err != nil {
			return "", fmt.Errorf("%s: %w: %w", file, err, errdefs.ErrFailedPrecondition)
		}
		return dir, nil
	}
	return "", errdefs.ErrNotFound
}

func (r *Registry) certsDirs() []string {
	if r.config.CertsDir != "" {
		return []string{r.config.CertsDir}
	}
	return []string{DefaultCertsDir, dockerCertsDir}
}

// Insecure tells whether a registry, "host" or "host:port", may have a
// certificate that nobody knows, or speak plain HTTP, by the list of the
// configuration. A name is looked up; one that is not found is secure.
func (r *Registry) Insecure(ctx context.Context, host string) bool {
	if r.insecure[strings.ToLower(host)] {
		return true
	}
	name := host
	if alone, _, err := net.SplitHostPort(host); err == nil {
		name = alone
	}
	for _, address := range lookup(ctx, strings.Trim(name, "[]")) {
		for _, network := range r.networks {
			if network.Contains(address.Unmap()) {
				return true
			}
		}
	}
	return false
}

func lookup(ctx context.Context, name string) []netip.Addr {
	if address, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{address}
	}
	// A name that is not found now will not be found by the request either, and
	// its error says more.
	found, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	return found
}

// SystemFor is System for access to the registry of one reference.
func (r *Registry) SystemFor(ctx context.Context, ref reference.Reference, a Access) *types.SystemContext {
	s := r.System(a)
	if r.Insecure(ctx, ref.Host()) {
		s.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return s
}
