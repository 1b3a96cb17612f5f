// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestValidate(t *testing.T) {
	score := 1001
	for name, r := range map[string]Request{
		"no command":             {},
		"relative directory":     {WorkDir: "x"},
		"environment":            {Env: []string{"x"}},
		"environment, no name":   {Env: []string{"=x"}},
		"target":                 {Mounts: []Mount{{Source: "/x", Target: "x"}}},
		"target is the root":     {Mounts: []Mount{{Source: "/x", Target: "/x/.."}}},
		"source":                 {Mounts: []Mount{{Source: "x", Target: "/x"}}},
		"recursive, not ro":      {Mounts: []Mount{{Source: "/x", Target: "/x", RecursiveReadOnly: true}}},
		"recursive, not private": {Mounts: []Mount{{Source: "/x", Target: "/x", ReadOnly: true, RecursiveReadOnly: true, Propagation: FromHost}}},
		"tmpfs, propagated":      {Mounts: []Mount{{Type: "tmpfs", Source: "x", Target: "/x", Propagation: FromHost}}},
		"device":                 {Devices: []Device{{Source: "null"}}},
		"permissions":            {Devices: []Device{{Source: "/dev/null", Permissions: "rx"}}},
		"capability":             {Security: Security{Add: []string{"FLY"}}},
		"seccomp":                {Security: Security{Seccomp: "profile.json"}},
		"score":                  {OOMScoreAdj: &score},
	} {
		if name != "no command" {
			r.Command = []string{"x"}
		}
		if _, err := Build(t.Context(), nil, &containers.Container{}, &r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestArgs(t *testing.T) {
	both := &ocispec.Image{Config: ocispec.ImageConfig{Entrypoint: []string{"entry"}, Cmd: []string{"cmd"}}}
	for _, c := range []struct {
		name string
		r    Request
		want []string
	}{
		{"image", Request{Image: both}, []string{"entry", "cmd"}},
		{"args", Request{Image: both, Args: []string{"a"}}, []string{"entry", "a"}},
		{"command", Request{Image: both, Command: []string{"c"}}, []string{"c"}},
		{"command and args", Request{Image: both, Command: []string{"c"}, Args: []string{"a"}}, []string{"c", "a"}},
		{"nothing", Request{Image: &ocispec.Image{}}, nil},
	} {
		s := &specs.Spec{Process: &specs.Process{}}
		err := c.r.setArgs(s)
		if diff := cmp.Diff(c.want, s.Process.Args); (err == nil) != (c.want != nil) || c.want != nil && diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", c.name, err, diff)
		}
	}
}

func TestCgroup(t *testing.T) {
	for parent, want := range map[string]string{
		"/kube/pod1":                     "/kube/pod1/id",
		"kube.slice":                     "kube.slice:berth:id",
		"/kube.slice/kube-pod1.slice":    "kube-pod1.slice:berth:id",
		"/berth/k8s.io/0123456789abcdef": "/berth/k8s.io/0123456789abcdef/id",
	} {
		if got := cgroup(parent, "id"); got != want {
			t.Errorf("%s: %s, want %s", parent, got, want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	defaults := []string{"CAP_CHOWN", "CAP_KILL"}
	for _, c := range []struct {
		name string
		q    Security
		want []string
	}{
		{"default", Security{}, defaults},
		{"add", Security{Add: []string{"net_admin"}}, []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN"}},
		{"drop", Security{Drop: []string{"CAP_KILL"}}, []string{"CAP_CHOWN"}},
		{"drop all", Security{Drop: []string{"all"}}, nil},
		{"drop all but one", Security{Drop: []string{"ALL"}, Add: []string{"SYS_TIME"}}, []string{"CAP_SYS_TIME"}},
	} {
		s := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: slices.Clone(defaults), Inheritable: defaults}}}
		must(t, c.q.setCapabilities(s))
		for _, got := range [][]string{s.Process.Capabilities.Bounding, s.Process.Capabilities.Effective, s.Process.Capabilities.Permitted} {
			if diff := cmp.Diff(c.want, got); diff != "" && len(c.want)+len(got) > 0 {
				t.Errorf("%s (-want +got):\n%s", c.name, diff)
			}
		}
		if len(s.Process.Capabilities.Inheritable) > 0 {
			t.Errorf("%s: inheritable %v", c.name, s.Process.Capabilities.Inheritable)
		}
	}
	s := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: defaults}}}
	must(t, (&Security{Add: []string{"ALL"}, Drop: []string{"KILL"}, Ambient: []string{"CHOWN", "KILL"}}).setCapabilities(s))
	p := s.Process.Capabilities
	if slices.Contains(p.Bounding, "CAP_KILL") || len(p.Bounding) < 10 || !slices.Equal(p.Ambient, []string{"CAP_CHOWN"}) {
		t.Errorf("all but one: %+v", p)
	}
}

// TestDefaults: what a container of the image gets that asks for nothing.
func TestDefaults(t *testing.T) {
	w := newWorld(t)
	out := w.run(t, &Request{Image: busybox(), Args: []string{"sh", "-c", `
		id; pwd; echo $A $B; grep -E "^(Cap(Eff|Inh|Bnd)|NoNewPrivs|Seccomp):" /proc/self/status
		touch /x && echo writable; ls /dev | tr "\n" " "; echo; cat /proc/kcore | wc -c; echo $$; mount | grep " /run " || true`}}, "")
	for _, want := range []string{
		"uid=0(root) gid=0(root)", "\n/\nimage image\n", "CapInh:\t0000000000000000", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb",
		"NoNewPrivs:\t0", "Seccomp:\t2", "\nwritable\n", " null ", "\n0\n1\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

// TestEverything: what can be asked for is so inside.
func TestEverything(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.WriteFile(dir+"/file", []byte("bound\n"), 0o644))
	must(t, os.MkdirAll(dir+"/sub", 0o755))
	must(t, unix.Mount("tmpfs", dir+"/sub", "tmpfs", 0, ""))
	defer func() { must(t, unix.Unmount(dir+"/sub", 0)) }()
	score := 500
	i := busybox()
	i.Config.Entrypoint = []string{"nothing"}
	script := `id -u; id -G; pwd; echo $A $B $C; tty
		grep -E "^(CapEff|CapAmb|NoNewPrivs|Seccomp):" /proc/self/status
		touch /x 2>&1; cat /data/file; touch /data/x 2>&1; touch /data/sub/x 2>&1 && echo recursive; touch /rro/sub/x 2>&1
		ls -d /made; ls -l /dev/other | cut -c1; cat /proc/self/oom_score_adj; ulimit -n; df /tmp | tail -1; cat /etc/shadow 2>&1; grep -c . /proc/version; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true`
	out := w.run(t, &Request{
		Image: i, Command: []string{"sh", "-c"}, Args: []string{script}, Env: []string{"B=mine", "C=more"}, WorkDir: "/bin",
		User: "1234:5678", Groups: []string{"77"}, TTY: true, OOMScoreAdj: &score,
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 99, Soft: 88}},
		Mounts: []Mount{
			{Source: dir, Target: "/rro", ReadOnly: true, RecursiveReadOnly: true},
			{Source: dir, Target: "/data", ReadOnly: true},
			{Source: dir + "/new", Target: "/made", Create: true},
			{Type: "tmpfs", Source: "tmpfs", Target: "/tmp", Options: []string{"size=64k", "mode=1777"}},
		},
		Devices:   []Device{{Source: "/dev/null", Target: "/dev/other", Permissions: "r"}},
		Resources: Resources{Memory: 64 << 20, Pids: 33, CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000},
		Security: Security{
			ReadOnlyRootfs: true, NoNewPrivileges: true, Drop: []string{"ALL"}, Add: []string{"NET_RAW", "KILL"}, Ambient: []string{"KILL"}, Seccomp: Unconfined,
			MaskedPaths: []string{"/proc/version"},
		},
	}, "")
	for _, want := range []string{
		"1234\n5678 77\n/bin\nimage mine more\n/dev/pts/0\n", "CapEff:\t0000000000000020", "CapAmb:\t0000000000000020",
		"NoNewPrivs:\t1", "Seccomp:\t0", "touch: /x: Read-only file system", "bound\n", "touch: /data/x: Read-only file system",
		"\n/made\nc\n500\n88\n", "tmpfs                       64", "\n67108864\n", "\n33\n", "touch: /rro/sub/x: Read-only file system",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

func TestPrivileged(t *testing.T) {
	w := newWorld(t)
	out := w.run(t, &Request{Image: busybox(), Args: []string{"sh", "-c", `
		grep -E "^(CapEff|Seccomp):" /proc/self/status; mount | grep " /sys " ; ls /dev | wc -l`}, Security: Security{Privileged: true}}, "")
	own, err := os.ReadFile("/proc/self/status")
	must(t, err)
	for line := range strings.SplitSeq(string(own), "\n") {
		if strings.HasPrefix(line, "CapEff:") && !strings.Contains(out, line) {
			t.Errorf("no %q in:\n%s", line, out)
		}
	}
	if !strings.Contains(out, "Seccomp:\t0") || !strings.Contains(out, "sysfs (rw") {
		t.Errorf("got:\n%s", out)
	}
}

// TestSeccompProfile: a profile of the user's.
func TestSeccompProfile(t *testing.T) {
	w := newWorld(t)
	profile := filepath.Join(t.TempDir(), "profile.json")
	must(t, os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`), 0o600))
	r := &Request{Image: busybox(), Args: []string{"sh", "-c", "mkdir /x 2>&1 || true"}, Security: Security{Seccomp: profile}}
	if out := w.run(t, r, ""); !strings.Contains(out, "not supported") {
		t.Errorf("got %q", out)
	}
	r.Security.Seccomp = profile + "x"
	if _, err := Build(w.ctx, w.Client(), &containers.Container{ID: "x", Snapshotter: "overlayfs", SnapshotKey: "x"}, r); err == nil {
		t.Error("a profile that is not there: no error")
	}
}

// TestUser: unknown users are told, known ones found, with their groups.
func TestUser(t *testing.T) {
	w := newWorld(t)
	c := w.snapshot(t, "user")
	for user, want := range map[string]error{"nobody-here": errdefs.ErrInvalidArgument, "root": nil, "1:2:3": errdefs.ErrInvalidArgument, "99999999999": errdefs.ErrInvalidArgument} {
		_, err := Build(w.ctx, w.Client(), &c, &Request{Image: busybox(), User: user})
		if want == nil && err != nil || want != nil && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), user)) {
			t.Errorf("%s: %v", user, err)
		}
	}
	if _, err := Build(w.ctx, w.Client(), &c, &Request{Image: busybox(), Groups: []string{"no-such-group"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("group: %v", err)
	}
	if _, err := Build(w.ctx, w.Client(), &c, &Request{Image: busybox(), Devices: []Device{{Source: "/dev/no"}}}); err == nil {
		t.Error("device: no error")
	}
	if _, err := Build(w.ctx, w.Client(), &c, &Request{Image: busybox(), Mounts: []Mount{{Source: "/no/such", Target: "/x"}}}); !errdefs.IsNotFound(err) {
		t.Errorf("mount: %v", err)
	}
}

func TestPropagation(t *testing.T) {
	w := newWorld(t)
	c := w.snapshot(t, "propagation")
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	build := func(p Propagation) (*specs.Spec, error) {
		return Build(w.ctx, w.Client(), &c, &Request{Image: busybox(), Mounts: []Mount{{Source: dir, Target: "/x", Propagation: p}}})
	}
	for _, p := range []Propagation{FromHost, Bidirectional} {
		if _, err := build(p); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%d of a private mount: %v", p, err)
		}
	}
	must(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	for p, want := range map[Propagation]string{Private: "rprivate", FromHost: "rslave", Bidirectional: "rshared"} {
		s, err := build(p)
		if err != nil {
			t.Errorf("%d of a shared mount: %v", p, err)
			continue
		}
		m := s.Mounts[len(s.Mounts)-1]
		root := want
		if p == Private {
			root = ""
		}
		if diff := cmp.Diff([]string{"rbind", want, "rw"}, m.Options); diff != "" || s.Linux.RootfsPropagation != root {
			t.Errorf("%d: root %q (-want +got):\n%s", p, s.Linux.RootfsPropagation, diff)
		}
	}
}

// TestOrder: what is deeper comes later, and what has a default's target takes its
// place.
func TestOrder(t *testing.T) {
	w := newWorld(t)
	c := w.snapshot(t, "order")
	s, err := Build(w.ctx, w.Client(), &c, &Request{Image: busybox(), Mounts: []Mount{
		{Source: "/etc", Target: "/a/b/c"}, {Source: "/etc", Target: "/a"}, {Source: "/dev", Target: "/dev/"}, {Source: "/sys", Target: "/sys"},
	}})
	must(t, err)
	var targets []string
	for _, m := range s.Mounts {
		targets = append(targets, m.Destination)
	}
	want := []string{"/proc", "/sys/fs/cgroup", "/a", "/dev/", "/sys", "/a/b/c"}
	if diff := cmp.Diff(want, targets); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestMember: a member of a pod is in its namespaces, has its hostname and is below
// its cgroup.
func TestMember(t *testing.T) {
	maps := []specs.LinuxIDMapping{{HostID: 200000, Size: 65536}}
	for name, c := range map[string]struct {
		options *runtime.NamespaceOption
		maps    []specs.LinuxIDMapping
	}{
		"host-network": {&runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_CONTAINER}, nil},
		"users":        {&runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_CONTAINER}, maps},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pod := "pod-" + name
			r := &Request{
				Image: busybox(), Pod: w.pod(t, pod, c.options, c.maps),
				Args:        []string{"sh", "-c", `readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts; echo $HOSTNAME; hostname; cat /proc/self/cgroup; cat /proc/self/uid_map; grep -c . /etc/hosts`},
				Annotations: map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": pod},
			}
			if c.options.Network == runtime.NamespaceMode_NODE && c.maps == nil {
				r.Pod.Linux.Namespaces = slices.DeleteFunc(r.Pod.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UTSNamespace })
			}
			out := w.run(t, r, pod)
			var st unix.Stat_t
			must(t, unix.Stat(filepath.Join("/run/berth/sandboxes", w.Namespace, pod, "ipc"), &st))
			lines := strings.Split(out, "\n")
			if want := "ipc:[" + strconv.FormatUint(st.Ino, 10) + "]"; lines[0] != want {
				t.Errorf("it is in %s, the pod in %s", lines[0], want)
			}
			if !strings.Contains(out, "/"+pod+"/c-member-") || !strings.Contains(out, "berth-pod\n") {
				t.Errorf("got:\n%s", out)
			}
			if c.maps != nil && !strings.Contains(out, "200000") {
				t.Errorf("no map in:\n%s", out)
			}
		})
	}
}
