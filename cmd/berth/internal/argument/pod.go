// SPDX-License-Identifier: Apache-2.0

package argument

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/network"
	"github.com/berthd/berth/plugin/runtime/record"
)

// Pod are the flags of what a container's pod decides.
type Pod struct {
	network, pid, ipc, userns  string
	hostname                   string
	hosts                      []string
	publish, sysctls           []string
	dns, dnsSearch, dnsOptions []string
	handler, cgroupParent      string
	flags                      *pflag.FlagSet
	names                      []string // of all of them
}

// Bind declares the flags.
func (p *Pod) Bind(flags *pflag.FlagSet) {
	mine := pflag.NewFlagSet("", pflag.ContinueOnError)
	mine.StringVar(&p.network, "network", "cni", "`NETWORK`: cni, host for the host's, or none")
	mine.StringVar(&p.pid, "pid", "", "process `NAMESPACE`: host, or pod for one of all containers")
	mine.StringVar(&p.ipc, "ipc", "", "IPC `NAMESPACE`: host")
	mine.StringVar(&p.userns, "userns", "", "user namespace: `auto[:SIZE]`, or CONTAINER-ID:HOST-ID:SIZE")
	mine.StringVar(&p.hostname, "hostname", "", "`NAME` of the host in the pod (default the host's)")
	mine.StringArrayVar(&p.hosts, "add-host", nil, "`NAME:ADDRESS` for /etc/hosts")
	mine.StringArrayVarP(&p.publish, "publish", "p", nil, "`[IP:]HOSTPORT:PORT[/PROTOCOL]` makes a port reachable on the host")
	mine.StringArrayVar(&p.sysctls, "sysctl", nil, "`KEY=VALUE` of a kernel parameter of the pod's namespaces")
	mine.StringArrayVar(&p.dns, "dns", nil, "`ADDRESS` of a name server (default the host's)")
	mine.StringArrayVar(&p.dnsSearch, "dns-search", nil, "`DOMAIN` to search")
	mine.StringArrayVar(&p.dnsOptions, "dns-option", nil, "`OPTION` of the resolver")
	mine.StringVar(&p.handler, "runtime", "", "runtime `HANDLER`")
	mine.StringVar(&p.cgroupParent, "cgroup-parent", "", "`CGROUP` above the containers'")
	mine.VisitAll(func(f *pflag.Flag) { p.names = append(p.names, f.Name) })
	flags.AddFlagSet(mine)
	p.flags = flags
}

// Given returns the flags that were used.
func (p *Pod) Given() []string {
	var given []string
	for _, name := range p.names {
		if p.flags.Changed(name) {
			given = append(given, "--"+name)
		}
	}
	return given
}

// Request fills in what the flags say.
func (p *Pod) Request(r *runtime.PodRequest) (err error) {
	r.Hostname, r.Handler, r.CgroupParent = p.hostname, p.handler, p.cgroupParent
	switch p.network {
	case "host":
		r.HostNetwork = true
	case "none":
		r.NoNetwork = true
	case "cni", "bridge", "":
	default:
		return invalid("--network %q, want cni, host or none", p.network)
	}
	switch p.pid {
	case "host":
		r.HostPID = true
	case "pod":
		r.SharePID = true
	case "", "private":
	default:
		return invalid("--pid %q, want host or pod", p.pid)
	}
	switch p.ipc {
	case "host":
		r.HostIPC = true
	case "", "pod", "private", "shareable":
	default:
		return invalid("--ipc %q, want host", p.ipc)
	}
	if r.UserNS, err = userNamespace(p.userns); err != nil {
		return err
	}
	for _, text := range p.hosts {
		h, err := Host(text)
		if err != nil {
			return err
		}
		r.Hosts = append(r.Hosts, h)
	}
	for _, text := range p.publish {
		ports, err := Publish(text)
		if err != nil {
			return err
		}
		r.PortMappings = append(r.PortMappings, ports...)
	}
	if len(p.dns)+len(p.dnsSearch)+len(p.dnsOptions) > 0 {
		r.DNS = &network.DNS{Servers: p.dns, Searches: p.dnsSearch, Options: p.dnsOptions}
	}
	r.Sysctls, err = Map("--sysctl", p.sysctls)
	return err
}

// Host reads what --add-host takes: NAME:ADDRESS, or NAME=ADDRESS.
func Host(text string) (runtime.Host, error) {
	i := strings.IndexAny(text, ":=")
	if i <= 0 {
		return runtime.Host{}, invalid("--add-host %q, want NAME:ADDRESS", text)
	}
	ip, err := netip.ParseAddr(strings.Trim(text[i+1:], "[]"))
	if err != nil {
		return runtime.Host{}, invalid("--add-host %q: %w", text, err)
	}
	return runtime.Host{IP: ip, Names: []string{text[:i]}}, nil
}

// userNamespace reads auto, auto:SIZE, or one map for users and groups.
func userNamespace(text string) (*record.IDMappings, error) {
	if text == "" || text == "host" {
		return nil, nil
	}
	parts := strings.Split(text, ":")
	auto := parts[0] == "auto"
	if auto {
		parts = parts[1:]
	}
	var numbers []uint32
	for _, part := range parts {
		n, err := strconv.ParseUint(part, 10, 32)
		if err != nil {
			break
		}
		numbers = append(numbers, uint32(n))
	}
	switch {
	case auto && len(parts) == 0:
		return &record.IDMappings{Auto: true}, nil
	case auto && len(parts) == 1 && len(numbers) == 1:
		return &record.IDMappings{Auto: true, Size: numbers[0]}, nil
	case !auto && len(parts) == 3 && len(numbers) == 3 && numbers[2] > 0:
		ids := []specs.LinuxIDMapping{{ContainerID: numbers[0], HostID: numbers[1], Size: numbers[2]}}
		return &record.IDMappings{Map: labels.IDMap{UIDs: ids, GIDs: ids}}, nil
	}
	return nil, invalid("--userns %q, want auto[:SIZE] or CONTAINER-ID:HOST-ID:SIZE", text)
}
