// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/programs"
)

// Parts of a host below the folder that is one.
const (
	hostConfig   = "/etc/containerd/config.toml"
	hostHandler  = "/etc/containerd/conf.d/berth.toml"
	hostBin      = "/usr/local/bin"
	hostShim     = hostBin + "/containerd-shim-berth-v1"
	hostVerifier = "/opt/containerd/image-verifier/bin/berth-verify"
)

// machine is a folder that stands for a host's file system.
type machine struct {
	root       string
	containerd string // the program that installations are told of
}

// newMachine makes one with files.
func newMachine(t *testing.T, files map[string]string) *machine {
	t.Helper()
	m := &machine{root: shortDir(t), containerd: host.Containerd()}
	for path, text := range files {
		write(t, m.root+path, text)
	}
	return m
}

// usual are the files of a node with a configuration of somebody's.
func usual() map[string]string {
	return map[string]string{
		hostConfig: "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n",
		"/etc/containerd/conf.d/other.toml": `version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.other]
  runtime_type = 'io.containerd.runc.v2'
`,
		policyFile:                `{"default": [{"type": "insecureAcceptAnything"}]}`,
		hostBin + "/berth-verify": "#!/bin/sh\n# of somebody's\n",
	}
}

// berth executes `berth VERB --root ROOT`.
func (m *machine) berth(verb string, args ...string) (string, error) {
	all := append([]string{verb, "--root", m.root}, args...)
	if verb == "install" {
		all = append(all, "--containerd", m.containerd)
	}
	out, err := exec.Command(host.Build("bin/berth"), all...).CombinedOutput()
	return string(out), err
}

func (m *machine) must(t *testing.T, verb string, args ...string) string {
	t.Helper()
	out, err := m.berth(verb, args...)
	if err != nil {
		t.Fatalf("%s %v: %v: %s", verb, args, err, out)
	}
	return out
}

// refuses wants a command to fail with texts and to change nothing.
func (m *machine) refuses(t *testing.T, wants []string, verb string, args ...string) {
	t.Helper()
	before := m.files(t)
	out, err := m.berth(verb, args...)
	var ended *exec.ExitError
	if !errors.As(err, &ended) || ended.ExitCode() != 125 {
		t.Errorf("%s %v: %v, want exit code 125: %s", verb, args, err, out)
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("%s %v: %q is not in: %s", verb, args, want, out)
		}
	}
	if diff := cmp.Diff(before, m.files(t)); diff != "" {
		t.Errorf("%s %v has changed something: %s", verb, args, diff)
	}
}

// files are all files with what they are and hold.
func (m *machine) files(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(m.root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		what := info.Mode().String()
		switch info.Mode().Type() {
		case 0:
			text, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			what += " " + info.ModTime().String() + " " + string(text)
		case fs.ModeSymlink:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			what += " " + target
		}
		all[strings.TrimPrefix(name, m.root)] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// hasText wants texts in a file.
func (m *machine) hasText(t *testing.T, path string, wants ...string) {
	t.Helper()
	text, err := os.ReadFile(m.root + path)
	if err != nil {
		t.Error(err)
	}
	for _, want := range wants {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %q: %s", path, want, text)
		}
	}
}

// A host is installed, a containerd with what is there runs a pod with the shim that
// is there, and afterwards the host is as it was.
func TestInstall(t *testing.T) {
	m := newMachine(t, usual())
	before := m.files(t)
	out := m.must(t, "install", "--dry-run")
	for _, want := range []string{"would install  " + hostShim, "would replace  " + hostBin + "/berth-verify", "would install  " + hostHandler, "would install  " + hostVerifier} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in: %s", want, out)
		}
	}
	if diff := cmp.Diff(before, m.files(t)); diff != "" {
		t.Fatalf("a dry run: %s", diff)
	}
	out = m.must(t, "install")
	for _, want := range []string{"install        " + hostShim, "systemctl restart containerd.service", "kind: RuntimeClass", "handler: berth"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in: %s", want, out)
		}
	}
	if strings.Contains(out, hostConfig+" (") {
		t.Errorf("a configuration that imports has been touched: %s", out)
	}
	after := m.files(t)
	if out = m.must(t, "install"); !strings.Contains(out, "nothing has changed") {
		t.Errorf("again: %s", out)
	}
	if diff := cmp.Diff(after, m.files(t)); diff != "" {
		t.Errorf("again: %s", diff)
	}
	if target, err := os.Readlink(m.root + hostVerifier); err != nil || filepath.Join(filepath.Dir(hostVerifier), target) != hostBin+"/berth-verify" {
		t.Errorf("verifier: %s, %v", target, err)
	}

	// As the host sees it.
	text, err := os.ReadFile(m.root + hostConfig)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.toml")
	write(t, config, strings.ReplaceAll(string(text), "'/etc/", "'"+m.root+"/etc/"))
	n := importingNode(t, config, false, []string{m.root + hostBin})
	n.sub(t, "pod", func(t *testing.T, n *node) {
		pod := n.podOf(t, "berth")
		container := startIn(t, n, pod, idle("a"))
		m.refuses(t, []string{m.root + hostShim + " runs for", criNamespace + "/" + container, criNamespace + "/" + pod.ID, "nothing was done"}, "uninstall")
		documentedPod(t, n, "berth", false)
	})
	if err := n.Daemon.Stop(); err != nil {
		t.Fatal(err)
	}

	out = m.must(t, "uninstall", "--dry-run")
	if !strings.Contains(out, "would restore  "+hostBin+"/berth-verify") {
		t.Error(out)
	}
	if diff := cmp.Diff(after, m.files(t)); diff != "" {
		t.Errorf("a dry run: %s", diff)
	}
	out = m.must(t, "uninstall")
	if !strings.Contains(out, "remove         "+hostHandler) {
		t.Error(out)
	}
	if diff := cmp.Diff(before, m.files(t)); diff != "" {
		t.Error(diff)
	}
	if out = m.must(t, "uninstall"); !strings.Contains(out, "nothing is installed") {
		t.Errorf("again: %s", out)
	}
}

// An empty host gets a configuration, and the proxy that is installed serves the
// containerd that reads it.
func TestInstallProxy(t *testing.T) {
	m := newMachine(t, nil)
	write(t, m.root+"/etc/berth/berth.toml", fmt.Sprintf("[proxy]\naddress = '%[1]s/p.sock'\n[snapshotter]\nroot_path = '%[1]s/layers'\n", shortDir(t)))
	before := m.files(t)
	out := m.must(t, "install", "--proxy")
	if !strings.Contains(out, "systemctl enable --now berthd-proxy.socket berthd-proxy.service") || !strings.Contains(out, policyFile+" is not there") {
		t.Error(out)
	}
	m.hasText(t, hostConfig, "imports")
	m.hasText(t, hostHandler, "snapshotter = 'berth'")
	m.hasText(t, "/etc/systemd/system/berthd-proxy.service", "ExecStart="+hostBin+"/berthd proxy")
	m.hasText(t, "/etc/systemd/system/berthd-proxy.socket", "/p.sock\n")
	if _, err := os.Lstat(m.root + hostVerifier); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a policy a verifier refuses all: %v", err)
	}

	b := &berthd{dir: shortDir(t), program: m.root + hostBin + "/berthd", config: m.root + "/etc/berth/berth.toml"}
	b.start(t)
	n := importingNode(t, m.root+hostConfig, false, []string{m.root + hostBin})
	// The kubelet's pulls unpack as this does.
	if err := quietly(n.Ctr("-n", criNamespace, "images", "import", "--snapshotter", "berth", host.Deps("images/web.tar"))); err != nil {
		t.Error(err)
	}
	pod := func(t *testing.T, n *node) {
		startIn(t, n, n.podOf(t, "berth"), idle("a"))
		if got, err := n.Ctr("-n", criNamespace, "snapshots", "--snapshotter", "berth", "ls").CombinedOutput(); err != nil || !strings.Contains(string(got), "Active") {
			t.Errorf("snapshots: %v: %s", err, got)
		}
	}
	// The first one has containerd make connections, which stay.
	t.Run("first pod", func(t *testing.T) { pod(t, n) })
	n.sub(t, "pod", pod)
	m.refuses(t, []string{m.root + hostBin + "/berthd runs for process"}, "uninstall")
	if err := b.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-b.ended
	if err := n.Daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	m.must(t, "uninstall")
	if diff := cmp.Diff(before, m.files(t)); diff != "" {
		t.Error(diff)
	}
}

// What is in the way is named, and nothing is changed.
func TestInstallRefuses(t *testing.T) {
	m := newMachine(t, usual())
	m.refuses(t, []string{m.root + "/etc/containerd/conf.d/other.toml", `a runtime handler "other"`, "--handler"}, "install", "--handler", "other")
	m.refuses(t, []string{"no/such/berth: no such file or directory", "--from"}, "install", "--from", "no/such")
	m.refuses(t, []string{`--bin-dir: "bin" is not an absolute path`}, "install", "--bin-dir", "bin")
	m.refuses(t, []string{"is not this host"}, "install", "--restart")
	m.refuses(t, []string{`--handler: "a b"`}, "install", "--handler", "a b")

	old := programs.Write(t, m.root+"-old", "#!/bin/sh\necho containerd github.com/containerd/containerd v1.7.30 abcdef\n")
	t.Cleanup(func() { _ = os.Remove(old) })
	m.containerd = old
	m.refuses(t, []string{old + " is containerd 1.7, and 2.0 or later is needed"}, "install")
	m.containerd = m.root + "/none"
	m.refuses(t, []string{m.root + "/none: no such file or directory"}, "install")
	m.containerd = host.Containerd()

	write(t, m.root+"/etc/containerd/conf.d/broken.toml", "version = 3\n[plugins\n")
	m.refuses(t, []string{m.root + "/etc/containerd/conf.d/broken.toml"}, "install")
	if err := os.Remove(m.root + "/etc/containerd/conf.d/broken.toml"); err != nil {
		t.Fatal(err)
	}

	before := m.files(t)
	m.must(t, "install")
	write(t, m.root+hostHandler, "version = 3\n")
	m.refuses(t, []string{m.root + hostHandler + " was changed", "--force"}, "install")
	m.refuses(t, []string{m.root + hostHandler + " was changed", "nothing was done"}, "uninstall")
	m.must(t, "install", "--force")
	m.hasText(t, hostHandler, "runtimes.'berth'")
	write(t, m.root+hostHandler, "version = 3\n")
	m.must(t, "uninstall", "--force")
	if diff := cmp.Diff(before, m.files(t)); diff != "" {
		t.Error(diff)
	}
}

// A configuration that imports nothing is edited only if that is asked for.
func TestInstallImports(t *testing.T) {
	const line = "imports = ['conf.d/*.toml']"
	m := newMachine(t, map[string]string{hostConfig: "version = 3\n[debug]\n  level = 'info'\n"})
	before := m.files(t)
	if out := m.must(t, "install"); !strings.Contains(out, m.root+hostConfig+" does not import "+filepath.Dir(hostHandler)) || !strings.Contains(out, line) {
		t.Error(out)
	}
	if got := m.files(t)[hostConfig]; got != before[hostConfig] {
		t.Errorf("the configuration is %s", got)
	}
	m.must(t, "install", "--edit-config")
	m.hasText(t, hostConfig, line, "level = 'info'")
	if out, err := exec.Command(host.Containerd(), "--config", m.root+hostConfig, "config", "dump").Output(); err != nil || !strings.Contains(string(out), "runtimes.berth]") {
		t.Errorf("containerd does not read it: %v: %s", err, out)
	}
	// Somebody else's file, which is read because of the line.
	other := "/etc/containerd/conf.d/other.toml"
	write(t, m.root+other, "version = 3\n")
	if out := m.must(t, "uninstall", "--dry-run"); !strings.Contains(out, "stays          "+hostConfig+" (containerd reads "+other+" because of it)") {
		t.Error(out)
	}
	if err := os.Remove(m.root + other); err != nil {
		t.Fatal(err)
	}
	m.must(t, "uninstall")
	if diff := cmp.Diff(before, m.files(t)); diff != "" {
		t.Error(diff)
	}

	m = newMachine(t, map[string]string{hostConfig: "version = 3\nimports = []\n"})
	m.refuses(t, []string{m.root + hostConfig + " has imports already"}, "install", "--edit-config")
}

// Killed at any time, it is finished by another installation or undone.
func TestInstallKilled(t *testing.T) {
	m := newMachine(t, usual())
	before := m.files(t)
	record := m.root + "/var/lib/berth/install.json"
	inTheMiddle := 0
	for i := range 24 {
		cmd := exec.Command(host.Build("bin/berth"), "install", "--root", m.root, "--containerd", m.containerd)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() string {
			if _, err := os.Stat(record); err != nil {
				return err.Error()
			}
			return ""
		})
		kill := time.AfterFunc(time.Duration(i)*4*time.Millisecond, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
		text, err := os.ReadFile(record)
		var r struct{ Phase string }
		if err := errors.Join(err, json.Unmarshal(text, &r)); err != nil {
			t.Fatal(err)
		}
		if r.Phase == "installing" {
			inTheMiddle++
		}
		if i%2 == 0 {
			m.must(t, "install")
		}
		m.must(t, "uninstall")
		if diff := cmp.Diff(before, m.files(t)); diff != "" {
			t.Fatalf("kill no. %d, %s: %s", i, r.Phase, diff)
		}
	}
	if inTheMiddle == 0 {
		t.Error("no kill came in the middle")
	}
	t.Logf("%d kills came in the middle", inTheMiddle)
}

// On the host itself it looks at the host first.
func TestInstallHere(t *testing.T) {
	cmd := exec.Command(host.Build("bin/berth"), "install", "--dry-run", "--force", "--containerd", host.Containerd())
	out, err := cmd.CombinedOutput()
	for _, want := range []string{"found          " + host.Containerd() + ", containerd 2.", "found          kernel: Linux ", "found          cgroups: ", "would install  " + hostHandler} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %q is not in: %s", err, want, out)
		}
	}
	if _, err := os.Stat(hostHandler); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", hostHandler, err)
	}
}
