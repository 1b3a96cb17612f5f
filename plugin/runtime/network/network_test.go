// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/programs"
)

func TestMain(m *testing.M) {
	host.EnterOffline()
	// libcni's cache, whose place cannot be chosen through go-cni.
	err := os.MkdirAll("/var/lib/cni", 0o755)
	if err == nil {
		err = unix.Mount("tmpfs", "/var/lib/cni", "tmpfs", 0, "")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "/var/lib/cni:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// world is a set of pods with a CNI configuration of its own.
type world struct {
	*Pods
	dir string
}

// bridge is a network of both families in which pods can be checked.
const bridge = `{"type": "bridge", "bridge": %q, "isGateway": true, "ipam": {"type": "host-local", "dataDir": %q,
	"ranges": [[{"subnet": "198.18.7.0/24"}], [{"subnet": "fd00:7::/64"}]]}}`

// newWorld has a bridge and, after it in the chain, the plugins given in JSON.
func newWorld(t *testing.T, plugins ...string) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	name := "t" + strings.ReplaceAll(fmt.Sprintf("%x", time.Now().UnixNano())[8:], "-", "")
	chain := append([]string{fmt.Sprintf(bridge, name, w.dir+"/ipam")}, plugins...)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", name).Run() })
	for _, dir := range []string{"conf", "bin"} {
		if err := os.Mkdir(filepath.Join(w.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.write(t, "conf/10-test.conflist", fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [%s]}`, name, strings.Join(chain, ",")))
	var err error
	w.Pods, err = Open(Config{
		State: w.dir + "/state", Namespace: "ns", ConfDir: w.dir + "/conf", BinDirs: []string{host.Deps("cni"), w.dir + "/bin"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ids, err := w.List()
		if err != nil {
			t.Error(err)
		}
		for _, id := range ids {
			if err := w.Remove(context.Background(), id); err != nil {
				t.Error(err)
			}
		}
	})
	return w
}

func (w *world) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// addresses are those that are allocated.
func (w *world) addresses(t *testing.T) []string {
	t.Helper()
	var ips []string
	found, _ := filepath.Glob(w.dir + "/ipam/*/*")
	for _, path := range found {
		if ip, err := netip.ParseAddr(filepath.Base(path)); err == nil {
			ips = append(ips, ip.String())
		}
	}
	return ips
}

// empty fails t if anything of a pod is left.
func (w *world) empty(t *testing.T) {
	t.Helper()
	if left, _ := filepath.Glob(w.dir + "/state/*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if left := w.addresses(t); len(left) > 0 {
		t.Errorf("addresses left: %v", left)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), w.dir+"/state") {
		t.Error("a mount is left")
	}
}

func (w *world) add(t *testing.T, r Request) *Attachment {
	t.Helper()
	a, err := w.Add(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (w *world) remove(t *testing.T, id string) {
	t.Helper()
	if err := w.Remove(context.Background(), id); err != nil {
		t.Fatal(err)
	}
}

// within runs f in a network namespace.
func within(t *testing.T, path string, f func() error) {
	t.Helper()
	if err := ns.WithNetNSPath(path, func(ns.NetNS) error { return f() }); err != nil {
		t.Fatal(err)
	}
}

func TestLife(t *testing.T) {
	w := newWorld(t)
	a := w.add(t, Request{PodID: "p1", PodName: "pod", PodNamespace: "default", PodUID: "u"})
	if len(a.Interfaces) != 1 || a.Interfaces[0].Name != "eth0" || a.Interfaces[0].MAC == "" {
		t.Errorf("interfaces: %+v", a.Interfaces)
	}
	ips := a.IPs()
	if len(ips) != 2 || !ips[0].Is4() || !ips[1].Is6() {
		t.Fatalf("addresses %v, want one of each family", ips)
	}
	if gw := a.Interfaces[0].IPs[0].Gateway; !gw.IsValid() {
		t.Error("no gateway")
	}
	within(t, a.Path, func() error {
		var up, have []string
		all, err := net.Interfaces()
		for _, i := range all {
			if i.Flags&net.FlagUp != 0 {
				up = append(up, i.Name)
			}
			addrs, _ := i.Addrs()
			for _, ip := range addrs {
				have = append(have, ip.String())
			}
		}
		if diff := cmp.Diff([]string{"lo", "eth0"}, up); diff != "" {
			t.Errorf("interfaces that are up: %s", diff)
		}
		for _, ip := range ips {
			if !strings.Contains(strings.Join(have, " "), ip.String()+"/") {
				t.Errorf("%v is not among %v", ip, have)
			}
		}
		return err
	})
	if _, err := w.Add(context.Background(), Request{PodID: "p1"}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("added again: %v", err)
	}

	// Another process.
	again, err := Open(w.config)
	if err != nil {
		t.Fatal(err)
	}
	found, err := again.Find("p1")
	if diff := cmp.Diff(a, found, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); err != nil || diff != "" {
		t.Errorf("found: %v, %s", err, diff)
	}
	if err := again.Check(context.Background(), "p1"); err != nil {
		t.Errorf("check: %v", err)
	}
	within(t, a.Path, func() error { return exec.Command("ip", "link", "del", "eth0").Run() })
	if err := again.Check(context.Background(), "p1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("check without the interface: %v", err)
	}
	for range 2 {
		w.remove(t, "p1")
	}
	w.empty(t)
	if _, err := w.Find("p1"); !errdefs.IsNotFound(err) {
		t.Errorf("found after removal: %v", err)
	}
	if err := w.Check(context.Background(), "p1"); !errdefs.IsNotFound(err) {
		t.Errorf("checked after removal: %v", err)
	}
}

// What a crash or a reboot can leave.
func TestLeftovers(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, w *world, a *Attachment){
		"no namespace": func(t *testing.T, _ *world, a *Attachment) {
			if err := unix.Unmount(a.Path, 0); err != nil {
				t.Fatal(err)
			}
		},
		"no file of a namespace": func(t *testing.T, w *world, a *Attachment) {
			if err := removeNamespaces(w.dir + "/state/p"); err != nil {
				t.Fatal(err)
			}
		},
		"died in add": func(t *testing.T, w *world, a *Attachment) {
			if err := save(w.dir+"/state/p", &record{Request: Request{PodID: "p"}}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Find("p"); !errdefs.IsNotFound(err) {
				t.Errorf("found: %v", err)
			}
		},
		"half a record": func(t *testing.T, w *world, _ *Attachment) {
			w.write(t, "state/p/network.json", `{"requ`)
			if _, err := w.Find("p"); !errdefs.IsDataLoss(err) {
				t.Errorf("found: %v", err)
			}
		},
		"rebooted": func(t *testing.T, w *world, a *Attachment) {
			if w.Dead("p") || w.Dead("unknown") {
				t.Error("taken for dead")
			}
			if err := unix.Unmount(a.Path, 0); err != nil {
				t.Fatal(err)
			}
			if !w.Dead("p") {
				t.Error("not taken for dead")
			}
		},
		"no record": func(t *testing.T, w *world, _ *Attachment) {
			if err := os.Remove(w.dir + "/state/p/network.json"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			damage(t, w, w.add(t, Request{PodID: "p"}))
			ids, err := w.List()
			if want := []string{"p"}; err != nil || !cmp.Equal(ids, want) {
				t.Errorf("list: %v, %v", ids, err)
			}
			w.remove(t, "p")
			w.empty(t)
		})
	}
}

// Two who remove a pod's network at once both succeed: plugins are not asked twice at a
// time.
func TestRemovedTwice(t *testing.T) {
	w := newWorld(t, `{"type": "alone"}`)
	programs.Write(t, w.dir+"/bin/alone", `#!/bin/sh
[ "$CNI_COMMAND" != ADD ] || { echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "x"}]}'; exit 0; }
mkdir `+w.dir+`/busy || exit 1
sleep 0.3
rmdir `+w.dir+`/busy
`)
	w.add(t, Request{PodID: "p"})
	errs := make(chan error, 2)
	for range cap(errs) {
		go func() { errs <- w.Remove(context.Background(), "p") }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	w.empty(t)
}

// A plugin late in the chain fails: the ones before it are undone.
func TestFailedAdd(t *testing.T) {
	w := newWorld(t, `{"type": "fails"}`)
	programs.Write(t, w.dir+"/bin/fails", `#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion": "1.0.0", "code": 100, "msg": "no more today"}'
exit 1
`)
	_, err := w.Add(context.Background(), Request{PodID: "p"})
	if err == nil || !strings.Contains(err.Error(), "no more today") || !strings.Contains(err.Error(), "pod p") {
		t.Errorf("error %v", err)
	}
	w.empty(t)
}

// What a request says reaches the plugins that ask for it.
func TestCapabilities(t *testing.T) {
	w := newWorld(t, `{"type": "notes", "capabilities": {"bandwidth": true, "portMappings": true, "dns": true, "io.kubernetes.cri.pod-annotations": true}}`)
	programs.Write(t, w.dir+"/bin/notes", `#!/bin/sh
cat > `+w.dir+`/conf.$CNI_COMMAND
echo "$CNI_ARGS" > `+w.dir+`/args
[ $CNI_COMMAND != ADD ] || echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "x"}], "ips": [{"address": "198.18.7.9/24", "interface": 0}], "dns": {"nameservers": ["198.18.7.53"]}}'
`)
	a := w.add(t, Request{
		PodID: "p", PodName: "pod", PodNamespace: "default", PodUID: "uid",
		Bandwidth: &Bandwidth{IngressRate: 1000, EgressRate: 2000}, DNS: &DNS{Servers: []string{"192.0.2.1"}},
		Ports:       []PortMapping{{HostPort: 8080, ContainerPort: 80}, {ContainerPort: 81}},
		Annotations: map[string]string{"a": "b"},
	})
	if !cmp.Equal(a.DNS.Servers, []string{"198.18.7.53"}) {
		t.Errorf("resolvers: %v", a.DNS)
	}
	b, err := os.ReadFile(w.dir + "/conf.ADD")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"ingressRate":1000`, `"hostPort":8080`, `"containerPort":80`, `"protocol":"tcp"`, `"192.0.2.1"`, `{"a":"b"}`} {
		if !strings.Contains(strings.ReplaceAll(strings.ToLower(string(b)), " ", ""), strings.ToLower(want)) {
			t.Errorf("%s is not in %s", want, b)
		}
	}
	if strings.Contains(string(b), `"ContainerPort":81`) || strings.Contains(string(b), `"containerPort":81`) {
		t.Errorf("a port without mapping is in %s", b)
	}
	args, _ := os.ReadFile(w.dir + "/args")
	for _, want := range []string{"K8S_POD_NAME=pod", "K8S_POD_NAMESPACE=default", "K8S_POD_INFRA_CONTAINER_ID=p", "K8S_POD_UID=uid", "IgnoreUnknown=1"} {
		if !strings.Contains(string(args), want) {
			t.Errorf("%s is not in %s", want, args)
		}
	}
	w.remove(t, "p")
	b, _ = os.ReadFile(w.dir + "/conf.DEL")
	if !strings.Contains(string(b), "8080") {
		t.Errorf("the removal does not know the ports: %s", b)
	}
}

func TestPortMapping(t *testing.T) {
	w := newWorld(t, `{"type": "portmap", "capabilities": {"portMappings": true}}`)
	a := w.add(t, Request{PodID: "p", Ports: []PortMapping{{HostPort: 18080, ContainerPort: 80, Protocol: "TCP"}}})
	within(t, a.Path, func() error { return serve(t, "tcp4", "0.0.0.0:80", "pod") })
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(a.Interfaces[0].IPs[0].Gateway.String(), "18080"), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := readAll(t, conn); got != "pod" {
		t.Errorf("got %q", got)
	}
	w.remove(t, "p")
	w.empty(t)
	rules, _ := exec.Command("iptables-save", "-t", "nat").Output()
	if strings.Contains(string(rules), "18080") {
		t.Errorf("rules are left: %s", rules)
	}
}

func TestHostNetwork(t *testing.T) {
	w := newWorld(t)
	if err := os.RemoveAll(w.dir + "/conf"); err != nil { // it needs no CNI
		t.Fatal(err)
	}
	a := w.add(t, Request{PodID: "p", Host: true})
	if !a.Host || a.Path != "" || a.IPs() != nil {
		t.Errorf("%+v", a)
	}
	if err := w.Check(context.Background(), "p"); err != nil {
		t.Error(err)
	}
	w.remove(t, "p")
	w.empty(t)
}

// The network namespace belongs to the pod's user namespace, or root there could
// not do anything with it.
func TestUserNamespace(t *testing.T) {
	w := newWorld(t)
	m := IDMap{0, 100000, 65536}
	a := w.add(t, Request{PodID: "p", UserNamespace: &IDMaps{m, m}})
	f, err := os.Open(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	user, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(user)
	var mine, own unix.Stat_t
	if err := unix.Stat("/proc/self/ns/user", &mine); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fstat(user, &own); err != nil || own.Ino == mine.Ino {
		t.Errorf("user namespace %d, the host's is %d (%v)", own.Ino, mine.Ino, err)
	}
	w.remove(t, "p")
	w.empty(t)
}

func TestRefused(t *testing.T) {
	w := newWorld(t)
	m := IDMap{0, 100000, 65536}
	for name, r := range map[string]Request{
		"no id":        {},
		"path as id":   {PodID: "../p"},
		"protocol":     {PodID: "p", Ports: []PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}}},
		"no port":      {PodID: "p", Ports: []PortMapping{{HostPort: 1}}},
		"host address": {PodID: "p", Ports: []PortMapping{{HostPort: 1, ContainerPort: 1, HostIP: "x"}}},
		"no groups":    {PodID: "p", UserNamespace: &IDMaps{UID: m}},
	} {
		if _, err := w.Add(context.Background(), r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Without a plugin for it, nobody would map the port, and tell.
	if _, err := w.Add(context.Background(), Request{PodID: "p", Ports: []PortMapping{{HostPort: 18081, ContainerPort: 80}}}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("ports without portmap: %v", err)
	}
	w.empty(t)
	for _, c := range []Config{{Namespace: "n", State: "relative"}, {State: "/s"}} {
		if _, err := Open(c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestWithoutConfiguration(t *testing.T) {
	w := newWorld(t)
	if err := w.Ready(); err != nil {
		t.Errorf("ready: %v", err)
	}
	w.add(t, Request{PodID: "old"})
	if err := os.Remove(w.dir + "/conf/10-test.conflist"); err != nil {
		t.Fatal(err)
	}
	if err := w.Ready(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("ready: %v", err)
	}
	if _, err := w.Add(context.Background(), Request{PodID: "p"}); !errors.Is(err, ErrNotConfigured) || !errdefs.IsFailedPrecondition(err) {
		t.Errorf("add: %v", err)
	}
	w.remove(t, "old") // whatever is left in CNI, the pod can go
}
