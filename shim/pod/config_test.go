// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/shim/wire"
)

// full has every field that is read, and some that are not.
func full() *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "n", Uid: "u", Namespace: "ns", Attempt: 4},
		Hostname:     "h",
		LogDirectory: "/log",
		DnsConfig:    &cri.DNSConfig{Servers: []string{"s1", "s2"}, Searches: []string{"a", "b"}, Options: []string{"o", "p"}},
		PortMappings: []*cri.PortMapping{{ContainerPort: 80, HostPort: 81}},
		Labels:       map[string]string{"l": "1", "m": ""},
		Annotations:  map[string]string{"a": "2"},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/c",
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{
					Network: 2, Pid: 1, Ipc: 2, TargetId: "t",
					UsernsOptions: &cri.UserNamespace{
						Mode: 2,
						Uids: []*cri.IDMapping{{HostId: 1, ContainerId: 2, Length: 3}, {HostId: 4, ContainerId: 5, Length: 6}},
						Gids: []*cri.IDMapping{{HostId: 7, ContainerId: 8, Length: 9}},
					},
				},
				SelinuxOptions: &cri.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0"},
				RunAsUser:      &cri.Int64Value{Value: 7},
				Privileged:     true,
			},
			Sysctls:   map[string]string{"k": "v", "": "x"},
			Overhead:  &cri.LinuxContainerResources{CpuShares: 2},
			Resources: &cri.LinuxContainerResources{CpuPeriod: 1, CpuQuota: -2, CpuShares: 3, MemoryLimitInBytes: 4, CpusetCpus: "0"},
		},
	}
}

// asOurs is what the decoder should make of c.
func asOurs(c *cri.PodSandboxConfig) *config {
	l, md := c.GetLinux(), c.GetMetadata()
	o := l.GetSecurityContext().GetNamespaceOptions()
	mappings := func(list []*cri.IDMapping) (out []Mapping) {
		for _, m := range list {
			out = append(out, Mapping{m.GetHostId(), m.GetContainerId(), m.GetLength()})
		}
		return out
	}
	w := &config{
		Metadata: metadata{md.GetName(), md.GetUid(), md.GetNamespace(), md.GetAttempt()},
		Hostname: c.GetHostname(), LogDir: c.GetLogDirectory(), Labels: c.GetLabels(), Annotations: c.GetAnnotations(),
	}
	if d := c.GetDnsConfig(); d != nil {
		w.DNS = &dns{d.Servers, d.Searches, d.Options}
	}
	w.Linux.CgroupParent, w.Linux.Sysctls = l.GetCgroupParent(), l.GetSysctls()
	w.Linux.Security.Namespaces = namespaceModes{Network: int32(o.GetNetwork()), PID: int32(o.GetPid()), IPC: int32(o.GetIpc())}
	if u := o.GetUsernsOptions(); u != nil {
		w.Linux.Security.Namespaces.User = &userns{int32(u.Mode), mappings(u.Uids), mappings(u.Gids)}
	}
	if s := l.GetSecurityContext().GetSelinuxOptions(); s != nil {
		w.Linux.Security.SELinux = &selinux{s.User, s.Role, s.Type, s.Level}
	}
	if r := l.GetResources(); r != nil {
		w.Linux.Resources = &resources{r.CpuPeriod, r.CpuQuota, r.CpuShares, r.MemoryLimitInBytes}
	}
	return w
}

func TestDecodeConfig(t *testing.T) {
	merged := &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/d", SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Ipc: 1}}}}
	for name, parts := range map[string][]*cri.PodSandboxConfig{
		"empty":     {{}},
		"full":      {full()},
		"merged":    {full(), merged},
		"empty DNS": {{DnsConfig: &cri.DNSConfig{}}},
		"user POD":  {{Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{}}}}}},
	} {
		var b []byte
		for _, c := range parts {
			text, err := proto.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			b = append(b, text...)
		}
		var theirs cri.PodSandboxConfig
		if err := proto.Unmarshal(b, &theirs); err != nil {
			t.Fatal(err)
		}
		got, err := decodeConfig(&wire.Any{TypeURL: "k8s.io/" + configURL, Value: b})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(asOurs(&theirs), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestConfigJSON: a verbose status shows the configuration as Kubernetes' types
// read it.
func TestConfigJSON(t *testing.T) {
	text, err := json.Marshal(asOurs(full()))
	if err != nil {
		t.Fatal(err)
	}
	var back cri.PodSandboxConfig
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(asOurs(full()), asOurs(&back)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzDecodeConfig: what protobuf's library reads, the decoder reads as the same.
func FuzzDecodeConfig(f *testing.F) {
	for _, c := range []*cri.PodSandboxConfig{{}, full(), podConfig(mapped(modes(modeP, modeP, modeP)))} {
		b, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeConfig(&wire.Any{TypeURL: configURL, Value: b})
		var theirs cri.PodSandboxConfig
		if proto.Unmarshal(b, &theirs) != nil || err != nil {
			return // either may refuse more than the other: groups, parts that only one reads
		}
		if diff := cmp.Diff(asOurs(&theirs), got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		p := &planned{dir: "/d", config: got, netns: -1, userns: -1}
		if p.planNamespaces() != nil || p.checkHostname() != nil || p.checkDNS() != nil || p.checkCgroup() != nil {
			return
		}
		if len(p.hostname) > maxHostname || strings.ContainsAny(p.hostname, "/\n\x00") || strings.Contains(p.cgroupParent, "..") && !isSlice(p.cgroupParent) {
			t.Errorf("hostname %q, cgroup parent %q", p.hostname, p.cgroupParent)
		}
		if got.DNS != nil && strings.Count(string(p.resolv), "\n") > len(got.DNS.Servers)+2 {
			t.Errorf("resolv.conf %q", p.resolv)
		}
	})
}

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":              "net/ipv4/ip_forward",
		"net/ipv4/ip_forward":              "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.rp_filter": "net/ipv4/conf/eth0.100/rp_filter",
		"net/ipv4/conf/eth0.100/rp_filter": "net/ipv4/conf/eth0.100/rp_filter",
		"kernel":                           "", "": "", ".": "", "/": "", "net.": "", ".net": "", "/net/ipv4": "",
		"net/../kernel/x": "", "net.//.x": "", "net./.x": "", "net/./x": "", "net.a\nb": "", "net.ä": "",
	} {
		got, ok := sysctlPath(name)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: got %q, %v; want %q", name, got, ok, want)
		}
	}
}
