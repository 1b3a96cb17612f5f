// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/berthd/berth/integration/host"
)

func TestMain(m *testing.M) {
	host.EnterOffline()
	os.Exit(m.Run())
}

func examine(t *testing.T, d *Doctor) map[string]Check {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	byName := map[string]Check{}
	for _, c := range d.Examine(ctx) {
		if _, twice := byName[c.Name]; twice || c.Name == "" {
			t.Errorf("name %q twice or empty", c.Name)
		}
		byName[c.Name] = c
		if c.NeededFor == "" || c.Found == "" || (c.Status == OK) != (c.Remedy == "") || strings.Contains(c.Found, "\n") {
			t.Errorf("incomplete: %+v", c)
		}
		t.Logf("%-28s %-8s %s", c.Name, c.Status, c.Found)
	}
	return byName
}

func expect(t *testing.T, got map[string]Check, want map[string]Status) {
	t.Helper()
	for name, status := range want {
		if c, ok := got[name]; !ok || c.Status != status {
			t.Errorf("%s: %+v, want %s", name, c, status)
		}
	}
}

// This machine, with a containerd of the test's own that has everything.
func TestMachine(t *testing.T) {
	conf, err := host.Network()
	if err != nil {
		t.Fatal(err)
	}
	verifiers := t.TempDir()
	if err := os.Symlink(host.Build("bin/berth-verify"), filepath.Join(verifiers, "berth-verify")); err != nil {
		t.Fatal(err)
	}
	d := host.Run(t, host.Options{CRI: true, TOML: `
[plugins.'io.containerd.image-verifier.v1.bindir']
  bin_dir = "` + verifiers + `"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.berth]
  runtime_type = "io.containerd.berth.v1"
  sandboxer = "shim"
  disable_pause_image_pull = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dropin]
  runtime_type = "io.containerd.runc.v2"
  runtime_path = "` + host.Build("bin/containerd-shim-berth-v1") + `"
`})
	got := examine(t, &Doctor{Client: d.Client(), ConfDir: conf, BinDirs: []string{host.Deps("cni")}})
	expect(t, got, map[string]Status{
		"kernel": OK, "pidfd": OK, "overlayfs": OK, "cgroups": OK, "cgroup memory": OK, "cgroup pids": OK, "CAP_SYS_ADMIN": OK, "seccomp": OK,
		"containerd": OK, "image verifier": OK, "verified CRI pulls": OK, "restore of checkpoints": OK, "sandbox controller": OK, "snapshotter": OK, "diff service": OK, "shim": OK,
		"CRI handler": OK, "pods without pause": OK, "runc": OK, "crun": OK, "CRIU": OK, "CNI configuration": OK, "CNI plugins": OK, "runtime handlers": OK,
	})
	if found := got["CRI handler"].Found; !strings.Contains(found, "berth, dropin") {
		t.Errorf("handlers: %s", found)
	}
	if found := got["image verifier"].Found; !strings.Contains(found, verifiers) || !strings.Contains(found, "--local") {
		t.Errorf("image verifier: %s", found)
	}
	if found := got["CNI plugins"].Found; found != "bridge, host-local" {
		t.Errorf("plugins: %s", found)
	}
}

// A containerd that knows nothing of berth, in a PATH without programs.
func TestStranger(t *testing.T) {
	empty := t.TempDir()
	d := host.Run(t, host.Options{CRI: true, Path: []string{empty}, TOML: `
[plugins.'io.containerd.cri.v1.images']
  discard_unpacked_layers = true
  max_concurrent_downloads = 5
`})
	file := filepath.Join(empty, "berth.toml")
	if err := os.WriteFile(file, []byte("[runtime]\nx = 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(empty, "net")
	if err := os.Mkdir(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	doctor := &Doctor{Client: d.Client(), ConfDir: conf, BinDirs: []string{empty}, Path: empty, Handlers: file}
	want := map[string]Status{
		"containerd": OK, "image verifier": Warn, "verified CRI pulls": Warn, "CRI handler": Warn, "runc": Missing, "crun": Warn, "CRIU": Warn, "CNI configuration": Warn, "runtime handlers": Missing,
	}
	stranger := examine(t, doctor)
	expect(t, stranger, want)
	if found := stranger["verified CRI pulls"].Found; !strings.HasSuffix(found, ": discard_unpacked_layers = true, max_concurrent_downloads = 5") {
		t.Errorf("CRI pulls: %s", found)
	}
	if err := os.WriteFile(filepath.Join(conf, "1.conflist"), []byte(`{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	got := examine(t, doctor)
	expect(t, got, map[string]Status{"CNI configuration": OK, "CNI plugins": Warn, "packet filter": Warn})
	for _, name := range []string{"bridge", "host-local", "portmap"} {
		if !strings.Contains(got["CNI plugins"].Found, name) {
			t.Errorf("%s is not named: %s", name, got["CNI plugins"].Found)
		}
	}
}

func TestNoContainerd(t *testing.T) {
	expect(t, examine(t, &Doctor{}), map[string]Status{"containerd": Missing, "CRI handler": Warn, "image verifier": Warn})
}

// Machines that this one is not.
func TestMachines(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  map[string]Status
		mode  string
	}{
		"new": {map[string]string{
			"proc/sys/kernel/osrelease": "6.1.0-13-amd64\n", "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma\n",
			"proc/self/status": "Name:\tx\nCapEff:\t000001ffffffffff\n", "proc/sys/kernel/seccomp/actions_avail": "kill_process errno user_notif allow",
			"sys/module/apparmor/parameters/enabled": "Y\n", "sbin/apparmor_parser": "", "sys/fs/selinux/enforce": "1", "proc/swaps": "Filename",
			"proc/sys/user/max_user_namespaces": "1000", "proc/self/ns/user": "", "proc/filesystems": "nodev\tsysfs\nnodev\toverlay\n", "run/systemd/system/x": "",
		}, map[string]Status{
			"kernel": OK, "cgroups": OK, "cgroup cpu": OK, "cgroup io": OK, "CAP_SYS_RESOURCE": OK, "seccomp notifier": OK, "AppArmor": OK, "SELinux": OK,
			"user namespaces": OK, "overlayfs": OK, "systemd": OK, "swap accounting": OK,
		}, "version 2"},
		"old": {map[string]string{
			"proc/sys/kernel/osrelease": "4.19.0", "proc/self/cgroup": "3:memory:/\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n",
			"sys/fs/cgroup/memory/x": "", "sys/fs/cgroup/cpu/x": "", "sys/fs/cgroup/unified/cgroup.procs": "",
			"proc/self/status": "CapEff:\t0\n", "proc/sys/user/max_user_namespaces": "0", "proc/self/ns/user": "",
		}, map[string]Status{
			"kernel": Missing, "cgroups": OK, "cgroup hierarchy": Warn, "cgroup memory": OK, "cgroup cpu": OK, "cgroup pids": Missing, "cgroup freezer": Missing,
			"CAP_SYS_ADMIN": Missing, "CAP_SYS_RESOURCE": Warn, "seccomp": Warn, "AppArmor": Warn, "SELinux": Warn, "user namespaces": Warn, "overlayfs": Missing,
			"recursive read-only mounts": Warn, "systemd": Warn, "swap accounting": Warn,
		}, "hybrid"},
		"none": {map[string]string{"x": ""}, map[string]Status{"cgroups": Missing, "kernel": Missing}, "nothing is mounted"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for path, text := range c.files {
				path = filepath.Join(dir, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got := examine(t, &Doctor{root: dir})
			expect(t, got, c.want)
			if got["cgroups"].Found != c.mode {
				t.Errorf("cgroups: %s", got["cgroups"].Found)
			}
		})
	}
}

func TestLocalPulls(t *testing.T) {
	for name, c := range map[string]struct {
		options string
		want    []string
	}{
		"defaults":  {"use_local_image_pull = false\ndisable_snapshot_annotations = true\nmax_concurrent_downloads = 3", nil},
		"old":       {"", []string{"this containerd's CRI plugin always does"}},
		"asked for": {"use_local_image_pull = true", []string{"use_local_image_pull = true"}},
		"registry": {
			"use_local_image_pull = false\nimage_pull_with_sync_fs = true\ndisable_snapshot_annotations = false\n[registry.mirrors.x]\n[registry.auths.x]\n[registry.configs.x]",
			[]string{"disable_snapshot_annotations = false", "image_pull_with_sync_fs = true", "registry.mirrors", "registry.configs", "registry.auths"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var pulls criPulls
			if err := toml.Unmarshal([]byte(c.options), &pulls); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, pulls.local()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestVerifierIn(t *testing.T) {
	dir := t.TempDir()
	if _, err := verifierIn(dir+"/none", 10); err == nil {
		t.Error("found in no folder")
	}
	if _, err := verifierIn(dir, 10); err == nil {
		t.Error("found in an empty folder")
	}
	for name, mode := range map[string]os.FileMode{"another": 0o755, "berth-verify.sh": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := verifierIn(dir, 10); err == nil {
		t.Error("found though it cannot be executed")
	}
	if err := os.Chmod(filepath.Join(dir, "berth-verify.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := verifierIn(dir, 1); err == nil {
		t.Error("found though it is one too many")
	}
	for _, limit := range []int{2, -1} {
		if got, err := verifierIn(dir, limit); err != nil || got != filepath.Join(dir, "berth-verify.sh") {
			t.Errorf("limit %d: %s, %v", limit, got, err)
		}
	}
}

func TestConfigFlag(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"containerd", ""},
		{"containerd -c a.toml", "-c a.toml"},
		{"containerd --log-level debug --config=a.toml", "--config=a.toml"},
		{"containerd -config", ""},
	} {
		if got := strings.Join(configFlag(strings.Fields(c.line)), " "); got != c.want {
			t.Errorf("%s: %q", c.line, got)
		}
	}
}

func TestAtLeast(t *testing.T) {
	for _, c := range []struct {
		version, least string
		want           bool
	}{
		{"6.1.0-13-amd64", "5.4", true},
		{"5.4", "5.4", true},
		{"5.4.0", "5.4", true},
		{"5.3.99", "5.4", false},
		{"4.20", "5.4", false},
		{"5.10", "5.4", true},
		{"", "5.4", false},
		{"2.4.2+unknown", "2.1", true},
	} {
		if got := atLeast(c.version, c.least); got != c.want {
			t.Errorf("%q at least %q: %v", c.version, c.least, got)
		}
	}
}

func TestWorst(t *testing.T) {
	if got := Worst(nil); got != OK {
		t.Error(got)
	}
	if got := Worst([]Check{{Status: OK}, {Status: Missing}, {Status: Warn}}); got != Missing {
		t.Error(got)
	}
}
