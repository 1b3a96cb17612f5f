// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"go.podman.io/image/v5/types"

	"github.com/berthd/berth/images/reference"
)

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// Insecure tells whether a registry, "host" or "host:port", may have a
// certificate that nobody knows, or speak plain HTTP, by the list of the
// configuration. A name is looked up; one that is not found is secure.
func (r *Registry) Insecure(ctx context.Context, host string) bool {
	if r.hosts[strings.ToLower(host)] {
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
