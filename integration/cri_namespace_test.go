// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sharing is a podOption for what the pod shares with whom.
func sharing(change func(*runtime.NamespaceOption)) podOption {
	return func(c *runtime.PodSandboxConfig) {
		change(c.Linux.SecurityContext.NamespaceOptions)
		if c.Linux.SecurityContext.NamespaceOptions.Network == runtime.NamespaceMode_NODE {
			c.Hostname = ""
		}
	}
}

func hostNetwork(o *runtime.NamespaceOption) { o.Network = runtime.NamespaceMode_NODE }
func hostIPC(o *runtime.NamespaceOption)     { o.Ipc = runtime.NamespaceMode_NODE }
func hostPIDs(o *runtime.NamespaceOption)    { o.Pid = runtime.NamespaceMode_NODE }
func sharedPIDs(o *runtime.NamespaceOption)  { o.Pid = runtime.NamespaceMode_POD }

// The first id of the host that user-namespaced pods get.
const mappedRoot = 300000

func ownUsers(o *runtime.NamespaceOption) {
	o.UsernsOptions = &runtime.UserNamespace{
		Mode: runtime.NamespaceMode_POD,
		Uids: []*runtime.IDMapping{{HostId: mappedRoot, Length: 65536}},
		Gids: []*runtime.IDMapping{{HostId: mappedRoot, Length: 65536}},
	}
}

// ownNamespaces are the test's own, which are the host's to containerd.
func ownNamespaces(t *testing.T) map[string]string {
	t.Helper()
	own := map[string]string{}
	for _, kind := range namespaceKinds {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		own[kind] = link
	}
	return own
}

var namespaceKinds = []string{"ipc", "mnt", "net", "pid", "user", "uts"}

// seen are a container's namespaces.
func (n *node) seen(t *testing.T, id string) map[string]string {
	t.Helper()
	seen := map[string]string{}
	for line := range strings.Lines(n.check(t, id, "sh", "-c", "cd /proc/self/ns; for i in "+strings.Join(namespaceKinds, " ")+"; do echo $i $(readlink $i); done")) {
		kind, link, _ := strings.Cut(strings.TrimSpace(line), " ")
		seen[kind] = link
	}
	return seen
}

// podNamespaces checks with whom two containers of a pod share their namespaces,
// for every form of sharing.
func podNamespaces(t *testing.T, n *node) {
	own := ownNamespaces(t)
	for _, c := range []struct {
		name      string
		change    func(*runtime.NamespaceOption)
		host, pod string // kinds shared with the host, and within the pod alone
	}{
		{"usual", func(*runtime.NamespaceOption) {}, "user", "ipc net uts"},
		{"shared processes", sharedPIDs, "user", "ipc net pid uts"},
		{"host processes", hostPIDs, "pid user", "ipc net uts"},
		{"host ipc", hostIPC, "ipc user", "net uts"},
		{"host network", hostNetwork, "net user uts", "ipc"},
		{"all of the host", func(o *runtime.NamespaceOption) { hostNetwork(o); hostIPC(o); hostPIDs(o) }, "ipc net pid user uts", ""},
		{"users", ownUsers, "", "ipc net user uts"},
		{"users, host network", func(o *runtime.NamespaceOption) { ownUsers(o); hostNetwork(o) }, "net", "ipc user"},
		{"users, shared processes", func(o *runtime.NamespaceOption) { ownUsers(o); sharedPIDs(o) }, "", "ipc net pid user uts"},
	} {
		pod := n.pod(t, sharing(c.change))
		var both [2]map[string]string
		for i := range both {
			both[i] = n.seen(t, startIn(t, n, pod, in(pod, "trap 'exit 0' TERM; sleep 100000 & wait")))
		}
		var host, within []string
		for _, kind := range namespaceKinds {
			switch a, b := both[0][kind], both[1][kind]; {
			case a == own[kind] && b == own[kind]:
				host = append(host, kind)
			case a == b && a != "":
				within = append(within, kind)
			}
		}
		if c.name == "users, host network" {
			// Its hostname is the host's, whosever the namespace.
			host, within = without(host, "uts"), without(within, "uts")
		}
		if strings.Join(host, " ") != c.host || strings.Join(within, " ") != c.pod {
			t.Errorf("%s: shared with the host %q, want %q; within the pod %q, want %q", c.name, host, c.host, within, c.pod)
		}
	}
}

func without(words []string, word string) []string {
	var rest []string
	for _, w := range words {
		if w != word {
			rest = append(rest, w)
		}
	}
	return rest
}

// podIPC checks shared memory: the pod's for its containers, of the usual size,
// or the host's.
func podIPC(t *testing.T, n *node) {
	pod, host := n.pod(t), n.pod(t, sharing(hostIPC))
	writer := startIn(t, n, pod, in(pod, "echo secret > /dev/shm/word; trap 'exit 0' TERM; sleep 100000 & wait"))
	var got string
	eventually(t, patience, func() string {
		got = n.output(t, pod, "cat /dev/shm/word 2>/dev/null; true")
		if got != "secret" {
			return fmt.Sprintf("the other container reads %q from shared memory", got)
		}
		return ""
	})
	// 64 MiB, as containerd has it, in blocks of 1 KiB.
	size := n.check(t, writer, "sh", "-c", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; stat -c %a /dev/shm")
	if size != "65536\n1777" {
		t.Errorf("shared memory has size and mode %q, want 65536 and 1777", size)
	}
	// The host's.
	name := fmt.Sprintf("/dev/shm/%s-%s", n.Namespace, n.handler)
	write(t, name, "hello\n")
	t.Cleanup(func() { _ = os.Remove(name) })
	if got := n.output(t, host, "cat "+name); got != "hello" {
		t.Errorf("host ipc: the host's shared memory has %q", got)
	}
	if got := n.output(t, pod, "[ -e "+name+" ] && echo there; true"); got != "" {
		t.Error("the host's shared memory is seen in a pod of its own")
	}
}

// podTarget checks containers that join another's process namespace, as
// kubectl's debug containers do.
func podTarget(t *testing.T, n *node) {
	pod := n.pod(t)
	target := startIn(t, n, pod, in(pod, "trap 'exit 0' TERM; sleep 987123 & wait"))
	join := func(id string) containerOption {
		return security(func(s *runtime.LinuxContainerSecurityContext) {
			s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = runtime.NamespaceMode_TARGET, id
		})
	}
	debugger := startIn(t, n, pod, in(pod, "trap 'exit 0' TERM; sleep 100000 & wait", join(target)))
	eventually(t, patience, func() string {
		if ps := n.check(t, debugger, "ps"); !strings.Contains(ps, "sleep 987123") {
			return "the target's process is not seen:\n" + ps
		}
		return ""
	})
	a, b := n.seen(t, target), n.seen(t, debugger)
	for _, kind := range []string{"ipc", "net", "pid", "uts"} {
		if a[kind] != b[kind] {
			t.Errorf("%s namespaces %s and %s differ", kind, a[kind], b[kind])
		}
	}
	if err := n.Client.Stop(n.ctx(t), debugger, 5*time.Second); err != nil {
		t.Error(err)
	}
	if got := n.check(t, target, "echo", "alive"); got != "alive" {
		t.Errorf("the target after the debugger's end: %q", got)
	}
	// What cannot be a target.
	other := n.pod(t)
	n.refused(t, other, in(other, "true", join(target)), "does not belong to")
	n.refused(t, pod, in(pod, "true", join("no-such-container")), "no-such-container")
	n.refused(t, pod, in(pod, "true", join(debugger)), "not running")
}

// podReaping checks the first process of a shared process namespace: it takes
// what containers leave, and a container's end is nobody else's.
func podReaping(t *testing.T, n *node) {
	pod := n.pod(t, sharing(sharedPIDs))
	first := startIn(t, n, pod, in(pod, "trap 'exit 3' TERM; sleep 100000 & wait"))
	second := startIn(t, n, pod, in(pod, "trap 'exit 0' TERM; sleep 100000 & wait"))
	// An orphan that ends would stay if nobody asked for it.
	n.check(t, second, "sh", "-c", "(sleep 0.1 & ) ; true")
	eventually(t, patience, func() string {
		if ps := n.check(t, second, "ps", "-o", "stat,args"); strings.Contains(ps, "Z ") || strings.Contains(ps, "sleep 0.1") {
			return "left:\n" + ps
		}
		return ""
	})
	if err := n.Client.Stop(n.ctx(t), first, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if s := n.awaitState(t, first, runtime.ContainerState_CONTAINER_EXITED); s.GetExitCode() != 3 {
		t.Errorf("exit code %d, want 3", s.GetExitCode())
	}
	if got := n.check(t, second, "echo", "alive"); got != "alive" {
		t.Errorf("the second container after the first one's end: %q", got)
	}
	// Killed from inside, as far as that works: the first process stays.
	n.check(t, second, "sh", "-c", "kill -9 1; true")
	if got := n.check(t, second, "echo", "alive"); got != "alive" {
		t.Errorf("after the signal: %q", got)
	}
}

// podUserNamespaces checks ids inside and outside, and what cannot be mapped.
func podUserNamespaces(t *testing.T, n *node) {
	volume := t.TempDir()
	open(t, volume)
	write(t, volume+"/old", "old\n")
	mapping := []*runtime.IDMapping{{HostId: mappedRoot, Length: 65536}}
	for _, more := range []func(*runtime.NamespaceOption){
		func(*runtime.NamespaceOption) {}, hostNetwork, sharedPIDs,
	} {
		pod := n.pod(t, sharing(ownUsers), sharing(more))
		got := n.output(t, pod, `
			tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map
			touch /own /volume/new; stat -c %u /own /volume/old /volume/new /bin/busybox /etc/hosts
			echo x > /dev/shm/f && echo x >> /etc/hosts && echo x > /proc/self/fd/1`,
			mounts(&runtime.Mount{HostPath: volume, ContainerPath: "/volume", UidMappings: mapping, GidMappings: mapping}))
		line := fmt.Sprintf(" 0 %d 65536\n", mappedRoot)
		want := strings.TrimSpace(line + line + strings.Repeat("0\n", 5) + "x")
		if got != want {
			t.Errorf("mappings and owners %q, want %q", got, want)
		}
		if s, err := os.Stat(volume + "/new"); err != nil || s.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("a new file in a volume: %v, %v; want one of root's", s, err)
		}
		_ = os.Remove(volume + "/new")
	}
	for _, c := range []struct {
		why    string
		change func(*runtime.UserNamespace)
	}{
		{"mapping", func(u *runtime.UserNamespace) {
			u.Uids = append(u.Uids, &runtime.IDMapping{HostId: 500000, ContainerId: 65536, Length: 10})
		}},
		{"mapping", func(u *runtime.UserNamespace) { u.Uids[0].ContainerId, u.Gids[0].ContainerId = 1, 1 }},
		{"mode", func(u *runtime.UserNamespace) { u.Mode, u.Uids, u.Gids = runtime.NamespaceMode_CONTAINER, nil, nil }},
		{"mode", func(u *runtime.UserNamespace) { u.Mode, u.Uids, u.Gids = runtime.NamespaceMode_TARGET, nil, nil }},
	} {
		n.podRefused(t, n.handler, c.why, sharing(ownUsers), sharing(func(o *runtime.NamespaceOption) { c.change(o.UsernsOptions) }))
	}
	pod := n.pod(t, sharing(ownUsers))
	n.refused(t, pod, in(pod, "true", security(func(s *runtime.LinuxContainerSecurityContext) {
		s.NamespaceOptions.UsernsOptions.Uids[0].HostId++
	})), "user namespace")
	plain := n.pod(t, sharing(func(o *runtime.NamespaceOption) {
		o.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE}
	}))
	if got := strings.Fields(n.output(t, plain, "cat /proc/self/uid_map")); len(got) != 3 || got[1] != "0" || got[2] != "4294967295" {
		t.Errorf("users of the host: mapping %q", got)
	}
}

// open lets everybody look up paths in a folder of the test's and its parents.
func open(t *testing.T, dir string) {
	t.Helper()
	for ; dir != "/" && dir != "."; dir = dir[:max(1, strings.LastIndexByte(dir, '/'))] {
		if s, err := os.Stat(dir); err == nil && s.Mode()&0o001 == 0 {
			if err := os.Chmod(dir, s.Mode()|0o011); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// podSysctls checks that sysctls are set in the pod's own namespaces, and only
// there.
func podSysctls(t *testing.T, n *node) {
	before := hostSysctls(t)
	with := func(values ...string) podOption {
		return func(c *runtime.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{}
			for i := 0; i < len(values); i += 2 {
				c.Linux.Sysctls[values[i]] = values[i+1]
			}
		}
	}
	values := []string{
		"kernel.shm_rmid_forced", "1", // safe
		"net.ipv4.ip_local_port_range", "1024 65000",
		"fs.mqueue.msg_max", "100", // unsafe
		"kernel.msgmax", "8193",
		"net.ipv4.conf.all.log_martians", "1",
	}
	const script = "cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_local_port_range fs/mqueue/msg_max kernel/msgmax net/ipv4/conf/all/log_martians | tr '\t' ' '"
	want := "1\n1024 65000\n100\n8193\n1"
	pod := n.pod(t, with(values...))
	if got := n.output(t, pod, script); got != want {
		t.Errorf("sysctls %q, want %q", got, want)
	}
	users := n.pod(t, with(values...), sharing(ownUsers))
	if got := n.output(t, users, script); got != want {
		t.Errorf("sysctls in a user namespace %q, want %q", got, want)
	}
	// containerd's defaults: every user may use low ports and ping.
	const open = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range | tr '\t' ' '"
	if got := n.output(t, pod, open); got != "0\n0 2147483647" {
		t.Errorf("low ports and ping: %q", got)
	}
	other := n.pod(t, with("net.ipv4.ip_unprivileged_port_start", "80"))
	if got := n.output(t, other, open); got != "80\n0 2147483647" {
		t.Errorf("low ports as the pod wants them, and ping: %q", got)
	}
	// Of a namespace that is shared with the host: refused, and not set.
	n.podRefused(t, n.handler, "sysctl", with("kernel.shm_rmid_forced", "1"), sharing(hostIPC))
	n.podRefused(t, n.handler, "sysctl", with("kernel.msgmax", "8193"), sharing(hostIPC))
	n.podRefused(t, n.handler, "sysctl", with("net.ipv4.ip_local_port_range", "1024 65000"), sharing(hostNetwork))
	n.podRefused(t, n.handler, "sysctl", with("kernel.panic", "7"))
	n.podRefused(t, n.handler, "sysctl", with("vm.swappiness", "61"))
	for name, value := range hostSysctls(t) {
		if before[name] != value {
			t.Errorf("the host's %s was %q and is %q", name, before[name], value)
		}
	}
}

func hostSysctls(t *testing.T) map[string]string {
	t.Helper()
	values := map[string]string{}
	for _, name := range []string{
		"kernel/shm_rmid_forced", "kernel/msgmax", "kernel/panic", "fs/mqueue/msg_max", "vm/swappiness",
		"net/ipv4/ip_local_port_range", "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range",
	} {
		text, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			t.Fatal(err)
		}
		values[name] = string(text)
	}
	return values
}

// podProcess checks a container's environment, folder, arguments and devices.
func podProcess(t *testing.T, n *node) {
	pod := n.pod(t)
	device := t.TempDir() + "/null"
	if err := unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	got := n.output(t, pod, `echo "$COLOUR $0 $1"; pwd; echo x > /dev/own && echo device; [ -t 0 ] || echo no terminal; cat; umask`,
		func(c *runtime.ContainerConfig) {
			c.Args = []string{"zero", "one two"}
			c.Envs = []*runtime.KeyValue{{Key: "COLOUR", Value: []byte("a=b c")}}
			c.WorkingDir = "/made/for/it"
			c.Devices = []*runtime.Device{{HostPath: device, ContainerPath: "/dev/own", Permissions: "rwm"}}
		})
	if want := "a=b c zero one two\n/made/for/it\ndevice\nno terminal\n0022"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	got = n.output(t, pod, "tty; echo err >&2; [ -t 0 ] && echo terminal", func(c *runtime.ContainerConfig) {
		c.Tty = true
	})
	if want := "/dev/pts/0 err terminal"; strings.Join(strings.Fields(got), " ") != want {
		t.Errorf("with a terminal: %q, want %q", got, want)
	}
	// Limits reach the process.
	got = n.output(t, pod, "grep Cpus_allowed_list /proc/self/status | tr -d '\t'", func(c *runtime.ContainerConfig) {
		c.Linux.Resources.CpusetCpus = "0"
	})
	if got != "Cpus_allowed_list:0" {
		t.Errorf("processors: %q", got)
	}
}
