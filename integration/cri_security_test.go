// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kernel's numbers of some capabilities.
const (
	capChown    = 0
	capNetAdmin = 12
	capNetRaw   = 13
	capSysAdmin = 21
)

// podCapabilities checks what capabilities containers get.
func podCapabilities(t *testing.T, n *node) {
	pod := n.pod(t)
	effective := func(c *runtime.Capability) uint64 {
		out := n.output(t, pod, "sed -n 's/^CapEff:\t//p' /proc/self/status", security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Capabilities = c
		}))
		mask, err := strconv.ParseUint(out, 16, 64)
		if err != nil {
			t.Errorf("capabilities %q: %v", out, err)
		}
		return mask
	}
	standard := effective(nil)
	if standard&(1<<capChown) == 0 || standard&(1<<capNetRaw) == 0 || standard&(1<<capNetAdmin|1<<capSysAdmin) != 0 {
		t.Errorf("by default capabilities are %x", standard)
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, all, _ := strings.Cut(string(own), "CapEff:\t")
	all, _, _ = strings.Cut(all, "\n")
	every, err := strconv.ParseUint(all, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change *runtime.Capability
		want   uint64
	}{
		{"add", &runtime.Capability{AddCapabilities: []string{"NET_ADMIN"}}, standard | 1<<capNetAdmin},
		{"drop", &runtime.Capability{DropCapabilities: []string{"CHOWN"}}, standard &^ (1 << capChown)},
		{"add and drop", &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}, DropCapabilities: []string{"NET_RAW"}}, standard&^(1<<capNetRaw) | 1<<capSysAdmin},
		{"add all", &runtime.Capability{AddCapabilities: []string{"ALL"}}, every},
		{"drop all", &runtime.Capability{DropCapabilities: []string{"ALL"}}, 0},
		{"drop all but one", &runtime.Capability{AddCapabilities: []string{"CHOWN"}, DropCapabilities: []string{"ALL"}}, 1 << capChown},
	} {
		if got := effective(c.change); got != c.want {
			t.Errorf("%s: %x, want %x", c.name, got, c.want)
		}
	}
	if out := n.output(t, pod, "touch /f; chown 1000 /f 2>&1 || echo refused", security(func(s *runtime.LinuxContainerSecurityContext) {
		s.Capabilities = &runtime.Capability{DropCapabilities: []string{"CHOWN"}}
	})); !strings.HasSuffix(out, "refused") {
		t.Errorf("chown without the capability: %q", out)
	}
}

// podPrivileges checks privileged containers and what unprivileged ones cannot.
func podPrivileges(t *testing.T, n *node) {
	plain := n.pod(t)
	privileged := security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true })
	n.refused(t, plain, in(plain, "true", privileged), "no privileged container allowed in sandbox")
	pod := n.pod(t, func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	const script = `
		ip link set lo mtu 1400 2>/dev/null && echo network
		[ -e /dev/kmsg ] && echo devices
		grep -q '^[0-9]* [0-9]* [0-9:]* / /sys rw' /proc/self/mountinfo && echo sysfs
		[ -c /proc/kallsyms ] || echo unmasked
		mount -t tmpfs none /tmp 2>/dev/null && echo mount
		sed -n 's/^Seccomp:\t/seccomp /p' /proc/self/status`
	want := []string{"network", "devices", "sysfs", "unmasked", "mount", "seccomp 0"}
	if got := strings.Split(n.output(t, pod, script, privileged), "\n"); !slices.Equal(got, want) {
		t.Errorf("privileged: %q, want %q", got, want)
	}
	masked := security(func(s *runtime.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"/proc/kallsyms"} })
	if got := n.output(t, pod, script, masked); got != "seccomp 0" {
		t.Errorf("unprivileged in a privileged pod: %q, want nothing", got)
	}
	for _, denied := range []bool{false, true} {
		got := n.output(t, plain, "sed -n 's/^NoNewPrivs:\t//p' /proc/self/status", security(func(s *runtime.LinuxContainerSecurityContext) {
			s.NoNewPrivs = denied
		}))
		if (got == "1") != denied {
			t.Errorf("no new privileges %v: the kernel has %q", denied, got)
		}
	}
}

// podUsers checks who containers run as.
func podUsers(t *testing.T, n *node) {
	pod := n.pod(t)
	id := func(uid int64) *runtime.Int64Value { return &runtime.Int64Value{Value: uid} }
	strict := runtime.SupplementalGroupsPolicy_Strict
	for _, c := range []struct {
		name   string
		change func(*runtime.LinuxContainerSecurityContext)
		want   string // user, group, all groups
	}{
		{"default", func(*runtime.LinuxContainerSecurityContext) {}, "0 0 0"},
		{"uid", func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUser = id(1000) }, "1000 100 100"},
		{"unknown uid", func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUser = id(12345) }, "12345 0 0"},
		{"name", func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody" }, "65534 65534 65534"},
		{"group", func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUser, s.RunAsGroup = id(1000), id(2000) }, "1000 2000 100 2000"},
		{"supplemental groups", func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = id(1000), id(2000), []int64{1234, 5678}
		}, "1000 2000 100 1234 2000 5678"},
		{"strict groups", func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = id(1000), id(2000), []int64{1234, 5678}
			s.SupplementalGroupsPolicy = strict
		}, "1000 2000 1234 2000 5678"},
	} {
		out := n.output(t, pod, "id -u; id -g; id -G | tr ' ' '\n' | sort -n", security(c.change))
		if got := strings.Join(strings.Fields(out), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	n.refused(t, pod, in(pod, "true", security(func(s *runtime.LinuxContainerSecurityContext) { s.RunAsGroup = id(2000) })), "group")
	n.refused(t, pod, in(pod, "true", security(func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUsername = "unheard-of" })), "no users found")
	// What the status says of it; and a file of a group that the container has.
	shared := t.TempDir()
	if err := os.Chown(shared, 0, 1234); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(shared, 0o770|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	container := startIn(t, n, pod, in(pod, "trap 'exit 0' TERM; touch /shared/new; sleep 100000 & wait", security(func(s *runtime.LinuxContainerSecurityContext) {
		s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = id(1000), []int64{1234}, strict
	}), mounts(&runtime.Mount{HostPath: shared, ContainerPath: "/shared"})))
	s, err := n.ContainerStatus(n.ctx(t), container)
	if err != nil {
		t.Fatal(err)
	}
	if user := s.GetUser().GetLinux(); user.GetUid() != 1000 || user.GetGid() != 100 || !slices.Contains(user.GetSupplementalGroups(), 1234) {
		t.Errorf("status has user %v", user)
	}
	if got := n.check(t, container, "stat", "-c", "%u %g", "/shared/new"); got != "1000 1234" {
		t.Errorf("a file in a folder of the group belongs to %q", got)
	}
}

// podReadOnlyRoot checks that a read-only root file system is, with everything
// that the runtime puts into it.
func podReadOnlyRoot(t *testing.T, n *node) {
	pod := n.pod(t)
	const script = `
		for f in /new /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm/new /proc/sys/kernel/domainname; do
			(echo x >> $f) 2>/dev/null && echo $f
		done; true`
	got := n.output(t, pod, script, security(func(s *runtime.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }),
		security(func(s *runtime.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/proc/sys"} }))
	if got != "/dev/shm/new" {
		t.Errorf("read-only: can write %q, want shared memory alone", got)
	}
	got = n.output(t, pod, script)
	for _, file := range []string{"/new", "/etc/hosts", "/etc/resolv.conf"} {
		if !strings.Contains(got, file) {
			t.Errorf("writable: can write %q, want %s as well", got, file)
		}
	}
}

// podPaths checks masked and read-only paths.
func podPaths(t *testing.T, n *node) {
	pod := n.pod(t)
	// A mask over a file is the null device, over a folder an empty one.
	const script = `
		[ -c /proc/kallsyms ] && echo masked file
		[ -z "$(ls /proc/scsi 2>/dev/null)" ] && grep -q ' /proc/scsi ro' /proc/self/mountinfo && echo masked folder
		grep -q ' /proc/sys ro' /proc/self/mountinfo && echo read-only; true`
	got := n.output(t, pod, script, security(func(s *runtime.LinuxContainerSecurityContext) {
		s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kallsyms", "/proc/no/such"}, []string{"/proc/sys"}
	}))
	if got != "masked file\nread-only" {
		t.Errorf("masked and read-only: %q", got)
	}
	if got := n.output(t, pod, script); strings.Contains(got, "masked file") {
		t.Errorf("nothing is to be masked: %q", got)
	}
}

// podSeccomp checks profiles of system calls.
func podSeccomp(t *testing.T, n *node) {
	pod := n.pod(t)
	profile := filepath.Join(t.TempDir(), "no-hostname.json")
	write(t, profile, `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}]}`)
	with := func(p *runtime.SecurityProfile) containerOption {
		return security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = p
			s.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		})
	}
	const script = `
		sed -n 's/^Seccomp:\t//p' /proc/self/status
		hostname changed 2>/dev/null && echo hostname
		unshare -m true 2>/dev/null && echo unshare; true`
	for _, c := range []struct {
		name    string
		profile *runtime.SecurityProfile
		want    string
	}{
		{"none", nil, "0 hostname unshare"},
		{"unconfined", &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}, "0 hostname unshare"},
		{"default", &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}, "2 hostname unshare"},
		{"localhost", &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: profile}, "2 unshare"},
	} {
		if got := strings.Join(strings.Fields(n.output(t, pod, script, with(c.profile))), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	// Without the capability the default profile refuses more than the kernel.
	got := n.output(t, pod, "unshare -U true 2>/dev/null && echo unshare; true", security(func(s *runtime.LinuxContainerSecurityContext) {
		s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
	}))
	if got != "" {
		t.Error("the default profile lets a container make a user namespace")
	}
	n.refused(t, pod, in(pod, "true", with(&runtime.SecurityProfile{
		ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: profile + ".missing",
	})), "no-hostname.json.missing")
	// A profile for the pod is none for its containers, and does no harm.
	strict := n.pod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
		c.Linux.SecurityContext.SelinuxOptions = &runtime.SELinuxOption{Level: "s0:c1,c2"}
	})
	if got := n.output(t, strict, "echo runs", security(func(s *runtime.LinuxContainerSecurityContext) {
		s.SelinuxOptions = &runtime.SELinuxOption{Level: "s0:c1,c2"}
	})); got != "runs" {
		t.Errorf("container in a pod with a profile and a label: %q", got)
	}
}

// podAppArmor runs a container under a profile, where the machine has AppArmor.
func podAppArmor(t *testing.T, n *node) {
	// What containerd goes by.
	for _, path := range []string{"/sys/kernel/security/apparmor", "/sbin/apparmor_parser"} {
		if _, err := os.Stat(path); err != nil {
			t.Skip("no AppArmor on this machine, or not its tools")
		}
	}
	pod := n.pod(t)
	got := n.output(t, pod, "cat /proc/self/attr/current", security(func(s *runtime.LinuxContainerSecurityContext) {
		s.Apparmor = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
	}))
	if !strings.Contains(got, "cri-containerd") {
		t.Errorf("profile %q, want containerd's", got)
	}
}

// mounts is a containerOption for volumes.
func mounts(m ...*runtime.Mount) containerOption {
	return func(c *runtime.ContainerConfig) { c.Mounts = append(c.Mounts, m...) }
}
