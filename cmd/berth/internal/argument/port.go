// SPDX-License-Identifier: Apache-2.0

package argument

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/berthd/berth/plugin/runtime/network"
)

// Publish reads what -p takes: [IP:]HOSTPORT:PORT[/PROTOCOL]. Both ports may be ranges of
// the same length.
func Publish(text string) ([]network.PortMapping, error) {
	rest, protocol, given := strings.Cut(text, "/")
	if !given {
		protocol = "tcp"
	}
	if protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
		return nil, invalid("port %q: protocol %q", text, protocol)
	}
	at := strings.LastIndexByte(rest, ':')
	if at < 0 {
		return nil, invalid("port %q: which of the host's? Write HOSTPORT:PORT", text)
	}
	host, inside := rest[:at], rest[at+1:]
	ip := ""
	if at := strings.LastIndexByte(host, ':'); at >= 0 {
		ip, host = strings.Trim(host[:at], "[]"), host[at+1:]
		if _, err := netip.ParseAddr(ip); err != nil {
			return nil, invalid("port %q: address %q", text, ip)
		}
	}
	from, n, err := ports(host)
	to, m, err2 := ports(inside)
	if err != nil || err2 != nil || n != m {
		return nil, invalid("port %q, want [IP:]HOSTPORT:PORT[/PROTOCOL]", text)
	}
	var all []network.PortMapping
	for i := range n {
		all = append(all, network.PortMapping{HostPort: from + i, ContainerPort: to + i, Protocol: protocol, HostIP: ip})
	}
	return all, nil
}

// ports reads a port or a range: its first one, and how many there are.
func ports(text string) (first, n uint16, err error) {
	a, b, given := strings.Cut(text, "-")
	if !given {
		b = a
	}
	first, err = port(a)
	if err != nil {
		return 0, 0, err
	}
	last, err := port(b)
	if err != nil || last < first {
		return 0, 0, invalid("ports %q", text)
	}
	return first, last - first + 1, nil
}

func port(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, invalid("port %q", text)
	}
	return uint16(n), nil
}

// Forward is a port of this machine, 0 for a free one, and one of a pod.
type Forward struct{ Local, Remote uint16 }

// ParseForward reads [LOCAL:]REMOTE, where an empty LOCAL is a free port.
func ParseForward(text string) (Forward, error) {
	local, remote, given := strings.Cut(text, ":")
	if !given {
		remote = local
	}
	var f Forward
	var err error
	if f.Remote, err = port(remote); err != nil {
		return f, invalid("port %q, want [LOCAL:]REMOTE", text)
	}
	if local == "" || local == "0" {
		return f, nil
	}
	if f.Local, err = port(local); err != nil {
		return f, invalid("port %q, want [LOCAL:]REMOTE", text)
	}
	return f, nil
}
