// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podFiles checks the files that a pod has for its names: hostname, hosts and
// resolv.conf.
func podFiles(t *testing.T, n *node) {
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	dns := &runtime.DNSConfig{
		Servers: []string{"198.18.0.53", "2001:2::53"}, Searches: []string{"a.test", "b.test"},
		Options: []string{"ndots:5", "timeout:3"},
	}
	const text = "search a.test b.test\nnameserver 198.18.0.53\nnameserver 2001:2::53\noptions ndots:5 timeout:3\n"
	for _, c := range []struct {
		name             string
		option           podOption
		hostname, resolv string
	}{
		{"its own", func(c *runtime.PodSandboxConfig) { c.DnsConfig = dns; c.Hostname = "own-name" }, "own-name", text},
		{"the host's DNS", func(*runtime.PodSandboxConfig) {}, "pod", string(resolv)},
		{"no DNS", func(c *runtime.PodSandboxConfig) { c.DnsConfig = &runtime.DNSConfig{} }, "pod", ""},
		{"host network", sharing(hostNetwork), own, string(resolv)},
		{"users", sharing(ownUsers), "pod", string(resolv)},
	} {
		pod := n.pod(t, c.option)
		got := n.output(t, pod, `hostname; echo "$HOSTNAME"; cat /etc/hostname; echo -; cat /etc/hosts; echo -; cat /etc/resolv.conf; echo -`)
		want := fmt.Sprintf("%[1]s\n%[1]s\n%[1]s\n-\n%[2]s-\n%[3]s-", c.hostname, hosts, c.resolv)
		if got != want {
			t.Errorf("%s: hostname, variable and files %q, want %q", c.name, got, want)
		}
	}
	n.podRefused(t, n.handler, "", func(c *runtime.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 300) })
}

// podDualStack checks a network with both families of addresses, and ports of
// the host's.
func podDualStack(t *testing.T, n *node) {
	address, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	port := address.Port()
	serving := n.podOf(t, handlerPorts, func(c *runtime.PodSandboxConfig) {
		c.PortMappings = []*runtime.PortMapping{{HostPort: int32(port), ContainerPort: 80}, {ContainerPort: 81}}
	})
	s, err := serving.Status(n.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	var addresses []netip.Addr
	for _, text := range append([]string{s.GetNetwork().GetIp()}, s.GetNetwork().GetAdditionalIps()[0].GetIp()) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, a)
	}
	if !addresses[0].Is4() || !addresses[1].Is6() {
		t.Errorf("addresses %v, want one of each family", addresses)
	}
	startIn(t, n, serving, in(serving, "mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www"))
	other := n.podOf(t, handlerPorts)
	visitor := startIn(t, n, other, in(other, "trap 'exit 0' TERM; sleep 100000 & wait"))
	eventually(t, patience, func() string {
		got, err := n.ExecSync(n.ctx(t), visitor, 0, "wget", "-q", "-O", "-", "http://"+addresses[0].String())
		if err != nil || string(got.GetStdout()) != "page\n" {
			return fmt.Sprintf("from another pod: %v, %v", got, err)
		}
		return ""
	})
	if got := n.check(t, visitor, "wget", "-q", "-O", "-", fmt.Sprintf("http://[%s]", addresses[1])); got != "page" {
		t.Errorf("by IPv6: %q", got)
	}
	for i, command := range []string{"ping", "ping6"} {
		n.check(t, visitor, command, "-c", "1", "-w", "5", addresses[i].String())
	}
	eventually(t, patience, func() string {
		conn, err := net.Dial("tcp", address.String())
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
		var answer bytes.Buffer
		if _, err := answer.ReadFrom(conn); err != nil || !strings.HasSuffix(answer.String(), "page\n") {
			return fmt.Sprintf("through the host's port: %q, %v", answer.String(), err)
		}
		return ""
	})
}

// freeAddress is a port of loopback that nobody listens on now.
func freeAddress() (netip.AddrPort, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	return l.Addr().(*net.TCPAddr).AddrPort(), l.Close()
}

// podPortForward sends data through forwarded ports, both ways.
func podPortForward(t *testing.T, n *node) {
	text := []byte(strings.Repeat("a line that comes back\n", 5000))
	for _, c := range []struct {
		name   string
		change func(*runtime.NamespaceOption)
	}{
		{"usual", func(*runtime.NamespaceOption) {}},
		{"host network", hostNetwork},
		{"users", ownUsers},
	} {
		pod := n.pod(t, sharing(c.change))
		free, err := freeAddress()
		if err != nil {
			t.Fatal(err)
		}
		port := int(free.Port())
		startIn(t, n, pod, in(pod, fmt.Sprintf("while :; do nc -l -p %d -e head -c %d; done", port, len(text))))
		for _, over := range transports {
			eventually(t, patience, func() string {
				got, err := pod.Forward(n.ctx(t), over, port, text)
				if err != nil || !bytes.Equal(got, text) {
					return fmt.Sprintf("%s over %v: %d bytes of %d, %v", c.name, over, len(got), len(text), err)
				}
				return ""
			})
			if free, err = freeAddress(); err != nil {
				t.Fatal(err)
			}
			closed := free.Port()
			if _, err := pod.Forward(n.ctx(t), over, int(closed), []byte("x")); err == nil || !strings.Contains(err.Error(), fmt.Sprint(closed)) {
				t.Errorf("%s over %v: a closed port gives %v, want an error that names it", c.name, over, err)
			}
		}
	}
}
